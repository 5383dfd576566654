r"""Compresses a trained model and fine-tunes all its exits; writes a new run folder.

Examples:

  python -m branchy_tf.compress --run_dir=runs/lenet --method=prune --sparsity=0.8 \
    --output_dir=runs/lenet_pruned
  python -m branchy_tf.compress --model=branchy_lenet --weights=mnist --dataset=mnist \
    --method=qat --output_dir=runs/lenet_int8

--method=prune sets the smallest weights of each kernel to 0 and --method=cluster gives
each kernel a few distinct values. Both make the compressed file smaller, not the network
faster, and write model.keras: calibrate, evaluate and export the new folder like any run.
--method=qat trains for int8 and writes all_exits.tflite instead. compression.json holds
the figures. Needs the extra `compression`.
"""

import dataclasses
import json
from typing import Any

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, compression, data, files, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.training import RunFolder

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=None)
command_line.define_path(
    "output_dir", None, "The new run folder to write. Required; it must not exist."
)
flags.DEFINE_enum(
    "method",
    None,
    compression.METHODS,
    "How to compress. prune: sets the smallest weights of each kernel to 0. cluster: "
    "gives each kernel at most --clusters distinct values. qat: quantization-aware "
    "training for int8, which leaves as .tflite alone. Required.",
)
flags.DEFINE_float(
    "sparsity",
    0.8,
    "With --method=prune, the share of weights of each kernel to set to 0. A fraction of "
    "1: 0.8 is 80 %.",
)
flags.DEFINE_integer(
    "clusters",
    16,
    "With --method=cluster, the most distinct values of each kernel, 2 to 256.",
)
flags.DEFINE_integer("epochs", 3, "The epochs of fine-tuning.")
flags.DEFINE_integer(
    "batch_size",
    None,
    "The number of rows in a training step. Default: the run's, or 64.",
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "The maximum learning rate of Adam, which decays to 0. Default: 0.001 for prune, "
    "0.0001 for cluster and qat.",
)
flags.DEFINE_list(
    "loss_weights",
    None,
    "Comma-separated loss weights, one for each exit. Default: the run's, or 1 each.",
)
flags.DEFINE_enum(
    "augmentation",
    None,
    data.AUGMENTATIONS,
    "The augmentation of training images; see train. Default: the run's, or none.",
)
command_line.define_class_weights("the run's, or 1 each")
flags.DEFINE_list(
    "skip_layers", [], "Comma-separated names of layers to leave as they are."
)


def _settings(recorded: dict[str, str]) -> compression.Settings:
    """The settings of the flags, or of the run's train.flags."""

    def value(name: str, otherwise: Any) -> Any:
        given = FLAGS[name].value
        return recorded.get(name, otherwise) if given is None else given

    def number(name: str, otherwise: int) -> Any:
        text = str(value(name, otherwise))
        return int(text) if text.isdecimal() else text

    weights = value("loss_weights", None)
    if isinstance(weights, str):
        weights = weights.split(",")
    return compression.Settings(
        method=FLAGS.method,
        sparsity=FLAGS.sparsity,
        clusters=FLAGS.clusters,
        epochs=FLAGS.epochs,
        batch_size=number("batch_size", 64),
        learning_rate=FLAGS.learning_rate,
        loss_weights=command_line.parse_numbers("loss_weights", weights),
        augmentation=value("augmentation", "none"),
        skip_layers=[name for name in FLAGS.skip_layers if name],
        seed=number("seed", 1),
        class_weights=_class_weights(value("class_weights", None)),
    )


def _class_weights(text: str | None) -> Any:
    """The value of a flag, or what a training in Python recorded: the weights."""
    try:
        values = json.loads(f"[{text or 'null'}]")
    except ValueError:
        return text
    return values if len(values) > 1 else values[0]


def _flags_text(seed: int) -> str:
    """The train.flags of a model without a run: what later commands read.

    Args:
        seed: the seed that cut the validation split.
    """
    lines = ["# The model and data that were compressed; see compression.json."]
    for name in ("model", "model_args", "weights", "exits", "import", "dataset",
                 "data_dir", "image_size", "skip_unreadable",
                 "validation_size"):  # fmt: skip
        value = FLAGS[name].value
        if name == "data_dir" and value:
            value = files.absolute(value)
        if str(value).endswith((".npz", ".keras", ".h5")) or (
            name == "dataset" and value and data.is_path(value)
        ):
            value = files.absolute(value)
        if isinstance(value, list):
            value = ",".join(value)
        if value not in (None, ""):
            lines.append(f"--{name}={value}")
    lines.append(f"--seed={seed}")
    return "\n".join(lines) + "\n"


def main() -> None:
    for name in ("method", "output_dir"):
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    if FLAGS.model and FLAGS.run_dir:
        raise BranchyError(
            "Pass --run_dir of the training to compress, or --model and --weights, not "
            "both. The new folder is --output_dir."
        )
    graphs.check_backend()
    source = RunFolder(FLAGS.run_dir) if FLAGS.run_dir else None
    recorded = source.read_flags() if source and source.flags.is_file() else {}
    settings = _settings(recorded)
    choice = command_line.chosen_model()
    if FLAGS.seed is None and choice.seed is not None:
        # Another seed would select training rows for validation.
        settings = dataclasses.replace(settings, seed=choice.seed)
    seed = settings.seed if source is None else None
    dataset = command_line.chosen_dataset(choice.run, choice.model, seed=seed)
    output = RunFolder(FLAGS.output_dir)
    text = _flags_text(settings.seed)
    record = compression.compress(
        choice.model, dataset, settings, output, choice.run, text
    )
    _print(record)
    logging.info("Wrote %s.", output.path)
    if settings.method != "qat":
        logging.info(
            "Scores have moved. Next: python -m branchy_tf.calibrate --run_dir=%s",
            FLAGS.output_dir,
        )


def _print(record: dict[str, Any]) -> None:
    if "layers" in record:
        head = ["layer", "weights", "zeros", "distinct values"]
        rows = [
            [row["layer"], f"{row['weights']:,}", f"{row['sparsity']:.1%}",
             f"{row['distinct_values']:,}"]
            for row in record["layers"]
        ]  # fmt: skip
        print(tabulate(rows, head, stralign="right", disable_numparse=True))
    found = record["exit_accuracies"]
    rows = [
        [f"exit_{number}", *(f"{value:.2%}" for value in values)]
        for number, values in enumerate(zip(*found.values(), strict=True), start=1)
    ]
    head = ["accuracy", *(key.replace("_", " ") for key in found)]
    print(tabulate(rows, head, stralign="right", disable_numparse=True))
    sizes = record["gzipped_bytes"]
    share = sizes["after"] / sizes["before"]
    kind = "as .tflite" if "quantized_layers" in record else "as float32 weights"
    print(
        f"{sizes['after']:,} bytes gzipped {kind}, {share:.1%} of the "
        f"{sizes['before']:,} of the source's float32 weights."
    )


if __name__ == "__main__":
    command_line.run(main)
