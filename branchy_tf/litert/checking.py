"""Checks a LiteRT version that was just written, before anyone can see it."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.litert import composing
from branchy_tf.litert.engine import EARLY_EXIT, LiteRTEngine
from branchy_tf.policy import forcing
from branchy_tf.saved_model.checking import TOLERANCE, TOLERANCE_BFLOAT16
from branchy_tf.saved_model.early_exit import EarlyExitModule

_HUGE = 1e30
# Rows that go through the whole graph one by one.
_SINGLE = 64


def check_version(
    path: pathlib.Path,
    engine: LiteRTEngine,
    module: EarlyExitModule,
    inputs: dict[str, np.ndarray],
    quantize: str,
) -> None:
    """Compares the files of a version with each other and, unquantised, with Keras.

    Args:
        path: the folder of the version.
        engine: the version.
        module: the float32 model.
        inputs: rows by input name; real ones, if there are any.
        quantize: how the version is quantised.

    Raises:
        BranchyError: the files need operators that are not built in, or their answers
            differ.
    """
    custom = [
        name
        for name in composing.operators((path / EARLY_EXIT).read_bytes())
        if not name.isupper()
    ]
    if custom:
        raise BranchyError(
            f"The exported model needs {', '.join(custom)}, which LiteRT does not have "
            "built in. Export with --format=saved_model."
        )
    logits = _bounded(engine.logits(inputs))
    scale = max(1.0, float(np.abs(logits[np.abs(logits) < _HUGE]).max(initial=0)))
    if quantize == "none":
        exact = _bounded(np.asarray(module.logits(**inputs)["logits"]))
        _same("logits", logits, exact, TOLERANCE * scale)
    # Both files hold the same operations; a batch may be summed in another order.
    within = scale * (TOLERANCE if quantize == "none" else TOLERANCE_BFLOAT16)
    _check_single_rows(engine, inputs, within)


def _bounded(logits: np.ndarray) -> np.ndarray:
    # LiteRT's kernels return the lowest float32 for -inf, the logit of a masked class.
    return np.clip(logits, -_HUGE, _HUGE)


def _check_single_rows(
    engine: LiteRTEngine, inputs: dict[str, np.ndarray], within: float
) -> None:
    """Checks that the graph for one row answers as the stages do."""
    policy = engine.description.policy
    rows = {name: array[:_SINGLE] for name, array in inputs.items()}
    every = engine.all_exits(rows)
    count = len(every["scores"])
    answers = [_single(engine, rows, i, policy.limits) for i in range(count)]
    taken = np.concatenate([answer["exit"] for answer in answers])
    policy.check_routing(every["scores"], taken, within, "early_exit.tflite")
    for i, answer in enumerate(answers):
        expected = every["probabilities"][i, taken[i]]
        _same("probabilities", answer["probabilities"][0], expected, within)
    never = np.full_like(policy.limits, np.nan)
    number = policy.num_exits
    # A score that is NaN takes no early exit, whatever the threshold.
    first = np.isfinite(every["scores"][0])
    for k in range(number):
        if first[k]:
            _check_exit(engine, rows, forcing(k, number)[None], k)
    _check_exit(engine, rows, never, number - 1)


def _check_exit(
    engine: LiteRTEngine, rows: dict[str, np.ndarray], limits: np.ndarray, wanted: int
) -> None:
    found = _single(engine, rows, 0, limits)["exit"].tolist()
    if found != [wanted]:
        raise BranchyError(
            f"The exported model takes exit {found} with thresholds {limits.tolist()}; "
            f"expected {[wanted]}."
        )


def _single(
    engine: LiteRTEngine, rows: dict[str, np.ndarray], i: int, limits: Any
) -> dict[str, np.ndarray]:
    row = {name: array[i : i + 1] for name, array in rows.items()}
    return engine.early_exit(row | {"thresholds": limits})


def _same(what: str, found: np.ndarray, expected: np.ndarray, within: float) -> None:
    if not np.allclose(found, expected, rtol=0, atol=within, equal_nan=True):
        both = np.isfinite(found) & np.isfinite(expected)
        largest = np.abs(found - expected, where=both, out=np.zeros_like(found)).max()
        raise BranchyError(
            f"The {what} of the exported model differ by up to {largest:.3g}; expected "
            f"at most {within:.3g}. Export with --format=saved_model."
        )
