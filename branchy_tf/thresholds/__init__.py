"""Thresholds: searching for the best, counting what they do, and thresholds.json.

The rule that compares scores with thresholds is part of `branchy_tf.policy` and is
exported here too. Importing this package needs only NumPy, so that the serving client
can check thresholds; guarantees and temperatures import SciPy when they are computed.
"""

from branchy_tf.policy import (
    check,
    check_temperatures,
    exit_indices,
    exits_by_vector,
    exits_early,
    forcing,
    within_tolerance,
)
from branchy_tf.thresholds.budgets import (
    check_budget,
    choose,
    find_knee,
    geometric_rates,
    quantiles,
)
from branchy_tf.thresholds.by_class import class_drops, within_class_drop
from branchy_tf.thresholds.calibrated import (
    TEMPERATURES,
    Calibration,
    fit_temperature,
)
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
    "TEMPERATURES",
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
    "class_drops",
    "control_risk",
    "count_losses_only",
    "evaluate",
    "exit_indices",
    "exits_by_vector",
    "exits_early",
    "find_knee",
    "fit_temperature",
    "forcing",
    "frontier",
    "geometric_rates",
    "halves",
    "quantiles",
    "rows_needed",
    "within_class_drop",
    "within_tolerance",
]
