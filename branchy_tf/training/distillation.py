"""Self-distillation: the final exit teaches the early exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
from keras import ops

from branchy_tf.errors import BranchyError


def check(gamma: float, temperature: float) -> None:
    """Raises `BranchyError` unless 0 < gamma <= 1 and the temperature is positive."""
    if not 0 < gamma <= 1 or not 0 < temperature < float("inf"):
        raise BranchyError(
            "`distillation` must be two numbers gamma,tau, 0 < gamma <= 1 and tau > 0. "
            f"Received {gamma:g},{temperature:g}. Pass for example --distillation=0.5,3."
        )


class _Mean(keras.losses.Loss):
    """The mean of `y_pred`, a loss of each row, as Keras takes that of its own losses.

    It knows weights of rows, and that each of several devices has a part of the rows.
    """

    def call(self, y_true, y_pred):
        """Returns `y_pred` [B]."""
        return y_pred


class DistilledModel(keras.Model):
    """A multi-exit model whose early exits also learn from its final exit.

    The loss of exit n < N is w_n ((1 - gamma) CE_n + gamma tau² KL(p_N || p_n)), where
    p is the softmax of the logits divided by tau and p_N is held constant. Compile the
    cross-entropies with the weights from `label_weights`. Weights of rows, [B], multiply
    the whole loss of a row.

    Args:
        inputs: the inputs of the model.
        outputs: `{"exit_1": logits, ..., "exit_N": logits}`.
        loss_weights: w_1 ... w_N.
        gamma: the weight of the teacher, 0 < gamma <= 1.
        temperature: tau, above 0.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network
        (2015), arXiv 1503.02531. Phuong, Lampert: Distillation-Based Training
        for Multi-Exit Architectures (ICCV 2019).
    """

    def __init__(
        self,
        inputs: keras.KerasTensor | Sequence | Mapping,
        outputs: Mapping[str, keras.KerasTensor],
        loss_weights: Sequence[float],
        gamma: float,
        temperature: float,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs)
        self._names = list(outputs)
        self._weights = dict(zip(self._names, loss_weights, strict=True))
        self._gamma = gamma
        self._temperature = temperature
        self._mean = _Mean(name="mean")

    def label_weights(self) -> list[float]:
        """The weight of each exit's cross-entropy."""
        *early, final = self._names
        shares = [self._weights[name] * (1 - self._gamma) for name in early]
        return [*shares, self._weights[final]]

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The compiled loss plus the distillation loss of a batch, a scalar."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        *early, final = self._names
        teacher = ops.stop_gradient(y_pred[final]) / self._temperature
        wanted = ops.log_softmax(teacher)
        masked = ops.equal(wanted, -float("inf"))
        scale = self._gamma * self._temperature**2
        for name in early:
            given = ops.log_softmax(y_pred[name] / self._temperature)
            # A class that the teacher masks out (-inf) adds no loss.
            apart = ops.where(masked, 0.0, wanted - ops.where(masked, 0.0, given))
            divergence = ops.sum(ops.exp(wanted) * apart, axis=-1)
            # One weight for all of a row's losses.
            mean = self._mean(divergence, divergence, sample_weight)
            loss = loss + scale * self._weights[name] * mean
        return loss
