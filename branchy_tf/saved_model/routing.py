"""The early exit itself: which rows go how far, as a TensorFlow graph.

Each stage lies inside the branch that is taken only if a row still needs it,
so rows that have left cost nothing. What a gate costs when nothing is decided
by it: softmax, score, one comparison, `reduce_all` and a branch. Rows are
gathered only where some leave and some stay; a batch of one row, or one in
which all rows agree, is passed on as it is.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from branchy_tf.exits import exit_name
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.policy import ExitPolicy, leaves
from branchy_tf.saved_model.freezing import StageFunction


def early_exit(
    stages: list[StageFunction],
    tensors: list,
    thresholds: Any,
    policy: ExitPolicy,
    classes: int,
) -> tuple[Any, Any, Any]:
    """Routes each row to the first exit that is sure enough of it.

    Args:
        stages: N of them, from `freezing.stage_functions`.
        tensors: the model's inputs, each [B, ...].
        thresholds: float32 [B or 1, N-1], in place of the policy's.
        policy: what the rows are scored by: its criterion and temperatures.
        classes: number of classes.

    Returns:
        `(probabilities [B, classes], exit [B], score [B])`: float32, int32,
        float32. For B = 0 all are empty.

    References:
        BranchyNet (2016), Figure 2, for a batch with thresholds of its own for
        each row.
    """
    rows = tf.shape(tensors[0])[0]
    thresholds = tf.broadcast_to(thresholds, [rows, len(stages) - 1])

    def answer():
        return _from_stage(0, stages, tensors, thresholds, policy)

    def nothing():
        return (
            tf.zeros([0, classes], tf.float32),
            tf.zeros([0], tf.int32),
            tf.zeros([0], tf.float32),
        )

    # oneDNN's convolutions fail on a batch of no rows.
    return tf.cond(rows > 0, answer, nothing)


def _from_stage(
    k: int,
    stages: list,
    tensors: list,
    thresholds: Any,
    policy: ExitPolicy,
) -> tuple:
    logits, carried = stages[k](tensors)
    probabilities, scores = exit_answer(logits, policy, k)
    exits = tf.fill(tf.shape(scores), k)
    here = (probabilities, exits, scores)
    if k == len(stages) - 1:
        return here
    gone = leaves(scores, thresholds[:, k])

    def go_on():
        some_leave = tf.reduce_any(gone)

        def staying():
            # Not tf.logical_not: the optimiser makes `not (score < t)` into
            # `score >= t`, which is wrong for NaN.
            rows = tf.where(tf.equal(tf.cast(gone, tf.int32), 0))
            index = rows[:, 0]
            return rows, [tf.gather(t, index) for t in (*carried, thresholds)]

        def everyone():
            return tf.zeros([0, 1], tf.int64), [*carried, thresholds]

        rows, (*onward, their_thresholds) = tf.cond(some_leave, staying, everyone)
        # From the root, not inside this one: each name would hold all those above it,
        # and the graph grow with the square of the exits.
        with tf.name_scope(f"{exit_name(k + 2)}/"):
            further = _from_stage(k + 1, stages, onward, their_thresholds, policy)

        def merged():
            return tuple(
                tf.tensor_scatter_nd_update(before, rows, after)
                for before, after in zip(here, further, strict=True)
            )

        return tf.cond(some_leave, merged, lambda: further)

    return tf.cond(tf.reduce_all(gone), lambda: here, go_on)


def all_exits(
    stages: list[StageFunction],
    tensors: list,
    policy: ExitPolicy,
    classes: int,
) -> tuple[Any, Any]:
    """Every exit's answer to every row.

    Returns:
        `(probabilities [B, N, classes], scores [B, N])`, float32.
    """

    def answer():
        results, live = [], tensors
        for k, stage in enumerate(stages):
            logits, live = stage(live)
            results.append(exit_answer(logits, policy, k))
        probabilities, scores = zip(*results, strict=True)
        return tf.stack(probabilities, axis=1), tf.stack(scores, axis=1)

    def nothing():
        return tf.zeros([0, len(stages), classes]), tf.zeros([0, len(stages)])

    return tf.cond(tf.shape(tensors[0])[0] > 0, answer, nothing)


def all_logits(stages: list[StageFunction], tensors: list, classes: int) -> Any:
    """Every exit's logits, before temperature and softmax: float32 [B, N, classes]."""

    def answer():
        results, live = [], tensors
        for stage in stages:
            logits, live = stage(live)
            results.append(tf.cast(logits, tf.float32))
        return tf.stack(results, axis=1)

    def nothing():
        return tf.zeros([0, len(stages), classes])

    return tf.cond(tf.shape(tensors[0])[0] > 0, answer, nothing)
