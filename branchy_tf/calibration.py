"""Calibration: chooses a policy from every exit's logits on a validation split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from scipy import stats

from branchy_tf import checks, thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import CRITERIA
from branchy_tf.policy import ExitPolicy
from branchy_tf.results import Predictions, exit_name
from branchy_tf.scoring import Answers, answers
from branchy_tf.thresholds import Calibration, Guarantee, Point

# What an accuracy drop measures.
RISKS = ("accuracy", "lost", "disagreement")
# The name of one minus the risk.
_MEASURES = {"accuracy": "accuracy", "lost": "not lost", "disagreement": "agreement"}
# The budgets, by the names of calibrate's flags ...
_BUDGETS = (
    "max_accuracy_drop",
    "min_accuracy",
    "max_macs",
    "max_latency_ms",
    "exit_rates",
    "knee",
)
# ... and the arguments of `thresholds.choose` with other names.
_ARGUMENTS = {"max_macs": "max_cost", "max_latency_ms": "max_cost"}
# Rounding moves a few rows; another split moves more.
_SAME = 0.002
# The most classes to list in a message.
_MOST_CLASSES = 10
# Keeps thresholds.json readable for people.
_MOST_POINTS = 200
# The costs at which criteria are compared, as shares of the way from the cheapest to
# the most accurate thresholds.
_SHARES = (0.2, 0.4, 0.6, 0.8)
# A final exit whose correct answers chance explains with more than this probability has
# learned nothing that a policy could build on.
_CHANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Request:
    """The settings of a calibration.

    Attributes:
        budget: keyword arguments of `thresholds.choose`, including any guarantee.
        criterion: the name of the score, or "all" to take the best one.
        risk: what `max_accuracy_drop` bounds, one of `RISKS`.
        fit_temperatures: whether to fit a temperature for each exit.
        seed: the seed of the split that a guarantee makes.
        asked: the budget as it was asked for, for thresholds.json.
        max_class_drop: the largest drop of accuracy of any class below the final exit on
            the same rows, a fraction of 1, beside the budget; None for no bound.
        class_names: the names of the classes for messages, or None.
        temperatures: of each exit, instead of fitting them; None to fit them.

    Raises:
        BranchyError: `max_class_drop` is out of range, or goes with a guarantee or with
            exit rates.
    """

    budget: dict[str, Any]
    criterion: str = "entropy"
    risk: str = "accuracy"
    fit_temperatures: bool = True
    seed: int = 0
    max_class_drop: float | None = None
    class_names: Sequence[str] | None = None
    temperatures: Sequence[float] | None = None
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks `max_class_drop`."""
        if self.max_class_drop is None:
            return
        checks.fraction("max_class_drop", self.max_class_drop, difference=True)
        for name in ("guarantee", "exit_rates"):
            if self.budget.get(name) is not None:
                raise BranchyError(
                    f"`max_class_drop` does not go with {name}, which fixes the "
                    "thresholds. Leave one of them out."
                )

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        return str(index) if self.class_names is None else self.class_names[index]

    @classmethod
    def of(
        cls,
        *,
        max_accuracy_drop: float | None = None,
        min_accuracy: float | None = None,
        max_macs: float | None = None,
        max_latency_ms: float | None = None,
        latency_batch_size: int | None = None,
        exit_rates: Sequence[float] | None = None,
        knee: bool = False,
        guarantee: float | str | None = None,
        criterion: str = "entropy",
        risk: str | None = None,
        fit_temperatures: bool = True,
        seed: int = 0,
        max_class_drop: float | None = None,
        class_names: Sequence[str] | None = None,
        num_exits: int | None = None,
    ) -> Request:
        """The request that the arguments describe; see `branchy_tf.calibrate`.

        Args:
            class_names: the names of the classes for messages, or None.
            num_exits: N, if known already.

        Raises:
            BranchyError: the arguments contradict each other, or one is out of range.
        """
        given: dict[str, Any] = {
            "max_accuracy_drop": max_accuracy_drop,
            "min_accuracy": min_accuracy,
            "max_macs": max_macs,
            "max_latency_ms": max_latency_ms,
            "exit_rates": exit_rates,
            "knee": checks.switch("knee", knee) or None,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            names = " and ".join(f"`{name}`" for name in given)
            raise BranchyError(
                f"Pass one of {names}, not {'both' if len(given) == 2 else 'all'}."
            )
        checks.one_of("criterion", criterion, [*CRITERIA, "all"])
        if risk is None:
            risk = "accuracy" if guarantee is None else "lost"
        checks.one_of("risk", risk, RISKS)
        if risk != "accuracy" and given.keys() - {"max_accuracy_drop"}:
            other = next(iter(given))
            raise BranchyError(
                f"`risk` {risk} goes with `max_accuracy_drop`, not `{other}`."
            )
        if guarantee is not None and risk == "accuracy":
            raise BranchyError(
                "`guarantee` bounds a share of losses, not a difference of accuracies, "
                "which can be negative. Pass the `risk` lost, which bounds that "
                "difference too, or disagreement."
            )
        if (max_latency_ms is None) != (latency_batch_size is None):
            raise BranchyError(
                "`max_latency_ms` and `latency_batch_size` go together: latency depends "
                "on the batch size. Pass both."
            )
        budget = _as_arguments(given)
        budget["guarantee"] = guarantee
        thresholds.check_budget(**budget, num_exits=num_exits)
        asked = given | {"risk": risk}
        if guarantee is not None:
            asked["guarantee"] = guarantee
        if latency_batch_size is not None:
            asked["latency_batch_size"] = checks.whole_number(
                "latency_batch_size", latency_batch_size, at_least=1
            )
        fit = checks.switch("fit_temperatures", fit_temperatures)
        seed = checks.whole_number("seed", seed, at_least=0)
        if max_class_drop is not None:
            asked["max_class_drop"] = max_class_drop
        return cls(
            budget, criterion, risk, fit, seed, max_class_drop, class_names, asked=asked
        )


def _as_arguments(budget: dict[str, Any]) -> dict[str, Any]:
    """A budget by the names of calibrate's flags, as arguments of `thresholds.choose`."""
    return {_ARGUMENTS.get(name, name): value for name, value in budget.items()}


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """The result of a calibration.

    Attributes:
        policy: the chosen policy.
        answers: every exit's answers, scored by the policy.
        points: the frontier of accuracy against macs.
        chosen: the point of the chosen thresholds, its cost in macs.
        guarantee: the guarantee of the chosen thresholds, or None.
        compared: one entry per criterion if several were compared, otherwise empty.
            `measure` says what their accuracies are: the accuracy, or one minus the
            risk.
    """

    policy: ExitPolicy
    answers: Answers
    points: list[Point]
    chosen: Point
    guarantee: Guarantee | None
    compared: list[dict[str, Any]]

    def class_drops(self, classes: int) -> np.ndarray:
        """The drop of accuracy of each class; see `thresholds.class_drops`."""
        every = self.answers
        exits = self.policy.exit_indices(every.scores)
        return thresholds.class_drops(every.correct, exits, every.labels, classes)

    @property
    def criterion(self) -> str:
        """The policy's criterion."""
        return self.policy.criterion

    @property
    def temperatures(self) -> Sequence[float] | None:
        """The policy's N temperatures."""
        return self.policy.temperatures


def repeat(
    known: Calibration,
    logits: np.ndarray,
    labels: np.ndarray,
    macs: Sequence[float],
    seed: int = 0,
) -> ExitPolicy:
    """Calibrates again within the same budget, for a model whose scores have moved.

    Quantising a model moves its scores, so thresholds of the original would let other
    shares of the rows exit.

    Args:
        known: the calibration of the original.
        logits: float32 [n, N, classes], of every exit of the model as it is now.
        labels: int [n].
        macs: [N], cumulative multiply-adds.
        seed: the seed of the split that a guarantee makes.

    Returns:
        A policy with the same criterion; its temperatures are fitted if the original's
        were.

    Raises:
        BranchyError: the budget cannot be met any more.
    """
    asked = known.budget
    budget = _as_arguments({name: asked[name] for name in _BUDGETS if name in asked})
    guarantee = asked.get("guarantee")
    if guarantee not in (None, thresholds.EXPECTATION):
        guarantee = float(guarantee)
    fitted = any(t != 1.0 for t in known.temperatures or ())
    request = Request(
        budget | {"guarantee": guarantee},
        known.criterion,
        asked.get("risk", "accuracy"),
        fitted,
        seed,
    )
    try:
        return calibrate(logits, labels, macs, request, asked.get("exit_ms")).policy
    except BranchyError as error:
        raise BranchyError(f"Calibrating again failed: {error}") from None


def check_same_rows(known: Calibration, routed: Predictions, labels: np.ndarray) -> None:
    """Checks that rows are those that a policy was calibrated on.

    Another seed cuts another validation split, most of whose rows the model was trained
    on. There it is surer and more often correct than on unseen rows, so thresholds
    chosen there let too many rows exit.

    Args:
        known: the calibration, which records its figures on its validation split.
        routed: the model's answers at that policy.
        labels: int [n], of the same rows.

    Raises:
        BranchyError: the figures differ by more than rounding.
    """
    then = known.validation
    if not {"num_examples", "accuracy", "exit_rates"} <= then.keys():
        logging.warning(
            "The calibration records no figures, so its rows are not compared."
        )
        return
    accuracy = float((routed.labels == labels).mean())
    rates = routed.exit_rates(known.policy.num_exits)
    moved = np.abs(rates - np.asarray(then["exit_rates"])).max()
    if (
        then["num_examples"] != len(labels)
        or abs(accuracy - then["accuracy"]) > _SAME
        or moved > _SAME
    ):
        raise BranchyError(
            f"The validation split is not the one of the calibration: {len(labels):,} "
            f"rows with accuracy {accuracy:.2%}, but it was {then['num_examples']:,} "
            f"rows with {then['accuracy']:.2%}. The model may have been trained on these "
            "rows. Pass the --seed and --validation_size of its training; the zoo's "
            "weights have --seed=1."
        )


def check_rows(labels: np.ndarray, request: Request) -> None:
    """Raises `BranchyError` for rows of a single class, or for too few rows."""
    if len(labels) < 2 or len(np.unique(labels)) < 2:
        raise BranchyError(
            f"The validation split has {len(labels)} rows of "
            f"{len(np.unique(labels))} class(es); expected rows of at least 2 classes. "
            "Pass more validation rows, or other data."
        )
    level = request.budget.get("guarantee")
    if level is not None:
        drop = request.budget.get("max_accuracy_drop")
        thresholds.check_guarantee(level, drop, len(labels))
    if request.max_class_drop is not None:
        _say_scarce(labels, request)


def _say_scarce(labels: np.ndarray, request: Request) -> None:
    """Logs the classes whose rows are too few to tell the allowed drop from none."""
    assert request.max_class_drop is not None
    counts = np.bincount(labels, minlength=len(request.class_names or ()))
    scarce = np.flatnonzero(counts * request.max_class_drop < 1)
    if request.max_class_drop == 0:
        scarce = np.flatnonzero(counts == 0)
    if len(scarce):
        names = [f"{request.class_name(i)} {counts[i]}" for i in scarce[:_MOST_CLASSES]]
        logging.warning(
            "Classes with too few validation rows for max_class_drop %g, where one row "
            "is a larger share: %s%s. None of their rows may be lost, and the test split "
            "may differ. More validation rows help.",
            request.max_class_drop,
            ", ".join(names),
            ", ..." if len(scarce) > _MOST_CLASSES else "",
        )


def check_cost(request: Request, costs: Sequence[float]) -> None:
    """Raises `BranchyError` for a cost limit below the first exit's cost.

    Call it before the rows are scored, which takes a while.
    """
    limit = request.budget.get("max_cost")
    if limit is not None and limit < costs[0]:
        raise BranchyError(
            f"No thresholds cost at most {limit:,.6g}; the cheapest cost "
            f"{costs[0]:,.6g}, when all images exit at exit_1."
        )


def check_learned(logits: np.ndarray, labels: np.ndarray) -> None:
    """Raises `BranchyError` if the final exit is no better than chance.

    Chance is to answer the most frequent class always. The test is binomial and
    one-sided: the final exit passes if chance has at most 5 % probability to be correct
    on as many rows as it is. Thresholds for a network at chance mean nothing: any exit
    is as good as the final one.

    Args:
        logits: float32 [n, N, classes], of every exit.
        labels: int [n].
    """
    correct = int((logits[:, -1].argmax(axis=-1) == labels).sum())
    share = np.bincount(labels).max() / len(labels)
    if share == 1:
        return
    test = stats.binomtest(correct, len(labels), share, alternative="greater")
    if test.pvalue > _CHANCE:
        raise BranchyError(
            f"The final exit is at chance: it is correct on {correct / len(labels):.2%} "
            f"of {len(labels):,} validation rows, and always answering their most "
            f"frequent class is on {share:.2%}. Train longer, or check that the data are "
            "prepared as for the training and that their labels belong to them."
        )


def bounded_temperatures(policy: ExitPolicy) -> list[str]:
    """A line for each exit whose fitted temperature reached a bound of the fit."""
    low, high = thresholds.TEMPERATURES
    lines = []
    for k, found in enumerate(policy.temperatures or ()):
        if low * 1.01 < found < high / 1.01:
            continue
        is_low = found <= low * 1.01
        lines.append(
            f"The temperature of {exit_name(k + 1)} reached the bound "
            f"{low if is_low else high:g} of its fit: "
            + (
                "its logits separate the validation rows almost perfectly, or its "
                "probabilities are far too unsure."
                if is_low
                else "its logits say almost nothing about the labels."
            )
        )
    return lines


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    macs: Sequence[float],
    request: Request,
    costs: Sequence[float] | None = None,
) -> Calibrated:
    """Fits temperatures, selects a criterion and chooses thresholds.

    With a guarantee, the half of the rows that proposes thresholds also determines
    temperatures and criterion, so that the other half tests a fixed policy.

    Args:
        logits: float32 [n, N, classes], of every exit.
        labels: int [n].
        macs: [N], cumulative multiply-adds.
        request: the settings.
        costs: [N], cumulative, in the unit of the budget's `max_cost`; default: macs.

    Raises:
        BranchyError: the rows are unsuitable, or the budget cannot be met.
    """
    check_rows(labels, request)
    costs = macs if costs is None else costs
    tuning = np.arange(len(labels))
    if request.budget.get("guarantee") is not None:
        tuning, _ = thresholds.halves(len(labels), request.seed)
    policy = _scoring(logits[tuning], labels[tuning], request)
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
            retained(taken, request.risk),
            costs,
            request.budget["max_accuracy_drop"],
            request.budget["guarantee"],
            request.seed,
        )
        vector = promised.thresholds
    points = best.points
    changed = request.risk != "accuracy" or request.max_class_drop is not None
    if promised is not None or changed or costs is not macs:
        points = thresholds.frontier(taken.scores, taken.correct, macs)
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
        found: the result of `calibrate`.
        exits: the names of all N exits.
        macs: [N], cumulative multiply-adds.
        full_macs: the multiply-adds of the network without branches.
        budget: the requested budget, by the names of calibrate's flags.
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
            "class_drops": [
                None if np.isnan(drop) else drop
                for drop in found.class_drops(found.answers.probabilities.shape[-1])
            ],
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


