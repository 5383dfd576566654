"""Sample weighting: a small network learns how much each row counts at each exit.

At an exit with early exit, some rows leave and the others go on; plain joint training
treats all of them alike at every exit. Here a row's losses at all exits say how much it
should weigh at each. What weights are good is learned beside the model: those after whose
step the rows are classified best where they would exit.

References:
    Han, Pu, Lai, Wang, Song, Cao, Huang, Deng, Huang: Learning to Weight Samples for
    Dynamic Early-exiting Networks (ECCV 2022), arXiv 2209.08310, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError

BACKENDS = ("tensorflow", "jax")

# Of the paper's networks for CIFAR, as its authors train them.
_HIDDEN = 500
_LEARNING_RATE = 1e-4


def check(delta: float, ratio: float) -> None:
    """Raises `BranchyError` unless 0 < delta <= 1 and the ratio is positive."""
    if not 0 < delta <= 1 or not 0 < ratio < math.inf:
        raise BranchyError(
            "`sample_weighting` must be two numbers delta,ratio, 0 < delta <= 1 and "
            f"ratio > 0. Received {delta:g},{ratio:g}. Pass for example "
            "--sample_weighting=0.8,0.75."
        )


class WeightNetwork(keras.layers.Layer):
    """From a row's losses at all exits to its weight at each exit.

    With p = tanh(B relu(A l + a) + b), for the losses l of a row, its weights are
    1 + delta (p - m), where m is the mean of p over all rows and exits of the batch. So
    the weights of a batch are 1 on average, and the size of a step stays as it was. With
    delta above 0.5 a weight may be negative, as in the paper's networks for CIFAR.

    The layer is not trainable itself: it is trained by its own optimiser, whose state it
    owns, so that a backup of the model holds both.

    Args:
        exits: N.
        delta: the strength of the weighting, 0 < delta <= 1.
        seed: the seed of the first weights.

    Attributes:
        parameters: A, a, B and b, as variables.
        optimizer: Adam, for these.
    """

    def __init__(self, exits: int, delta: float, seed: int) -> None:
        super().__init__(
            name="weight_network", trainable=False, dtype=keras.config.floatx()
        )
        self._delta = delta
        self.parameters = [
            self.add_weight(
                shape=shape,
                # One seed would start both matrices from the same draws.
                initializer=keras.initializers.GlorotUniform(seed + number)
                if len(shape) == 2
                else "zeros",
                name=f"parameter_{number}",
            )
            for number, shape in enumerate(
                ((exits, _HIDDEN), (_HIDDEN,), (_HIDDEN, exits), (exits,))
            )
        ]
        self.built = True
        self.optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self.optimizer.build(self.parameters)
        for variable in self.optimizer.variables:
            self._track_variable(variable)

    def call(self, losses, parameters: Sequence | None = None):
        """The weights [B, N] of rows with these losses [B, N].

        Args:
            losses: floats [B, N]; no gradient flows to them.
            parameters: tensors in place of the layer's own, to differentiate by.
        """
        into, into_bias, out, out_bias = parameters or self.parameters
        hidden = ops.relu(ops.matmul(ops.stop_gradient(losses), into) + into_bias)
        perturbation = ops.tanh(ops.matmul(hidden, out) + out_bias)
        return 1 + self._delta * (perturbation - ops.mean(perturbation))


class WeightedModel(keras.Model):
    """A multi-exit model whose rows have learned weights in the loss.

    The loss is the mean over the rows i of sum_n w_n v_in CE_in, with v from the
    `WeightNetwork`. Before each step the network itself takes one, by meta-learning:

    1. The first half of the batch makes a pseudo update of the model's variables t, one
       step of plain gradient descent at the current learning rate r:
       t' = t - r grad_t(loss of the first half). It depends on the weights v.
    2. The rows of the second half are given to exits as a budget would: the first
       share of those surest at exit_1 to exit_1, of the rest those surest at exit_2 to
       exit_2, and so on (`allocated`). Exit n gets ratio times the share of exit n - 1.
    3. The meta loss is the sum over the exits of the mean cross-entropy at t' of the
       rows given to that exit. Adam steps down its gradient by the network's
       parameters, which flows through the pseudo update.

    The rows of a batch are in random order, so each row is in either half equally often.
    (The paper's authors swap the halves and take one step for each; they also let the
    pseudo update and the learning rate of the network follow the model's optimiser.)

    Weights of rows, [B], multiply their losses here and in the meta loss. The loss at
    each exit that `fit` reports is weighted; metrics and validation are not.

    Args:
        inputs: the inputs of the model.
        outputs: `{"exit_1": logits, ..., "exit_N": logits}`.
        loss_weights: w_1 ... w_N.
        delta: the strength of the weighting; see `WeightNetwork`.
        ratio: the share of each exit over that of the exit before.
        seed: the seed of the network's first weights.
    """

    def __init__(
        self,
        inputs: keras.KerasTensor | Sequence | Mapping,
        outputs: Mapping[str, keras.KerasTensor],
        loss_weights: Sequence[float],
        delta: float,
        ratio: float,
        seed: int,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs)
        self._names = list(outputs)
        self._loss_weights = list(loss_weights)
        self._shares = thresholds.geometric_rates(ratio, len(self._names))
        self.weight_network = WeightNetwork(len(self._names), delta, seed)

    def train_step(self, *given):
        """A step of the weight network, then one of the model.

        TensorFlow's `fit` gives a batch, JAX's the state of all variables before it.
        """
        *states, batch = given
        rows = keras.utils.unpack_x_y_sample_weight(batch)
        if not states:
            self._learn_weights(*rows)
            return super().train_step(batch)
        ((trainable, others, optimizer, metrics),) = states
        variables = [
            *self.trainable_variables,
            *self.non_trainable_variables,
            *self.optimizer.variables,
        ]
        values = [*trainable, *others, *optimizer]
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            self._learn_weights(*rows)
        others = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return super().train_step((trainable, others, optimizer, metrics), batch)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The compiled loss; in training, with the learned weights."""
        if training:
            weights = self.weight_network(self._row_losses(y, y_pred))
            if sample_weight is not None:
                weights = weights * ops.cast(sample_weight, weights.dtype)[:, None]
            sample_weight = {name: weights[:, n] for n, name in enumerate(self._names)}
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def _learn_weights(self, x, y, row_weights) -> None:
        network = self.weight_network
        rows = ops.shape(y[self._names[0]])[0]
        # The halves of an odd batch share a row, so that even one row has two halves.
        half = (rows + 1) // 2
        batch = (x, y) if row_weights is None else (x, y, row_weights)
        first = keras.tree.map_structure(lambda values: values[:half], batch)
        second = keras.tree.map_structure(lambda values: values[rows - half :], batch)
        found = _gradient(
            lambda parameters: self.meta_loss(parameters, first, second),
            _values(network.parameters),
        )
        network.optimizer.apply(found, network.parameters)

    def meta_loss(self, parameters: Sequence, first: Any, second: Any):
        """How well rows are classified where they exit, after the pseudo update.

        Args:
            parameters: those of the weight network, as tensors.
            first: the rows of the pseudo update: inputs, `{exit: labels}` and any
                weights.
            second: the rows that are classified, likewise.

        Returns:
            A scalar.
        """

        def loss(trainable):
            losses = self._row_losses(first[1], self._answers(trainable, first[0]))
            weights = self.weight_network.call(losses, parameters)
            each = ops.sum(
                weights
                * ops.convert_to_tensor(self._loss_weights, losses.dtype)
                * losses,
                axis=1,
            )
            return ops.mean(_weighted(each, first))

        before = _values(self.trainable_variables)
        rate = ops.cast(self.optimizer.learning_rate, keras.config.floatx())
        steps = _gradient(loss, before)
        after = [
            value - ops.cast(rate, value.dtype) * step
            for value, step in zip(before, steps, strict=True)
        ]
        answers = self._answers(after, second[0])
        surest = ops.stack(
            [ops.max(ops.softmax(answers[name]), axis=-1) for name in self._names], axis=1
        )
        given = ops.cast(
            allocated(ops.stop_gradient(surest), self._shares), keras.config.floatx()
        )
        losses = _weighted(self._row_losses(second[1], answers), second)
        count = ops.maximum(ops.sum(given, axis=0), 1)
        return ops.sum(ops.sum(given * losses, axis=0) / count)

    def _answers(self, trainable: Sequence, x: Any) -> dict[str, Any]:
        """The logits with these trainable variables; no state changes."""
        state = _values(self.non_trainable_variables)
        answers, _ = self.stateless_call(trainable, state, x, training=True)
        return answers

    def _row_losses(self, y: Mapping, y_pred: Mapping):
        """The cross-entropy of each row at each exit, [B, N]."""
        return ops.stack(
            [
                keras.losses.sparse_categorical_crossentropy(
                    y[name],
                    ops.cast(y_pred[name], keras.config.floatx()),
                    from_logits=True,
                )
                for name in self._names
            ],
            axis=1,
        )


def allocated(surest: Any, shares: Sequence[float]):
    """Which exit each row takes if each exit gets a given share of the rows.

    Exit n takes, of the rows that no exit before it took, the surest: its share of all
    rows, rounded down. The final exit takes the rest.

    Args:
        surest: the largest probability of each row at each exit, [B, N].
        shares: N fractions of 1.

    Returns:
        bool [B, N], true at one exit of each row.
    """
    rows = ops.shape(surest)[0]
    left = ops.ones_like(surest[:, 0], dtype="bool")
    taken = []
    for n, share in enumerate(shares[:-1]):
        ranked = ops.where(left, -surest[:, n], math.inf)
        rank = ops.argsort(ops.argsort(ranked))
        # Rounding must not make 64 x 0.25 a number below 16.
        most = ops.floor(ops.cast(rows, "float32") * share + 1e-4)
        here = ops.logical_and(left, ops.cast(rank, "float32") < most)
        taken.append(here)
        left = ops.logical_and(left, ops.logical_not(here))
    return ops.stack([*taken, left], axis=1)


def _weighted(losses: Any, rows: Sequence):
    """Losses [B] or [B, N], times the weights of the rows if they have any."""
    if len(rows) < 3:
        return losses
    weights = ops.cast(rows[2], losses.dtype)
    return losses * (weights if len(losses.shape) == 1 else weights[:, None])


def _values(variables: Sequence[keras.Variable]) -> list[Any]:
    """The current values as tensors, in JAX those of the step."""
    return [ops.convert_to_tensor(variable.value) for variable in variables]


def _gradient(function: Callable[[list[Any]], Any], at: list[Any]) -> list[Any]:
    """The gradient of a scalar function of tensors, which can be differentiated again."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(at)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(at)
        value = function(at)
    found = tape.gradient(value, at, unconnected_gradients="zero")
    # The gradient of an embedding has only the rows that were read.
    return [tf.convert_to_tensor(gradient) for gradient in found]
