"""Calibrates a model on a split: what the command and Python share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from branchy_tf import calibration, costs, exits, graphs, scoring
from branchy_tf.benchmarking import latency
from branchy_tf.calibration import Calibrated, Request
from branchy_tf.checks import ranges
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.pipeline.rows import validation_rows
from branchy_tf.predictor import EarlyExitPredictor, LogitsPredictor
from branchy_tf.thresholds import Calibration
from branchy_tf.training import input_ranges
from branchy_tf.zoo.policies import calibration_of

# The rows whose scale is compared with that of the training.
_COMPARED = 256


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A calibration with what it was made from.

    Attributes:
        found: the result.
        calibration: the content of thresholds.json.
        logits: float32 [n, N, classes], of every exit.
        macs: [N], cumulative multiply-adds.
        full_macs: those of the network without branches.
    """

    found: Calibrated
    calibration: Calibration
    logits: np.ndarray
    macs: list[int]
    full_macs: int


def calibrate(
    model: keras.Model,
    dataset: Any,
    *,
    max_accuracy_drop: float | None = None,
    min_accuracy: float | None = None,
    max_macs: float | None = None,
    max_latency_ms: float | None = None,
    latency_batch_size: int | None = None,
    exit_rates: Sequence[float] | None = None,
    knee: bool = False,
    guarantee: float | str | None = None,
    risk: str | None = None,
    max_class_drop: float | None = None,
    criterion: str = "entropy",
    fit_temperatures: bool = True,
    seed: int = 0,
    inputs: Mapping[str, ranges.InputRange] | None = None,
    force: bool = False,
) -> Calibration:
    """Chooses a policy for a fitted model on rows that it was not trained on.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        dataset: a `data.Dataset`, whose validation split is used; or the validation
            rows: a `data.Split`, `(inputs, labels)`, or a `tf.data.Dataset` of such.
        max_accuracy_drop: a budget: the cheapest thresholds whose accuracy is at most
            this much below the final exit's, a fraction of 1. The default budget is 0.
        min_accuracy: a budget: the cheapest thresholds with at least this accuracy.
        max_macs: a budget: the most accurate thresholds with at most this many expected
            multiply-adds per example.
        max_latency_ms: a budget: the most accurate thresholds with at most this many
            expected milliseconds per example; the stages are timed on this machine.
        latency_batch_size: the batch size that `max_latency_ms` refers to.
        exit_rates: a budget: the shares of the rows that take each early exit.
        knee: a budget: where accuracy against cost bends most.
        guarantee: the probability with which the drop holds on unseen rows, or
            "expectation".
        risk: what `max_accuracy_drop` bounds: accuracy, lost or disagreement. Default:
            accuracy; lost with a guarantee.
        max_class_drop: beside the budget, the most accuracy that any class may lose.
        criterion: entropy, max_prob or margin, or "all" to take the best.
        fit_temperatures: whether to fit a temperature for each exit.
        seed: the seed of the split that a guarantee makes.
        inputs: the ranges that the model was trained on, such as `Run.inputs`. Default:
            those of its packaged weights; else they are measured, on the training split
            if there is one.
        force: goes on although the rows have another scale than the training, or the
            final exit is at chance.

    Returns:
        A `Calibration`: `.policy`, `.validation` (its figures), `.frontier`;
        `.write("thresholds.json")` stores it. Predictor and export take it as a policy.

    Raises:
        BranchyError: an argument does not fit, the budget cannot be met, or see `force`.

    Example:

    ```python
    result = branchy_tf.calibrate(model, (x_val, y_val), max_accuracy_drop=0.005)
    branchy_tf.EarlyExitPredictor(model, result.policy).predict(x_test)
    ```
    """
    graphs.check_backend()
    number = len(exits.exit_names(model))
    request = Request.of(
        max_accuracy_drop=max_accuracy_drop,
        min_accuracy=min_accuracy,
        max_macs=max_macs,
        max_latency_ms=max_latency_ms,
        latency_batch_size=latency_batch_size,
        exit_rates=exit_rates,
        knee=knee,
        guarantee=guarantee,
        criterion=criterion,
        risk=risk,
        fit_temperatures=fit_temperatures,
        seed=seed,
        max_class_drop=max_class_drop,
        class_names=dataset.class_names if isinstance(dataset, Dataset) else None,
        num_exits=number,
    )
    split = validation_rows(dataset, exits.num_classes(model))
    if inputs is None:
        inputs = known_inputs(model, dataset, split)
    return run(model, split, request, inputs, force).calibration


