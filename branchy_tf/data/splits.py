"""A data set and its splits, whose arrays may be read lazily."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from branchy_tf.errors import BranchyError


class ArrayLike(Protocol):
    """A NumPy array, or an object that reads rows on access, such as image files.

    Slices and integer arrays index it, and give NumPy arrays.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The rows first."""

    @property
    def dtype(self) -> Any:
        """Of the elements."""

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The rows as a NumPy array."""


# One array for a single input, or arrays by the names of the model's inputs.
Inputs = ArrayLike | Mapping[str, ArrayLike]


class View:
    """Some rows of an array, which are read on access.

    Args:
        array: the array.
        rows: int [n], the indices of the rows.

    Example:

    ```python
    View(array, np.array([3, 1]))[:1]  # array[[3]]
    ```
    """

    def __init__(self, array: ArrayLike, rows: np.ndarray) -> None:
        self._array = array
        self._rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """The rows first."""
        return (len(self._rows), *self._array.shape[1:])

    @property
    def dtype(self) -> Any:
        """Of the elements."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self._array[self._rows[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all rows."""
        return np.asarray(self[:], dtype)

    def view(self, rows: Any) -> View:
        """Some of these rows."""
        return View(self._array, self._rows[rows])


def is_in_memory(array: ArrayLike) -> bool:
    """Whether all rows of an array are in memory."""
    return isinstance(array, np.ndarray) and not isinstance(array, np.memmap)


def _take(array: ArrayLike, rows: Any) -> ArrayLike:
    if is_in_memory(array):
        return array[rows]
    view = array if isinstance(array, View) else View(array, np.arange(len(array)))
    return view.view(rows)


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        inputs: an array [n, ...] for a model with one input, such as uint8 images
            [n, H, W, C] with raw pixels 0...255; a dict of arrays by the names of the
            model's inputs for several. Arrays may be lazy; see `ArrayLike`.
        labels: int64 [n], class indices from 0.
        weights: float32 [n], the weight of each row in the training loss, or None for 1
            each.

    Example:

    ```python
    for inputs, labels in dataset.test.batches(256):
        predictor.predict(inputs)
    ```
    """

    inputs: Inputs
    labels: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Any:
        """The array of a single input.

        Raises:
            BranchyError: there are several inputs.
        """
        if isinstance(self.inputs, Mapping):
            raise BranchyError(
                f"The data have the inputs {', '.join(self.inputs)}; expected one input, "
                "of images."
            )
        return self.inputs

    @property
    def arrays(self) -> dict[str, ArrayLike]:
        """The arrays by input name; the name of a single input is empty."""
        if isinstance(self.inputs, Mapping):
            return dict(self.inputs)
        return {"": self.inputs}

    def take(self, rows: Any) -> Split:
        """The rows with these indices. Lazy arrays stay lazy."""
        weights = None if self.weights is None else self.weights[rows]
        taken = self.map(lambda array, name: _take(array, rows))
        return Split(taken.inputs, self.labels[rows], weights)

    def sample(self, count: int, seed: int = 0) -> Split:
        """At most `count` rows, sampled at random, in their order."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:count]))

    def map(self, function: Callable[[ArrayLike, str], ArrayLike]) -> Split:
        """The same split with `function(array, name)` of each input.

        The name of a single input is empty.
        """
        if isinstance(self.inputs, Mapping):
            inputs = {name: function(array, name) for name, array in self.inputs.items()}
            return dataclasses.replace(self, inputs=inputs)
        return dataclasses.replace(self, inputs=function(self.inputs, ""))

    def read(self) -> Any:
        """The inputs as NumPy arrays, all in memory; as `inputs` otherwise."""
        return self.map(lambda array, name: np.asarray(array[:])).inputs

    def batches(self, size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields `(inputs, labels)` in order, as NumPy arrays.

        Lazy arrays are read in a separate thread, one batch ahead.

        Args:
            size: the rows of each batch; the last may have fewer.
        """
        starts = range(0, len(self), size)

        def make(start: int) -> tuple[Any, np.ndarray]:
            part = self.take(slice(start, start + size))
            return part.read(), part.labels

        if all(is_in_memory(array) for array in self.arrays.values()):
            yield from map(make, starts)
            return
        with concurrent.futures.ThreadPoolExecutor(1, "batches") as reader:
            waiting = [reader.submit(make, start) for start in starts[:1]]
            for start in starts:
                if start + size < len(self):
                    waiting.append(reader.submit(make, start + size))
                yield waiting.pop(0).result()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set cut into three splits.

    Attributes:
        name: the name, or the path of its file or folder.
        classes: the number of classes.
        train: the rows to train on.
        validation: the rows for all choices.
        test: the rows to measure the result on.
        class_names: the name of each class, or None if they are just numbers.
        source: the arguments with which `data.load` loads it again, or None if it was
            made otherwise.
    """

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...] | None = None
    source: Mapping[str, Any] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels).

        Raises:
            BranchyError: the data are no images.
        """
        shape = self.train.images.shape[1:]
        if len(shape) != 3:
            raise BranchyError(
                f"{self.name} holds rows of shape {shape}; expected images of shape "
                "(height, width, channels). Pass a model for such rows."
            )
        return shape

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        return str(index) if self.class_names is None else self.class_names[index]
