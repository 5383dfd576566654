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

from branchy_tf import exits, graphs, stages
from branchy_tf.benchmarking import litert_contenders
from branchy_tf.benchmarking.litert_contenders import Splits
from branchy_tf.benchmarking.processes import Process
from branchy_tf.benchmarking.rows import Arrays, in_batches
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, forcing
from branchy_tf.saved_model import EarlyExitModule, plain
from branchy_tf.saved_model.bfloat16 import in_bfloat16

# Early exit at the same thresholds, as `export --precision=bfloat16` writes it.
BFLOAT16 = "early_exit_bfloat16"
# The packages that each peer needs; the extra `peers` installs them.
PEERS = {
    "litert": ("ai_edge_litert",),
    "onnxruntime": ("onnxruntime", "tf2onnx"),
    "pytorch": ("torch",),
}
# The extras that install them, if not `peers`.
_EXTRAS = {"litert": "litert"}
LITERT_EARLY_EXIT = {
    f"early_exit_litert{suffix}": f"litert{suffix}" for suffix in litert_contenders.KINDS
}
# The full network in int8, as other engines offer it.
INT8 = ("onnxruntime_int8", "litert_int8")
# Contenders that may turn out not to run here.
_OPTIONAL = {BFLOAT16, *LITERT_EARLY_EXIT, *PEERS, *INT8}


# {process: (engine, {contender: the engine's parameters})}.
Programs = dict[str, tuple[str, dict[str, Any]]]


def write(
    model: keras.Model,
    inputs: Arrays,
    policy: ExitPolicy,
    folder: pathlib.Path,
    peers: Sequence[str],
    bfloat16: bool = False,
    splits: Splits | None = None,
) -> tuple[Programs, dict[str, str], list[dict[str, Any]]]:
    """Writes every contender into `folder`.

    The inputs are those of `graphs.cast_inputs`.

    Returns:
        `({process: its program}, {left out: why}, quality)`. One program with several
        thresholds shares a process, and so do the stages that the ideal is computed
        from. For quality, see `litert_contenders.write`.
    """
    for name, array in inputs.items():
        np.save(_file(folder, name), array)
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
    left_out: dict[str, str] = {}
    quality: list[dict[str, Any]] = []
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
            if peer == "litert":
                module = EarlyExitModule(model, policy)
                found = litert_contenders.write(model, baseline, module, folder, splits)
                held, missing, quality = found
                programs |= held
                left_out |= missing
            elif peer == "onnxruntime":
                programs[peer] = (peer, _onnx(baseline, folder))
            else:
                programs[peer] = (peer, _pytorch(model, policy, folder))
            if peer == "onnxruntime" and splits is not None:
                examples = graphs.cast_inputs(model, splits.examples)
                held = _onnx_int8(folder, examples)
                programs["onnxruntime_int8"] = (peer, held)
        except BranchyError as error:
            name = f"{peer}_int8" if peer in programs else peer
            left_out[name] = str(error)
    return programs, left_out, quality


@contextlib.contextmanager
def started(
    programs: Programs, names: Sequence[str], threads: int, folder: pathlib.Path
) -> Iterator[tuple[dict[str, Process], dict[str, str]]]:
    """Runs the processes for what `write` wrote, until the context ends.

    Args:
        programs: what `write` returned.
        names: the names of the inputs, in order.
        threads: inside one operation.
        folder: that of `write`.

    Gives `({contender: its process}, {left out: why})`.
    """
    processes: dict[str, Process] = {}
    left_out = {}
    with contextlib.ExitStack() as ended:
        for name, (engine, held) in programs.items():
            spec = {
                "engine": engine,
                "programs": held,
                "inputs": {name: str(_file(folder, name)) for name in names},
                "threads": threads,
            }
            # Without TensorFlow: two engines in one process compete for threads and
            # memory.
            backend = "torch" if engine == "pytorch" else "tensorflow"
            process = Process(name, spec, folder, {"KERAS_BACKEND": backend})
            ended.callback(process.close)
            processes |= dict.fromkeys(held, process)
        for name in list(processes.keys() & _OPTIONAL):
            try:
                # Runs it too: a processor without bfloat16 may lack an operation.
                processes[name].ask("answer", contender=name, rows=1)
            except BranchyError as error:
                left_out[name] = str(error)
                processes.pop(name).close()
        yield processes, left_out


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The rows of an input."""
    return folder / f"input_{name}.npy"


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
            f"{' and '.join(missing)} not installed: pip install -e "
            f"'.[{_EXTRAS.get(peer, 'peers')}]'"
        )


def _onnx(baseline: keras.Model, folder: pathlib.Path) -> dict[str, Any]:
    import tf2onnx

    path = folder / "baseline.onnx"
    specs = [
        tf.TensorSpec(given.shape, given.dtype, name)
        for given, name in zip(baseline.inputs, graphs.input_names(baseline), strict=True)
    ]

    def whole(*tensors: Any) -> Any:
        given = keras.tree.pack_sequence_as(baseline.input, tensors)
        return baseline(given, training=False)

    function = tf.function(whole, input_signature=specs)
    try:
        tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, output_path=str(path)
        )
    except Exception as error:  # whatever it cannot convert
        raise BranchyError(f"tf2onnx failed: {type(error).__name__}: {error}") from None
    return {"onnxruntime": {"path": str(path)}}


def _onnx_int8(folder: pathlib.Path, examples: Arrays) -> dict[str, Any]:
    """The same network, quantised by ONNX Runtime for its own engine."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, path = folder / "baseline.onnx", folder / "baseline_int8.onnx"
    ready = folder / "baseline_ready.onnx"

    class Rows(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(in_batches(examples, 1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

    try:
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        # The format and types that its documentation recommends for x86 processors.
        quantization.quantize_static(
            str(ready),
            str(path),
            Rows(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    except Exception as error:  # whatever it cannot quantise
        raise BranchyError(
            f"onnxruntime failed to quantise: {type(error).__name__}: {error}"
        ) from None
    return {"onnxruntime_int8": {"path": str(path)}}


def _pytorch(
    model: keras.Model, policy: ExitPolicy, folder: pathlib.Path
) -> dict[str, Any]:
    path = folder / "model.keras"
    model.save(path)
    return {"pytorch": {"path": str(path), "policy": policy.to_json()}}
