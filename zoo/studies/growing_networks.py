"""How time and memory grow with batch size, exits, classes and image size.

The network is a chain of equal blocks with an exit after each, so every part of it grows
with the number of exits and no large constant hides the growth. At any batch size, equal
numbers of rows take each exit.
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
# A step counts as worse than linear only above this ratio, because timings are noisy.
TOLERANCE = 1.1

# What is measured, and its label in tables and plots.
FIGURES = {
    "call_ms": "call (ms)",
    "ready_s": "load and warm-up (s)",
    "export_s": "export (s)",
    "calibrate_s": "calibration (s)",
    "version_mb": "version (MB)",
    "graph_mb": "graph (MB)",
    "serving_mb": "serving memory (MB)",
    "exporting_mb": "export memory (MB)",
    "calibrating_mb": "calibration memory (MB)",
}
_OF_CALLS = ("call_ms", "serving_mb")
_OF_CALIBRATING = ("calibrate_s", "calibrating_mb")


@dataclasses.dataclass(frozen=True)
class Setup:
    """A network and the requests to it.

    Attributes:
        batch: rows in a call.
        exits: number of exits, and of blocks.
        classes: number of classes at every exit.
        side: side of the square images, in pixels.
    """

    batch: int = 32
    exits: int = 4
    classes: int = 10
    side: int = 32


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the study: what varies, and what depends on it.

    Attributes:
        field: the field of `Setup` that varies.
        size: maps the field's value to the size that growth is measured against; an
            image has side^2 pixels.
        figures: the keys of `FIGURES` that depend on it.
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
    calibration_rows: int = 5000,
    seconds: float = 2.0,
    repeats: int = 3,
    progress: Callable[[str], object] = lambda what: None,
) -> list[dict[str, Any]]:
    """Measures every size of every axis; all else stays as in `Setup()`.

    Args:
        sizes: `{axis: values of its field}`; axes from `AXES`.
        calibration_rows: number of rows to calibrate on.
        seconds: how long calls are repeated; their median counts.
        repeats: how often every job is repeated; the median of each figure counts.
        progress: called `repeats * len(jobs(sizes))` times, with what was measured.

    Returns:
        A row for each axis and size: `{"axis", "size", "batch", "exits", "classes",
        "side", and the figures}`. Figures that do not depend on the axis are None.
        Memory is the growth of the process up to its peak, in MB of 10^6 bytes.

    Raises:
        BranchyError: a process died, which the system causes when memory runs out.
    """
    results: dict[tuple[str, Setup], list[dict[str, float]]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind, setup in jobs(sizes):
                exports = pathlib.Path(folder, _network(setup))
                arguments = {
                    "export": (exports,),
                    "serve": (exports, seconds),
                    "calibrate": (calibration_rows,),
                }
                figures = _in_a_process(kind, setup, *arguments[kind])
                results.setdefault((kind, setup), []).append(figures)
                progress(f"{kind} {setup}")
    return [
        {"axis": name, "size": AXES[name].size(value), **dataclasses.asdict(setup)}
        | _medians(name, setup, results)
        for name, values in sizes.items()
        for value in values
        for setup in [_setup(name, value)]
    ]


def jobs(sizes: Mapping[str, Sequence[int]]) -> list[tuple[str, Setup]]:
    """`[(export | serve | calibrate, setup), ...]` without repeats, exports first."""
    wanted: dict[tuple[str, Setup], None] = {}
    for name, values in sizes.items():
        for value in values:
            setup = _setup(name, value)
            wanted["export", _without_batch(setup)] = None
            wanted["serve", setup] = None
            if "calibrate_s" in AXES[name].figures:
                wanted["calibrate", _without_batch(setup)] = None
    return list(wanted)


def steps(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Growth of each figure from one size to the next on the same axis.

    Args:
        rows: from `measure_growth`.

    Returns:
        `[{"axis", "figure", "from", "to", "ratio": growth of the figure, "size_ratio":
        growth of the size, "slope": of the step in a log-log plot, where 1 is linear,
        "worse": whether `ratio` exceeds `TOLERANCE * size_ratio`}, ...]`
    """
    found = []
    for before, after in itertools.pairwise(rows):
        if before["axis"] != after["axis"]:
            continue
        size_ratio = after["size"] / before["size"]
        for figure in FIGURES:
            if not before[figure] or not after[figure]:
                continue  # does not depend on this axis, or is too small to measure
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


