"""Finds the policy of a model and checks that they belong together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.thresholds import Calibration
from branchy_tf.zoo import packaged


def policy_for(
    model: keras.Model,
    given: PolicyLike | None,
    criterion: str | None = None,
    temperatures: Sequence[float] | None = None,
    thresholds: Sequence[float] | None = None,
) -> ExitPolicy:
    """Converts a user's arguments to the policy of a model.

    Args:
        model: a multi-exit model.
        given: a policy, an object with a policy, the path of a thresholds.json, or
            plain thresholds.
        criterion: the criterion of plain thresholds; default: entropy.
        temperatures: the temperatures of plain thresholds; default: 1 for every exit,
            with a warning if the model has zoo weights calibrated with others.
        thresholds: plain thresholds, instead of `given`.

    Raises:
        BranchyError: the policy does not fit the model, or was calibrated for other
            weights.
    """
    names = exits.exit_names(model)
    if (given is None) == (thresholds is None):
        raise BranchyError(
            "Pass either a policy or plain thresholds=[...], one number for each early "
            "exit."
        )
    given = thresholds if given is None else given
    assert given is not None
    if _is_plain(given):
        plain: dict[str, Any] = {"thresholds": given, "temperatures": temperatures}
        # Checked first, so that the error is not about the number of temperatures.
        ExitPolicy(thresholds=given).check_exits(len(names))  # type: ignore[arg-type]
        policy = ExitPolicy(
            criterion="entropy" if criterion is None else criterion, **plain
        )
        if temperatures is None:
            _warn_of_temperatures(model, policy)
        return policy
    if criterion is not None or temperatures is not None:
        raise BranchyError(
            "A policy has its own criterion and temperatures. Omit them, or pass plain "
            "thresholds with them."
        )
    weights = graphs.fingerprint(model)
    if isinstance(given, (str, os.PathLike)):
        return Calibration.read(given, names, weights).policy
    return ExitPolicy.of(given).check_exits(len(names)).check_weights(weights)


def calibration_of(model: keras.Model) -> tuple[packaged.Packaged, ExitPolicy] | None:
    """The entry and policy of a model's packaged weights; None for other weights."""
    number = len(exits.exit_names(model))
    fingerprint = ""
    for entry in packaged.everything():
        if not entry.thresholds.is_file():
            continue
        policy = ExitPolicy.load(entry.thresholds)
        if policy.num_exits != number:
            continue
        fingerprint = fingerprint or graphs.fingerprint(model)
        if policy.weights == fingerprint:
            return entry, policy
    return None


def _is_plain(given: Any) -> bool:
    brought = isinstance(given, (ExitPolicy, str, os.PathLike))
    return not brought and not isinstance(getattr(given, "policy", None), ExitPolicy)


def _warn_of_temperatures(model: keras.Model, policy: ExitPolicy) -> None:
    known = calibration_of(model)
    if known is None or known[1].temperatures == policy.temperatures:
        return
    entry = known[0]
    # Points to the caller of the predictor or of another user of `policy_for`.
    warnings.warn(
        f"These are the zoo's weights {entry.tag!r} of {entry.model}, which were "
        "calibrated with temperatures. Plain thresholds are used without temperatures, "
        "so rows take other exits than calibrated. Pass "
        f"zoo.calibration({entry.model!r}, {entry.tag!r}) instead of its thresholds.",
        stacklevel=4,
    )
