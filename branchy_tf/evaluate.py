"""Evaluates early exit on the test split, with real routing.

Examples:

  python -m branchy_tf.evaluate --run_dir=runs/lenet
  python -m branchy_tf.evaluate --model=branchy_lenet --weights=FILE.keras \
    --dataset=mnist --thresholds=0.1

Prints a table and writes evaluation.json and report.html to --run_dir. Nothing is
chosen on the test split.
"""

from collections.abc import Sequence

import keras
from absl import flags, logging
from tabulate import tabulate

from branchy_tf import (
    command_line,
    data,
    exits,
    files,
    graphs,
    report,
    scoring,
    thresholds,
)
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.training import RunFolder
from branchy_tf.training.run_folder import load_keras_file

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
command_line.define_path(
    "baseline",
    None,
    "The network trained without branches, a .keras file, to compare with. Default: the "
    "run's, or the figure that packaged weights come with.",
)

# evaluation.json names them all.
_MOST_NAMED = 20


def main() -> None:
    graphs.check_backend()
    choice = command_line.chosen_model()
    model, run, output = choice.model, choice.run, choice.output
    policy = command_line.chosen_policy(choice)
    dataset = command_line.chosen_dataset(run, model)
    trained_baseline = _trained_baseline(run, dataset)
    evaluation = scoring.evaluate(model, policy, dataset, trained_baseline)
    result = evaluation.result
    packaged = choice.packaged
    if not FLAGS.baseline and packaged is not None and packaged.dataset == dataset.name:
        result["baseline_accuracy"] = packaged.baseline_accuracy
    if output is not None:
        files.write_json(output.evaluation, result)
        _report(choice, policy, dataset.test, evaluation)

    head, rows = report.evaluation_table(result)
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    low, high = (f"{100 * value:.2f}" for value in result["accuracy_interval"])
    print(
        f"accuracy {result['accuracy']:.2%} on {result['num_examples']:,} test images "
        f"(95 % interval {low} to {high} %)"
    )
    drop, interval = result["accuracy_drop"], result["accuracy_drop_interval"]
    print(report.points_from_final_exit(drop, interval))
    if result["baseline_accuracy"] is not None:
        print(f"the trained baseline: {result['baseline_accuracy']:.2%}")
    print(
        f"{result['macs']:,.0f} multiply-adds of {result['full_macs']:,}, "
        f"gain {result['gain']:.2f}x"
    )
    print(_stored(result["stored_scores"]))
    if output is not None:
        logging.info("Wrote %s and %s.", output.evaluation, output.report)


def _trained_baseline(run: RunFolder | None, dataset: data.Dataset) -> keras.Model | None:
    """The network trained without branches, where there is one."""
    if FLAGS.baseline:
        path = files.absolute(FLAGS.baseline)
    elif run is not None and run.baseline.is_file():
        path = run.baseline
    else:
        return None
    model = load_keras_file(path)
    wanted = [(None, *dataset.image_shape)]
    if [tensor.shape for tensor in model.inputs] != wanted or len(model.outputs) != 1:
        raise BranchyError(
            f"{path} is no network from images {dataset.image_shape} to one output. Pass "
            "the baseline.keras of a run."
        )
    return model


def _report(
    choice: command_line.Choice,
    policy: ExitPolicy,
    split: data.Split,
    evaluation: scoring.Evaluation,
) -> None:
    output = choice.output
    frontier: Sequence[dict] = ()
    path = choice.thresholds
    if path is not None and path.is_file():
        known = thresholds.Calibration.read(path, exits.exit_names(choice.model))
        # Thresholds for other scores would mean nothing here.
        if known.policy.replace(thresholds=policy.thresholds) == policy:
            frontier = known.frontier
    section = report.test_section(output.pictures, policy, evaluation, split, frontier)
    title = f"{choice.model.name} with early exits"
    page = report.Report(output.report, output.pictures, title)
    page.write("test", section)


def _stored(stored: dict) -> str:
    """What a count on the scores of every exit gives, and the rows in doubt."""
    text = (
        f"By a count on every exit's scores: accuracy {stored['accuracy']:.2%}, "
        f"{stored['macs']:,.0f} multiply-adds. {_rows(stored['rows_near_a_threshold'])} "
        f"within {stored['near']:g} of a threshold"
    )
    elsewhere = stored["rows_routed_elsewhere"]
    if len(elsewhere):
        text += f"; {_rows(elsewhere)} took another exit when routed"
    return text + "."


def _rows(rows: Sequence[int]) -> str:
    if not len(rows):
        return "No row"
    names = ", ".join(map(str, rows[:_MOST_NAMED]))
    more = ", ..." if len(rows) > _MOST_NAMED else ""
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} ({names}{more})"


if __name__ == "__main__":
    command_line.run(main)
