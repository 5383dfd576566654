"""Fits a data set to a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from branchy_tf import exits
from branchy_tf.data.splits import ArrayLike, Dataset, is_in_memory
from branchy_tf.errors import BranchyError


def check_fits(model: keras.Model, dataset: Dataset) -> None:
    """Checks that a multi-exit model fits a data set.

    Raises:
        BranchyError: the model has fewer classes, or reads other inputs: their names,
            shapes or dtypes differ.
    """
    classes = exits.num_classes(model)
    if classes < dataset.classes:
        raise BranchyError(
            f"{model.name} has {classes} classes, but {dataset.name} has "
            f"{dataset.classes}. Build the model for them: "
            f"--model_args=classes={dataset.classes}."
        )
    for split in dataset.splits.values():
        _check_inputs(model, dataset, split.inputs)


def fitted(model: keras.Model, dataset: Dataset) -> Dataset:
    """The data set with the dtypes that a model reads.

    Whole numbers become floats where the model reads floats.

    Raises:
        BranchyError: the data set does not fit; see `check_fits`.
    """
    check_fits(model, dataset)
    dtypes = {tensor.name: tensor.dtype for tensor in model.inputs}

    def convert(array: ArrayLike, name: str) -> ArrayLike:
        dtype = keras.backend.standardize_dtype(dtypes.get(name, model.inputs[0].dtype))
        # The predictor converts without loss only, and float32 holds 24 bits.
        wide = array.dtype.kind in "iu" and array.dtype.itemsize > 2
        if wide and keras.backend.is_float_dtype(dtype) and is_in_memory(array):
            return np.asarray(array).astype(np.float32)
        return array

    return dataclasses.replace(
        dataset,
        train=dataset.train.map(convert),
        validation=dataset.validation.map(convert),
        test=dataset.test.map(convert),
    )


def _check_inputs(
    model: keras.Model, dataset: Dataset, inputs: ArrayLike | Mapping[str, ArrayLike]
) -> None:
    tensors = {tensor.name: tensor for tensor in model.inputs}
    arrays = inputs if isinstance(inputs, Mapping) else {next(iter(tensors)): inputs}
    if set(arrays) != set(tensors):
        has = "one input" if arrays is not inputs else f"inputs {', '.join(arrays)}"
        raise BranchyError(
            f"{model.name} reads the inputs {', '.join(tensors)}, but {dataset.name} has "
            f"{has}. Name the arrays like the model's inputs, for example "
            f"x_train/{next(iter(tensors))}."
        )
    shapes = {name: tuple(array.shape[1:]) for name, array in arrays.items()}
    fit = all(
        len(tensors[name].shape) == len(shape) + 1
        and all(
            want in (None, side)
            for want, side in zip(tensors[name].shape[1:], shape, strict=True)
        )
        for name, shape in shapes.items()
    )
    if not fit:
        wanted = ", ".join(str(tuple(tensors[name].shape[1:])) for name in arrays)
        raise BranchyError(
            f"{model.name} reads inputs of shape {wanted}, but {dataset.name} holds "
            f"{_what(shapes)} of shape {', '.join(map(str, shapes.values()))}. "
            f"{_shape_hint(list(shapes.values()), wanted)}"
        )
    for name, array in arrays.items():
        _check_dtype(model, dataset, name, tensors[name].dtype, array)


def _what(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if len(shapes) == 1 and all(len(shape) == 3 for shape in shapes.values()):
        return "images"
    return "rows"


def _shape_hint(shapes: list[tuple[int, ...]], wanted: str) -> str:
    (shape, *others) = shapes
    if others or len(shape) != 3:
        return "Build the model for such rows, or convert the rows."
    if wanted.count(",") == 1 and shape[-1] == 1:
        return (
            "Images have a channel axis; to have an array taken as it is, name the "
            "input: x_train/NAME."
        )
    return (
        f"Build the model for them: --model_args=input_shape={'x'.join(map(str, shape))}."
    )


def _check_dtype(
    model: keras.Model, dataset: Dataset, name: str, wanted: str, array: ArrayLike
) -> None:
    found = np.dtype(array.dtype)
    wanted = keras.backend.standardize_dtype(wanted)
    if keras.backend.is_float_dtype(wanted) or np.can_cast(found, wanted, "safe"):
        return
    hint = f"Convert it with .astype('{wanted}')."
    if wanted == "uint8" and found.kind == "f":
        hint = (
            "It reads raw pixels, whole numbers 0...255: for values from 0 to 1, "
            "multiply by 255 and round."
        )
    raise BranchyError(
        f"{model.name} reads {wanted}, but the input {name} of {dataset.name} has dtype "
        f"{found}. {hint}"
    )
