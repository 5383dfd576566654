r"""Trains an early-exit network: all exits jointly, with one weighted loss for each.

Examples:

  python -m branchy_tf.train --model=branchy_lenet --dataset=mnist_5k \
    --epochs=20 --loss_weights=1.0,0.3 --run_dir=runs/lenet
  python -m branchy_tf.train --model=trained.keras --exits="block_2=conv(32)" \
    --mode=branches_only --baseline_epochs=0 --dataset=mnist_5k --run_dir=runs/kept
  python -m branchy_tf.train --front=road=model:nets:road,dataset:road.npz \
    --front=airport=model:nets:airport,dataset:airport.npz --run_dir=runs/cameras

With several devices, --distribute shares each batch among them; see the guide
docs/several-devices.md for several machines.

Writes model.keras, history.csv, logs/ (TensorBoard), train.flags and, if a baseline was
trained, baseline.keras. The same command resumes a killed training; with more --epochs
it continues a finished one. With --front, networks that share their later part are
trained jointly, each on data of its own; <run_dir>/<front> is then the run of each.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from absl import flags, logging

from branchy_tf import command_line, data, exits, files, plots, training, units, zoo
from branchy_tf.command_line import startup
from branchy_tf.errors import BranchyError
from branchy_tf.training.optimizers import OPTIMIZERS, SCHEDULES
from branchy_tf.training.precision import PRECISIONS

FLAGS = flags.FLAGS

command_line.define_model(" to train")
command_line.define_path(
    "initial_weights",
    None,
    "A .keras file whose layers with the same name and shapes provide initial weights, "
    "e.g. the baseline.keras of another model. The other layers start from random "
    "weights. Default: none.",
)
command_line.define_path(
    "baseline",
    None,
    "The baseline.keras of another run, used instead of training a baseline, or a "
    "model.keras, whose trunk is used. Default: a baseline is trained.",
)
command_line.define_path("run_dir", None, "The folder to write to. Required.")
flags.DEFINE_enum(
    "mode",
    "joint",
    training.MODES,
    "What to train. joint: all exits from the start. baseline_first: the final exit "
    "alone, then all exits jointly. branches_only: the final exit alone, then the "
    "branches on the frozen trunk. detached: all exits at once, but no gradient of a "
    "branch reaches the trunk.",
)
flags.DEFINE_integer(
    "epochs",
    10,
    "The epochs of the phase that trains the branches. With more of them, a finished run "
    "is continued.",
)
flags.DEFINE_integer(
    "baseline_epochs",
    10,
    "The epochs of the baseline phase in modes baseline_first and branches_only. With 0, "
    "the weights that --model brings stay as they are: branches_only then trains only "
    "the branches of a network that was trained elsewhere.",
)
flags.DEFINE_integer("batch_size", 64, "The number of rows in a training step.")
flags.DEFINE_enum(
    "optimizer", "adam", OPTIMIZERS, "The optimiser; sgd has Nesterov momentum 0.9."
)
flags.DEFINE_float("learning_rate", 1e-3, "The maximum learning rate of each phase.")
flags.DEFINE_float(
    "weight_decay",
    0.0,
    "Decoupled weight decay: each step shrinks each kernel by the fraction learning rate "
    "x weight decay.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    PRECISIONS,
    "The precision of the training; the model is always saved in float32.",
)
flags.DEFINE_enum(
    "schedule",
    "constant",
    SCHEDULES,
    "The learning-rate schedule of each phase. cosine: decays to 0. one_cycle: rises "
    "during the first fifth, then decays to 0. step: a tenth after half of the steps, a "
    "hundredth after three quarters.",
)
flags.DEFINE_list(
    "loss_weights",
    None,
    "Comma-separated loss weights, one for each exit, e.g. 1.0,0.3. Default: 1 each.",
)
flags.DEFINE_integer(
    "patience",
    None,
    "Stops a phase after this many epochs without a smaller validation loss; the weights "
    "of its best epoch are kept. Default: all epochs, and the last one's weights.",
)
flags.DEFINE_integer(
    "steps_per_call",
    None,
    "The number of steps that run in one call, on TensorFlow and JAX. More of them spend "
    "less time between steps. Default: 32 under JAX on an accelerator with the data in "
    "memory, otherwise 1.",
)
flags.DEFINE_enum(
    "gradient_scaling",
    "none",
    training.GRADIENT_SCALINGS,
    "How gradients of several exits add up in the trunk. equilibrium: all exits have "
    "equal weight.",
)
flags.DEFINE_list(
    "distillation",
    None,
    "gamma,tau, e.g. 0.5,3: early exits learn with weight gamma from the final exit's "
    "softmax at temperature tau. Default: no distillation.",
)
flags.DEFINE_list(
    "sample_weighting",
    None,
    "delta,ratio, e.g. 0.8,0.75: learns how much each row counts at each exit, a weight "
    "of 1 changed by about delta, so that rows are classified best where they would exit "
    "if each exit took ratio times the share of the one before. A step takes about four "
    "times as long. Default: every row counts alike.",
)
flags.DEFINE_enum(
    "augmentation",
    "none",
    data.AUGMENTATIONS,
    "The augmentation of training images. shift: by up to 2 pixels. flip_shift: mirrors "
    "half the images and shifts by up to 4 pixels. flip_shift_cutout: also blanks a "
    "quarter of the height and width.",
)
command_line.define_class_weights("1 each")
flags.DEFINE_string(
    "bottleneck",
    None,
    "Narrows what crosses the cut after an exit to a number of channels, for units that "
    "`cascade export` cuts there: EXIT=CHANNELS,EXIT=CHANNELS, e.g. exit_1=8, or the "
    "number alone for a model with a single early exit. Default: no bottleneck.",
)
flags.DEFINE_multi_string(
    "front",
    None,
    "Trains a front that shares its later part with others, instead of --model with "
    "--dataset; repeatable. NAME=KEY:VALUE,KEY:VALUE with the keys "
    f"{', '.join(command_line.FRONT)}, which mean what the flags of these names do; at "
    "is the exit to cut the network after, by default exit_1. For example "
    "road=model:branchy_resnet,model_args:depth=20,dataset:cifar10.",
)
flags.DEFINE_string(
    "tail",
    None,
    "Sets the later part that all fronts share, KEY:VALUE,KEY:VALUE: run:FOLDER, a "
    "training with --front, or any other with at:EXIT; or the keys model, model_args, "
    "weights, exits and at. Default: the later part of the first front's network.",
)
flags.DEFINE_bool(
    "freeze_tail",
    None,
    "Whether to keep the weights of --tail, for new fronts of a tail that is in use. "
    "Default: no.",
)
flags.DEFINE_enum(
    "distribute",
    "none",
    training.STRATEGIES,
    "The devices that share each batch. none: one device. mirrored: all devices of this "
    "machine, with Keras on TensorFlow. data_parallel: all devices of one or several "
    "processes, with Keras on JAX. --batch_size is the number of rows in a step of all "
    "devices together, so the result stays the same.",
)
flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT where process 0 listens for the others, with --distribute=data_parallel "
    "in several processes. Default: a single process.",
)
flags.DEFINE_integer(
    "num_processes", None, "The number of processes that train together. Default: one."
)
flags.DEFINE_integer(
    "process_id",
    None,
    "The number of this process, from 0. Process 0 writes the run. Default: a single "
    "process.",
)
flags.DEFINE_float(
    "start_seconds",
    300.0,
    "The seconds to wait until all processes have started.",
    lower_bound=1,
)
command_line.define_data(required=True)
command_line.define_seed(default=1)

# The flags that describe a single network and its data.
_OF_ONE = (
    "model", "model_args", "weights", "exits", "initial_weights", "dataset", "data_dir",
    "image_size", "skip_unreadable", "validation_size", "bottleneck",
)  # fmt: skip
# The flags that determine the result, in the order of train.flags.
_RECORDED = (
    "model", "model_args", "weights", "exits", "import", "initial_weights", "dataset",
    "data_dir", "image_size", "skip_unreadable", "validation_size", "class_weights",
    "mode", "baseline", "epochs", "baseline_epochs", "batch_size", "optimizer",
    "learning_rate", "schedule", "weight_decay", "precision", "loss_weights",
    "gradient_scaling", "distillation", "sample_weighting", "augmentation", "patience",
    "steps_per_call", "bottleneck", "front", "tail", "freeze_tail", "seed",
)  # fmt: skip
_SETTINGS = dataclasses.fields(training.Settings)


def _make_paths_absolute() -> None:
    """Lets the run be resumed, repeated and read from any working folder."""
    suffixes = (".npz", ".keras", ".h5", ".json")
    for name in (
        "model", "dataset", "data_dir", "weights", "initial_weights", "baseline",
        "class_weights",
    ):  # fmt: skip
        value = FLAGS[name].value
        if value and (
            name == "data_dir"
            or value.endswith(suffixes)
            or (name == "dataset" and data.is_path(value))
        ):
            FLAGS[name].value = str(files.absolute(value))
    if FLAGS.front:
        entries = command_line.parse_fronts(FLAGS.front)
        FLAGS["front"].value = [
            f"{name}={command_line.spelled(entry)}" for name, entry in entries.items()
        ]
    if FLAGS.tail:
        parsed = command_line.parse_tail(FLAGS.tail)
        FLAGS["tail"].value = command_line.spelled(parsed)


def _recorded(name: str, value: object) -> str | None:
    """A flag's value as written to train.flags; equal values give equal texts."""
    if name == "front":
        return " and ".join(value) if isinstance(value, list) else None
    if isinstance(value, list) and name != "import":
        numbers = command_line.parse_numbers(name, value) or []
        return ",".join(str(number) for number in numbers)
    if isinstance(value, list):
        return ",".join(value) or None
    return None if value is None else str(value)


