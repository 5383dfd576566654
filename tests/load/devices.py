"""Trains on several devices and on one, in every mode, and compares all losses.

  python tests/load/devices.py --strategy=mirrored --network=lenet
  KERAS_BACKEND=jax JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 \
    python tests/load/devices.py --strategy=data_parallel --network=lenet --processes

The devices are parts of the CPU. --network=small takes seconds, lenet an epoch of B-LeNet
on mnist_5k for each phase. With --processes, two processes are started first, with a
device each. One is killed with SIGKILL, and the other must end by itself; then both
resume. Every loss must be that of one device to 1e-3. Writes devices.json to
--folder.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
import traceback
from typing import Any

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import small
from absl import flags
from keras import layers
from tabulate import tabulate

from branchy_tf import command_line, data, exits, files, training, zoo

FLAGS = flags.FLAGS

flags.DEFINE_enum("strategy", None, ["mirrored", "data_parallel"], "The strategy.")
flags.DEFINE_enum("network", "small", ["small", "lenet"], "What to train.")
flags.DEFINE_list("cases", None, "The names of the cases to run. Default: all.")
flags.DEFINE_bool("processes", False, "Whether two processes are tried too.")
flags.DEFINE_string("folder", None, "The folder to write to. Default: a temporary one.")

ALLOWED = 1e-3
_TWO_PHASES = {"baseline_epochs": 1}
CASES: dict[str, dict[str, Any]] = {
    "joint": {"augmentation": "flip_shift_cutout", "patience": 1},
    "distilled": {"distillation": (0.5, 3.0), "gradient_scaling": "equilibrium"},
    "baseline_first": {"mode": "baseline_first", "optimizer": "adam"} | _TWO_PHASES,
    "branches_only": {"mode": "branches_only", "class_weights": {0: 3.0}} | _TWO_PHASES,
    "distilled_branches": {"mode": "branches_only", "distillation": (0.9, 2.0)}
    | _TWO_PHASES,
    "detached": {"mode": "detached", "weight_decay": 0.1, "schedule": "cosine"},
}
# Of the two processes; enough for one to be killed in between.
_EPOCHS = 20


def network() -> keras.Model:
    """The model of --network; the same weights every time."""
    keras.utils.set_random_seed(3)
    if FLAGS.network == "lenet":
        return zoo.branchy_lenet()
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    x = layers.Dense(6, name="dense")(x)
    x = layers.LeakyReLU(name="block")(layers.BatchNormalization(momentum=0.9)(x))
    # A resumed training draws other numbers for dropout, on one device too.
    if keras.backend.backend() == "jax" and not FLAGS.processes:
        x = layers.Dropout(0.3, seed=1)(x)
    trunk = keras.Model(pixels, layers.Dense(3, name="logits")(x))
    return exits.add_exits(trunk, {"block": exits.linear_head})


def rows() -> data.Dataset:
    """Data whose last batches two devices cannot share equally, except mirrored.

    There the column loss counts rows of unequal parts unequally.
    """
    odd = FLAGS.strategy != "mirrored"
    if FLAGS.network == "lenet":
        dataset = data.load("mnist_5k")
        return dataclasses.replace(dataset, train=dataset.train.take(slice(3492 + odd)))
    dataset = small.dataset()
    return dataclasses.replace(
        dataset,
        train=dataset.train.take(slice(28 + odd)),
        validation=dataset.validation.take(slice(8 + odd)),
    )


def settings(**more: Any) -> training.Settings:
    """One epoch, and what a case changes."""
    size = 64 if FLAGS.network == "lenet" else 12
    rate = 1e-3 if more.get("optimizer") == "adam" else 0.02
    common = {"epochs": 1, "batch_size": size, "optimizer": "sgd", "learning_rate": rate}
    return training.Settings(**(common | more))


def train(distribution, folder: pathlib.Path, how: training.Settings) -> list[dict]:
    """Trains a model and returns its history."""
    with distribution.scope():
        training.train(network(), rows(), how, training.RunFolder(folder))
    saved = keras.models.load_model(folder / "model.keras")
    assert not any(getattr(layer, "synchronized", False) for layer in saved.layers)
    return training.read_history(folder / "history.csv")


def difference(ours: list[dict], theirs: list[dict]) -> float:
    """The largest relative difference of two histories in a loss."""
    assert [(x["phase"], x["epoch"]) for x in ours] == [
        (x["phase"], x["epoch"]) for x in theirs
    ]
    pairs = [
        (float(a[name]), float(b[name]))
        for a, b in zip(ours, theirs, strict=True)
        for name in a
        if name.endswith("loss") and a[name]
    ]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def two_processes(folder: pathlib.Path) -> dict[str, Any]:
    """Kills one of two processes, and starts both again; in a fresh process.

    Returns:
        What the other printed last, its status and after how many seconds it ended; the
        rows of the history at the kill, and the whole history.
    """
    run = folder / "processes"
    first = [_start(process, port, run) for port in [_free_port()] for process in (0, 1)]
    while len(done := training.read_history(run / "history.csv")) < 2:
        time.sleep(0.01)
        for pid in first:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), _printed(run)
    os.kill(first[1], signal.SIGKILL)
    killed = time.monotonic()
    os.waitpid(first[1], 0)
    status = os.waitstatus_to_exitcode(os.waitpid(first[0], 0)[1])
    found = {
        "seconds": time.monotonic() - killed,
        "status": status,
        "printed": _printed(run).splitlines()[-1],
        "killed_after": len(done),
    }
    again = [_start(process, port, run) for port in [_free_port()] for process in (0, 1)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in again]
    assert statuses == [0, 0], _printed(run)
    return found | {"history": training.read_history(run / "history.csv")}


def _start(process: int, port: int, run: pathlib.Path) -> int:
    """A forked process that trains; returns its number."""
    run.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        out = os.open(f"{run}.{process}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(out, number)
        # One device each.
        os.environ.pop("XLA_FLAGS", None)
        distribution = training.distribute(
            "data_parallel", f"127.0.0.1:{port}", 2, process, 120, lost=command_line.end
        )
        train(distribution, run, settings(epochs=_EPOCHS))
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _printed(run: pathlib.Path) -> str:
    return pathlib.Path(f"{run}.0").read_text(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        _compare(pathlib.Path(FLAGS.folder or temporary))


def _compare(folder: pathlib.Path) -> None:
    processes = two_processes(folder) if FLAGS.processes else {}
    if FLAGS.strategy == "mirrored":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [half, half])
    training.make_deterministic(3)
    one, several = training.distribute("none"), training.distribute(FLAGS.strategy)
    found = {}
    for name in FLAGS.cases or CASES:
        how = settings(**CASES[name])
        single, shared = (
            train(distribution, folder / name / str(distribution.devices), how)
            for distribution in (one, several)
        )
        found[name] = difference(single, shared)
    if processes:
        alone = train(one, folder / "alone", settings(epochs=_EPOCHS))
        found["two processes"] = difference(alone, processes.pop("history"))
        print(f"\nThe process that was not killed: {processes}")
    print(tabulate([[k, f"{v:.1e}"] for k, v in found.items()], ["", "difference"]))
    files.write_json(
        folder / "devices.json", {"differences": found, "processes": processes}
    )
    assert np.max(list(found.values())) <= ALLOWED, found


if __name__ == "__main__":
    command_line.run(main)
