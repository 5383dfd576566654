r"""Times training steps and the making of batches.

Example:

  python -m zoo.studies.training_speed --model=branchy_resnet --model_args=depth=20 \
    --dataset=cifar10 --batch_size=128 --augmentation=flip_shift

Times in turn a step of the baseline alone and of all exits jointly, in each precision,
with and without compilation, and the making of batches alone. Prints a table with the
median and the interquartile range, as `train` would run on this machine and Keras
backend, and how long the first call took, which compiles the step. Under JAX it also
tells in which share of the time the training did not wait for the device. The time of a
joint step over that of a baseline step should be at most 1.15 times the ratio of their
multiply-adds. The data set zoo.studies.noise:cifar10 needs no download. Writes
training_speed.json to --run_dir, if given.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import keras
from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, costs, data, files, training, zoo
from branchy_tf.benchmarking import timing
from branchy_tf.benchmarking.machine import machine
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.training import phases
from branchy_tf.training.optimizers import OPTIMIZERS
from branchy_tf.training.precision import PRECISIONS
from zoo.studies import training_timers

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "Model of the zoo, e.g. branchy_lenet; required.")
flags.DEFINE_string(
    "model_args", "", "Arguments of its builder, e.g. depth=20,classes=100."
)
flags.DEFINE_string("run_dir", None, "Folder to write to. Default: none, only print.")
flags.DEFINE_integer("batch_size", 64, "Rows in each training step.")
flags.DEFINE_enum("optimizer", "adam", OPTIMIZERS, "sgd has Nesterov momentum 0.9.")
flags.DEFINE_enum(
    "augmentation", "none", data.AUGMENTATIONS, "Augmentation of the images, as in train."
)
flags.DEFINE_multi_enum(
    "precision",
    ["float32", "mixed_bfloat16"],
    PRECISIONS,
    "Precision to time; repeatable.",
)
flags.DEFINE_multi_enum(
    "jit",
    ["off", "on"],
    ["auto", "off", "on"],
    "Whether steps are compiled; auto is train's behaviour. Repeatable.",
)
flags.DEFINE_multi_enum(
    "phase", ["baseline", "joint"], ["baseline", "joint"], "What to train. Repeatable."
)
flags.DEFINE_integer(
    "steps_per_call", 1, "Steps that run in one call, as in train.", lower_bound=1
)
flags.DEFINE_bool(
    "deterministic",
    True,
    "Run deterministic operations, as train does; TensorFlow then compiles no step.",
)
flags.DEFINE_integer("steps", 10, "Consecutive steps in each timing.", lower_bound=1)
flags.DEFINE_float(
    "seconds",
    60.0,
    "Seconds to measure for; everything is timed at least five times.",
    lower_bound=0,
)
command_line.define_data(required=True)
command_line.define_seed(default=1)

_JIT = {"auto": None, "off": False, "on": True}
_PHASES = {"baseline": phases.baseline_phase, "joint": phases.branches_phase}
_PIPELINE = "batches"


def main() -> None:
    for name in ("model", "dataset"):
        if not FLAGS[name].value:
            raise BranchyError(f"--{name} is missing. See --help.")
    settings = training.Settings(
        batch_size=FLAGS.batch_size,
        optimizer=FLAGS.optimizer,
        augmentation=FLAGS.augmentation,
        steps_per_call=FLAGS.steps_per_call,
        seed=FLAGS.seed,
    )
    if FLAGS.deterministic:
        training.make_deterministic(FLAGS.seed)
    loaded = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.validation_size, FLAGS.seed)
    model = _build(loaded, FLAGS.precision[0])
    settings.check(model, loaded)
    dataset = training_timers.some_steps(
        loaded, FLAGS.steps, FLAGS.batch_size, FLAGS.steps_per_call
    )
    steps = _step_timers(dataset, settings)
    if not steps:
        raise BranchyError("No step could be timed. Pass --jit=auto.")
    pipeline = training_timers.BatchTimer(
        next(iter(steps.values())).batches, FLAGS.steps + FLAGS.steps_per_call
    )
    timers: dict[str, Callable[[], float]] = {_PIPELINE: pipeline}
    timers |= {" ".join(name): timer for name, timer in steps.items()}
    logging.info("Timing %d contenders in turn.", len(timers))
    times = timing.interleave(timers, FLAGS.seconds, warm_up=0)
    result: dict[str, Any] = {
        "machine": machine(),
        "backend": keras.backend.backend(),
        "model": model.name,
        "dataset": dataset.name,
        "batch_size": FLAGS.batch_size,
        "augmentation": FLAGS.augmentation,
        "optimizer": FLAGS.optimizer,
        "deterministic": FLAGS.deterministic,
        "steps_per_call": FLAGS.steps_per_call,
        "macs": costs.cumulative_macs(model)[-1],
        "full_macs": costs.full_macs(model),
        "batches": training_timers.figures(times.pop(_PIPELINE), FLAGS.batch_size),
        "steps": [
            {
                **dict(zip(("phase", "precision", "jit"), name, strict=True)),
                **training_timers.figures(times[" ".join(name)], FLAGS.batch_size),
                "first_call_seconds": steps[name].first_seconds,
                "waiting": steps[name].waiting,
                "outside": steps[name].outside,
            }
            for name in steps
        ],
    }
    result["joint_over_baseline"] = training_timers.joint_over_baseline(
        result["steps"], result["macs"] / result["full_macs"]
    )
    _print(result)
    if FLAGS.run_dir is not None:
        path = pathlib.Path(FLAGS.run_dir) / "training_speed.json"
        files.write_json(path, result)
        logging.info("Wrote %s.", path)


def _build(dataset: data.Dataset, precision: str) -> keras.Model:
    keras.config.set_dtype_policy(precision)
    arguments = {"input_shape": dataset.image_shape, "classes": dataset.classes}
    arguments |= command_line.parse_arguments(FLAGS.model_args)
    return zoo.build(FLAGS.model, **arguments)


def _step_timers(
    dataset: data.Dataset, settings: training.Settings
) -> dict[tuple[str, str, str], training_timers.StepTimer]:
    """Warmed-up timers by (phase, precision, jit), where the backend supports it."""
    timers = {}
    for precision in FLAGS.precision:
        for jit in FLAGS.jit:
            model = _build(dataset, precision)
            for chosen in FLAGS.phase:
                phase = _PHASES[chosen](model, settings)
                name = (phase.name, precision, jit)
                logging.info("Building %s, %s, jit %s.", *name)
                try:
                    timer = training_timers.StepTimer(phase, dataset, settings, _JIT[jit])
                    seconds = timer()
                except Exception as error:
                    # Backend compilers raise exceptions of no common type.
                    if jit != "on":
                        raise
                    logging.info("Skipped: %s", first_line(error))
                    continue
                timers[name] = timer
                logging.info(
                    "The first call took %.1f s; then %.2f ms a step.",
                    timer.first_seconds,
                    1e3 * seconds,
                )
    return timers


def _print(result: dict[str, Any]) -> None:
    rows = [
        [
            row.get("phase", "batches alone"),
            row.get("precision", ""),
            row.get("jit", ""),
            f"{row['ms_per_step']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['images_per_second']:,.0f}",
            f"{row['first_call_seconds']:.1f}" if "phase" in row else "",
            f"{row['waiting']:.1%}" if "phase" in row else "",
            "" if row.get("outside") is None else f"{row['outside']:.1%}",
        ]
        for row in [*result["steps"], result["batches"]]
    ]
    head = [
        "", "precision", "jit", "ms per step", "images/s", "first call, s",
        "waiting for batches", "outside the step",
    ]  # fmt: skip
    print(tabulate(rows, head, disable_numparse=True))
    print()
    for row in result["joint_over_baseline"]:
        print(
            f"Joint step over baseline step, {row['precision']}, jit {row['jit']}: "
            f"{row['ratio']:.2f}, {'within' if row['within'] else 'ABOVE'} "
            f"{row['allowed']:.2f} = {training_timers.ALLOWED} x the ratio of "
            "multiply-adds."
        )
    fastest = max(row["images_per_second"] for row in result["steps"])
    ratio = result["batches"]["images_per_second"] / fastest
    print(
        f"Batches are made {ratio:.1f} times as fast as the fastest step consumes them"
        f"{'.' if ratio > 1 else ', so they are the bottleneck.'}"
    )


if __name__ == "__main__":
    command_line.run(main)