def _flags_text() -> str:
    lines = [
        "# Repeats this training: python -m branchy_tf.train --flagfile=THIS_FILE "
        "--run_dir=FOLDER"
    ]
    for name in _RECORDED:
        value = FLAGS[name].value
        for one in value or () if name == "front" else [_recorded(name, value)]:
            if one is not None:
                lines.append(f"--{name}={one}")
    return "\n".join(lines) + "\n"


def _check_same_flags(folder: training.RunFolder) -> None:
    """Raises `BranchyError` for other flags than the run's.

    More epochs for a finished run are allowed.
    """
    old = folder.read_flags()
    now = {name: _recorded(name, FLAGS[name].value) for name in _RECORDED}
    defaults = {name: _recorded(name, FLAGS[name].default) for name in _RECORDED}
    if folder.may_continue({"epochs": str(FLAGS["epochs"].default)} | old, FLAGS.epochs):
        now.pop("epochs")
    changed = training.changes(old, now, defaults, "--{}")
    if changed:
        raise BranchyError(
            f"{folder.path} holds a training with other flags: {'; '.join(changed)}. "
            "Pass the same flags to resume it, or another --run_dir."
        )


def main() -> None:
    _check_complete()
    _make_paths_absolute()
    folder = training.RunFolder(FLAGS.run_dir)
    distribution = training.distribute(
        FLAGS.distribute,
        FLAGS.coordinator,
        FLAGS.num_processes,
        FLAGS.process_id,
        FLAGS.start_seconds,
        settings=_flags_text(),
        lost=command_line.end,
    )
    if not distribution.writes:
        # The others would say the same.
        logging.set_verbosity(logging.WARNING)
    with distribution.scope():
        if folder.flags.exists():
            _check_same_flags(folder)
        if distribution.agree(folder.is_finished(FLAGS.epochs)):
            logging.info("%s is already trained; nothing to do.", folder.path)
        else:
            settings = _settings()
            training.make_deterministic(FLAGS.seed)
            keras.config.set_dtype_policy(FLAGS.precision)
            if FLAGS.front:
                _train_fronts(folder, settings)
            else:
                _train(folder, settings)
            if distribution.writes:
                folder.picture.unlink(missing_ok=True)
    if distribution.writes:
        _draw(folder)
        logging.info("Next: python -m branchy_tf.calibrate --run_dir=%s", FLAGS.run_dir)


