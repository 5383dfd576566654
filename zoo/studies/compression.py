r"""Compresses one network in several ways, and shows what early exit keeps of it.

Example:

  python -m zoo.studies.compression --model=branchy_lenet --weights=mnist \
    --dataset=mnist --data_dir=FOLDER --run_dir=runs/compression

Fine-tunes with every method and their combinations, quantises to int8, and chooses
thresholds anew each time, on the validation split. Accuracies are those of the test
split. Writes compression.csv and .png and the tables of compression.md in --study_dir,
where the rows of other networks stay. --run_dir keeps the compressed networks: the same
command goes on where it was interrupted.
"""

import csv
import pathlib
from typing import Any

from absl import flags, logging

from branchy_tf import command_line, data, files, graphs
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import compressed_networks, compression_plot

FLAGS = flags.FLAGS

# The test rows that are timed, one at a time.
_TIMED = 50

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=1)
flags.DEFINE_string(
    "name", None, "Name of the network in the tables. Default: that of the model."
)
flags.DEFINE_multi_string("variant", None, "Only this variant; repeatable. Default: all.")
flags.DEFINE_integer("epochs", 3, "Epochs of each fine-tuning.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Rows in a training step.", lower_bound=1)
flags.DEFINE_integer(
    "pruning_epochs", None, "Epochs of pruning. Default: --epochs.", lower_bound=1
)
flags.DEFINE_float(
    "pruning_rate", None, "Learning rate of pruning. Default: that of compress."
)
flags.DEFINE_list("loss_weights", None, "Loss weights, one for each exit. Default: 1.")
flags.DEFINE_enum("augmentation", "none", data.AUGMENTATIONS, "Of the training images.")
flags.DEFINE_list("skip_layers", [], "Layers that QAT leaves as they are.")
flags.DEFINE_float("seconds", 20.0, "Seconds of timing.", lower_bound=0.1)
flags.DEFINE_string(
    "study_dir", "zoo/studies", "Folder of the study's page; read and written."
)


def main() -> None:
    for name in ("model", "dataset", "run_dir"):
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    page, sheet, picture = (
        pathlib.Path(FLAGS.study_dir, f"compression.{ending}")
        for ending in ("md", "csv", "png")
    )
    if not page.is_file():
        raise BranchyError(
            f"There is no page {page}. Write it with the two lines {cards.BEGIN} and "
            f"{cards.END} where the tables go."
        )
    variants = compressed_networks.choose(FLAGS.variant)
    choice = command_line.chosen_model()
    dataset = choice.dataset()
    folder = files.folder(FLAGS.run_dir)
    pruning = {"epochs": FLAGS.pruning_epochs, "learning_rate": FLAGS.pruning_rate}
    rows = compressed_networks.run(
        variants,
        choice.model,
        dataset,
        _common(),
        folder,
        {name: value for name, value in pruning.items() if value is not None},
    )
    timed = dataset.test.take(slice(_TIMED)).read()
    inputs = graphs.cast_inputs(choice.model, timed)
    times = compressed_networks.time_files(rows, inputs, folder, FLAGS.seconds)
    name = FLAGS.name or choice.model.name
    rows = [
        row | {"network": name, "time": time}
        for row, time in zip(rows, times, strict=True)
    ]
    everything = _merged(sheet, name, [compressed_networks.flat(row) for row in rows])
    files.write_csv(sheet, everything)
    rows = [compressed_networks.from_flat(row) for row in everything]
    compression_plot.plot(picture, rows)
    text = "\n\n".join(
        compressed_networks.table([row for row in rows if row["network"] == network])
        for network in dict.fromkeys(row["network"] for row in rows)
    )
    cards.write_figures(page, text)
    print(text)
    logging.info("Wrote %s, %s and %s.", page, sheet, picture)


def _common() -> dict[str, Any]:
    return {
        "epochs": FLAGS.epochs,
        "batch_size": FLAGS.batch_size,
        "loss_weights": command_line.parse_numbers("loss_weights", FLAGS.loss_weights),
        "augmentation": FLAGS.augmentation,
        "skip_layers": FLAGS.skip_layers,
        "seed": FLAGS.seed,
    }


def _merged(
    sheet: pathlib.Path, name: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of the sheet, with those of one network replaced in their place."""
    text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    if not sheet.is_file():
        return text
    with open(sheet, newline="", encoding="utf-8") as file:
        old = list(csv.DictReader(file))
    before = [row["network"] for row in old]
    at = before.index(name) if name in before else len(old)
    return [
        *(row for row in old[:at] if row["network"] != name),
        *text,
        *(row for row in old[at:] if row["network"] != name),
    ]


if __name__ == "__main__":
    command_line.run(main)