def chain(setup: Setup) -> keras.Model:
    """Equal blocks of convolution, batch norm and ReLU, with an exit after each."""
    pixels = keras.Input((setup.side, setup.side, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="rescale")(pixels)
    for k in range(1, setup.exits + 1):
        x = layers.Conv2D(
            FILTERS, 3, padding="same", use_bias=False, name=f"block_{k}_conv"
        )(x)
        x = layers.BatchNormalization(name=f"block_{k}_bn")(x)
        x = layers.ReLU(name=f"block_{k}")(x)
    logits = linear_head(x, setup.classes, "logits")
    trunk = keras.Model(pixels, logits, name="chain")
    heads = {f"block_{k}": linear_head for k in range(1, setup.exits)}
    return add_exits(trunk, heads, "chain")


def mixed_thresholds(batch: int, exits: int) -> np.ndarray:
    """Thresholds [B, N-1] that send equal numbers of rows to each exit, shuffled."""
    exit_indices = (np.arange(batch) + 0.5) * exits / batch
    rows = [forcing(int(k), exits) for k in exit_indices]
    return np.random.default_rng(0).permutation(np.stack(rows))


def _setup(axis: str, value: int) -> Setup:
    return dataclasses.replace(Setup(), **{AXES[axis].field: value})


def _without_batch(setup: Setup) -> Setup:
    """The setup of exports and calibrations, which do not depend on the batch size."""
    return dataclasses.replace(setup, batch=Setup.batch)


def _network(setup: Setup) -> str:
    return f"{setup.exits}-{setup.classes}-{setup.side}"


def _medians(
    axis: str,
    setup: Setup,
    results: Mapping[tuple[str, Setup], Sequence[Mapping[str, float]]],
) -> dict[str, float | None]:
    alone = _without_batch(setup)
    values = {
        name: [figures[name] for figures in repeats]
        for job in (("export", alone), ("serve", setup), ("calibrate", alone))
        for repeats in [results.get(job, [])]
        for name in (repeats[0] if repeats else ())
    }
    return {
        name: float(np.median(values[name])) if name in AXES[axis].figures else None
        for name in FIGURES
    }


def _in_a_process(kind: str, setup: Setup, *arguments: Any) -> dict[str, float]:
    """Measures in a separate process, whose memory holds nothing else."""
    # The process is forked from one that has imported everything and done no work.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_MEASURES[kind], setup, *arguments).result()
        except concurrent.futures.BrokenExecutor:
            raise BranchyError(
                f"The process to {kind} {setup} died, probably because the system ran "
                "out of memory. Omit the largest sizes."
            ) from None


def _export(setup: Setup, folder: pathlib.Path) -> dict[str, float]:
    model = chain(setup)
    before, start = _peak_mb(), time.perf_counter()
    limits = [1.0] * (setup.exits - 1)
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


def _serve(setup: Setup, folder: pathlib.Path, seconds: float) -> dict[str, float]:
    (version,) = (folder / "chain").iterdir()
    shape = (setup.batch, setup.side, setup.side, 3)
    random = np.random.default_rng(0)
    inputs = {
        "images": random.integers(0, 256, shape, np.uint8),
        "thresholds": mixed_thresholds(setup.batch, setup.exits),
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


def _calibrate(setup: Setup, rows: int) -> dict[str, float]:
    logits, labels = _synthetic_logits(rows, setup)
    macs = [float(k) for k in range(1, setup.exits + 1)]
    before, start = _peak_mb(), time.perf_counter()
    request = calibration.Request({"max_accuracy_drop": 0.0})
    found = calibration.calibrate(logits, labels, macs, request)
    names = [exit_name(k) for k in range(1, setup.exits + 1)]
    calibration.describe(found, names, macs, macs[-1], request.budget)
    return {
        "calibrate_s": time.perf_counter() - start,
        "calibrating_mb": _peak_mb() - before,
    }


def _synthetic_logits(rows: int, setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, N, C] whose accuracy rises from exit to exit, and labels [n]."""
    random = np.random.default_rng(0)
    labels = random.integers(0, setup.classes, rows)
    logits = random.standard_normal((rows, setup.exits, setup.classes), np.float32)
    margins = np.linspace(1, 6, setup.exits) - random.gamma(2, size=rows)[:, None]
    # The largest of the wrong logits grows with the number of classes.
    margins += math.sqrt(2 * math.log(setup.classes))
    logits[np.arange(rows), :, labels] += margins
    return logits, labels


_MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "export": _export,
    "serve": _serve,
    "calibrate": _calibrate,
}


def _peak_mb() -> float:
    return resident_most() / 1e6
