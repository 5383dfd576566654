"""Chooses thresholds on the validation split and writes thresholds.json.

Example:

  python -m branchy_tf.calibrate --run_dir=runs/lenet --max_accuracy_drop=0.005

Without a budget: the cheapest thresholds that are no less accurate than the
final exit alone. The test split is not looked at.
"""

import numpy as np
from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, costs, exits, plots, scoring, thresholds
from branchy_tf.confidence import CRITERIA
from branchy_tf.errors import BranchyError
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.training import RunFolder

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder of a training; read and written.")
flags.DEFINE_enum("criterion", "entropy", list(CRITERIA), "Score of an exit.")
flags.DEFINE_float(
    "max_accuracy_drop",
    None,
    "Cheapest thresholds at most this much "
    "below the final exit's accuracy, a fraction of 1. Default: 0.",
)
flags.DEFINE_float("min_accuracy", None, "Or: the cheapest at least this accurate.")
flags.DEFINE_float(
    "max_macs",
    None,
    "Or: the most accurate at most this expensive, in "
    "expected multiply-adds of an image.",
)
flags.DEFINE_enum(
    "risk",
    "accuracy",
    ["accuracy", "lost"],
    "What --max_accuracy_drop "
    "bounds. accuracy: the difference of the accuracies. lost: the share "
    "of rows answered wrongly that the final exit knew, which rows won "
    "elsewhere do not make up for; safer on few rows.",
)
command_line.define_data(required=False)
command_line.define_seed(default=None)

# thresholds.json is to be read by people too.
_MOST_POINTS = 200


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder of a training.")
    budgets = ("max_accuracy_drop", "min_accuracy", "max_macs")
    given = [f"--{name}" for name in budgets if FLAGS[name].value is not None]
    if len(given) > 1:
        raise BranchyError(f"Pass one of {' and '.join(given)}, not both.")
    if FLAGS.risk == "lost" and given not in ([], ["--max_accuracy_drop"]):
        raise BranchyError(f"--risk=lost goes with --max_accuracy_drop, not {given[0]}.")
    budget = (FLAGS.max_accuracy_drop, FLAGS.min_accuracy, FLAGS.max_macs)
    thresholds.check_budget(*budget)
    folder = RunFolder(FLAGS.run_dir)
    model = folder.load_model()
    dataset = command_line.chosen_dataset(folder, model)
    names = exits.exit_names(model)
    predictor = EarlyExitPredictor(model, [0.0] * (len(names) - 1), FLAGS.criterion)
    scores, correct = scoring.every_exit(predictor, dataset.validation)

    macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    counted = thresholds.count_losses_only(correct) if FLAGS.risk == "lost" else correct
    chosen = thresholds.choose(scores, counted, macs, *budget)
    # Whatever the choice went by, accuracy is reported.
    chosen = thresholds.evaluate(scores, correct, macs, chosen.thresholds)
    points = thresholds.frontier(scores, correct, macs)
    shown = np.unique(np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int))
    thresholds.Calibration(
        criterion=FLAGS.criterion,
        exits=names,
        thresholds=chosen.thresholds,
        validation={
            "num_examples": len(dataset.validation),
            "accuracy": chosen.accuracy,
            "final_exit_accuracy": correct[:, -1].mean(),
            "exit_rates": chosen.exit_rates,
            "macs": chosen.cost,
            "full_macs": full_macs,
            "gain": full_macs / chosen.cost,
        },
        frontier=[
            {"thresholds": p.thresholds, "accuracy": p.accuracy, "macs": p.cost}
            for p in (points[i] for i in shown)
        ],
    ).write(folder.thresholds)
    picture = folder.calibration_picture
    plots.calibration(picture, scores, correct, macs, points, chosen, FLAGS.criterion)

    print(_table(names, chosen, correct, macs))
    print(
        f"accuracy {chosen.accuracy:.2%} at these thresholds, "
        f"{correct[:, -1].mean():.2%} at {names[-1]} alone "
        f"({len(correct):,} validation images); {chosen.cost:,.0f} multiply-adds of "
        f"{full_macs:,}, gain {full_macs / chosen.cost:.2f}x"
    )
    logging.info("Wrote %s and %s.", folder.thresholds, picture)


def _table(names, chosen, correct, macs) -> str:
    rows = [
        [name, f"{total:,}", f"{accuracy:.2%}", limit, f"{rate:.1%}"]
        for name, total, accuracy, limit, rate in zip(
            names,
            macs,
            correct.mean(axis=0),
            [*(f"{t:.4g}" for t in chosen.thresholds), "-"],
            chosen.exit_rates,
            strict=True,
        )
    ]
    head = ["exit", "multiply-adds", "alone right", "threshold", "leave here"]
    return tabulate(rows, head, stralign="right", disable_numparse=True)


if __name__ == "__main__":
    command_line.run(main)
