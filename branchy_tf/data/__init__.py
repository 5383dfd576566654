"""Data sets, their splits and their augmentation.

Thresholds, epochs and all other choices are made on a validation split, which a seed
cuts from the training split. The test split only measures the result.
"""

from branchy_tf.data.augmentation import AUGMENTATIONS, augment, check_augmentation
from branchy_tf.data.fitting import check_fits, fitted
from branchy_tf.data.loading import is_path, load
from branchy_tf.data.named import CLASS_NAMES, NAMES
from branchy_tf.data.splits import ArrayLike, Dataset, Inputs, Split, View
from branchy_tf.data.weights import ClassWeights, class_weights, weighted

__all__ = [
    "AUGMENTATIONS",
    "CLASS_NAMES",
    "NAMES",
    "ArrayLike",
    "ClassWeights",
    "Dataset",
    "Inputs",
    "Split",
    "View",
    "augment",
    "check_augmentation",
    "check_fits",
    "class_weights",
    "fitted",
    "is_path",
    "load",
    "weighted",
]
