"""The contenders: writes their files and starts their processes."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import exits, stages
from branchy_tf.benchmarking.processes import Process
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, forcing
from branchy_tf.saved_model import EarlyExitModule, plain
from branchy_tf.saved_model.bfloat16 import in_bfloat16

# Early exit at the same thresholds, as `export --precision=bfloat16` writes it.
BFLOAT16 = "early_exit_bfloat16"
# The packages that each peer needs; the extra `peers` installs them.
PEERS = {"onnxruntime": ("onnxruntime", "tf2onnx"), "pytorch": ("torch",)}


# {process: (engine, {contender: the engine's parameters})}.
Programs = dict[str, tuple[str, dict[str, Any]]]


def write(
    model: keras.Model,
    images: np.ndarray,
    policy: ExitPolicy,
    folder: pathlib.Path,
    peers: Sequence[str],
    bfloat16: bool = False,
) -> tuple[Programs, dict[str, str]]:
    """Writes every contender into `folder`.

    Returns:
        `({process: its program}, {left out: why})`. One program with several thresholds
        shares a process, and so do the stages that the ideal is computed from.
    """
    # Keras would cast raw pixels to floats itself, a Session does not.
    np.save(folder / "images.npy", images.astype(model.inputs[0].dtype, copy=False))
    baseline = exits.baseline(model)
    programs: Programs = {
        "keras_export": (
            "tensorflow",
            _plain(plain.write_keras_export, baseline, folder / "keras_export"),
        ),
        "frozen": (
            "tensorflow",
            _plain(plain.write_frozen, baseline, folder / "frozen"),
        ),
        "early_exit": ("tensorflow", _early_exit(EarlyExitModule(model, policy), folder)),
        "parts": ("tensorflow", _parts(model, folder)),
    }
    left_out = {}
    if bfloat16:
        try:
            held = _bfloat16(EarlyExitModule(in_bfloat16(model), policy), folder)
        except BranchyError as error:
            left_out[BFLOAT16] = str(error)
        else:
            programs[BFLOAT16] = ("tensorflow", held)
    for peer in peers:
        try:
            _check_installed(peer)
            if peer == "onnxruntime":
                held = _onnx(baseline, folder)
            else:
                held = _pytorch(model, policy, folder)
        except BranchyError as error:
            left_out[peer] = str(error)
        else:
            programs[peer] = (peer, held)
    return programs, left_out


@contextlib.contextmanager
def started(
    programs: Programs, threads: int, folder: pathlib.Path
) -> Iterator[tuple[dict[str, Process], dict[str, str]]]:
    """Runs the processes for what `write` wrote, until the context ends.

    Gives `({contender: its process}, {left out: why})`.
    """
    processes: dict[str, Process] = {}
    left_out = {}
    with contextlib.ExitStack() as ended:
        for name, (engine, held) in programs.items():
            spec = {
                "engine": engine,
                "programs": held,
                "images": str(folder / "images.npy"),
                "threads": threads,
            }
            # Without TensorFlow: two engines in one process compete for threads and
            # memory.
            backend = "torch" if engine == "pytorch" else "tensorflow"
            process = Process(name, spec, folder, {"KERAS_BACKEND": backend})
            ended.callback(process.close)
            processes |= dict.fromkeys(held, process)
        for name in list(processes.keys() & {*PEERS, BFLOAT16}):
            try:
                # Runs it too: a processor without bfloat16 may lack an operation.
                processes[name].ask("answer", contender=name, rows=1)
            except BranchyError as error:
                left_out[name] = str(error)
                processes.pop(name).close()
        yield processes, left_out


def _plain(
    write_model: Callable[[keras.Model, pathlib.Path], None],
    model: keras.Model,
    path: pathlib.Path,
) -> dict[str, Any]:
    write_model(model, path)
    return {path.name: {"path": str(path), "signature": plain.SIGNATURE}}


def _early_exit(module: EarlyExitModule, folder: pathlib.Path) -> dict[str, Any]:
    path, count = folder / "early_exit", module.policy.num_exits
    module.save(path)
    leave, stay = forcing(0, count), forcing(count - 1, count)
    asked: dict[str, Sequence[Any]] = {
        "early_exit": [module.policy.thresholds],
        "half_exit_1": [leave, stay],
    }
    asked |= {
        f"forced_{exits.exit_name(k + 1)}": [forcing(k, count)] for k in range(count)
    }
    return {contender: _routed(path, rows) for contender, rows in asked.items()}


def _bfloat16(module: EarlyExitModule, folder: pathlib.Path) -> dict[str, Any]:
    path = folder / BFLOAT16
    module.save(path)
    return {BFLOAT16: _routed(path, [module.policy.thresholds])}


def _routed(path: pathlib.Path, rows: Sequence[Any]) -> dict[str, Any]:
    return {
        "path": str(path),
        "signature": "early_exit",
        "thresholds": np.asarray(rows, np.float32).tolist(),
    }


def _parts(model: keras.Model, folder: pathlib.Path) -> dict[str, Any]:
    """The stages alone, and the full network with branches but without routing."""
    parts = _plain(plain.write_frozen, model, folder / "unrouted")
    behind: list[str] = []
    for k, stage in enumerate(stages.split(model)):
        path = folder / f"stage_{k + 1}"
        parts |= _plain(plain.write_frozen, stage.model, path)
        parts[path.name]["behind"] = list(behind)
        behind.append(str(path))
    return parts


def _check_installed(peer: str) -> None:
    missing = [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]
    if missing:
        raise BranchyError(
            f"{' and '.join(missing)} not installed: pip install -e '.[peers]'"
        )


def _onnx(baseline: keras.Model, folder: pathlib.Path) -> dict[str, Any]:
    import tf2onnx

    path = folder / "baseline.onnx"
    (given,) = baseline.inputs
    function = tf.function(
        lambda images: baseline(images, training=False),
        input_signature=[tf.TensorSpec(given.shape, given.dtype, "images")],
    )
    try:
        tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, output_path=str(path)
        )
    except Exception as error:  # whatever it cannot convert
        raise BranchyError(f"tf2onnx failed: {type(error).__name__}: {error}") from None
    return {"onnxruntime": {"path": str(path)}}


def _pytorch(
    model: keras.Model, policy: ExitPolicy, folder: pathlib.Path
) -> dict[str, Any]:
    path = folder / "model.keras"
    model.save(path)
    return {"pytorch": {"path": str(path), "policy": policy.to_json()}}
