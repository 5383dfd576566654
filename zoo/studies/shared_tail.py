"""Compares one tail for three unlike fronts with other ways to serve them.

Example:

  python -m zoo.studies.shared_tail --run_dir=runs/shared_tail --data_dir=FOLDER

Draws the rows of three cameras from each data set, each of which sees a few classes most
of the time, and trains them in several ways. Finished trainings in --run_dir are kept, so
an interrupted study goes on. Writes <study_dir>/shared_tail.csv and .png, and the tables
into shared_tail.md.
"""

import pathlib
from typing import Any

from absl import flags, logging

from branchy_tf import command_line, data, files, training
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import shared_tail_plot
from zoo.studies import unlike_cameras as cameras

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder to keep the trainings in; required.")
flags.DEFINE_list("datasets", ["mnist", "cifar10"], "Data sets, comma-separated.")
flags.DEFINE_list("epochs", ["8", "16"], "Epochs for each data set, comma-separated.")
flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds, comma-separated.")
flags.DEFINE_integer("rows", 1000, "Training rows of each camera.", lower_bound=20)
flags.DEFINE_integer("test_rows", 2000, "Test rows.", lower_bound=10)
flags.DEFINE_integer("batch_size", 32, "Rows of each camera in a step.", lower_bound=1)
flags.DEFINE_string("data_dir", None, "Folder with <dataset>.npz.")
flags.DEFINE_string(
    "study_dir", "zoo/studies", "Folder of the study's page; read and written."
)


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder to keep the trainings in.")
    seeds, epochs = (command_line.whole_numbers(name) for name in ("seeds", "epochs"))
    if len(epochs) != len(FLAGS.datasets):
        raise BranchyError(
            f"--epochs has {len(epochs)} numbers for {len(FLAGS.datasets)} data sets; "
            "expected one for each."
        )
    page = pathlib.Path(FLAGS.study_dir, "shared_tail.md")
    rows: list[dict[str, Any]] = []
    for way in cameras.WAYS:
        for seed in seeds:
            for name, count in zip(FLAGS.datasets, epochs, strict=True):
                rows += _figures(way, seed, name, count)
                logging.info("%s, seed %d, %s: done.", name, seed, way)
        # After each way, because the whole study takes long.
        _write(page, sorted(rows, key=lambda row: FLAGS.datasets.index(row["dataset"])))


def _figures(way: str, seed: int, name: str, epochs: int) -> list[dict[str, Any]]:
    """Trains one way with one seed on one data set, and measures it."""
    loaded = data.load(name, FLAGS.data_dir)
    sets = cameras.cameras(loaded, FLAGS.rows, FLAGS.test_rows, seed)
    settings = training.Settings(
        epochs=epochs,
        batch_size=FLAGS.batch_size,
        learning_rate=0.003,
        schedule="cosine",
        seed=seed,
    )
    folder = files.folder(FLAGS.run_dir) / name / f"seed_{seed}"
    models = cameras.train_way(way, sets, settings, folder)
    measured = cameras.measure(way, models, sets)
    return [{"dataset": name, "seed": seed} | row for row in measured]


def _write(page: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    sheet = page.with_suffix(".csv")
    files.write_csv(sheet, rows)
    shared_tail_plot.plot(page.with_suffix(".png"), rows)
    # Anyone can make the tables from the sheet again, which has fewer digits.
    text = cameras.table(cameras.read_rows(sheet))
    print(text, flush=True)
    if cards.write_figures(page, text):
        logging.info("Wrote the tables into %s.", page)


if __name__ == "__main__":
    command_line.run(main)
