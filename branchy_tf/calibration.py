"""From every exit's logits on a validation split to thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import CRITERIA
from branchy_tf.policy import ExitPolicy
from branchy_tf.scoring import Answers, answers
from branchy_tf.thresholds import Calibration, Guarantee, Point

# What a drop in accuracy counts.
RISKS = ("accuracy", "lost", "disagreement")
# What there is 1 of, less the risk.
_MEASURES = {"accuracy": "accuracy", "lost": "not lost", "disagreement": "agreement"}
# thresholds.json is to be read by people too.
_MOST_POINTS = 200
# Where between the cheapest and the most accurate thresholds criteria are compared.
_SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a calibration.

    Attributes:
        budget: keyword arguments of `thresholds.choose`, a guarantee among them.
        criterion: name of the score, or "all": the one that does best.
        risk: what `max_accuracy_drop` bounds, one of `RISKS`.
        fit_temperatures: whether to fit one for each exit.
        seed: of the split that a guarantee makes.
    """

    budget: dict[str, Any]
    criterion: str = "entropy"
    risk: str = "accuracy"
    fit_temperatures: bool = True
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        policy: what was chosen.
        answers: of all exits with its criterion and temperatures.
        points: the frontier of accuracy against macs.
        chosen: what the chosen thresholds do, its cost in macs.
        guarantee: what is promised of them, if anything.
        compared: where criteria were, a row for each. Its accuracies are those of
            `measure`: "accuracy", or what is not at risk.
    """

    policy: ExitPolicy
    answers: Answers
    points: list[Point]
    chosen: Point
    guarantee: Guarantee | None
    compared: list[dict[str, Any]]

    @property
    def criterion(self) -> str:
        """The policy's."""
        return self.policy.criterion

    @property
    def temperatures(self) -> Sequence[float] | None:
        """The policy's, N numbers."""
        return self.policy.temperatures


def check_rows(labels: np.ndarray, request: Request) -> None:
    """Raises `BranchyError` for rows that nothing can be learnt from, or too few."""
    if len(labels) < 2 or len(np.unique(labels)) < 2:
        raise BranchyError(
            f"The validation split has {len(labels)} rows of "
            f"{len(np.unique(labels))} class(es); expected rows of at least 2 classes. "
            "Pass a larger --validation_size, or other data."
        )
    level = request.budget.get("guarantee")
    if level is not None:
        drop = request.budget.get("max_accuracy_drop")
        thresholds.check_guarantee(level, drop, len(labels))


def check_cost(request: Request, costs: Sequence[float]) -> None:
    """Raises `BranchyError` for a cost limit below the first exit's cost.

    To be called before rows are scored, which takes long.
    """
    limit = request.budget.get("max_cost")
    if limit is not None and limit < costs[0]:
        raise BranchyError(
            f"No thresholds cost at most {limit:,.6g}; the cheapest there are cost "
            f"{costs[0]:,.6g}: all images leave at exit_1."
        )


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    macs: Sequence[float],
    request: Request,
    costs: Sequence[float] | None = None,
) -> Calibrated:
    """Fits temperatures, takes a criterion, chooses thresholds.

    With a guarantee, temperatures and criterion come from the half of the rows
    that makes the path too, so that the other half tests something fixed.

    Args:
        logits: float32 [n, N, classes], of every exit.
        labels: int [n].
        macs: [N] cumulative multiply-adds.
        request: what is asked.
        costs: [N] cumulative, what a cost limit is about; default: macs.

    Returns:
        A `Calibrated`.

    Raises:
        BranchyError: rows or budget that will not do.
    """
    check_rows(labels, request)
    costs = macs if costs is None else costs
    tuning = np.arange(len(labels))
    if request.budget.get("guarantee") is not None:
        tuning, _ = thresholds.halves(len(labels), request.seed)
    # So far every row goes to the end; how exits are scored is settled first.
    policy = _scored(logits[tuning], labels[tuning], request)
    names = list(CRITERIA) if request.criterion == "all" else [request.criterion]
    tried = [
        _try(policy.replace(criterion=name), logits, labels, tuning, costs, request)
        for name in names
    ]
    best = _best(tried, request)
    taken, promised = best.answers, None
    vector = best.point.thresholds
    if request.budget.get("guarantee") is not None:
        promised = thresholds.control_risk(
            taken.scores,
            kept(taken, request.risk),
            costs,
            request.budget["max_accuracy_drop"],
            request.budget["guarantee"],
            request.seed,
        )
        vector = promised.thresholds
    same = promised is None and request.risk == "accuracy" and costs is macs
    points = (
        best.points if same else thresholds.frontier(taken.scores, taken.correct, macs)
    )
    return Calibrated(
        best.policy.replace(thresholds=vector),
        taken,
        points,
        thresholds.evaluate(taken.scores, taken.correct, macs, vector),
        promised,
        [one.row(_equal_costs(tried), request.risk) for one in tried]
        if len(tried) > 1
        else [],
    )


