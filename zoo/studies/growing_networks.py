"""How time and memory grow with batch, exits, classes and image size.

What is measured is a chain of equal blocks with an exit after each, so that with
another exit everything grows: no large constant hides how. Of every batch as many
rows leave at each exit, whatever its size.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import math
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

from branchy_tf import calibration, saved_model
from branchy_tf.benchmarking import timing
from branchy_tf.benchmarking.machine import resident_most
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, exit_name, linear_head
from branchy_tf.saved_model import warmup
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.thresholds import forcing

FILTERS = 16
# A step is called worse than linear beyond this: timings are not exact.
TOLERANCE = 1.1

# What is measured, and how it is called.
FIGURES = {
    "call_ms": "a call, ms",
    "ready_s": "load and warm-up, s",
    "export_s": "export, s",
    "calibrate_s": "calibrate, s",
    "version_mb": "version, MB",
    "graph_mb": "graph, MB",
    "serving_mb": "memory, serving, MB",
    "exporting_mb": "memory, exporting, MB",
    "calibrating_mb": "memory, calibrating, MB",
}
_OF_CALLS = ("call_ms", "serving_mb")
_OF_CALIBRATING = ("calibrate_s", "calibrating_mb")


@dataclasses.dataclass(frozen=True)
class Setup:
    """A network and what it is asked.

    Attributes:
        batch: rows of a call.
        exits: N, of as many blocks.
        classes: that every exit tells apart.
        side: of the square images, in pixels.
    """

    batch: int = 32
    exits: int = 4
    classes: int = 10
    side: int = 32


@dataclasses.dataclass(frozen=True)
class Axis:
    """What one axis of the study varies.

    Attributes:
        field: of `Setup`.
        size: what the field's value counts as: an image has side^2 pixels.
        figures: those that depend on it.
    """

    field: str
    size: Callable[[int], int] = int
    figures: tuple[str, ...] = tuple(FIGURES)


AXES = {
    "batch": Axis("batch", figures=_OF_CALLS),
    "exits": Axis("exits"),
    "classes": Axis("classes"),
    "pixels": Axis(
        "side",
        size=lambda side: side**2,
        figures=tuple(name for name in FIGURES if name not in _OF_CALIBRATING),
    ),
}


def measure_growth(
    sizes: Mapping[str, Sequence[int]],
    rows: int = 5000,
    seconds: float = 2.0,
    repeats: int = 3,
    progress: Callable[[str], object] = lambda what: None,
) -> list[dict[str, Any]]:
    """Measures every size of every axis, all else as in `Setup()`.

    Args:
        sizes: `{axis: values of its field}`; axes from `AXES`.
        rows: of a calibration.
        seconds: how long calls are repeated; the median counts.
        repeats: how often everything is done, one point after the other; of each
            figure the median counts.
        progress: called `repeats * len(jobs(sizes))` times, with what was measured.

    Returns:
        A row for each axis and size: `{"axis", "size", "batch", "exits", "classes",
        "side", and the figures}`; None for those that do not depend on the axis.
        Memory is what the process grew by at its peak, in MB of 10^6 bytes.

    Raises:
        BranchyError: a process was ended, which is what happens without memory.
    """
    found: dict[tuple, list[dict[str, float]]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind, point in jobs(sizes):
                exports = pathlib.Path(folder, _network(point))
                more = {
                    "export": (exports,),
                    "serve": (exports, seconds),
                    "calibrate": (rows,),
                }
                figures = _in_a_process(kind, point, *more[kind])
                found.setdefault((kind, point), []).append(figures)
                progress(f"{kind} {point}")
    return [
        {"axis": name, "size": AXES[name].size(value), **dataclasses.asdict(point)}
        | _medians(name, point, found)
        for name, values in sizes.items()
        for value in values
        for point in [_point(name, value)]
    ]


def jobs(sizes: Mapping[str, Sequence[int]]) -> list[tuple[str, Setup]]:
    """`[(export | serve | calibrate, point), ...]`, each once, in a good order."""
    wanted: dict[tuple[str, Setup], None] = {}
    for name, values in sizes.items():
        for value in values:
            point = _point(name, value)
            # Exports and calibrations know nothing of batches.
            alone = dataclasses.replace(point, batch=Setup.batch)
            wanted["export", alone] = None
            wanted["serve", point] = None
            if "calibrate_s" in AXES[name].figures:
                wanted["calibrate", alone] = None
    return list(wanted)


def steps(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each figure grows from each size to the next of its axis.

    Returns:
        `[{"axis", "figure", "from", "to", "ratio": of the figure, "size_ratio",
        "slope": of the step in a log-log plot; 1 is linear, "worse": whether the
        figure grew more than `TOLERANCE` times as much as the size}, ...]`
    """
    found = []
    for before, after in itertools.pairwise(rows):
        if before["axis"] != after["axis"]:
            continue
        size_ratio = after["size"] / before["size"]
        for figure in FIGURES:
            if not before[figure] or not after[figure]:
                continue  # it does not depend on this axis, or is too small to see
            ratio = after[figure] / before[figure]
            found.append(
                {
                    "axis": before["axis"],
                    "figure": figure,
                    "from": before["size"],
                    "to": after["size"],
                    "ratio": ratio,
                    "size_ratio": size_ratio,
                    "slope": math.log(ratio) / math.log(size_ratio),
                    "worse": ratio > TOLERANCE * size_ratio,
                }
            )
    return found


