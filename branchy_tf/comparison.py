"""Times an early-exit export against what people would use instead.

Every contender is a SavedModel in a Session, the engine of TF Serving, and all
are timed in turn in one process: what the machine does beside falls on all of
them. Ratios within one run are what to go by.
"""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import costs, exits, stages
from branchy_tf.saved_model import EarlyExitModule, plain
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.thresholds import forcing


def write_contenders(
    model: keras.Model,
    thresholds: Sequence[float],
    criterion: str,
    folder: pathlib.Path,
    temperatures: Sequence[float] | None = None,
) -> None:
    """Writes the SavedModels to compare into `folder`."""
    baseline = exits.baseline(model)
    plain.write_keras_export(baseline, folder / "keras_export")
    plain.write_frozen(baseline, folder / "frozen")
    for k, stage in enumerate(stages.split(model)):
        plain.write_frozen(stage.model, folder / f"stage_{k + 1}")
    module = EarlyExitModule(model, thresholds, criterion, temperatures=temperatures)
    tf.saved_model.save(module, str(folder / "early_exit"), signatures=module.functions)


def compare(
    model: keras.Model,
    thresholds: Sequence[float],
    criterion: str,
    images: np.ndarray,
    folder: pathlib.Path,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    progress: Callable[[str], object] = lambda what: None,
    temperatures: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Times all contenders; see benchmark.json in the contract.

    Args:
        model: one input of images.
        thresholds: N-1 numbers, the calibrated ones.
        criterion: name of the score.
        images: real ones; their mix of easy and hard decides the gain.
        folder: an empty one, for the SavedModels.
        batch_sizes: to time.
        threads: numbers of threads to time.
        seconds: for each batch size and number of threads.
        progress: called with a word on what is timed now.
        temperatures: N numbers that the exits' logits are divided by; default: 1.

    Returns:
        The content of benchmark.json. `half_exit_1` is a contender too: every
        other row leaves at exit_1, the others go to the end.
    """
    write_contenders(model, thresholds, criterion, folder, temperatures)
    results: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    for count in threads:
        loaded = {
            path.name: SessionModel(path, intra_op_threads=count, inter_op_threads=count)
            for path in sorted(folder.iterdir())
        }
        for batch in batch_sizes:
            progress(f"batch {batch}, {count} threads")
            rows = _time(model, thresholds, images, loaded, batch, seconds)
            common = {"batch": batch, "threads": count}
            results += [row | common for row in rows.values()]
            reach = _reach(loaded["early_exit"], thresholds, _batches(images, batch))
            gains += [gain | common for gain in _gains(rows, reach)]
        for session in loaded.values():
            session.close()
    return {"machine": machine(), "results": results, "gains": gains}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _time(
    model: keras.Model,
    thresholds: Sequence[float],
    images: np.ndarray,
    loaded: dict[str, SessionModel],
    batch: int,
    seconds: float,
) -> dict[str, dict[str, Any]]:
    batches = _batches(images, batch)
    calls = _calls(model, thresholds, batches, loaded)
    quartiles = costs.measure_interleaved(calls, seconds)
    rows = batch * len(batches)
    return {
        name: {
            "contender": name,
            "ms_per_image": 1e3 * median / rows,
            "low": 1e3 * low / rows,
            "high": 1e3 * high / rows,
        }
        for name, (low, median, high) in quartiles.items()
    }


def _batches(images: np.ndarray, batch: int) -> list[np.ndarray]:
    """What one timed pass goes through; the same for every contender.

    Early exit takes long for some batches and short for others, so the median of
    single batches would say nothing of their mean: a pass is timed as a whole.
    """
    count = min(len(images) // batch, max(4, min(64, 512 // batch)))
    return [images[i * batch : (i + 1) * batch] for i in range(count)]


def _calls(
    model: keras.Model,
    thresholds: Sequence[float],
    batches: list[np.ndarray],
    loaded: dict[str, SessionModel],
) -> dict[str, Callable[[], object]]:
    gates = len(thresholds)
    rows = len(batches[0])

    def plain_call(session: SessionModel, tensors: list[np.ndarray] | None = None):
        definition = session.signatures[plain.SIGNATURE]
        if tensors is not None:
            inputs = {f"x_{i}": tensor for i, tensor in enumerate(tensors)}
            return _pass(batches, lambda _: session.run(plain.SIGNATURE, inputs))
        (name,) = definition.inputs
        dtype = tf.as_dtype(definition.inputs[name].dtype).as_numpy_dtype
        return _pass(
            [b.astype(dtype) for b in batches],
            lambda b: session.run(plain.SIGNATURE, {name: b}),
        )

    def exit_call(limits: np.ndarray):
        session = loaded["early_exit"]
        return _pass(
            batches,
            lambda b: session.run("early_exit", {"images": b, "thresholds": limits}),
        )

    calls: dict[str, Callable[[], object]] = {
        name: plain_call(loaded[name]) for name in ("keras_export", "frozen")
    }
    live = [tf.constant(batches[0])]
    for k, stage in enumerate(stages.split(model)):
        tensors = [np.asarray(tensor) for tensor in live]
        calls[f"stage_{k + 1}"] = plain_call(loaded[f"stage_{k + 1}"], tensors)
        _, live = stage(live)
    for k in range(gates + 1):
        limits = np.tile(forcing(k, gates + 1), (rows, 1))
        calls[f"forced_exit_{k + 1}"] = exit_call(limits)
    half = np.zeros((rows, gates), np.float32)
    half[::2] = np.inf
    if rows > 1:
        calls["half_exit_1"] = exit_call(half)
    calls["early_exit"] = exit_call(
        np.tile(np.asarray(thresholds, np.float32), (rows, 1))
    )
    return calls


def _pass(batches: list, call: Callable) -> Callable[[], object]:
    def run():
        for batch in batches:
            call(batch)

    return run


def _reach(
    session: SessionModel, thresholds: Sequence[float], batches: list[np.ndarray]
) -> np.ndarray:
    """Share of the rows that enter each stage."""
    limits = np.asarray(thresholds, np.float32)[None]
    inputs = {"images": np.concatenate(batches), "thresholds": limits}
    left = session.run("early_exit", inputs)["exit"]
    return np.array([(left >= k).mean() for k in range(len(thresholds) + 1)])


def _gains(rows: dict[str, dict[str, Any]], reach: np.ndarray) -> list[dict[str, Any]]:
    measured = rows["early_exit"]["ms_per_image"]
    ideal = sum(
        share * rows[f"stage_{k + 1}"]["ms_per_image"] for k, share in enumerate(reach)
    )
    return [
        {
            "over": over,
            "gain": rows[over]["ms_per_image"] / measured,
            "ideal_gain": rows[over]["ms_per_image"] / ideal,
            "share_of_ideal": ideal / measured,
        }
        for over in ("keras_export", "frozen")
    ]


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
