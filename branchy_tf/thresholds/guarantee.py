"""Thresholds with a guarantee for unseen rows.

The rows are split. One half proposes a path of threshold vectors from the safest to
the cheapest; the other half tests how far along the path it is safe to go. The halves
share no row, so it does not matter how the path was found. The guarantee holds for
rows from the distribution of the calibration rows, which training must not have used,
and for fixed scores: fit temperatures and compare criteria on the first half too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.policy import exit_indices, exits_early, flushed
from branchy_tf.thresholds.counting import check_arrays
from branchy_tf.thresholds.search import between, frontier

EXPECTATION = "expectation"
# Steps from T=0 to the frontier, as shares of the rows that exit early there.
_SHARES = np.linspace(0, 1, 30, endpoint=False)
# More steps along the frontier would only take longer.
_MOST_STEPS = 200


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """Thresholds and their guarantee.

    Attributes:
        thresholds: N-1 numbers; all 0 if no others passed the test.
        level: the guaranteed probability, or "expectation".
        max_risk: the upper limit of the risk, a fraction of 1.
        num_tuning: the number of rows that proposed the path.
        num_test: the number of rows that tested it.
        risk: the share of losses on the test rows.
        p_value: the p-value of the chosen thresholds; None for "expectation".
    """

    thresholds: tuple[float, ...]
    level: float | str
    max_risk: float
    num_tuning: int
    num_test: int
    risk: float
    p_value: float | None


def halves(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits row indices at random into `(tuning, test)`; an odd row goes to test."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def rows_needed(level: float | str, max_risk: float) -> int:
    """The smallest number of test rows with which anything but T=0 can pass.

    ceil(ln delta / ln(1 - max_risk)) with delta = 1 - level: fewer rows could all be
    free of losses by chance. For "expectation", ceil(1 / max_risk) - 1.
    """
    if level == EXPECTATION:
        return math.ceil(1 / max_risk - 1e-9) - 1
    return math.ceil(math.log(1 - float(level)) / math.log1p(-max_risk) - 1e-9)


def check_guarantee(level: Any, max_risk: Any, rows: int | None = None) -> None:
    """Raises `BranchyError` for a guarantee that cannot be given.

    Args:
        level: a probability, or "expectation".
        max_risk: the upper limit of the risk, a fraction of 1.
        rows: the number of calibration rows, both halves, if known.
    """
    if not (isinstance(level, str) and level == EXPECTATION):
        try:
            checks.real_number("guarantee", level, at_least=0.5, below=1)
        except BranchyError:
            raise BranchyError(
                "A guarantee is a probability from 0.5 to below 1, for example 0.95, or "
                f"{EXPECTATION!r}. Received {checks.shown(level)}."
                f"{checks.percentage_hint(level)}"
            ) from None
    try:
        checks.real_number("max_accuracy_drop", max_risk, above=0, below=1)
    except BranchyError:
        raise BranchyError(
            "A guarantee needs `max_accuracy_drop`, the upper limit of the risk, between "
            "0 and 1, for example 0.01; a risk of 0 cannot be guaranteed. Received "
            f"{checks.shown(max_risk)}."
            f"{checks.percentage_hint(max_risk, difference=True)}"
        ) from None
    if rows is None:
        return
    needed = rows_needed(level, max_risk)
    if rows - rows // 2 < needed:
        raise BranchyError(
            f"A guarantee of {level} for a risk of {max_risk} needs {needed:,} test "
            f"rows, half of the calibration rows: {2 * needed:,} in all. There are "
            f"{rows:,}. Calibrate on more rows, or allow more risk."
        )


def control_risk(
    scores: Any,
    retained: Any,
    costs: Any,
    max_risk: float,
    level: float | str = 0.95,
    seed: int = 0,
) -> Guarantee:
    """The cheapest thresholds whose risk can be guaranteed.

    With a probability, this is learn then test. The vectors of the path are tested
    from the safest on, as long as the p-value of "the risk is above max_risk" is at
    most 1 - level; the last vector to pass is chosen. T=0 has no risk and needs no
    test. Over the draw of the test rows, P(risk <= max_risk) >= level.

    With "expectation", this is conformal risk control. The last vector of the path
    with (n risk + 1) / (n + 1) <= max_risk is chosen. The loss of a row at a vector is
    the largest up to there, so that it cannot fall along the path. Over the draw of
    the test rows, E[risk] <= max_risk.

    Args:
        scores: float32 [n, N].
        retained: bool [n, N], where an exit loses nothing; from `counting`.
        costs: [N], cumulative.
        max_risk: the upper limit of the risk, between 0 and 1.
        level: the probability, at least 0.5 and below 1, or "expectation".
        seed: the seed of the split.

    Raises:
        BranchyError: there are too few rows (the message says how many are needed), or
            an argument is out of range.

    References:
        Angelopoulos, Bates, Candes, Jordan, Lei, Learn then Test (2021, arXiv
        2110.01052): fixed sequence testing. Angelopoulos et al., Conformal Risk
        Control (2022, arXiv 2208.02814): the bound on the expectation, and the loss
        made monotone. Schuster et al., CALM (2022, arXiv 2207.07061) and Jazbec et
        al., Fast yet Safe (2024, arXiv 2405.20915): for early exits.
    """
    scores, retained, costs = check_arrays(scores, retained, costs)
    if not retained[:, -1].all():
        raise BranchyError(
            "`retained` must be true in its last column, because the full network's own "
            "answer is no loss. Pass count_losses_only(correct) or agreement(labels)."
        )
    check_guarantee(level, max_risk, len(scores))
    tuning, test = halves(len(scores), seed)
    path = safest_first(scores[tuning], retained[tuning], costs)
    passes = _in_expectation if level == EXPECTATION else _in_probability
    taken, risk, chance = passes(path, scores[test], retained[test], max_risk, level)
    return Guarantee(
        tuple(float(t) for t in taken),
        level,
        max_risk,
        len(tuning),
        len(test),
        risk,
        chance,
    )


def p_value(losses: int, rows: int, max_risk: float) -> float:
    """The p-value of the hypothesis "the risk is above max_risk".

    Args:
        losses: the number of lost rows.
        rows: the number of rows.
        max_risk: the upper limit of the risk, between 0 and 1.

    Returns:
        P(Binomial(rows, max_risk) <= losses), which is exact because a loss is 1 or 0.
        The Hoeffding-Bentkus bound for losses in between is never smaller.

    Example:

    ```python
    p_value(0, 230, 0.01)     # 0.0991: 230 rows without a loss are enough for 0.1
    ```

    References:
        Bates et al., Distribution-Free, Risk-Controlling Prediction Sets (2021, arXiv
        2101.02703), section 3.1, whose bounds are bounds of this tail.
    """
    # Not at the top: a serving client imports this package without SciPy.
    from scipy import stats

    return float(stats.binom.cdf(losses, rows, max_risk))


def safest_first(scores: np.ndarray, retained: np.ndarray, costs: np.ndarray) -> list:
    """The path of threshold vectors to test, from the safest to the cheapest.

    It leads from T=0 to the most accurate vector of the frontier and along the frontier.

    Args:
        scores: float32 [n, N].
        retained: bool [n, N], where an exit loses nothing.
        costs: float64 [N], cumulative.
    """
    scores = flushed(scores)
    front = [point.thresholds for point in frontier(scores, retained, costs)][::-1]
    below = []
    for limit, column in zip(front[0], scores.T, strict=False):
        values = np.unique(column[exits_early(column, limit)])
        below.append(between(values) if len(values) else np.zeros(1, np.float32))
    # The first vector of the frontier loses nothing on these rows, but may lose far too
    # much on others.
    safer = [[float(cuts[int(share * len(cuts))]) for cuts in below] for share in _SHARES]
    steps = np.linspace(0, len(front) - 1, _MOST_STEPS).round().astype(int)
    return [[0.0] * len(below), *safer, *(front[i] for i in np.unique(steps))]


_Passed = tuple[Sequence[float], float, float | None]


def _in_probability(
    path: list, scores: np.ndarray, retained: np.ndarray, max_risk: float, level: Any
) -> _Passed:
    taken: _Passed = (path[0], 0.0, 0.0)
    for vector, lost in zip(path, _lost_along(path, scores, retained), strict=True):
        losses = int(lost.sum())
        chance = p_value(losses, len(lost), max_risk) if any(vector) else 0.0
        if chance > 1 - level:
            break
        taken = (vector, losses / len(lost), chance)
    return taken


def _in_expectation(
    path: list, scores: np.ndarray, retained: np.ndarray, max_risk: float, level: Any
) -> _Passed:
    taken: _Passed = (path[0], 0.0, None)
    ever = np.zeros(len(scores), bool)
    for vector, lost in zip(path, _lost_along(path, scores, retained), strict=True):
        ever |= lost
        if any(vector) and (ever.sum() + 1) / (len(ever) + 1) > max_risk:
            break
        taken = (vector, float(lost.mean()), None)
    return taken


def _lost_along(
    path: list, scores: np.ndarray, retained: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the rows that each vector loses: bool [n]."""
    rows = np.arange(len(scores))
    for vector in path:
        yield ~retained[rows, exit_indices(scores, vector)]
