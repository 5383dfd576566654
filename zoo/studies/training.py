"""Trains one network in several ways and compares them.

Examples:

  python -m zoo.studies.training --study=training_modes --dataset=mnist
  python -m zoo.studies.training --study=branches --dataset=mnist --data_dir=FOLDER

All figures are of the validation split. Writes <study_dir>/<study>.csv and .png, and the
table into <study_dir>/<study>.md.
"""

import pathlib

from absl import flags, logging

from branchy_tf import command_line, data, files, training
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import training_plot
from zoo.studies import training_variants as variants

FLAGS = flags.FLAGS

flags.DEFINE_enum("study", None, list(variants.STUDIES), "Study to run; required.")
flags.DEFINE_multi_string("variant", None, "Only this variant; repeatable. Default: all.")
flags.DEFINE_list(
    "seeds",
    ["1", "2", "3"],
    "Seeds, comma-separated; each variant is trained once with each.",
)
flags.DEFINE_integer("train_rows", 5000, "Number of rows to train on.", lower_bound=1)
flags.DEFINE_integer(
    "epochs", 10, "Epochs of the phase that trains the branches.", lower_bound=1
)
flags.DEFINE_integer("baseline_epochs", 10, "Epochs of the baseline.", lower_bound=1)
flags.DEFINE_string(
    "study_dir", "zoo/studies", "Folder of the study's page; read and written."
)
command_line.define_data(required=True)


def main() -> None:
    for name in ("study", "dataset"):
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    seeds = [int(seed) for seed in command_line.parse_numbers("seeds", FLAGS.seeds) or []]
    page, table, plot = (
        pathlib.Path(FLAGS.study_dir, f"{FLAGS.study}.{ending}")
        for ending in ("md", "csv", "png")
    )
    if not page.is_file():
        raise BranchyError(
            f"There is no page {page}. Write it with the two lines {cards.BEGIN} and "
            f"{cards.END} where the table goes."
        )
    chosen = variants.choose(FLAGS.study, FLAGS.variant)
    loaded = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.validation_size)
    settings = training.Settings(
        epochs=FLAGS.epochs,
        baseline_epochs=FLAGS.baseline_epochs,
        batch_size=64,
        learning_rate=0.002,
        schedule="cosine",
    )
    dataset = variants.first_rows(loaded, FLAGS.train_rows)
    rows = variants.run(chosen, dataset, settings, seeds)
    text = variants.table(rows)
    files.write_csv(table, rows)
    training_plot.plot(plot, rows)
    cards.write_figures(page, text)
    print(text)
    logging.info("Wrote %s, %s and %s.", page, table, plot)


if __name__ == "__main__":
    command_line.run(main)
