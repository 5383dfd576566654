"""Trains an early-exit network: all exits jointly, one weighted loss for each.

Example:

  python -m branchy_tf.train --model=branchy_lenet --dataset=mnist_5k \
    --epochs=20 --loss_weights=1.0,0.3 --run_dir=runs/lenet

Writes model.keras, history.csv, logs/ (TensorBoard), train.flags and, where one
was trained, baseline.keras. A killed training goes on when the same command is
given again.
"""

from typing import Any

import keras
from absl import flags, logging

from branchy_tf import command_line, data, files, plots, training, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.training.optimizers import OPTIMIZERS, SCHEDULES
from branchy_tf.training.precision import PRECISIONS

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A model of the zoo, e.g. branchy_lenet.")
flags.DEFINE_string(
    "model_args", "", "Arguments of its builder, e.g. depth=20,classes=100."
)
command_line.define_path("weights", None, "Start from these: a tag, or a .keras file.")
command_line.define_path(
    "initial_weights",
    None,
    "Start from the equally named layers of this .keras file, e.g. another model's "
    "baseline.keras; the others start anew.",
)
command_line.define_path(
    "baseline",
    None,
    "Instead of training a baseline: the baseline.keras of another run, or its "
    "model.keras, for the trunk that its exits have shaped.",
)
command_line.define_path("run_dir", None, "Folder to write to.")
flags.DEFINE_enum(
    "mode",
    "joint",
    training.MODES,
    "joint: all exits from the start; baseline_first: the final exit alone, then all "
    "exits jointly; branches_only: the final exit alone, then the branches on the frozen "
    "trunk; detached: all at once, no branch's error reaches the trunk.",
)
flags.DEFINE_integer("epochs", 10, "Epochs of the phase that trains branches.")
flags.DEFINE_integer(
    "baseline_epochs", 10, "Epochs of the baseline phase, where the mode has one."
)
flags.DEFINE_integer("batch_size", 64, "Rows in a training step.")
flags.DEFINE_enum("optimizer", "adam", OPTIMIZERS, "sgd: Nesterov momentum 0.9.")
flags.DEFINE_float("learning_rate", 1e-3, "The highest of each phase.")
flags.DEFINE_float("weight_decay", 0.0, "Decoupled: times the learning rate, each step.")
flags.DEFINE_enum("precision", "float32", PRECISIONS, "The model is saved in float32.")
flags.DEFINE_enum("schedule", "constant", SCHEDULES, "Of the learning rate.")
flags.DEFINE_list(
    "loss_weights",
    None,
    "One for each exit, in exit order, e.g. 1.0,0.3. Default: 1 for each.",
)
flags.DEFINE_enum(
    "gradient_scaling",
    "none",
    training.GRADIENT_SCALINGS,
    "equilibrium: exits share the trunk's gradient evenly.",
)
flags.DEFINE_list(
    "distillation",
    None,
    "gamma,tau, e.g. 0.5,3: early exits learn a share gamma from the final exit's "
    "softmax at temperature tau.",
)
flags.DEFINE_enum(
    "augmentation",
    "none",
    data.AUGMENTATIONS,
    "shift: by up to 2 pixels; flip_shift: left to right, and by up to 4 pixels; "
    "flip_shift_cutout: so, and a square of a quarter of height and width blanked.",
)
command_line.define_data(required=True)
command_line.define_seed(default=1)

# What decides the result, in the order in which train.flags lists them.
_RECORDED = (
    "model", "model_args", "weights", "initial_weights", "dataset", "data_dir",
    "validation_size", "mode", "baseline", "epochs", "baseline_epochs", "batch_size",
    "optimizer", "learning_rate", "schedule", "weight_decay", "precision",
    "loss_weights", "gradient_scaling", "distillation", "augmentation", "seed",
)  # fmt: skip


def _make_paths_absolute() -> None:
    """So that the run can be gone on with, repeated and read from any folder."""
    for name in ("dataset", "data_dir", "weights", "initial_weights", "baseline"):
        value = FLAGS[name].value
        if value and (name == "data_dir" or value.endswith((".npz", ".keras", ".h5"))):
            FLAGS[name].value = str(files.absolute(value))


def _recorded(name: str, value: Any) -> str | None:
    """A flag's value as train.flags has it; equal values have equal texts."""
    if name in ("loss_weights", "distillation") and value is not None:
        numbers = command_line.parse_numbers(name, value) or []
        return ",".join(str(number) for number in numbers)
    return None if value is None else str(value)


def _flags_text() -> str:
    lines = [
        "# Trains this run again: python -m branchy_tf.train --flagfile=THIS_FILE "
        "--run_dir=FOLDER"
    ]
    for name in _RECORDED:
        text = _recorded(name, FLAGS[name].value)
        if text is not None:
            lines.append(f"--{name}={text}")
    return "\n".join(lines) + "\n"


def _check_same_flags(folder: training.RunFolder) -> None:
    old = folder.read_flags()
    changed = []
    for name in _RECORDED:
        before = old.get(name, _recorded(name, FLAGS[name].default))
        now = _recorded(name, FLAGS[name].value)
        if before != now:
            changed.append(
                f"--{name} was {before or 'unset'} and is now {now or 'unset'}"
            )
    if changed:
        raise BranchyError(
            f"{folder.path} holds a training with other flags: {'; '.join(changed)}. "
            "Give the same flags to go on with it, or another --run_dir."
        )


def main() -> None:
    for name in ("model", "dataset", "run_dir"):
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    _make_paths_absolute()
    folder = training.RunFolder(FLAGS.run_dir)
    if folder.flags.exists():
        _check_same_flags(folder)
    if folder.flags.exists() and folder.model.exists():
        logging.info("%s is trained already; nothing to do.", folder.path)
    else:
        _train(folder)
    # Also where a kill came between the model and its picture.
    if not folder.picture.exists():
        rows = training.read_history(folder.history)
        if not rows:
            raise BranchyError(
                f"{folder.history} is missing or empty, so training.png cannot be drawn. "
                "The model itself is trained: go on with calibrate."
            )
        plots.training(folder.picture, rows)
    logging.info("Next: python -m branchy_tf.calibrate --run_dir=%s", FLAGS.run_dir)


def _train(folder: training.RunFolder) -> None:
    settings = training.Settings(
        mode=FLAGS.mode,
        epochs=FLAGS.epochs,
        baseline_epochs=FLAGS.baseline_epochs,
        batch_size=FLAGS.batch_size,
        learning_rate=FLAGS.learning_rate,
        optimizer=FLAGS.optimizer,
        schedule=FLAGS.schedule,
        weight_decay=FLAGS.weight_decay,
        loss_weights=command_line.parse_numbers("loss_weights", FLAGS.loss_weights),
        gradient_scaling=FLAGS.gradient_scaling,
        distillation=command_line.parse_numbers("distillation", FLAGS.distillation),
        augmentation=FLAGS.augmentation,
        seed=FLAGS.seed,
        baseline=FLAGS.baseline,
    )
    training.make_deterministic(FLAGS.seed)
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.validation_size, FLAGS.seed)
    arguments = {"input_shape": dataset.image_shape, "classes": dataset.classes}
    arguments |= command_line.parse_arguments(FLAGS.model_args)
    keras.config.set_dtype_policy(FLAGS.precision)
    model = zoo.build(FLAGS.model, **arguments, weights=FLAGS.weights)
    if FLAGS.initial_weights is not None:
        training.copy_layers(model, FLAGS.initial_weights)
    training.train(model, dataset, settings, folder, _flags_text())


if __name__ == "__main__":
    command_line.run(main)
