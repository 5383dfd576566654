"""From a budget to a point of the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.policy import check_scores, leaves
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
        scores: [n, N] float32.
        correct: [n, N] bool.
        costs: [N] cumulative.
        max_accuracy_drop: the cheapest point whose accuracy is at most this much
            below the final exit's on the same rows. The default budget: 0.
        min_accuracy: the cheapest point at least this accurate.
        max_cost: the most accurate point at most this expensive.
        exit_rates: N-1 shares of all rows that are to leave at each early exit.
        knee: the point after which accuracy costs most more.
        guarantee: a probability with which the accuracy drop is to stay within
            `max_accuracy_drop` on rows never seen, or "expectation". See
            `control_risk`; losses are counted alone.
        points: the frontier, where it is known already.
        seed: of the split that a guarantee makes.

    Returns:
        A `Point`, counted on all rows.

    Raises:
        BranchyError: more than one budget, or one that cannot be reached; the
            message says the best that can.

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
            "`points` must be those of a frontier, or None. Received "
            f"{checks.shown(points)}."
        )
    if guarantee is not None and max_accuracy_drop is not None:
        kept = count_losses_only(correct)
        promised = control_risk(scores, kept, costs, max_accuracy_drop, guarantee, seed)
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
    """Raises `BranchyError` for more than one budget, or one out of range."""
    knee = checks.switch("knee", knee)
    budgets = [max_accuracy_drop, min_accuracy, max_cost, exit_rates, knee or None]
    given = sum(budget is not None for budget in budgets)
    if given > 1:
        raise BranchyError(
            "Give one of max_accuracy_drop, min_accuracy, the cost limit, exit_rates "
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
    """The cheapest point of a frontier that is at least so accurate."""
    for point in points:
        # Far less than one row in any data set, far more than float error.
        if point.accuracy >= min_accuracy - 1e-12:
            return point
    raise BranchyError(
        f"No thresholds reach accuracy {min_accuracy:.4f}; the best there are reach "
        f"{points[-1].accuracy:.4f}, at cost {points[-1].cost:,.4g}."
    )


def most_accurate(points: Sequence[Point], max_cost: float) -> Point:
    """The most accurate point of a frontier that costs at most so much."""
    within = [point for point in points if point.cost <= max_cost]
    if not within:
        raise BranchyError(
            f"No thresholds cost at most {max_cost:,.6g}; the cheapest there are cost "
            f"{points[0].cost:,.6g}, with accuracy {points[0].accuracy:.4f}."
        )
    return within[-1]


def find_knee(points: Sequence[Point]) -> Point:
    """The point of a frontier farthest above the line between its ends.

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


def quantiles(scores: Any, exit_rates: Sequence[float]) -> list[float]:
    """Thresholds with which given shares of the rows leave at each exit.

    Each is a quantile of the scores of the rows that have not left before.

    Args:
        scores: [n, N] float32.
        exit_rates: N-1 shares of all rows. With rows of equal score, or rows that
            never leave, the next larger share there is, or all.

    Returns:
        N-1 numbers.

    References:
        Huang et al., Multi-Scale Dense Networks (2018, arXiv 1703.09844),
        section 5, budgeted batch classification.
    """
    scores = check_scores(scores)
    _check_rates(exit_rates, scores.shape[1])
    going = np.ones(len(scores), bool)
    found = []
    for k, rate in enumerate(exit_rates):
        here = np.sort(scores[going & np.isfinite(scores[:, k]), k])
        count = min(round(rate * len(scores)), len(here))
        limit = np.float32(0)
        if count:
            values = np.unique(here)
            limit = between(values)[np.searchsorted(values, here[count - 1])]
        going &= ~leaves(scores[:, k], limit)
        found.append(float(limit))
    return found