def _draw(folder: training.RunFolder) -> None:
    # A kill may have come between the model and its picture.
    if not folder.picture.exists():
        rows = training.read_history(folder.history)
        if not rows:
            raise BranchyError(
                f"{folder.history} is missing or empty, so training.png cannot be drawn. "
                "The model is trained: continue with calibrate."
            )
        plots.training(folder.picture, rows)


def _check_complete() -> None:
    """Raises `BranchyError` for flags that are missing or do not go together."""
    needed = ("run_dir",) if FLAGS.front else ("model", "dataset", "run_dir")
    for name in needed:
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    if not FLAGS.front:
        for name in ("tail", "freeze_tail"):
            if FLAGS[name].value:
                raise BranchyError(f"--{name} goes with --front. See --help.")
        return
    for name in _OF_ONE:
        if FLAGS[name].value:
            raise BranchyError(
                f"--{name} is about a single network. With --front, write it into the "
                f"front: --front=NAME={name}:{FLAGS[name].value},..."
                if name in command_line.FRONT
                else f"--{name} does not go with --front."
            )
    if FLAGS.distribute != "none":
        raise BranchyError(
            "--distribute does not go with --front. Train the fronts on one device."
        )
    if FLAGS.freeze_tail and not FLAGS.tail:
        raise BranchyError(
            "--freeze_tail keeps the weights of a trained tail. Pass it, for example "
            "--tail=run:runs/shared."
        )


