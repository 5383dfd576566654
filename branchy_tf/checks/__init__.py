"""Checks of arguments and batches, each a `BranchyError` where it fails."""

from branchy_tf.checks.arguments import (
    one_of,
    path,
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
    "one_of",
    "path",
    "real_array",
    "real_number",
    "shown",
    "switch",
    "text",
    "whole_number",
]
