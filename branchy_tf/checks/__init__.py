"""Checks of arguments and batches, each a `BranchyError` where it fails."""

from branchy_tf.checks.arguments import (
    fraction,
    one_of,
    path,
    percentage_hint,
    real_array,
    real_number,
    shown,
    switch,
    text,
    whole_number,
)
from branchy_tf.checks.batches import TensorSpec, batch
from branchy_tf.checks.fields import Kinds, check_kinds, is_numbers, is_object, is_text

__all__ = [
    "Kinds",
    "TensorSpec",
    "batch",
    "check_kinds",
    "fraction",
    "is_numbers",
    "is_object",
    "is_text",
    "one_of",
    "path",
    "percentage_hint",
    "real_array",
    "real_number",
    "shown",
    "switch",
    "text",
    "whole_number",
]
