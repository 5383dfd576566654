"""Shows how time and memory grow with batch size, exits, classes and image size.

Example:

  python -m zoo.studies.growth --run_dir=zoo/studies

Exports a chain of equal blocks with an exit after each, loads it into TF Serving's engine
and calls it with rows that take every exit. Calibrates thresholds on synthetic logits of
--rows images. Each size is measured in separate processes. Writes growth.csv and
growth.png to --run_dir, and the tables into growth.md if --run_dir has that page with its
two marker lines.
"""

import pathlib
from typing import Any

from absl import flags, logging
from tabulate import tabulate
from tqdm import tqdm

from branchy_tf import command_line, files
from branchy_tf.benchmarking.machine import machine
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import growing_networks as growing
from zoo.studies.growth_plot import plot

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder to write to; required.")
flags.DEFINE_multi_enum(
    "axis", list(growing.AXES), list(growing.AXES), "What to vary; repeatable."
)
flags.DEFINE_list("batch_sizes", ["1", "4", "16", "64", "256", "1024"], "Rows in a call.")
flags.DEFINE_list("exits", ["2", "4", "8", "12", "16", "20"], "Numbers of exits.")
flags.DEFINE_list("classes", ["10", "100", "1000", "10000"], "Numbers of classes.")
flags.DEFINE_list(
    "image_sizes", ["16", "32", "64", "128", "256"], "Image sides, in pixels."
)
flags.DEFINE_integer("rows", 5000, "Number of rows to calibrate on.", lower_bound=2)
flags.DEFINE_float("seconds", 2.0, "Seconds to time calls for.", lower_bound=0.01)
flags.DEFINE_integer("repeats", 3, "Runs of each job; medians count.", lower_bound=1)

# The flag of each axis and its smallest valid value.
_FLAGS = {
    "batch": ("batch_sizes", 1),
    "exits": ("exits", 2),
    "classes": ("classes", 2),
    "pixels": ("image_sizes", 1),
}


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder to write to.")
    sizes = {name: _sizes(*_FLAGS[name]) for name in _FLAGS if name in FLAGS.axis}
    total = FLAGS.repeats * len(growing.jobs(sizes))
    with tqdm(total=total, unit=" processes", desc="measuring") as bar:
        rows = growing.measure_growth(
            sizes, FLAGS.rows, FLAGS.seconds, FLAGS.repeats, lambda _: bar.update()
        )
    steps = growing.steps(rows)
    output = pathlib.Path(FLAGS.run_dir)
    files.write_csv(output / "growth.csv", rows)
    plot(output / "growth.png", rows, growing.FIGURES)
    text = _text(rows, steps)
    print(f"\n{text}")
    page = output / "growth.md"
    if cards.write_figures(page, text):
        logging.info("Wrote the tables into %s.", page)
    logging.info("Wrote growth.csv and growth.png to %s.", output)


def _sizes(flag: str, minimum: int) -> list[int]:
    numbers = sorted(set(command_line.whole_numbers(flag)))
    if numbers[0] < minimum:
        raise BranchyError(f"--{flag} must be at least {minimum}. Received {numbers[0]}.")
    return numbers


def _text(rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> str:
    """A table for each axis and the steps that are worse than linear, in Markdown."""
    step_to = {(s["axis"], s["to"], s["figure"]): s for s in steps}
    parts = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        here = [row for row in rows if row["axis"] == axis]
        figures = [name for name in growing.FIGURES if here[0][name] is not None]
        table = [
            [f"{row['size']:,}"]
            + [
                _cell(row[name], step_to.get((axis, row["size"], name)))
                for name in figures
            ]
            for row in here
        ]
        head = [axis, *(growing.FIGURES[name] for name in figures)]
        parts.append(tabulate(table, head, tablefmt="github", disable_numparse=True))
    found = machine()
    parts.append(
        f"{found['processor']}, {found['cores']} cores; TensorFlow "
        f"{found['tensorflow']}, Keras {found['keras']}; medians of "
        f"{FLAGS.repeats}. In brackets: the slope from the previous size; 1 is linear."
    )
    parts.append(_verdict(steps))
    return "\n\n".join(parts)


def _cell(value: float, step: dict[str, Any] | None) -> str:
    shown = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    if step is None:
        return shown
    slope = f"({step['slope']:.2f})"
    return f"{shown} **{slope}**" if step["worse"] else f"{shown} {slope}"


def _verdict(steps: list[dict[str, Any]]) -> str:
    worse = [
        f"- {growing.FIGURES[s['figure']]}, {s['axis']} {s['from']:,} to {s['to']:,}: "
        f"{s['ratio']:.2f} times as much at {s['size_ratio']:.2f} times the size"
        for s in steps
        if s["worse"]
    ]
    margin = f"{growing.TOLERANCE - 1:.0%}"
    if not worse:
        return f"None of {len(steps)} steps exceeds linear growth by more than {margin}."
    head = (
        f"{len(worse)} of {len(steps)} steps exceed linear growth by more than {margin}:"
    )
    return "\n".join([head, "", *worse])


if __name__ == "__main__":
    command_line.run(main)
