"""Optimisers and learning-rate schedules, by name."""

from __future__ import annotations

import keras

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine", "one_cycle", "step")

_WARM_UP_SHARE = 0.2


def build(
    optimizer: str, learning_rate: float, schedule: str, weight_decay: float, steps: int
) -> keras.Optimizer:
    """The optimiser of one phase.

    Args:
        optimizer: `adam`, or `sgd` (Nesterov momentum 0.9).
        learning_rate: the maximum learning rate of the phase.
        schedule: `constant`; `cosine`: decays to 0; `one_cycle`: rises during the
            first fifth, then decays to 0; `step`: a tenth after half of the steps, a
            hundredth after three quarters.
        weight_decay: decoupled from the gradient: each step shrinks each kernel by
            the fraction learning rate x `weight_decay`. (With momentum 0.9, a tenth
            of it as a penalty in the loss has about the same effect.)
        steps: the number of steps of the phase.

    References:
        Loshchilov, Hutter: SGDR (2017), arXiv 1608.03983, and Decoupled Weight
        Decay Regularization (2019), arXiv 1711.05101. Smith, Topin:
        Super-Convergence (2018), arXiv 1708.07120. `step` is that of DenseNet and
        MSDNet on CIFAR.
    """
    rate = _schedule(schedule, learning_rate, steps)
    decay = weight_decay or None
    made: keras.Optimizer
    if optimizer == "sgd":
        made = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
    else:
        made = keras.optimizers.Adam(rate, weight_decay=decay)
    if decay:
        # Scales and offsets do not overfit.
        made.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return made


def _schedule(schedule: str, learning_rate: float, steps: int):
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    if schedule == "one_cycle":
        up = max(1, round(_WARM_UP_SHARE * steps))
        return keras.optimizers.schedules.CosineDecay(
            learning_rate / 25,
            decay_steps=max(1, steps - up),
            warmup_target=learning_rate,
            warmup_steps=up,
        )
    if schedule == "step":
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            # A boundary still belongs to the steps before it, and they count from 0.
            [steps // 2 - 1, steps * 3 // 4 - 1],
            [learning_rate, learning_rate / 10, learning_rate / 100],
        )
    return learning_rate
