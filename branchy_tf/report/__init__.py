"""report.html: one page with its pictures in it, for people."""

from branchy_tf.report.page import Report, Section
from branchy_tf.report.sections import (
    EXIT_HEAD,
    criteria_table,
    exit_rows,
    guarantee_in_words,
    test_section,
    validation_section,
)
from branchy_tf.report.tables import exit_table

__all__ = [
    "EXIT_HEAD",
    "Report",
    "Section",
    "criteria_table",
    "exit_rows",
    "exit_table",
    "guarantee_in_words",
    "test_section",
    "validation_section",
]
