"""Thresholds: the rule, the search for the best ones, thresholds.json.

Needs numpy alone, so that the serving client can check thresholds too.
"""

from branchy_tf.thresholds.file import Calibration
from branchy_tf.thresholds.rule import check, exit_indices, forcing, leaves
from branchy_tf.thresholds.search import (
    Point,
    check_budget,
    choose,
    count_losses_only,
    evaluate,
    frontier,
)

__all__ = [
    "Calibration",
    "Point",
    "check",
    "check_budget",
    "choose",
    "count_losses_only",
    "evaluate",
    "exit_indices",
    "forcing",
    "frontier",
    "leaves",
]