def _settings() -> training.Settings:
    given = {field.name: FLAGS[field.name].value for field in _SETTINGS}
    for name in ("loss_weights", "distillation", "sample_weighting"):
        given[name] = command_line.parse_numbers(name, given[name])
    return training.Settings(**given)


def _train_fronts(folder: training.RunFolder, settings: training.Settings) -> None:
    with startup.hushed():
        from branchy_tf.pipeline.fronts import train_fronts

    entries = command_line.parse_fronts(FLAGS.front)
    fronts, tail = command_line.built_fronts(entries, FLAGS.seed, FLAGS["import"].value)
    if FLAGS.tail:
        first = next(iter(fronts.values()))
        offered = _offered(first.dataset)
        tail = command_line.built_tail(command_line.parse_tail(FLAGS.tail), offered)
    flags_text, freeze = _flags_text(), bool(FLAGS.freeze_tail)
    train_fronts(fronts, tail, settings, folder, flags_text, freeze)


def _train(folder: training.RunFolder, settings: training.Settings) -> None:
    if settings.has_baseline_phase and not settings.baseline_epochs:
        _check_brings_weights()
    dataset = data.load(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.validation_size,
        FLAGS.seed,
        image_size=command_line.parse_size(FLAGS.image_size),
        skip_unreadable=bool(FLAGS.skip_unreadable),
        input_shape=command_line.parse_arguments(FLAGS.model_args).get("input_shape"),
    )
    model = command_line.built_model(_offered(dataset))
    if FLAGS.bottleneck:
        narrow = units.parse_bottlenecks(FLAGS.bottleneck, model)
        model = units.add_bottlenecks(model, narrow)
    classes = exits.num_classes(model)
    if classes > dataset.classes:
        logging.warning(
            "%s has %d classes, but %s has %d; the others are never correct.",
            model.name,
            classes,
            dataset.name,
            dataset.classes,
        )
    if FLAGS.initial_weights is not None:
        training.copy_layers(model, FLAGS.initial_weights)
    training.train(model, dataset, settings, folder, _flags_text())


def _check_brings_weights() -> None:
    """Raises `BranchyError` if the network that is kept as it is has random weights."""
    brought = FLAGS.weights or FLAGS.initial_weights or FLAGS.baseline
    if FLAGS.model in zoo.list_models() and not brought:
        raise BranchyError(
            f"With --baseline_epochs=0 the network keeps its weights, but {FLAGS.model} "
            "begins with random ones. Pass --weights or --baseline, or train it for some "
            "epochs."
        )


def _offered(dataset: data.Dataset) -> dict[str, Any]:
    """What the data set says about the model to build."""
    offered: dict[str, Any] = {"classes": dataset.classes}
    inputs = dataset.train.inputs
    # A builder of several inputs knows their shapes itself.
    if not isinstance(inputs, Mapping):
        offered["input_shape"] = tuple(inputs.shape[1:])
    return offered


if __name__ == "__main__":
    command_line.run(main)
