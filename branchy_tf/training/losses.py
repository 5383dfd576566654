"""The joint loss: a weighted cross-entropy for each exit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from branchy_tf import checks
from branchy_tf.errors import BranchyError


def check_loss_weights(
    names: Sequence[str], weights: Sequence[float] | None
) -> list[float]:
    """The loss weight of each exit; None means 1 for each.

    Raises:
        BranchyError: not one finite, non-negative weight for each exit, or all are 0.
    """
    if weights is None:
        return [1.0] * len(names)
    given = checks.real_array("loss_weights", weights).ravel()
    weights = [float(weight) for weight in given]
    if len(weights) != len(names):
        example = ",".join(["1.0", *["0.3"] * (len(names) - 1)])
        raise BranchyError(
            f"`loss_weights` must have one entry for each exit. Exits: "
            f"{', '.join(names)}. Received {len(weights)}: {weights}. Pass "
            f"--loss_weights={example}, in exit order."
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise BranchyError(
            "`loss_weights` must be finite, non-negative and not all zero. Received "
            f"{weights}."
        )
    return weights


def compile_joint(
    model: keras.Model,
    names: Sequence[str],
    optimizer: keras.Optimizer,
    loss_weights: Sequence[float],
) -> None:
    """Compiles a model with outputs `{exit name: logits}`.

    With weights s_i of the B rows of a batch, L_n is the sum of s_i CE_i, divided by B
    and not by the sum of the weights. Metrics and the validation loss ignore them.

    References:
        L = sum_n w_n L_n, BranchyNet (2016), section III. Its L_n carries a
        constant 1/|C|, which only rescales the loss and is omitted here.
    """
    # Keras prefixes metrics with the output's name only if there are several outputs.
    accuracy = "accuracy" if len(names) > 1 else f"{names[0]}_accuracy"
    model.compile(
        optimizer=optimizer,
        loss={
            name: keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            for name in names
        },
        loss_weights=dict(zip(names, loss_weights, strict=True)),
        metrics={
            name: [keras.metrics.SparseCategoricalAccuracy(accuracy)] for name in names
        },
    )


def compile_baseline(
    model: keras.Model, final_exit: str, optimizer: keras.Optimizer
) -> None:
    """Compiles a network with only its final exit, a plain logits output."""
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # The same name as in a training of all exits.
        metrics=[keras.metrics.SparseCategoricalAccuracy(f"{final_exit}_accuracy")],
    )
