"""The batches of a training, made while the step before them runs."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf.data import Split, augment

# A step takes about as long as the next: more would wait, not help.
_AHEAD = 2


class Batches(keras.utils.PyDataset):
    """Rows in random order, varied by an augmentation, for `fit`.

    What a batch holds follows from seed, epoch and place in the epoch alone, so a
    training that was killed goes on with the batches that it would have had. They
    are made by NumPy in a thread of their own: the same under every Keras backend,
    and the graph that is trained has no part in it.

    Args:
        split: the rows.
        targets: of a split, in the structure of the model's outputs.
        batch_size: rows in a batch; the last one of an epoch may have fewer.
        augmentation: a name from `data.AUGMENTATIONS`.
        seed: numbers that all draws follow from.

    Attributes:
        waited: seconds for which a batch was asked for before it was there. Where
            Keras reads ahead itself, the steps waited for less.
    """

    def __init__(
        self,
        split: Split,
        targets: Callable[[Split], Any],
        batch_size: int,
        augmentation: str,
        seed: Sequence[int],
    ) -> None:
        # Workers of Keras would begin an epoch before they are told which it is.
        super().__init__(workers=1)
        self.waited = 0.0
        self._split = split
        self._targets = targets
        self._batch_size = batch_size
        self._augmentation = augmentation
        self._seed = seed
        self._made: dict[int, concurrent.futures.Future] = {}
        self._maker = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Goes on with this epoch, counted from 0; call it before each."""
        self._epoch = epoch
        self._order = self._random(epoch, 0).permutation(len(self._split))
        self._made = {}

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        """Images [B, H, W, C], uint8, and targets of a batch of this epoch."""
        made = self._made
        self._made = {
            i: made.get(i) or self._maker.submit(self._make, self._epoch, self._order, i)
            for i in range(index, min(index + 1 + _AHEAD, len(self)))
        }
        start = time.perf_counter()
        batch = self._made[index].result()
        self.waited += time.perf_counter() - start
        return batch

    def _make(self, epoch: int, order: np.ndarray, index: int) -> tuple[np.ndarray, Any]:
        first = index * self._batch_size
        batch = self._split.take(order[first : first + self._batch_size])
        random = self._random(epoch, 1 + index)
        images = augment(self._augmentation, batch.images, random)
        return images, self._targets(batch)

    def _random(self, epoch: int, use: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, epoch, use])