def known_inputs(
    model: keras.Model, dataset: Any, split: Split
) -> Mapping[str, ranges.InputRange]:
    """The ranges of packaged weights, else of the training split, else of `split`."""
    packaged = calibration_of(model)
    if packaged is not None and packaged[1].inputs is not None:
        return packaged[1].inputs
    has_training = isinstance(dataset, Dataset) and len(dataset.train)
    return input_ranges(model, dataset.train if has_training else split)


def run(
    model: keras.Model,
    split: Split,
    request: Request,
    inputs: Mapping[str, ranges.InputRange] | None,
    force: bool = False,
) -> Outcome:
    """Calibrates on a split, and checks that the graph routes its rows as expected.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        split: the validation rows.
        request: the settings.
        inputs: the ranges that the model was trained on, or None if unknown.
        force: warns of another scale and of a final exit at chance instead of refusing.

    Raises:
        BranchyError: see `calibrate`.
    """
    calibration.check_rows(split.labels, request)
    names = exits.exit_names(model)
    with _unless(force):
        _check_scale(model, split, inputs)
    macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    budget_costs: Sequence[float] = macs
    batch = request.asked.get("latency_batch_size")
    if batch is not None:
        times = latency.stage_milliseconds(model, split.inputs, [batch], seconds=1.0)
        budget_costs = latency.cumulative_milliseconds(times, batch)
    calibration.check_cost(request, budget_costs)
    logits = scoring.every_exit(LogitsPredictor(model), split)
    with _unless(force):
        calibration.check_learned(logits, split.labels)
    found = calibration.calibrate(logits, split.labels, macs, request, budget_costs)
    if request.fit_temperatures:
        for line in calibration.bounded_temperatures(found.policy):
            logging.warning("%s", line)
    policy = found.policy.replace(weights=graphs.fingerprint(model), inputs=inputs)
    found = dataclasses.replace(found, policy=policy)
    # The figures were counted on scores; the graph must route the rows in the same way.
    # Their scale was compared above.
    routed = scoring.route(EarlyExitPredictor(model, policy.replace(inputs=None)), split)
    scoring.check_routing(policy, logits, found.answers, routed)
    asked = dict(request.asked)
    if batch is not None:
        asked["exit_ms"] = budget_costs
        asked["expected_ms"] = float(np.dot(found.chosen.exit_rates, budget_costs))
    described = calibration.describe(found, names, macs, full_macs, asked)
    return Outcome(found, described, logits, macs, full_macs)


def _check_scale(
    model: keras.Model, split: Split, inputs: Mapping[str, ranges.InputRange] | None
) -> None:
    """Compares rows from all over the split with the ranges of the training."""
    rows = np.unique(np.linspace(0, len(split) - 1, _COMPARED).astype(int))
    arrays = graphs.named_inputs(model, split.take(rows).read())
    warning = ranges.check(inputs, arrays)
    if warning is not None:
        logging.warning("%s", warning)


@contextlib.contextmanager
def _unless(force: bool) -> Iterator[None]:
    """Logs a refusal instead of raising it if `force`."""
    try:
        yield
    except BranchyError as error:
        if not force:
            raise BranchyError(f"{error} To go on nevertheless, pass force.") from None
        logging.warning("%s", error)