def _scoring(logits: np.ndarray, labels: np.ndarray, request: Request) -> ExitPolicy:
    """A policy with fitted temperatures whose thresholds are still 0."""
    number = logits.shape[1]
    policy = ExitPolicy.final_exit_only(number)
    if request.temperatures is not None:
        return policy.replace(temperatures=request.temperatures)
    if not request.fit_temperatures:
        return policy
    fitted = [thresholds.fit_temperature(logits[:, k], labels) for k in range(number)]
    return policy.replace(temperatures=fitted)


def retained(every: Answers, risk: str) -> np.ndarray:
    """Where an exit loses nothing, by one of the `RISKS`: bool [n, N]."""
    if risk == "disagreement":
        return thresholds.agreement(every.given)
    if risk == "lost":
        return thresholds.count_losses_only(every.correct)
    return every.correct


@dataclasses.dataclass(frozen=True)
class _Tried:
    """The best thresholds for one criterion on the tuning rows, without a guarantee."""

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
    scores, right = every.scores[tuning], retained(every, request.risk)[tuning]
    points = thresholds.frontier(scores, right, costs)
    if request.max_class_drop is not None:
        points = thresholds.within_class_drop(
            scores,
            every.correct[tuning],
            right,
            labels[tuning],
            np.asarray(costs),
            request.max_class_drop,
            points,
        )
    plain = {k: v for k, v in request.budget.items() if k != "guarantee"}
    point = thresholds.choose(scores, right, costs, points=points, **plain)
    return _Tried(policy, every, points, point)


def _equal_costs(tried: Sequence[_Tried]) -> list[float]:
    """Costs within the frontiers of all criteria, short of their ends."""
    low = max(one.points[0].cost for one in tried)
    high = max(one.points[-1].cost for one in tried)
    return [low + share * (high - low) for share in _SHARES]


def _best(tried: Sequence[_Tried], request: Request) -> _Tried:
    """The criterion with the best result for the budget; the first of equals."""
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
