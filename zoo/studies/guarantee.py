r"""Shows whether guaranteed thresholds keep their guarantee, and at what cost.

Example:

  python -m zoo.studies.guarantee --run_dir=runs/lenet --rows=2000 \
    --max_accuracy_drop=0.01 --guarantee=0.95 --fixed_thresholds=0.025

Pools the real scores of the validation and the test split and samples many calibration
sets of --rows images from them. Reports how often the risk of the chosen thresholds, over
the whole pool, exceeds --max_accuracy_drop. Then evaluates on the test split the
thresholds chosen on the run's own validation split, and any fixed thresholds. Writes
guarantee_study.json to --run_dir.
"""

from collections.abc import Sequence
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
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import CRITERIA
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.training import RunFolder
from zoo.studies.resampling import violations

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder of a training run; read and written.")
flags.DEFINE_enum("criterion", "entropy", list(CRITERIA), "Score that exits use.")
flags.DEFINE_float("max_accuracy_drop", 0.01, "Maximum risk, a fraction of 1.")
flags.DEFINE_float("guarantee", 0.95, "Probability that the risk stays within.")
flags.DEFINE_enum(
    "risk", "lost", ["lost", "disagreement"], "The risk to bound; see calibrate."
)
flags.DEFINE_integer("rows", 2000, "Rows in each calibration set.", lower_bound=2)
flags.DEFINE_integer("resamplings", 1000, "Number of calibration sets.", lower_bound=1)
flags.DEFINE_list(
    "fixed_thresholds",
    None,
    "Thresholds to compare with, comma-separated, for the entropy of logits without "
    "temperatures, e.g. those of a paper.",
)
command_line.define_data(required=False)
command_line.define_seed(default=None)


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder of a training run.")
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

    pool = scoring.answers(
        np.concatenate([validation, test]),
        np.concatenate([dataset.validation.labels, dataset.test.labels]),
        ExitPolicy.final_exit_only(len(names)).replace(criterion=FLAGS.criterion),
    )
    with tqdm(total=FLAGS.resamplings, unit=" calibrations", desc="resampling") as bar:
        resampled = violations(
            pool.scores,
            calibration.retained(pool, FLAGS.risk),
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
        "population": len(pool.labels),
        "resampled": resampled,
        "test": tested,
    }
    path = folder.path / "guarantee_study.json"
    files.write_json(path, result)
    _print(result)
    logging.info("Wrote %s.", path)


def _choices(
    logits: np.ndarray,
    dataset: Dataset,
    macs: Sequence[int],
    fixed: list[float] | None,
) -> dict[str, ExitPolicy]:
    """The exit policy that each way of choosing finds on the validation split."""
    wanted: dict[str, tuple[dict[str, Any], str]] = {
        "plain, no accuracy drop": ({}, "accuracy"),
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
            # The other choices are still worth reporting.
            logging.warning("Skipped %s: %s", name, error)
            continue
        choices[name] = found.policy
    if fixed is not None:
        choices["fixed"] = ExitPolicy(thresholds=fixed)
    return choices


def _tested(
    policy: ExitPolicy,
    logits: np.ndarray,
    labels: np.ndarray,
    macs: Sequence[int],
    full_macs: int,
) -> dict[str, Any]:
    """Accuracy, share lost and gain of an exit policy, with 95 % intervals."""
    test = scoring.answers(logits, labels, policy)
    vector = policy.thresholds
    exits_taken = thresholds.exit_indices(test.scores, vector)
    final_correct = test.correct[:, -1]
    early_correct = test.correct[np.arange(len(labels)), exits_taken]
    point = thresholds.evaluate(test.scores, test.correct, macs, vector)
    low, high = thresholds.bootstrap(test.scores, test.correct, macs, vector)["cost"]
    return {
        "thresholds": point.thresholds,
        "accuracy": point.accuracy,
        "accuracy_interval": scoring.wilson_interval(early_correct),
        "accuracy_gain": point.accuracy - final_correct.mean(),
        "accuracy_gain_interval": scoring.paired_interval(early_correct, final_correct),
        "lost": (final_correct & ~early_correct).mean(),
        "gain": full_macs / point.cost,
        "gain_interval": [full_macs / high, full_macs / low],
    }


def _print(result: dict) -> None:
    print(
        f"\nCalibrations on {result['rows']:,} rows, sampled from "
        f"{result['population']:,}. Guarantee: the risk ({result['risk']}) is at most "
        f"{result['max_risk']} with probability {result['level']}, so at most "
        f"{1 - result['level']:.3g} of the calibrations violate it.\n"
    )
    rows = [
        [
            row["choice"],
            f"{row['violations']} of {row['resamplings']}",
            f"{row['share']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})",
            f"{row['mean_risk']:.5f}",
            f"{row['gain']:.3f}x",
            row["no_early_exit"],
        ]
        for row in result["resampled"]
    ]
    head = ["choice", "violations", "share (95 % interval)", "mean risk", "gain"]
    head.append("no early exit")
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    print("\nThresholds chosen on the validation split, evaluated on the test split:\n")
    rows = [
        [
            row["choice"],
            ", ".join(f"{t:.4g}" for t in row["thresholds"]),
            _interval(row["accuracy"], row["accuracy_interval"], 100),
            _interval(row["accuracy_gain"], row["accuracy_gain_interval"], 100, "+"),
            f"{100 * row['lost']:.2f}",
            _interval(row["gain"], row["gain_interval"]),
        ]
        for row in result["test"]
    ]
    head = ["choice", "thresholds", "accuracy %", "points above final exit"]
    head += ["lost %", "gain"]
    print(tabulate(rows, head, stralign="right", disable_numparse=True))


def _interval(
    value: float, bounds: Sequence[float], factor: float = 1, sign: str = "-"
) -> str:
    """`value (low to high)`, times a factor; `sign` as in a format specification."""
    value, low, high = (factor * number for number in (value, *bounds))
    return f"{value:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


if __name__ == "__main__":
    command_line.run(main)
