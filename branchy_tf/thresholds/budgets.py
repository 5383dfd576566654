"""From a budget to a point of the frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.policy import check_scores, exits_early
from branchy_tf.thresholds.counting import (
    Point,
    check_arrays,
    count_losses_only,
    evaluate,
)
from branchy_tf.thresholds.guarantee import check_guarantee, control_risk
from branchy_tf.thresholds.search import between, frontier


def choose(
    scores: Any,
    correct: Any,
    costs: Any,
    max_accuracy_drop: float | None = None,
    min_accuracy: float | None = None,
    max_cost: float | None = None,
    exit_rates: Sequence[float] | None = None,
    knee: bool = False,
    guarantee: float | str | None = None,
    points: Sequence[Point] | None = None,
    seed: int = 0,
) -> Point:
    """The best point of the frontier within one budget.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: [N], cumulative.
        max_accuracy_drop: chooses the cheapest point whose accuracy is at most this
            much below the final exit's on the same rows, a fraction of 1. The default
            budget is a drop of 0.
        min_accuracy: chooses the cheapest point with at least this accuracy, a
            fraction of 1.
        max_cost: chooses the most accurate point with at most this cost.
        exit_rates: N-1 fractions of all rows, the share to take each early exit.
        knee: whether to choose the knee of the frontier; see `find_knee`.
        guarantee: the probability with which the loss of accuracy is to stay within
            `max_accuracy_drop` on unseen rows, or "expectation". See `control_risk`;
            gains do not make up for losses.
        points: the frontier, if already known.
        seed: the seed of the split that a guarantee makes.

    Returns:
        A `Point`, counted on all rows.

    Raises:
        BranchyError: there is more than one budget, or none of the points is within
            it; the message says the best that is possible.

    Example:

    ```python
    point = choose(scores, correct, costs, max_accuracy_drop=0.005)
    point = choose(scores, correct, costs, max_accuracy_drop=0.01, guarantee=0.95)
    ```
    """
    scores, correct, costs = check_arrays(scores, correct, costs)
    check_budget(
        max_accuracy_drop,
        min_accuracy,
        max_cost,
        exit_rates,
        knee,
        guarantee,
        num_exits=len(costs),
    )
    seed = checks.whole_number("seed", seed, at_least=0)
    if points is not None and not (
        isinstance(points, Sequence)
        and points
        and all(isinstance(point, Point) for point in points)
    ):
        raise BranchyError(
            "`points` must be the points of a frontier, or None. Received "
            f"{checks.shown(points)}."
        )
    if guarantee is not None and max_accuracy_drop is not None:
        retained = count_losses_only(correct)
        promised = control_risk(
            scores, retained, costs, max_accuracy_drop, guarantee, seed
        )
        return evaluate(scores, correct, costs, promised.thresholds)
    if exit_rates is not None:
        return evaluate(scores, correct, costs, quantiles(scores, exit_rates))
    if points is None:
        points = frontier(scores, correct, costs)
    if knee:
        return find_knee(points)
    if max_cost is not None:
        return most_accurate(points, max_cost)
    if min_accuracy is None:
        min_accuracy = float(correct[:, -1].mean()) - (max_accuracy_drop or 0.0)
    return cheapest(points, min_accuracy)


def check_budget(
    max_accuracy_drop: float | None = None,
    min_accuracy: float | None = None,
    max_cost: float | None = None,
    exit_rates: Sequence[float] | None = None,
    knee: bool = False,
    guarantee: float | str | None = None,
    num_exits: int | None = None,
) -> None:
    """Raises `BranchyError` for several budgets or a budget out of range."""
    knee = checks.switch("knee", knee)
    budgets = [max_accuracy_drop, min_accuracy, max_cost, exit_rates, knee or None]
    given = sum(budget is not None for budget in budgets)
    if given > 1:
        raise BranchyError(
            "Pass one of max_accuracy_drop, min_accuracy, the cost limit, exit_rates "
            f"and knee, not {given} of them."
        )
    if max_accuracy_drop is not None:
        checks.fraction("max_accuracy_drop", max_accuracy_drop, difference=True)
    if min_accuracy is not None:
        checks.fraction("min_accuracy", min_accuracy)
    if max_cost is not None:
        checks.real_number("max_cost", max_cost, above=0, infinite=True)
    if exit_rates is not None:
        _check_rates(exit_rates, num_exits)
    if guarantee is not None:
        check_guarantee(guarantee, max_accuracy_drop)


def _check_rates(rates: Sequence[float], num_exits: int | None) -> None:
    values = checks.real_array("exit_rates", rates)
    if (
        values.ndim != 1
        or not ((values >= 0) & (values <= 1)).all()
        or values.sum() > 1 + 1e-9
        or (num_exits is not None and len(values) != num_exits - 1)
    ):
        number = "" if num_exits is None else f" ({num_exits - 1} here)"
        largest = values.max(initial=0)
        raise BranchyError(
            f"`exit_rates` must be fractions of 1, one for each early exit{number}, with "
            f"a sum of at most 1. Received {checks.shown(rates)}."
            f"{checks.percentage_hint(largest)}"
        )


def cheapest(points: Sequence[Point], min_accuracy: float) -> Point:
    """The cheapest point of a frontier with at least this accuracy."""
    for point in points:
        # The tolerance is far below one row of any data set and far above float error.
        if point.accuracy >= min_accuracy - 1e-12:
            return point
    raise BranchyError(
        f"No thresholds reach accuracy {min_accuracy:.4f}; the best reach "
        f"{points[-1].accuracy:.4f}, at cost {points[-1].cost:,.4g}."
    )


def most_accurate(points: Sequence[Point], max_cost: float) -> Point:
    """The most accurate point of a frontier with at most this cost."""
    within = [point for point in points if point.cost <= max_cost]
    if not within:
        raise BranchyError(
            f"No thresholds cost at most {max_cost:,.6g}; the cheapest cost "
            f"{points[0].cost:,.6g}, with accuracy {points[0].accuracy:.4f}."
        )
    return within[-1]


def find_knee(points: Sequence[Point]) -> Point:
    """The point of a frontier that is farthest above the line between its ends.

    References:
        Satopaa, Albrecht, Irwin, Raghavan, Finding a "Kneedle" in a Haystack
        (2011), with both axes scaled to 0 ... 1.
    """
    accuracy = np.array([point.accuracy for point in points])
    cost = np.array([point.cost for point in points])
    if len(points) < 3:
        return points[-1]
    above = (accuracy - accuracy[0]) / np.ptp(accuracy) - (cost - cost[0]) / np.ptp(cost)
    return points[int(above.argmax())]


def geometric_rates(ratio: float, exits: int) -> list[float]:
    """Shares of the rows that fall, or grow, by a constant ratio from exit to exit.

    Args:
        ratio: the share of an exit over that of the exit before. Small ratios let most
            rows exit early, 1 treats the exits alike.
        exits: N.

    Returns:
        N fractions of 1, whose sum is 1.

    Raises:
        BranchyError: the ratio is not a positive number.

    References:
        Huang et al., Multi-Scale Dense Networks (2018, arXiv 1703.09844), budgeted batch
        classification: q_k = z (1 - q)^(k - 1) q, where q is the chance to exit at an
        exit that is reached; here the ratio is 1 - q. Ratios above 1 are in the code of
        its authors.
    """
    ratio = checks.real_number("ratio", ratio, above=0)
    # By logarithms, and over the largest, so that no power overflows.
    powers = math.log(ratio) * np.arange(exits)
    shares = np.exp(powers - powers.max())
    return (shares / shares.sum()).tolist()


def quantiles(scores: Any, exit_rates: Sequence[float]) -> list[float]:
    """Thresholds with which given shares of the rows take each exit.

    Each is a quantile of the scores of the rows that reach the exit.

    Args:
        scores: float32 [n, N].
        exit_rates: N-1 fractions of all rows. Rows of equal score exit together, so a
            share may come out larger; it is smaller if too few rows remain.

    Returns:
        N-1 numbers.

    References:
        Huang et al., Multi-Scale Dense Networks (2018, arXiv 1703.09844),
        section 5, budgeted batch classification.
    """
    scores = check_scores(scores)
    _check_rates(exit_rates, scores.shape[1])
    remaining = np.ones(len(scores), bool)
    found = []
    for k, rate in enumerate(exit_rates):
        here = np.sort(scores[remaining & np.isfinite(scores[:, k]), k])
        count = min(round(rate * len(scores)), len(here))
        limit = np.float32(0)
        if count:
            values = np.unique(here)
            limit = between(values)[np.searchsorted(values, here[count - 1])]
        remaining &= ~exits_early(scores[:, k], limit)
        found.append(float(limit))
    return found
