"""Thresholds: the search for the best ones, what they do, thresholds.json.

The rule that they follow stands in `branchy_tf.policy`, and is to be had here too.

Importing it needs numpy alone, so that the serving client can check thresholds
too; guarantees and temperatures need scipy where they are computed.
"""

from branchy_tf.policy import (
    check,
    check_temperatures,
    exit_indices,
    exits_by_vector,
    forcing,
    leaves,
    near,
)
from branchy_tf.thresholds.budgets import check_budget, choose, find_knee, quantiles
from branchy_tf.thresholds.calibrated import Calibration, fit_temperature
from branchy_tf.thresholds.counting import (
    Point,
    agreement,
    bootstrap,
    count_losses_only,
    evaluate,
)
from branchy_tf.thresholds.guarantee import (
    EXPECTATION,
    Guarantee,
    check_guarantee,
    control_risk,
    halves,
    rows_needed,
)
from branchy_tf.thresholds.search import frontier

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