def chain(point: Setup) -> keras.Model:
    """Equal blocks of convolution, batch norm and ReLU, an exit after each."""
    pixels = keras.Input((point.side, point.side, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="rescale")(pixels)
    for k in range(1, point.exits + 1):
        x = layers.Conv2D(
            FILTERS, 3, padding="same", use_bias=False, name=f"block_{k}_conv"
        )(x)
        x = layers.BatchNormalization(name=f"block_{k}_bn")(x)
        x = layers.ReLU(name=f"block_{k}")(x)
    logits = linear_head(x, point.classes, "logits")
    trunk = keras.Model(pixels, logits, name="chain")
    heads = {f"block_{k}": linear_head for k in range(1, point.exits)}
    return add_exits(trunk, heads, "chain")


def mixed_thresholds(batch: int, exits: int) -> np.ndarray:
    """Thresholds [B, N-1] with which as many rows leave at each exit, in any order."""
    where = (np.arange(batch) + 0.5) * exits / batch
    rows = [forcing(int(k), exits) for k in where]
    return np.random.default_rng(0).permutation(np.stack(rows))


def _point(axis: str, value: int) -> Setup:
    return dataclasses.replace(Setup(), **{AXES[axis].field: value})


def _network(point: Setup) -> str:
    return f"{point.exits}-{point.classes}-{point.side}"


def _medians(axis: str, point: Setup, found: Mapping) -> dict[str, float | None]:
    alone = dataclasses.replace(point, batch=Setup.batch)
    every = {
        "export": found["export", alone],
        "serve": found["serve", point],
        "calibrate": found.get(("calibrate", alone), []),
    }
    values = {
        name: [result[name] for result in results]
        for results in every.values()
        for name in (results[0] if results else ())
    }
    return {
        name: float(np.median(values[name])) if name in AXES[axis].figures else None
        for name in FIGURES
    }


def _in_a_process(kind: str, point: Setup, *arguments: Any) -> dict[str, float]:
    """Measures in a process of its own, whose memory holds nothing else."""
    # Each begins as a copy of one that has imported everything and done nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_MEASURES[kind], point, *arguments).result()
        except concurrent.futures.BrokenExecutor:
            raise BranchyError(
                f"The process to {kind} {point} was ended, by the system if it "
                "needed more memory than there is. Leave out the largest sizes."
            ) from None


def _export(point: Setup, folder: pathlib.Path) -> dict[str, float]:
    model = chain(point)
    before, start = _peak_mb(), time.perf_counter()
    limits = [1.0] * (point.exits - 1)
    version = saved_model.export(model, folder, model.name, limits, freeze="true")
    end = time.perf_counter()
    saved = (version / "saved_model.pb").read_bytes()
    (meta,) = saved_model_pb2.SavedModel.FromString(saved).meta_graphs
    return {
        "export_s": end - start,
        "exporting_mb": _peak_mb() - before,
        "version_mb": sum(p.stat().st_size for p in version.rglob("*")) / 1e6,
        "graph_mb": meta.graph_def.ByteSize() / 1e6,
    }


def _serve(point: Setup, folder: pathlib.Path, seconds: float) -> dict[str, float]:
    (version,) = (folder / "chain").iterdir()
    shape = (point.batch, point.side, point.side, 3)
    random = np.random.default_rng(0)
    inputs = {
        "images": random.integers(0, 256, shape, np.uint8),
        "thresholds": mixed_thresholds(point.batch, point.exits),
    }
    before, start = _peak_mb(), time.perf_counter()
    model = SessionModel(version)
    warmup.replay(model, version)
    ready = time.perf_counter() - start
    calls: dict[str, Callable[[], object]] = {
        "call": lambda: model.run("early_exit", inputs)
    }
    (median,) = timing.time_calls(calls, seconds, quantiles=[0.5])["call"]
    return {
        "call_ms": 1e3 * median,
        "ready_s": ready,
        "serving_mb": _peak_mb() - before,
    }


def _calibrate(point: Setup, rows: int) -> dict[str, float]:
    logits, labels = _answers(rows, point)
    macs = [float(k) for k in range(1, point.exits + 1)]
    before, start = _peak_mb(), time.perf_counter()
    request = calibration.Request({"max_accuracy_drop": 0.0})
    found = calibration.calibrate(logits, labels, macs, request)
    names = [exit_name(k) for k in range(1, point.exits + 1)]
    calibration.describe(found, names, macs, macs[-1], request.budget)
    return {
        "calibrate_s": time.perf_counter() - start,
        "calibrating_mb": _peak_mb() - before,
    }


def _answers(rows: int, point: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, N, C] of exits that know more from one to the next, and labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, point.classes, rows)
    logits = random.standard_normal((rows, point.exits, point.classes), np.float32)
    known = np.linspace(1, 6, point.exits) - random.gamma(2, size=rows)[:, None]
    # The largest of many others lies higher.
    known += math.sqrt(2 * math.log(point.classes))
    logits[np.arange(rows), :, labels] += known
    return logits, labels


_MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "export": _export,
    "serve": _serve,
    "calibrate": _calibrate,
}


def _peak_mb() -> float:
    return resident_most() / 1e6
