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

__all__ = [
    "TensorSpec",
    "batch",
    "fraction",
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
