"""Evaluates early exit on the test split, with real routing.

Examples:

  python -m branchy_tf.evaluate --run_dir=runs/lenet
  python -m branchy_tf.evaluate --model=branchy_lenet --weights=FILE.keras \
    --dataset=mnist --thresholds=0.1

Prints a table and writes evaluation.json to --run_dir.
"""

from absl import logging
from tabulate import tabulate

from branchy_tf import command_line, exits, files, scoring
from branchy_tf.training.run_folder import load_keras_file

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)


def main() -> None:
    choice = command_line.chosen_model()
    model, run, output = choice.model, choice.run, choice.output
    limits, criterion = command_line.chosen_thresholds(choice, exits.exit_names(model))
    dataset = command_line.chosen_dataset(run, model)
    trained_baseline = None
    if run is not None and run.baseline.is_file():
        trained_baseline = load_keras_file(run.baseline)
    result = scoring.evaluate(model, limits, criterion, dataset, trained_baseline)
    if choice.packaged is not None and choice.packaged.dataset == dataset.name:
        result["baseline_accuracy"] = choice.packaged.baseline_accuracy
    if output is not None:
        files.write_json(output.evaluation, result)

    print(_table(result))
    low, high = (f"{100 * value:.2f}" for value in result["accuracy_interval"])
    print(
        f"accuracy {result['accuracy']:.2%} on {result['num_examples']:,} test images "
        f"(95 % interval {low} to {high} %)"
    )
    low, high = (f"{100 * value:+.2f}" for value in result["accuracy_drop_interval"])
    print(
        f"drop below the final exit: {100 * result['accuracy_drop']:+.2f} points "
        f"(95 % interval {low} to {high})"
    )
    if result["baseline_accuracy"] is not None:
        print(f"the trained baseline: {result['baseline_accuracy']:.2%}")
    print(
        f"{result['macs']:,.0f} multiply-adds of {result['full_macs']:,}, "
        f"gain {result['gain']:.2f}x"
    )
    if output is not None:
        logging.info("Wrote %s.", output.evaluation)


def _table(result: dict) -> str:
    rows = [
        [
            name,
            f"{total:,}",
            f"{alone:.2%}",
            limit,
            f"{rate:.2%}",
            "-" if right is None else f"{right:.2%}",
        ]
        for name, total, alone, limit, rate, right in zip(
            result["exits"],
            result["exit_macs"],
            result["exit_accuracies"],
            [*(f"{t:.4g}" for t in result["thresholds"]), "-"],
            result["exit_rates"],
            result["leaving_accuracies"],
            strict=True,
        )
    ]
    head = [
        "exit",
        "multiply-adds",
        "alone right",
        "threshold",
        "leave here",
        "right of these",
    ]
    return tabulate(rows, head, stralign="right", disable_numparse=True)


if __name__ == "__main__":
    command_line.run(main)
