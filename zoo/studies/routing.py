r"""Shows how much time routing takes, step by step.

Example:

  python -m zoo.studies.routing --model=branchy_resnet --weights=cifar10 \
    --dataset=cifar10 --data_dir=FOLDER --run_dir=runs/routing

Exports the network truncated after its first, second and final exit, its first two stages
alone, and the whole network without routing. Times these in turn in one process with 1
thread in TF Serving's engine, and counts the operations of a call. "Scored" is stage 1
with the request checks, softmax and score; "all exit", "none exit" and "half exit" add a
gate after it. Prints a table for each batch size. With --run_dir, writes routing.csv
there, and the tables into routing.md if the folder has that page with its two marker
lines.
"""

import pathlib
import tempfile
from typing import Any

import tensorflow as tf
from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, files
from branchy_tf.benchmarking.machine import machine
from branchy_tf.exits.confidence import CRITERIA
from zoo import cards
from zoo.studies import routing_steps

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=None)
flags.DEFINE_enum("criterion", "entropy", list(CRITERIA), "Score that gates use.")
flags.DEFINE_list("batch_sizes", ["1", "32"], "Batch sizes to time, comma-separated.")
flags.DEFINE_float(
    "seconds", 20.0, "Seconds to measure each batch size for.", lower_bound=0.1
)


def main() -> None:
    # Set for the whole process: TensorFlow keeps the first setting that it is used with.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    batch_sizes = command_line.whole_numbers("batch_sizes")
    choice = command_line.chosen_model()
    dataset = choice.dataset()
    with tempfile.TemporaryDirectory() as exports:
        rows = routing_steps.time_steps(
            choice.model,
            dataset.test.images,
            FLAGS.criterion,
            batch_sizes,
            FLAGS.seconds,
            pathlib.Path(exports),
            progress=lambda what: logging.info("Routing: %s ...", what),
        )
    text = _text(choice.model.name, rows)
    print(text)
    if choice.output is None:
        return
    table, page = (choice.output.path / f"routing.{ending}" for ending in ("csv", "md"))
    files.write_csv(table, rows)
    logging.info("Wrote %s.", table)
    if cards.write_figures(page, text):
        logging.info("Wrote the tables into %s.", page)


def _text(name: str, rows: list[dict[str, Any]]) -> str:
    """A table for each batch size, in Markdown."""
    parts = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        table = [
            [row["step"], f"{row['us']:,.0f}", *_added(row), row["operations"]]
            for row in rows
            if row["batch"] == batch
        ]
        head = [f"{name}, batch {batch}", "us per call", "added us", "over", "operations"]
        parts.append(tabulate(table, head, tablefmt="github", disable_numparse=True))
    found = machine()
    parts.append(
        f"{found['processor']}, 1 thread; TensorFlow {found['tensorflow']}; medians."
    )
    return "\n\n".join(parts)


def _added(row: dict[str, Any]) -> tuple[str, str]:
    return (f"{row['added_us']:+,.0f}", row["over"]) if row["over"] else ("", "")


if __name__ == "__main__":
    command_line.run(main)
