"""Times early exit against the plain network, on real test images.

Example:

  python -m branchy_tf.benchmark --run_dir=runs/lenet --batch_sizes=1,64

Prints a table and writes benchmark.json to --run_dir. Contenders, each in the
engine of TF Serving: keras_export, model.export of the network without exits;
frozen, the same frozen as our exports are; early_exit at its thresholds, on
test images; forced_exit_N, all rows to one exit; half_exit_1, every other row
leaves at exit_1; stage_N, that part of the network alone. Timings are medians,
and comparable within one run alone.
"""

import pathlib
import tempfile

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, comparison, files
from branchy_tf.errors import BranchyError

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
flags.DEFINE_list("batch_sizes", ["1", "8", "32", "128"], "Batch sizes to time.")
flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads to time.")
flags.DEFINE_float(
    "seconds",
    4.0,
    "How long to measure each batch size with each number of threads.",
    lower_bound=0.1,
)


def main() -> None:
    batch_sizes = command_line.whole_numbers("batch_sizes")
    threads = command_line.whole_numbers("threads")
    choice = command_line.chosen_model()
    model, run, output = choice.model, choice.run, choice.output
    gates = command_line.chosen_gates(choice)
    dataset = command_line.chosen_dataset(run, model)
    if max(batch_sizes) > len(dataset.test):
        raise BranchyError(
            f"--batch_sizes has {max(batch_sizes)}, and {dataset.name} only "
            f"{len(dataset.test)} test images."
        )
    with tempfile.TemporaryDirectory() as folder:
        result = comparison.compare(
            model,
            gates.thresholds,
            gates.criterion,
            dataset.test.images[:4096],
            pathlib.Path(folder),
            batch_sizes,
            threads,
            FLAGS.seconds,
            progress=lambda what: logging.info("Timing %s ...", what),
            temperatures=gates.temperatures,
        )
    if output is not None:
        files.write_json(output.benchmark, result)
    for row in result["results"]:
        row["interval"] = f"{row['low']:.4f} to {row['high']:.4f}"
    columns = {
        "contender": "contender",
        "batch": "batch",
        "threads": "threads",
        "ms_per_image": "ms an image",
        "interval": "middle half",
    }
    print(
        tabulate(
            [[row[c] for c in columns] for row in result["results"]],
            list(columns.values()),
            floatfmt=".4f",
        )
    )
    print()
    names = ["batch", "threads", "over", "gain", "ideal_gain", "share_of_ideal"]
    rows = [[gain[name] for name in names] for gain in result["gains"]]
    print(tabulate(rows, names, floatfmt=".2f"))
    for gain in result["gains"]:
        if gain["gain"] < 1:
            print(
                f"Early exit does not pay at batch {gain['batch']}, "
                f"{gain['threads']} threads: it takes {1 / gain['gain']:.2f} times as "
                f"long as {gain['over']}."
            )
    if output is not None:
        logging.info("Wrote %s.", output.benchmark)


if __name__ == "__main__":
    command_line.run(main)
