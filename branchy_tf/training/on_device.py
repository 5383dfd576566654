"""Training data and their augmentation on the device, and several steps in one call.

For Keras on JAX. The training split goes to the device once. Each call sends the rows of
its batches and the draws of their augmentation, which NumPy makes as for `Batches`, and
runs its steps in one compiled loop. An epoch so has the same batches as one that NumPy
prepares, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp

from branchy_tf.data import Draws, Split, cutout_sides, draw
from branchy_tf.training.batches import Batches

# With 12 ms a step, as of a ResNet-110 on a data-centre GPU, a call takes 0.4 s.
_STEPS = 32
# The share of the device's memory that the data may take.
_MOST_OF_MEMORY = 0.25


class Call(NamedTuple):
    """What one call reads besides the state of the training and the data.

    Attributes:
        steps: int32 [], the number of steps; what follows in the arrays is padding.
        rows: int32 [steps, batch], the rows of each step.
        draws: arrays [steps, batch, ...], or None without augmentation.
    """

    steps: np.ndarray
    rows: np.ndarray
    draws: Draws | None


class Calls(Batches):
    """Shuffled and augmented rows for `fit`, several steps in each item.

    The last batch of an epoch is a call of its own if it is smaller than the others.

    Args:
        split: the rows, in memory.
        targets: as for `Batches`. It is called with arrays of JAX.
        batch_size: rows per batch.
        augmentation: a name from `data.AUGMENTATIONS`.
        seed: the numbers that determine all draws.
        steps_per_call: the steps of each call.
    """

    def __init__(
        self,
        split: Split,
        targets: Callable[[Split], Any],
        batch_size: int,
        augmentation: str,
        seed: Sequence[int],
        steps_per_call: int,
    ) -> None:
        self._full_steps, self._rest = divmod(len(split), batch_size)
        self._steps_per_call = max(1, min(steps_per_call, self._full_steps))
        # Only images are augmented.
        height, width = (*next(iter(split.arrays.values())).shape[1:3], 1)[:2]
        self._sides = height, width
        super().__init__(split, targets, batch_size, augmentation, seed)

    def __len__(self) -> int:
        return -(-self._full_steps // self._steps_per_call) + bool(self._rest)

    def drive(self, trainer: keras.Model) -> None:
        """Lets `trainer.fit` run these calls.

        Args:
            trainer: a compiled model.
        """
        # `fit` would build metrics and losses for the shapes of a call.
        trainer._symbolic_build(data_batch=super()._make(*self._epoch, 0))
        trainer.train_function = self._train_function(trainer)

    def _train_function(self, trainer: keras.Model) -> Callable[[Any, Any], Any]:
        """What `fit` calls with the state of the training and an iterator."""
        resident = jax.device_put(
            (self._split.inputs, self._split.labels.astype(np.int32), self._split.weights)
        )

        @functools.partial(jax.jit, donate_argnums=0)
        def run(state: Any, data: Any, call: Call) -> tuple[Any, Any]:
            def step(index: Any, state: Any) -> Any:
                drawn = jax.tree.map(lambda array: array[index], (call.rows, call.draws))
                return trainer.train_step(state, self._batch(data, *drawn))[1]

            if len(call.rows) == 1:
                state = step(0, state)
            else:
                # The number is no constant, or shorter calls would be compiled too.
                state = lax.fori_loop(0, call.steps, step, state)
            values = zip(trainer.metrics_variables, state[-1], strict=True)
            with keras.StatelessScope(state_mapping=list(values)):
                return trainer.get_metrics_result(), state

        def train_function(state: Any, items: Iterable[tuple[Call]]) -> tuple[Any, Any]:
            (call,) = next(iter(items))
            return run(state, resident, call)

        return train_function

    def _batch(self, data: Any, rows: Any, draws: Draws | None) -> tuple[Any, Any, Any]:
        """Inputs, targets and weights of a step, from those of the whole split."""
        inputs, *others = data
        labels, weights = jax.tree.map(lambda array: array[rows], others)
        if draws is None:
            inputs = jax.tree.map(lambda array: array[rows], inputs)
        else:
            inputs = varied(self._augmentation, inputs, rows, draws)
        return inputs, self._targets(Split(inputs, labels, weights)), weights

    def _make(self, epoch: int, order: np.ndarray, index: int) -> tuple[Call]:
        first = index * self._steps_per_call
        last = min(first + self._steps_per_call, self._full_steps)
        # Without full steps left, the smaller batch.
        steps = list(range(first, last)) or [self._full_steps]
        made = [self._drawn(epoch, order, step) for step in steps]
        if first < last:
            made += made[-1:] * (self._steps_per_call - len(made))
        rows, draws = jax.tree.map(lambda *arrays: np.stack(arrays), *made)
        return (Call(np.asarray(len(steps), np.int32), rows, draws),)

    def _drawn(
        self, epoch: int, order: np.ndarray, index: int
    ) -> tuple[np.ndarray, Draws | None]:
        rows = self._rows(order, index).astype(np.int32)
        random = self._random(epoch, 1 + index)
        return rows, draw(self._augmentation, (len(rows), *self._sides), random)


def varied(name: str, images: Any, rows: Any, draws: Draws) -> Any:
    """Some images, augmented as `data.augment` does.

    Args:
        name: the augmentation.
        images: all images, uint8 [N, H, W, C].
        rows: int32 [n], which of them.
        draws: of these n.

    Returns:
        uint8 [n, H, W, C].
    """
    height, width = images.shape[1:3]
    y, x = jnp.arange(height), jnp.arange(width)
    mirrored = jnp.where(draws.flips[:, None], width - 1 - x, x)
    # Where each pixel comes from, [n, H] and [n, W].
    from_y, from_x = y - draws.shifts[:, :1], mirrored - draws.shifts[:, 1:]
    shown = _both((from_y >= 0) & (from_y < height), (from_x >= 0) & (from_x < width))
    if draws.corners is not None:
        top, left = draws.corners[:, :1], draws.corners[:, 1:]
        down, across = cutout_sides(name, height, width)
        shown &= ~_both((y >= top) & (y < top + down), (x >= left) & (x < left + across))
    taken = images[
        rows[:, None, None],
        jnp.clip(from_y, 0, height - 1)[:, :, None],
        jnp.clip(from_x, 0, width - 1)[:, None, :],
    ]
    return jnp.where(shown[..., None], taken, jnp.zeros_like(taken))


def _both(of_rows: Any, of_columns: Any) -> Any:
    return of_rows[:, :, None] & of_columns[:, None, :]


def default_steps() -> int:
    """The steps of a call that suit the device."""
    return 1 if jax.default_backend() == "cpu" else _STEPS


def has_room(split: Split) -> bool:
    """Whether the device has memory for a split beside the training."""
    size = sum(
        int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
        for array in split.arrays.values()
    )
    # The CPU does not tell, and has the data in its memory anyway.
    known = jax.devices()[0].memory_stats() or {}
    return size <= _MOST_OF_MEMORY * known.get("bytes_limit", float("inf"))
