"""Data sets, their splits and their augmentation.

Thresholds, epochs and all other choices are made on a validation split, which a seed
cuts from the training split. The test split only measures the result.
"""

from branchy_tf.data.augmentation import (
    AUGMENTATIONS,
    Draws,
    augment,
    check_augmentable,
    check_augmentation,
    cutout_sides,
    draw,
)
from branchy_tf.data.fitting import check_fits, fitted
from branchy_tf.data.loading import is_path, load
from branchy_tf.data.named import NAMES
from branchy_tf.data.splits import (
    ArrayLike,
    Dataset,
    Inputs,
    Split,
    View,
    is_in_memory,
)
from branchy_tf.data.weights import ClassWeights, class_weights, weighted

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "ArrayLike",
    "ClassWeights",
    "Dataset",
    "Draws",
    "Inputs",
    "Split",
    "View",
    "augment",
    "check_augmentable",
    "check_augmentation",
    "check_fits",
    "class_weights",
    "cutout_sides",
    "draw",
    "fitted",
    "is_in_memory",
    "is_path",
    "load",
    "weighted",
]
