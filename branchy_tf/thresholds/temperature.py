"""Temperatures: how sure an exit may call itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError

# An exit without an error on the calibration rows would be called infinitely sure.
_RANGE = (0.05, 20.0)


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature T with which softmax(logits / T) is likeliest to be right.

    Args:
        logits: [n, classes], any float dtype.
        labels: [n] class indices.

    Returns:
        A number from 0.05 to 20; above 1 for an exit that was too sure. Rows to
        which the exit gives no finite logit of their label do not count; 1 if there
        are no others.

    Raises:
        BranchyError: no rows, or shapes that do not fit together.

    References:
        Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks
        (ICML 2017, arXiv 1706.04599), section 4.2.
    """
    # Not at the top: a serving client imports this package and has numpy alone.
    from scipy import optimize

    logits = checks.real_array("logits", logits).astype(np.float64, copy=False)
    labels = checks.real_array("labels", labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise BranchyError(
            "Expected logits [n, classes] and labels [n], one row at least. Received "
            f"{logits.shape} and {labels.shape}."
        )
    if labels.dtype.kind == "f" or not 0 <= labels.min() <= labels.max() < len(logits[0]):
        raise BranchyError(
            f"`labels` must be class indices from 0 to {len(logits[0]) - 1}. Received "
            f"{checks.shown(labels)}."
        )

    largest = logits.max(axis=1)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    # Masked out (-inf), a label is impossible at every temperature.
    possible = np.isfinite(own) & np.isfinite(largest)
    if not possible.any():
        return 1.0
    # Once, where scipy's logsumexp would at each temperature; it takes ten times as
    # long, and more memory, with thousands of classes.
    shifted = logits[possible] - largest[possible, None]
    own = own[possible] - largest[possible]

    def surprise(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        scaled = shifted / temperature
        np.exp(scaled, out=scaled)
        return float((np.log(scaled.sum(axis=1)) - own / temperature).mean())

    bounds = tuple(math.log(limit) for limit in _RANGE)
    return math.exp(optimize.minimize_scalar(surprise, bounds=bounds).x)


def check_temperatures(temperatures: Any, num_exits: int) -> tuple[float, ...]:
    """One positive number for each exit; None stands for 1 everywhere.

    Raises:
        BranchyError: another number of them, or not positive numbers.
    """
    if temperatures is None:
        return (1.0,) * num_exits
    try:
        values = checks.real_array("temperatures", temperatures).astype(np.float64)
    except BranchyError:
        values = np.zeros(0)
    # In float32, a smaller one would be 0.
    limits = np.finfo(np.float32)
    fit = all(limits.tiny <= t <= limits.max for t in values.ravel())
    if values.shape != (num_exits,) or not fit:
        raise BranchyError(
            f"`temperatures` must be {num_exits} positive numbers, one for each exit. "
            f"Received {checks.shown(temperatures)}."
        )
    return tuple(values.tolist())
