"""Scores: how uncertain a prediction is. Lower means more confident.

A criterion is a function from log-probabilities [..., classes] to scores [...]. It is
written with `keras.ops`, so that the same code scores a batch in training, in
calibration and inside the exported graph. To add a criterion, write the function and
add its name to `CRITERIA` and `policy.CRITERION_NAMES`.

A class with a logit of -inf is masked out: its probability is 0, and the score covers
the other classes. A row with a NaN or +inf logit, or with -inf logits only, has the
score NaN, which is below no threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from branchy_tf.policy import ExitPolicy, check_criterion

# Below the logarithm of every probability that float32 can hold.
_LOWEST = -1e30


def entropy(log_probabilities: Any) -> Any:
    """Entropy of the prediction in nats, from 0 (certain) to ln(classes) (uniform).

    References:
        e = -sum_c p_c ln p_c; BranchyNet (Teerapittayanon et al., 2016),
        section III, with the minus sign that its text leaves out.
    """
    # 0 ln 0 = 0 needs a finite ln 0. NaN stays NaN through its probability.
    finite = ops.maximum(log_probabilities, _LOWEST)
    return -ops.sum(ops.exp(log_probabilities) * finite, axis=-1)


def max_prob(log_probabilities: Any) -> Any:
    """1 - the largest probability, from 0 (certain) to 1 - 1/classes (uniform)."""
    return 1.0 - ops.exp(ops.max(log_probabilities, axis=-1))


def margin(log_probabilities: Any) -> Any:
    """1 - (largest - second largest probability), from 0 (certain) to 1 (a tie).

    With a single class, the second largest is 0.
    """
    if log_probabilities.shape[-1] == 1:
        return max_prob(log_probabilities)
    best, second = ops.split(
        ops.exp(ops.top_k(log_probabilities, 2, sorted=True)[0]), 2, axis=-1
    )
    return ops.squeeze(1.0 - (best - second), axis=-1)


CRITERIA: dict[str, Callable[[Any], Any]] = {
    "entropy": entropy,
    "max_prob": max_prob,
    "margin": margin,
}


def exit_answer(logits: Any, policy: ExitPolicy, exit_index: int) -> tuple:
    """Softmax and score of each row at one exit, at that exit's temperature.

    Args:
        logits: [..., classes] of that exit, any float dtype; computed in float32.
        policy: sets the criterion and the temperatures.
        exit_index: the exit, 0-based.

    Returns:
        As `probabilities_and_scores`.
    """
    logits = ops.cast(logits, "float32")
    temperature = policy.temperature(exit_index)
    if temperature != 1.0:
        # Without the shift, a large logit over a small temperature would overflow.
        logits = (logits - ops.max(logits, axis=-1, keepdims=True)) / temperature
    return probabilities_and_scores(logits, policy.criterion)


def probabilities_and_scores(logits: Any, criterion: str = "entropy") -> tuple:
    """Softmax and score of each row.

    Args:
        logits: [..., classes], any float dtype; computed in float32.
        criterion: a name from `CRITERIA`.

    Returns:
        `(probabilities, scores)`, float32 [..., classes] and [...]. Both are NaN for a
        row with a NaN or +inf logit, or with -inf logits only.
    """
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    scores = CRITERIA[check_criterion(criterion)](log_probabilities)
    return ops.exp(log_probabilities), scores
