"""Thresholds: the rule, the search for the best ones, thresholds.json.

Importing it needs numpy alone, so that the serving client can check thresholds
too; guarantees and temperatures need scipy where they are computed.
"""

from branchy_tf.thresholds.budgets import check_budget, choose, find_knee, quantiles
from branchy_tf.thresholds.file import Calibration
from branchy_tf.thresholds.guarantee import (
    EXPECTATION,
    Guarantee,
    check_guarantee,
    control_risk,
    halves,
    rows_needed,
)
from branchy_tf.thresholds.intervals import bootstrap
from branchy_tf.thresholds.losses import agreement, count_losses_only
from branchy_tf.thresholds.points import Point, evaluate
from branchy_tf.thresholds.rule import (
    check,
    exit_indices,
    exits_by_vector,
    forcing,
    leaves,
    near,
)
from branchy_tf.thresholds.search import frontier
from branchy_tf.thresholds.temperature import check_temperatures, fit_temperature

__all__ = [
    "EXPECTATION",
    "Calibration",
    "Guarantee",
    "Point",
    "agreement",
    "bootstrap",
    "check",
    "check_budget",
    "check_guarantee",
    "check_temperatures",
    "choose",
    "control_risk",
    "count_losses_only",
    "evaluate",
    "exit_indices",
    "exits_by_vector",
    "find_knee",
    "fit_temperature",
    "forcing",
    "frontier",
    "halves",
    "leaves",
    "near",
    "quantiles",
    "rows_needed",
]
