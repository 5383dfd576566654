"""Checks that a data set fits a model."""

from __future__ import annotations

import itertools

import keras

from branchy_tf import exits
from branchy_tf.data.splits import Dataset
from branchy_tf.errors import BranchyError


def check_fits(model: keras.Model, dataset: Dataset) -> None:
    """Checks that a multi-exit model fits a data set.

    Raises:
        BranchyError: the model has fewer classes, or reads other shapes.
    """
    classes = exits.num_classes(model)
    if classes < dataset.classes:
        raise BranchyError(
            f"{model.name} has {classes} classes, but {dataset.name} has "
            f"{dataset.classes}. Build the model for them: "
            f"--model_args=classes={dataset.classes}."
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    height, width, channels = dataset.image_shape
    open_shapes = itertools.product((height, None), (width, None), (channels, None))
    if len(shapes) != 1 or shapes[0] not in open_shapes:
        raise BranchyError(
            f"{model.name} reads inputs of shape {', '.join(map(str, shapes))}, but "
            f"{dataset.name} holds images of shape {dataset.image_shape}. Build the "
            f"model for them: --model_args=input_shape={height}x{width}x{channels}."
        )
