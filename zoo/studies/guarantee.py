"""Shows whether guaranteed thresholds keep their promise, and what it costs.

Example:

  python -m zoo.studies.guarantee --run_dir=runs/lenet --rows=2000 \
    --max_accuracy_drop=0.01 --guarantee=0.95 --fixed_thresholds=0.025

First, on many draws of --rows from the real scores of validation and test split:
how often the risk of the chosen thresholds is above --max_accuracy_drop on all
of them. Then the choices of the run's own validation split, and fixed thresholds,
as they do on the test split. Writes guarantee_study.json to --run_dir.
"""

from typing import Any

import numpy as np
from absl import flags, logging
from tabulate import tabulate
from tqdm import tqdm

from branchy_tf import (
    calibration,
    command_line,
    costs,
    exits,
    files,
    scoring,
    thresholds,
)
from branchy_tf.confidence import CRITERIA
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.training import RunFolder
from zoo.studies.resampling import violations

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder of a training; read and written.")
flags.DEFINE_enum("criterion", "entropy", list(CRITERIA), "Score of an exit.")
flags.DEFINE_float("max_accuracy_drop", 0.01, "What the risk is to stay below.")
flags.DEFINE_float("guarantee", 0.95, "The probability that is promised.")
flags.DEFINE_enum(
    "risk", "lost", ["lost", "disagreement"], "What is promised; see calibrate."
)
flags.DEFINE_integer("rows", 2000, "Rows of a calibration.", lower_bound=2)
flags.DEFINE_integer("resamplings", 1000, "How many calibrations.", lower_bound=1)
flags.DEFINE_list(
    "fixed_thresholds",
    None,
    "Thresholds to compare with, for entropy without temperatures, e.g. a paper's.",
)
command_line.define_data(required=False)
command_line.define_seed(default=None)


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder of a training.")
    thresholds.check_guarantee(FLAGS.guarantee, FLAGS.max_accuracy_drop, FLAGS.rows)
    folder = RunFolder(FLAGS.run_dir)
    model = folder.load_model()
    names = exits.exit_names(model)
    fixed = command_line.parse_numbers("fixed_thresholds", FLAGS.fixed_thresholds)
    if fixed is not None:
        thresholds.check(fixed, len(names))
    dataset = command_line.chosen_dataset(folder, model)
    macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    predictor = LogitsPredictor(model)
    validation = scoring.every_exit(predictor, dataset.validation)
    test = scoring.every_exit(predictor, dataset.test)

    every = scoring.answers(
        np.concatenate([validation, test]),
        np.concatenate([dataset.validation.labels, dataset.test.labels]),
        ExitPolicy.to_the_end(len(names)).replace(criterion=FLAGS.criterion),
    )
    with tqdm(total=FLAGS.resamplings, unit=" calibrations", desc="resampling") as bar:
        kept = calibration.kept(every, FLAGS.risk)
        resampled = violations(
            every.scores,
            kept,
            macs,
            FLAGS.max_accuracy_drop,
            FLAGS.guarantee,
            FLAGS.rows,
            FLAGS.resamplings,
            FLAGS.seed or 0,
            bar.update,
        )
    for row in resampled:
        row["gain"] = full_macs / row["mean_cost"]
    choices = _choices(validation, dataset, macs, fixed)
    tested = [
        {"choice": name} | _tested(policy, test, dataset.test.labels, macs, full_macs)
        for name, policy in choices.items()
    ]
    result = {
        "dataset": dataset.name,
        "criterion": FLAGS.criterion,
        "risk": FLAGS.risk,
        "max_risk": FLAGS.max_accuracy_drop,
        "level": FLAGS.guarantee,
        "rows": FLAGS.rows,
        "population": len(every.labels),
        "resampled": resampled,
        "test": tested,
    }
    path = folder.path / "guarantee_study.json"
    files.write_json(path, result)
    _print(result)
    logging.info("Wrote %s.", path)


def _choices(logits, dataset, macs, fixed) -> dict[str, ExitPolicy]:
    """What each way chooses on the validation split."""
    wanted: dict[str, tuple[dict[str, Any], str]] = {
        "plain, no less accurate": ({}, "accuracy"),
        "plain": ({"max_accuracy_drop": FLAGS.max_accuracy_drop}, FLAGS.risk),
    }
    for level in (FLAGS.guarantee, thresholds.EXPECTATION):
        budget = {"max_accuracy_drop": FLAGS.max_accuracy_drop, "guarantee": level}
        wanted[f"guaranteed, {level}"] = (budget, FLAGS.risk)
    labels = dataset.validation.labels
    choices = {}
    for name, (budget, risk) in wanted.items():
        request = calibration.Request(budget, FLAGS.criterion, risk)
        try:
            found = calibration.calibrate(logits, labels, macs, request)
        except BranchyError as error:
            # The other rows are worth having without it.
            logging.warning("Left out: %s. %s", name, error)
            continue
        choices[name] = found.policy
    if fixed is not None:
        choices["fixed"] = ExitPolicy(thresholds=fixed)
    return choices


def _tested(policy, logits, labels, macs, full_macs) -> dict[str, Any]:
    every = scoring.answers(logits, labels, policy)
    limits = policy.thresholds
    correct = every.correct
    exits_taken = thresholds.exit_indices(every.scores, limits)
    right = correct[np.arange(len(labels)), exits_taken]
    point = thresholds.evaluate(every.scores, correct, macs, limits)
    low, high = thresholds.bootstrap(every.scores, correct, macs, limits)["cost"]
    return {
        "thresholds": point.thresholds,
        "accuracy": point.accuracy,
        "accuracy_interval": scoring.wilson_interval(right),
        "drop": correct[:, -1].mean() - point.accuracy,
        "drop_interval": scoring.paired_interval(correct[:, -1], right),
        "lost": (correct[:, -1] & ~right).mean(),
        "gain": full_macs / point.cost,
        "gain_interval": [full_macs / high, full_macs / low],
    }


def _print(result: dict) -> None:
    print(
        f"\n{result['rows']:,} rows a calibration, drawn from {result['population']:,} "
        f"real ones; risk {result['risk']}, at most {result['max_risk']} with "
        f"probability {result['level']} (violations at most {1 - result['level']:.3g}):\n"
    )
    rows = [
        [
            row["choice"],
            f"{row['violations']} of {row['resamplings']}",
            f"{row['share']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})",
            f"{row['mean_risk']:.5f}",
            f"{row['gain']:.3f}x",
            row["nothing_passed"],
        ]
        for row in result["resampled"]
    ]
    head = ["choice", "violations", "share (95 % interval)", "mean risk", "gain", "T=0"]
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    print("\nChosen on the validation split, counted on the test split:\n")
    rows = [
        [
            row["choice"],
            ", ".join(f"{t:.4g}" for t in row["thresholds"]),
            _between(row["accuracy"], row["accuracy_interval"], 100),
            _between(row["drop"], row["drop_interval"], 100),
            f"{100 * row['lost']:.2f}",
            _between(row["gain"], row["gain_interval"], 1),
        ]
        for row in result["test"]
    ]
    head = ["choice", "thresholds", "accuracy %", "drop, points", "lost %", "gain"]
    print(tabulate(rows, head, stralign="right", disable_numparse=True))


def _between(value: float, interval: list, factor: float) -> str:
    low, high = (factor * bound for bound in interval)
    return f"{factor * value:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    command_line.run(main)