def describe(
    found: Calibrated,
    exits: Sequence[str],
    macs: Sequence[float],
    full_macs: float,
    budget: dict[str, Any],
) -> Calibration:
    """The content of thresholds.json, with 95 % bootstrap intervals.

    Args:
        found: by `calibrate`.
        exits: names of all N exits.
        macs: [N] cumulative multiply-adds.
        full_macs: of the network without branches.
        budget: what was asked for.
    """
    chosen, correct = found.chosen, found.answers.correct
    scores = found.answers.scores
    intervals = thresholds.bootstrap(scores, correct, macs, chosen.thresholds)
    low, high = intervals["cost"]
    last = len(found.points) - 1
    shown = np.unique(np.linspace(0, last, _MOST_POINTS).round().astype(int))
    return Calibration(
        policy=found.policy,
        exits=exits,
        validation={
            "num_examples": len(correct),
            "accuracy": chosen.accuracy,
            "accuracy_interval": intervals["accuracy"],
            "accuracy_drop_interval": intervals["accuracy_drop"],
            "final_exit_accuracy": correct[:, -1].mean(),
            "exit_rates": chosen.exit_rates,
            "macs": chosen.cost,
            "macs_interval": [low, high],
            "full_macs": full_macs,
            "gain": full_macs / chosen.cost,
            "gain_interval": [full_macs / high, full_macs / low],
        },
        frontier=[
            {"thresholds": p.thresholds, "accuracy": p.accuracy, "macs": p.cost}
            for p in (found.points[i] for i in shown)
        ],
        budget=budget,
        guarantee=None
        if found.guarantee is None
        else dataclasses.asdict(found.guarantee),
    )


def _scored(logits: np.ndarray, labels: np.ndarray, request: Request) -> ExitPolicy:
    """The policy as far as it is known before thresholds: its temperatures."""
    number = logits.shape[1]
    policy = ExitPolicy.to_the_end(number)
    if not request.fit_temperatures:
        return policy
    fitted = [thresholds.fit_temperature(logits[:, k], labels) for k in range(number)]
    return policy.replace(temperatures=fitted)


def kept(every: Answers, risk: str) -> np.ndarray:
    """Where leaving loses nothing, by one of the `RISKS`: bool [n, N].

    For "accuracy" simply where the answer is right.
    """
    if risk == "disagreement":
        return thresholds.agreement(every.given)
    if risk == "lost":
        return thresholds.count_losses_only(every.correct)
    return every.correct


@dataclasses.dataclass(frozen=True)
class _Tried:
    """The plain choice with one criterion, on the rows that choices may see."""

    policy: ExitPolicy
    answers: Answers
    points: list[Point]
    point: Point

    def row(self, equal: Sequence[float], risk: str) -> dict[str, Any]:
        return {
            "criterion": self.policy.criterion,
            "measure": _MEASURES[risk],
            "accuracy": self.point.accuracy,
            "cost": self.point.cost,
            "at_equal_cost": [
                {"cost": cost, "accuracy": _accuracy_at(self.points, cost)}
                for cost in equal
            ],
        }


def _try(
    policy: ExitPolicy,
    logits: np.ndarray,
    labels: np.ndarray,
    tuning: np.ndarray,
    costs: Sequence[float],
    request: Request,
) -> _Tried:
    every = answers(logits, labels, policy)
    scores, right = every.scores[tuning], kept(every, request.risk)[tuning]
    points = thresholds.frontier(scores, right, costs)
    plain = {k: v for k, v in request.budget.items() if k != "guarantee"}
    point = thresholds.choose(scores, right, costs, points=points, **plain)
    return _Tried(policy, every, points, point)


def _equal_costs(tried: Sequence[_Tried]) -> list[float]:
    """Costs at which all criteria have something to offer, and still differ."""
    low = max(one.points[0].cost for one in tried)
    high = max(one.points[-1].cost for one in tried)
    return [low + share * (high - low) for share in _SHARES]


def _best(tried: Sequence[_Tried], request: Request) -> _Tried:
    """The criterion that does best at what is asked for; the first of equals."""
    if request.budget.get("knee"):
        equal = _equal_costs(tried)
        return max(
            tried, key=lambda t: sum(_accuracy_at(t.points, cost) for cost in equal)
        )
    if {"max_cost", "exit_rates"} & request.budget.keys():
        return max(tried, key=lambda t: t.point.accuracy)
    return min(tried, key=lambda t: t.point.cost)


def _accuracy_at(points: Sequence[Point], cost: float) -> float:
    return max(p.accuracy for p in points if p.cost <= cost)
