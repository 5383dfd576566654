"""Compares the answers of a bfloat16 export with those of the float32 model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model.early_exit import EarlyExitModule

_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two models on the same images, at the default thresholds.

    Attributes:
        num_examples: the number of images.
        labels: the share with the same label, a fraction of 1. The accuracy can drop by
            at most the rest.
        exits: the share that takes the same exit, a fraction of 1.
    """

    num_examples: int
    labels: float
    exits: float

    def __str__(self) -> str:
        return (
            f"{1 - self.labels:.2%} of {self.num_examples:,} images get another label "
            f"and {1 - self.exits:.2%} take another exit"
        )


def compare(one: EarlyExitModule, other: EarlyExitModule, images: Any) -> Agreement:
    """Routes the images through two modules with the same inputs.

    Args:
        one: the first module.
        other: the second module.
        images: [n, ...] of the model's input shape and dtype; a dict by name for
            several inputs.

    Raises:
        BranchyError: the images are missing or do not fit the model.
    """
    if images is None:
        raise BranchyError(
            "`images` is missing: bfloat16 is compared with float32 before it is "
            "exported. Pass validation images."
        )
    rows, labels, exits = 0, 0, 0
    for batch in batches(one, images):
        answers = [
            module.functions["serving_default"](**batch) for module in (one, other)
        ]
        given = [answer["probabilities"].numpy().argmax(axis=1) for answer in answers]
        taken = [answer["exit"].numpy() for answer in answers]
        rows += len(given[0])
        labels += int((given[0] == given[1]).sum())
        exits += int((taken[0] == taken[1]).sum())
    return Agreement(rows, labels / rows, exits / rows)


def batches(module: EarlyExitModule, images: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yields the images in batches, as the signatures expect them.

    Args:
        module: the module that takes the batches.
        images: as for `compare`.

    Raises:
        BranchyError: the images are missing or do not fit the model.
    """
    expected = {
        spec.name: checks.TensorSpec(tuple(spec.shape), np.dtype(dtype))
        for spec, dtype in zip(module.specs, module.model_dtypes, strict=True)
    }
    size = min(_BATCH_SIZE, module.max_rows or _BATCH_SIZE)
    start, rows = 0, size
    while rows == size:
        # Rows may be read on access, so not all are in memory.
        arrays, rows = checks.batch(_slice(images, start, start + size), expected)
        if not start and not rows:
            raise BranchyError("There are no images to compare answers on.")
        if rows:
            yield {
                spec.name: tf.cast(arrays[spec.name], spec.dtype).numpy()
                for spec in module.specs
            }
        start += size


def _slice(images: Any, start: int, stop: int) -> Any:
    if isinstance(images, Mapping):
        return {name: _slice(array, start, stop) for name, array in images.items()}
    try:
        return images[start:stop]
    except (TypeError, IndexError):  # checks.batch says what is wrong with it
        return images


def check(agreement: Agreement, max_disagreement: float) -> None:
    """Raises `BranchyError` if too many images get another label or exit.

    Args:
        agreement: the result of `compare`.
        max_disagreement: the largest share allowed, a fraction of 1.
    """
    # Written so that NaN is refused.
    if not min(agreement.labels, agreement.exits) >= 1 - max_disagreement:
        raise BranchyError(
            f"In bfloat16, {agreement}; expected at most {max_disagreement:.2%}. Export "
            "in float32, or allow more with --max_disagreement."
        )
