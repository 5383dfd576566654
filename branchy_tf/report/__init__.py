"""report.html: a self-contained page of tables and pictures."""

from branchy_tf.report.page import Report, Section
from branchy_tf.report.sections import (
    guarantee_in_words,
    test_section,
    validation_section,
)
from branchy_tf.report.tables import (
    calibration_table,
    class_table,
    criteria_table,
    evaluation_table,
    points_from_final_exit,
)

__all__ = [
    "Report",
    "Section",
    "calibration_table",
    "class_table",
    "criteria_table",
    "evaluation_table",
    "guarantee_in_words",
    "points_from_final_exit",
    "test_section",
    "validation_section",
]
