"""Measures each stage of a network: multiply-adds, parameters and milliseconds.

Example:

  python -m branchy_tf.measure --run_dir=runs/lenet --batch_sizes=1,32

Prints a table and writes costs.json to --run_dir. The times are milliseconds per image
on this machine for each stage alone, frozen as in an export: the median and the
interquartile range. The command benchmark times early exit itself.
"""

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, costs, files, report
from branchy_tf.benchmarking import latency
from branchy_tf.benchmarking.machine import machine

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=None)
flags.DEFINE_list("batch_sizes", ["1", "32"], "Comma-separated batch sizes to time.")
flags.DEFINE_float("seconds", 2.0, "Seconds to measure each batch size.", lower_bound=0.1)


def main() -> None:
    sizes = command_line.whole_numbers("batch_sizes")
    choice = command_line.chosen_model()
    model, output = choice.model, choice.output
    dataset = choice.dataset()
    stages = costs.by_stage(model)
    times = latency.stage_milliseconds(
        model, dataset.validation.inputs, sizes, FLAGS.seconds
    )
    result = {
        "machine": machine(),
        "stages": stages,
        "full_macs": costs.full_macs(model),
        "milliseconds": times,
    }
    if output is not None:
        files.write_json(output.costs, result)

    head = ["stage ending in", "multiply-adds", "parameters"]
    head += [f"ms per image, batch {size}" for size in sizes]
    rows = []
    for number, stage in enumerate(stages, 1):
        own = [row for row in times if row["stage"] == number]
        rows.append(
            [stage["exit"], f"{stage['macs']:,}", f"{stage['parameters']:,}"]
            + [
                f"{r['ms_per_image']:.4f} ({r['low']:.4f} to {r['high']:.4f})"
                for r in own
            ]
        )
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    print(f"Network without branches: {result['full_macs']:,} multiply-adds.")
    if output is not None:
        logging.info("Wrote %s.", output.costs)
        if output.report.is_file():
            # The sliders of the report show milliseconds from now on.
            title = f"{model.name} with early exits"
            report.Report(output.report, output.pictures, title, output.costs).render()


if __name__ == "__main__":
    command_line.run(main)
