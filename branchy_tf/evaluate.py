r"""Evaluates early exit on the test split, routed through the exported graph.

Examples:

  python -m branchy_tf.evaluate --run_dir=runs/lenet
  python -m branchy_tf.evaluate --model=branchy_lenet --weights=FILE.keras \
    --dataset=mnist --thresholds=0.1

Prints a table and writes evaluation.json and report.html to --run_dir. The test split
is not used to choose anything.
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
    "The network trained without branches to compare with, a .keras file. Default: the "
    "run's baseline.keras, or the recorded accuracy for packaged weights.",
)

# The most rows to list; evaluation.json lists all of them.
_MOST_LISTED = 20


def main() -> None:
    graphs.check_backend()
    choice = command_line.chosen_model()
    model, run, output = choice.model, choice.run, choice.output
    policy = command_line.chosen_policy(choice)
    dataset = choice.dataset()
    trained_baseline = _trained_baseline(run, model)
    evaluation = scoring.evaluate(model, policy, dataset, trained_baseline)
    result = evaluation.result
    packaged = choice.packaged
    if not FLAGS.baseline and packaged is not None and packaged.dataset == dataset.name:
        result["baseline_accuracy"] = packaged.baseline_accuracy
    if output is not None:
        files.write_json(output.evaluation, result)
        _report(choice, policy, dataset, evaluation)

    head, rows = report.evaluation_table(result)
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    if dataset.class_names is not None:
        head, rows = report.class_table(result)
        print(tabulate(rows, head, stralign="right", disable_numparse=True))
        if len(rows) < len(result["classes"]):
            print(f"{len(rows)} of {dataset.classes} classes, those that lose most.")
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


def _trained_baseline(run: RunFolder | None, model: keras.Model) -> keras.Model | None:
    """The network trained without branches, or None."""
    if FLAGS.baseline:
        path = files.absolute(FLAGS.baseline)
    elif run is not None and run.baseline.is_file():
        path = run.baseline
    else:
        return None
    baseline = load_keras_file(path)
    wanted, found = (
        [tensor.shape[1:] for tensor in network.inputs] for network in (model, baseline)
    )
    if found != wanted or len(baseline.outputs) != 1:
        raise BranchyError(
            f"{path} is not a network from inputs of shape "
            f"{', '.join(map(str, wanted))} to one output. Pass the baseline.keras of a "
            "run."
        )
    return baseline


def _report(
    choice: command_line.Choice,
    policy: ExitPolicy,
    dataset: data.Dataset,
    evaluation: scoring.Evaluation,
) -> None:
    output = choice.output
    frontier: Sequence[dict] = ()
    path = choice.thresholds
    if path is not None and path.is_file():
        known = thresholds.Calibration.read(path, exits.exit_names(choice.model))
        # Thresholds for other scores would be meaningless here.
        if known.policy.replace(thresholds=policy.thresholds) == policy:
            frontier = known.frontier
    context = command_line.report_context(None, dataset)
    section = report.test_section(
        output.pictures, policy, evaluation, dataset.test, frontier, context
    )
    title = f"{choice.model.name} with early exits"
    page = report.Report(output.report, output.pictures, title, output.costs)
    page.write("test", section)


def _stored(stored: dict) -> str:
    """The figures counted on every exit's scores, and the rows that may differ."""
    text = (
        f"Counted on every exit's scores: accuracy {stored['accuracy']:.2%}, "
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
    names = ", ".join(map(str, rows[:_MOST_LISTED]))
    more = ", ..." if len(rows) > _MOST_LISTED else ""
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} ({names}{more})"


if __name__ == "__main__":
    command_line.run(main)
