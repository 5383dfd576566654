"""Training batches, prepared while the previous step runs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf.data import Split, augment
from branchy_tf.errors import BranchyError
from branchy_tf.training import distributing

# Steps take about equally long, so preparing more batches ahead would not help.
_AHEAD = 2


class Batches(keras.utils.PyDataset):
    """Shuffled and augmented rows for `fit`.

    A batch depends only on the seed, the epoch and its index, so a resumed training
    sees the same batches as an uninterrupted one. NumPy prepares them in a separate
    thread: they are the same under every Keras backend and not part of the graph.

    Args:
        split: the rows.
        targets: `targets(split)`, in the structure of the model's outputs.
        batch_size: rows per batch. The last batch of an epoch may be smaller.
        augmentation: a name from `data.AUGMENTATIONS`.
        seed: the numbers that determine all draws.

    Attributes:
        sharing: which rows of each batch this process reads.
        error: why a batch could not be made, or None.
        waited: seconds spent waiting for batches. If Keras prefetches, the training
            steps waited less than that.
    """

    def __init__(
        self,
        split: Split,
        targets: Callable[[Split], Any],
        batch_size: int,
        augmentation: str,
        seed: Sequence[int],
    ) -> None:
        # More workers would start an epoch before they know its number.
        super().__init__(workers=1)
        self.waited = 0.0
        self.error: BranchyError | None = None
        self._split = split
        self._targets = targets
        self._batch_size = batch_size
        self._augmentation = augmentation
        self._seed = seed
        self.sharing = distributing.current().sharing(len(split), batch_size)
        self._made: dict[tuple[int, int], concurrent.futures.Future] = {}
        self._maker = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Selects an epoch, counted from 0; call it before each epoch."""
        self._epoch = epoch, self._random(epoch, 0).permutation(len(self._split))
        self._made = {}

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Inputs, targets and any weights of a batch of this epoch, as NumPy arrays."""
        # With several devices, TensorFlow begins to read an epoch twice, in two threads,
        # of which the first may still read when the next epoch has started.
        (epoch, order), before = self._epoch, self._made
        made = {
            (epoch, i): before.get((epoch, i))
            or self._maker.submit(self._make, epoch, order, i)
            for i in range(index, min(index + 1 + _AHEAD, len(self)))
        }
        self._made = made
        start = time.perf_counter()
        with _noting(self):
            batch = made[epoch, index].result()
        self.waited += time.perf_counter() - start
        return batch

    def _rows(self, order: np.ndarray, index: int) -> np.ndarray:
        first = index * self._batch_size
        return order[first : first + self._batch_size]

    def _make(self, epoch: int, order: np.ndarray, index: int) -> tuple[Any, ...]:
        rows = self._rows(order, index)
        ours = self.sharing.rows(len(rows))
        batch = self._split.take(rows[ours])
        random = self._random(epoch, 1 + index)
        inputs = augment(self._augmentation, batch.read(), random, ours, len(rows))
        return _weighted(batch, inputs, self._targets(batch), self.sharing, len(rows))

    def _random(self, epoch: int, use: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, epoch, use])


def _weighted(
    batch: Split, inputs: Any, targets: Any, sharing: distributing.Sharing, count: int
) -> tuple[Any, ...]:
    """A batch for `fit`, with the weights of its rows if there are any."""
    found = [x for x in (batch.weights, sharing.weights(count)) if x is not None]
    return (inputs, targets, math.prod(found)) if found else (inputs, targets)


class InOrder(keras.utils.PyDataset):
    """Rows in order and as they are, for evaluating.

    Args:
        split: the rows.
        targets: `targets(split)`, in the structure of the model's outputs.
        batch_size: rows per batch. The last batch may be smaller.

    Attributes:
        sharing: which rows of each batch this process reads.
        error: why a batch could not be read, or None.
    """

    def __init__(
        self, split: Split, targets: Callable[[Split], Any], batch_size: int
    ) -> None:
        super().__init__(workers=1)
        self.error: BranchyError | None = None
        self._split = split
        self._targets = targets
        self.sharing = distributing.current().sharing(len(split), batch_size)
        self._batch_size = self.sharing.batch_size

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Inputs and targets of a batch, as NumPy arrays."""
        first = index * self._batch_size
        batch = self._split.take(slice(first, first + self._batch_size))
        count = len(batch)
        batch = dataclasses.replace(batch.take(self.sharing.rows(count)), weights=None)
        with _noting(self):
            return _weighted(
                batch, batch.read(), self._targets(batch), self.sharing, count
            )


@contextlib.contextmanager
def _noting(batches: Batches | InOrder) -> Iterator[None]:
    """Notes an error, of which Keras would only pass on the text."""
    try:
        yield
    except BranchyError as error:
        batches.error = error
        raise
