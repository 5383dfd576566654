"""Measures the latency of each stage on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import stages
from branchy_tf.benchmarking import timing
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import freezing


def stage_milliseconds(
    model: keras.Model,
    images: Any,
    batch_sizes: Sequence[int],
    seconds: float = 2.0,
) -> list[dict[str, Any]]:
    """Times each stage alone, frozen as in an export, all stages in turn.

    Excludes the exit decisions between stages and the overhead of a server.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        images: [n, ...] of the model's input shape and dtype; a dict by name for several
            inputs.
        batch_sizes: how many images at a time, each at most n.
        seconds: how long to measure each batch size.

    Returns:
        A row for each batch size and stage: `{"batch", "stage": 1 ... N,
        "ms_per_image": the median, "low", "high": the middle half}`.

    Raises:
        BranchyError: a batch size is not a whole number from 1 to n.
    """
    arrays = images if isinstance(images, Mapping) else {"": images}
    rows_given = min(map(len, arrays.values()))
    for batch in batch_sizes:
        if not (1 <= batch <= rows_given and float(batch).is_integer()):
            raise BranchyError(
                f"A batch size must be a whole number from 1 to {rows_given}, the "
                f"number of images there are. Received {batch}."
            )
    parts = stages.split(model)
    functions = [tf.function(freezing.freeze(part)) for part in parts]
    rows = []
    for batch in map(int, batch_sizes):
        calls: dict[str, Callable[[], object]] = {}
        live = [
            tf.cast(arrays.get(tensor.name, images)[:batch], tensor.dtype)
            for tensor in model.inputs
        ]
        for k, function in enumerate(functions):
            calls[str(k + 1)] = _call(function, live)
            _, live = function(live)
        quartiles = timing.time_calls(calls, seconds)
        for name, (low, median, high) in quartiles.items():
            rows.append(
                {
                    "batch": batch,
                    "stage": int(name),
                    "ms_per_image": 1e3 * median / batch,
                    "low": 1e3 * low / batch,
                    "high": 1e3 * high / batch,
                }
            )
    return rows


def cumulative_milliseconds(rows: Sequence[dict[str, Any]], batch: int) -> list[float]:
    """Milliseconds per image up to each exit, from `stage_milliseconds`.

    For full batches: once rows exit, later stages see smaller batches, which cost more
    per image.
    """
    medians = [row["ms_per_image"] for row in rows if row["batch"] == batch]
    return np.cumsum(medians).tolist()


def _call(function: Callable, tensors: list) -> Callable[[], object]:
    def run() -> object:
        logits, _ = function(tensors)
        # On a GPU a call returns before it has finished.
        return logits.numpy()

    return run
