"""Trains one network in several ways and compares them.

Examples:

  python -m zoo.studies.training --study=training_modes --dataset=mnist
  python -m zoo.studies.training --study=branches --dataset=mnist --data_dir=FOLDER

Everything is measured on validation rows. Writes <study_dir>/<study>.csv and
.png, and the table in <study_dir>/<study>.md.
"""

from absl import flags, logging

from branchy_tf import command_line, data, files, training
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import training_variants as variants

FLAGS = flags.FLAGS

flags.DEFINE_enum("study", None, list(variants.STUDIES), "Which.")
flags.DEFINE_multi_string(
    "variant", None, "Only this variant; repeat it for several. Default: all."
)
flags.DEFINE_list("seeds", ["1", "2", "3"], "One training of each variant for each.")
flags.DEFINE_integer("train_rows", 5000, "Rows to train on.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Of the phase that trains branches.", lower_bound=1)
flags.DEFINE_integer("baseline_epochs", 10, "Of the baseline.", lower_bound=1)
flags.DEFINE_string("study_dir", "zoo/studies", "Folder to write to.")
command_line.define_data(required=True)


def main() -> None:
    for name in ("study", "dataset"):
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    seeds = [int(seed) for seed in command_line.parse_numbers("seeds", FLAGS.seeds) or []]
    page, table, picture = variants.paths(FLAGS.study_dir, FLAGS.study)
    if not page.is_file():
        raise BranchyError(
            f"There is no page {page}. Write it, with the two lines {cards.BEGIN} "
            f"and {cards.END} where the table goes."
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
    dataset = variants.subset(loaded, FLAGS.train_rows, len(loaded.validation))
    rows = variants.run(chosen, dataset, settings, seeds)
    variants.write(rows, table, picture)
    text = cards.with_figures(
        page.read_text(encoding="utf-8"), variants.table(rows), page
    )
    files.write_text(page, text)
    print(variants.table(rows))
    logging.info("Wrote %s, %s and %s.", page, table, picture)


if __name__ == "__main__":
    command_line.run(main)
