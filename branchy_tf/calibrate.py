r"""Chooses thresholds on the validation split and writes thresholds.json.

Examples:

  python -m branchy_tf.calibrate --run_dir=runs/lenet --max_accuracy_drop=0.005
  python -m branchy_tf.calibrate --run_dir=runs/lenet --max_accuracy_drop=0.01 \
    --guarantee=0.95
  python -m branchy_tf.calibrate --run_dir=runs/lenet --max_latency_ms=0.05 \
    --latency_batch_size=32

Without a budget, it chooses the cheapest thresholds that are at least as accurate as
the final exit alone. It also writes report.html with its pictures. It never reads the
test split. For a training with --front, it calibrates each front.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from tabulate import tabulate

from branchy_tf import (
    calibration,
    command_line,
    exits,
    graphs,
    report,
    scoring,
    thresholds,
)
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import CRITERIA
from branchy_tf.pipeline import calibrating, fronts
from branchy_tf.training import RunFolder, read_data
from branchy_tf.training.run_folder import load_keras_file

FLAGS = flags.FLAGS

command_line.define_path(
    "run_dir", None, "The folder of a training, to read the model from and to write to."
)
flags.DEFINE_enum(
    "criterion",
    "entropy",
    [*CRITERIA, "all"],
    "Sets the score that thresholds are compared with; all takes the score with the best "
    "result on the validation split.",
)
flags.DEFINE_float(
    "max_accuracy_drop",
    None,
    "A budget: the cheapest thresholds whose accuracy is at most this much below the "
    "final exit's. A fraction of 1: 0.01 is 1 percentage point. Default: 0.",
)
flags.DEFINE_float(
    "min_accuracy",
    None,
    "A budget: the cheapest thresholds with at least this accuracy. A fraction of 1.",
)
flags.DEFINE_float(
    "max_macs",
    None,
    "A budget: the most accurate thresholds with at most this many expected "
    "multiply-adds per image.",
)
flags.DEFINE_float(
    "max_latency_ms",
    None,
    "A budget: the most accurate thresholds with at most this many expected milliseconds "
    "per image. The stages are timed on this machine at --latency_batch_size; the "
    "overhead of a server is not included.",
)
flags.DEFINE_integer(
    "latency_batch_size",
    None,
    "Sets the batch size, in images, that --max_latency_ms refers to.",
    lower_bound=1,
)
flags.DEFINE_list(
    "exit_rates",
    None,
    "A budget: the shares of the images that are to take each early exit, in exit order, "
    "as fractions of 1, e.g. 0.6,0.3.",
)
flags.DEFINE_bool(
    "knee",
    False,
    "A budget: the thresholds where the curve of accuracy against cost bends most.",
)
flags.DEFINE_string(
    "guarantee",
    None,
    "Sets the probability, e.g. 0.95, with which the drop stays within "
    "--max_accuracy_drop on unseen images; expectation bounds the expected drop "
    "instead. Half of the validation split is held back to test it. Default: no "
    "guarantee.",
)
flags.DEFINE_enum(
    "risk",
    None,
    calibration.RISKS,
    "Sets what --max_accuracy_drop bounds. accuracy: the difference of the accuracies. "
    "lost: the share of images that are wrong although the final exit is correct; gains "
    "elsewhere do not make up for them, which is safer on few images. disagreement: the "
    "share of images whose answer differs from the final exit's, correct or not. "
    "Default: accuracy; lost with --guarantee.",
)
flags.DEFINE_float(
    "max_class_drop",
    None,
    "Beside the budget: the most accuracy that any class may lose below the final exit. "
    "A fraction of 1. Default: no bound.",
)
flags.DEFINE_bool(
    "fit_temperatures",
    True,
    "Whether to fit a temperature for each exit, which the export then applies.",
)
flags.DEFINE_bool(
    "force",
    False,
    "Whether to go on although the data have another scale than the training's, or the "
    "final exit is no better than chance.",
)
command_line.define_import()
command_line.define_data(required=False)
command_line.define_seed(default=None)

# The flags that describe the request.
_REQUEST = (
    "max_accuracy_drop",
    "min_accuracy",
    "max_macs",
    "max_latency_ms",
    "latency_batch_size",
    "knee",
    "risk",
    "criterion",
    "fit_temperatures",
    "max_class_drop",
)


def _request(
    num_exits: int | None, class_names: Sequence[str] | None = None
) -> calibration.Request:
    """The request that the flags describe.

    Raises:
        BranchyError: the flags contradict each other, or a value is out of range.
    """
    guarantee: Any = FLAGS.guarantee
    if guarantee not in (None, thresholds.EXPECTATION):
        try:
            guarantee = float(FLAGS.guarantee)
        except ValueError:
            raise BranchyError(
                f"--guarantee={FLAGS.guarantee}: expected a probability such as 0.95, or "
                f"{thresholds.EXPECTATION}."
            ) from None
    return calibration.Request.of(
        **{name: FLAGS[name].value for name in _REQUEST},
        exit_rates=command_line.parse_numbers("exit_rates", FLAGS.exit_rates),
        guarantee=guarantee,
        seed=FLAGS.seed or 0,
        num_exits=num_exits,
        class_names=class_names,
    )


def main() -> None:
    graphs.check_backend()
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder of a training.")
    # Refuses what it can before the model is loaded.
    request = _request(num_exits=None)
    folder = RunFolder(FLAGS.run_dir)
    if folder.fronts.is_file():
        _calibrate_fronts(folder, request)
    else:
        _calibrate(folder)


def _calibrate_fronts(folder: RunFolder, request: calibration.Request) -> None:
    """Calibrates every front, with the same scores at the exits that they share."""
    known = fronts.read_fronts(folder.path)
    if request.criterion == "all":
        raise BranchyError(
            f"--criterion=all: the fronts of {folder.path} share exits, which have one "
            "criterion for all of them. Choose entropy, max_prob or margin."
        )
    if FLAGS.dataset:
        raise BranchyError(
            f"--dataset={FLAGS.dataset}: the fronts of {folder.path} have data of their "
            "own. Leave it out."
        )
    temperatures: dict[str, list[float]] = {}
    if request.fit_temperatures:
        temperatures = fronts.shared_temperatures(
            known, request.budget.get("guarantee"), request.seed
        )
    for name in known.ends:
        print(f"\n{name}")
        _calibrate(known.run(name), temperatures.get(name))


def _calibrate(folder: RunFolder, temperatures: Sequence[float] | None = None) -> None:
    model = folder.load_model()
    names = exits.exit_names(model)
    _request(len(names))
    dataset = command_line.chosen_dataset(folder, model)
    request = _request(len(names), dataset.class_names)
    request = dataclasses.replace(request, temperatures=temperatures)
    split = dataset.validation
    calibration.check_rows(split.labels, request)
    context = command_line.report_context(folder, dataset)
    inputs = read_data(folder).get("inputs")
    if inputs is None:
        inputs = calibrating.known_inputs(model, dataset, split)
    baseline = load_keras_file(folder.baseline) if folder.baseline.is_file() else None
    outcome = calibrating.run(model, split, request, inputs, FLAGS.force)
    found, written, macs = outcome.found, outcome.calibration, outcome.macs
    written.write(folder.thresholds)
    alone = None
    if baseline is not None:
        alone = (outcome.full_macs, scoring.plain_accuracy(baseline, split))
    section = report.validation_section(
        folder.pictures,
        found,
        written,
        outcome.logits,
        split,
        macs,
        alone,
        context,
    )
    title = f"{model.name} with early exits"
    page = report.Report(folder.report, folder.pictures, title, folder.costs)
    page.write("validation", section)

    if found.compared:
        head, rows = report.criteria_table(found.compared)
        print(tabulate(rows, head, stralign="right", disable_numparse=True))
        print(f"Chosen: {found.policy.criterion}.\n")
    head, rows = report.calibration_table(names, macs, found)
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    _print_summary(names, found, written)
    drops = found.class_drops(dataset.classes)
    worst = int(np.nanargmax(drops))
    count = int((split.labels == worst).sum())
    name = dataset.class_name(worst)
    print(f"largest drop of a class: {name}, {drops[worst]:.2%} of its {count:,} images")
    logging.info("Wrote %s and %s.", folder.thresholds, folder.report)


def _print_summary(
    names: Sequence[str],
    found: calibration.Calibrated,
    written: thresholds.Calibration,
) -> None:
    known = written.validation
    low, high = known["accuracy_interval"]
    print(
        f"accuracy {known['accuracy']:.2%} ({low:.2%} to {high:.2%}) at these "
        f"thresholds, {known['final_exit_accuracy']:.2%} at {names[-1]} alone "
        f"({known['num_examples']:,} validation images)"
    )
    low, high = known["gain_interval"]
    print(
        f"{known['macs']:,.0f} multiply-adds of {known['full_macs']:,}, gain "
        f"{known['gain']:.2f}x ({low:.2f} to {high:.2f}; 95 % bootstrap intervals)"
    )
    if "expected_ms" in written.budget:
        print(
            f"{written.budget['expected_ms']:.4f} ms per image expected, from the "
            f"stages' median times at batch {written.budget['latency_batch_size']} here"
        )
    if found.guarantee is not None:
        print(report.guarantee_in_words(found.guarantee))
        if not any(found.guarantee.thresholds):
            logging.warning(
                "Only T=0 can be guaranteed: no image exits early. Allow more with "
                "--max_accuracy_drop, or calibrate on more rows."
            )


if __name__ == "__main__":
    command_line.run(main)
