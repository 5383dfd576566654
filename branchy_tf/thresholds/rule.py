"""The rule: a row leaves at the first exit whose score is below its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError


def leaves(scores: Any, thresholds: Any) -> Any:
    """Whether rows with these scores leave: strictly below, never with NaN.

    The one place where scores meet thresholds; it takes numpy arrays and
    TensorFlow tensors alike.

    References:
        "if e < T_n", BranchyNet (2016), Figure 2.
    """
    return scores < thresholds


def check(thresholds: Any, num_exits: int, rows: int | None = None) -> np.ndarray:
    """Thresholds as float32, one row of them or one for each example.

    Args:
        thresholds: N-1 numbers, in exit order; or [1 or B, N-1], an own row for
            each example. 0 lets no example leave, infinity all.
        num_exits: N.
        rows: B, where it is known.

    Returns:
        float32 [1, N-1] or [B, N-1].

    Raises:
        BranchyError: wrong number, negative, NaN, or not numbers at all.
    """
    expected = (
        f"expected {num_exits - 1}, one for each exit but the last"
        if num_exits != 2
        else "expected 1, for exit_1"
    )
    try:
        values = np.asarray(checks.real_array("thresholds", thresholds), np.float32)
    except BranchyError:
        raise BranchyError(
            f"`thresholds` must be numbers; {expected}. Received "
            f"{checks.shown(thresholds)}."
        ) from None
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != num_exits - 1:
        raise BranchyError(
            f"`thresholds` has shape {np.shape(thresholds)}; {expected}, or a row of "
            f"that many for each example. Received {checks.shown(thresholds)}."
        )
    if rows is not None and values.shape[0] not in (1, rows):
        raise BranchyError(
            f"`thresholds` has {values.shape[0]} rows for {rows} examples; expected 1 "
            "row or one for each."
        )
    bad = values[~(values >= 0)]
    if bad.size:
        raise BranchyError(
            f"`thresholds` must be at least 0 and not NaN; received {bad.flat[0]}. 0 "
            "lets no example leave at that exit, inf lets all."
        )
    return values


def check_scores(scores: Any) -> np.ndarray:
    """Scores as float32 [n, N].

    Raises:
        BranchyError: no numbers, or of another shape.
    """
    values = checks.real_array("scores", scores)
    if values.ndim != 2 or not values.shape[1]:
        raise BranchyError(
            f"`scores` has shape {values.shape}; expected [n, N], a row for each example "
            "and a column for each exit."
        )
    return values.astype(np.float32, copy=False)


def forcing(exit_index: int, num_exits: int) -> np.ndarray:
    """Thresholds with which every row leaves at one exit, 0-based: float32 [N-1]."""
    return np.where(np.arange(num_exits - 1) < exit_index, 0, np.inf).astype(np.float32)


def near(scores: np.ndarray, thresholds: Any, within: float) -> np.ndarray:
    """Rows whose way hangs on the last digits of a score: bool [n].

    Those that reach an exit, as far as one can tell, and score about its threshold
    there. Another batch size or machine may send them elsewhere.

    Args:
        scores: [n, N] float32.
        thresholds: N-1 numbers. Nothing scores below 0, so that one is never near.
        within: how far off a score may be.
    """
    limits = check(thresholds, scores.shape[1], rows=1)
    gates = scores[:, :-1]
    gone = leaves(gates, limits - within).cumsum(axis=1) > 0
    return (~gone & (abs(gates - limits) <= within) & (limits > 0)).any(axis=1)


def exit_indices(scores: np.ndarray, thresholds: Any) -> np.ndarray:
    """Where each row leaves.

    Args:
        scores: [n, N] float32.
        thresholds: N-1 numbers, or [n, N-1].

    Returns:
        int32 [n], 0-based; N-1, the last exit, for rows that no earlier one
        lets go.
    """
    scores = check_scores(scores)
    return _first_exits(scores, check(thresholds, scores.shape[1], len(scores)))


def exits_by_vector(scores: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Where each row leaves with each of many vectors, which have been checked.

    Args:
        scores: float32 [n, N].
        vectors: float32 [V, N-1].

    Returns:
        int32 [V, n], as `exit_indices` gives them.
    """
    return _first_exits(scores, vectors[:, None])


def _first_exits(scores: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Exits int32 [..., n] for scores [n, N] and limits [..., 1 or n, N-1]."""
    last = scores.shape[1] - 1
    exits = np.full((*limits.shape[:-2], len(scores)), last, np.int32)
    for k in reversed(range(last)):
        exits[leaves(scores[:, k], limits[..., k])] = k
    return exits
