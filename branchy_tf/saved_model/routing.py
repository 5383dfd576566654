"""Early exit as a TensorFlow graph: routes each row through the stages that it needs.

Each stage is inside a branch that runs only if a row still needs it, so rows that have
exited cost nothing. Every early exit adds softmax, score, one comparison, `reduce_all`
and a branch. Rows are gathered only if some exit and some continue; a batch of one row,
or a batch whose rows all agree, is passed on unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from branchy_tf.exits import exit_name
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.policy import ExitPolicy, exits_early
from branchy_tf.saved_model.freezing import StageFunction


@dataclasses.dataclass(frozen=True)
class Onward:
    """What leaves the graph with the rows that no exit in it answers.

    Attributes:
        encode: maps what the last stage carries, for M rows, to the tensors to return.
        specs: their specs, batch first and other sizes fixed.
    """

    encode: Callable[[list], list]
    specs: Sequence[tf.TensorSpec]

    def empty(self) -> list:
        """The tensors for no rows."""
        return [tf.zeros([0, *spec.shape[1:]], spec.dtype) for spec in self.specs]


def early_exit(
    stages: list[StageFunction],
    tensors: list,
    thresholds: Any,
    policy: ExitPolicy,
    classes: int,
) -> tuple[Any, Any, Any]:
    """Routes each row to the first exit that is confident enough.

    Args:
        stages: the N stages, from `freezing.stage_functions`.
        tensors: the model's inputs, each [B, ...].
        thresholds: float32 [B or 1, N-1], used instead of the policy's.
        policy: sets the criterion and temperatures of the scores.
        classes: the number of classes.

    Returns:
        `(probabilities [B, classes], exit [B], score [B])`: float32, int32,
        float32. For B = 0 all are empty.

    References:
        BranchyNet (2016), Figure 2, extended to batches with thresholds per row.
    """
    return route(stages, tensors, thresholds, policy, classes)[0]


def route(
    stages: list[StageFunction],
    tensors: list,
    thresholds: Any,
    policy: ExitPolicy,
    classes: int,
    onward: Onward | None = None,
) -> tuple[tuple[Any, Any, Any], list]:
    """Early exit through some of a network's stages.

    Args:
        stages: the first K stages, or any K that follow each other.
        tensors: what the first of them reads, each [B, ...].
        thresholds: float32 [B or 1, K] with `onward`, else [B or 1, K-1].
        policy: sets the criterion and temperatures of the K exits.
        classes: the number of classes.
        onward: what to return for the rows that go on after the last stage; None: the
            last stage answers every row that reaches it.

    Returns:
        `((probabilities, exit, score), tensors)`. The first are as for `early_exit`,
        for every row, with exits counted from the first of these stages; a row that goes
        on has the answer of the last one. The tensors hold only the M rows that go on,
        in order; without `onward` there are none.
    """
    rows = tf.shape(tensors[0])[0]
    thresholds = tf.broadcast_to(thresholds, [rows, thresholds.shape[1]])

    def answer():
        return _from_stage(0, stages, tensors, thresholds, policy, onward)

    def nothing():
        empty = (
            tf.zeros([0, classes], tf.float32),
            tf.zeros([0], tf.int32),
            tf.zeros([0], tf.float32),
        )
        return empty, onward.empty() if onward is not None else []

    # oneDNN's convolutions fail on a batch of no rows.
    return tf.cond(rows > 0, answer, nothing)


def _from_stage(
    k: int,
    stages: list,
    tensors: list,
    thresholds: Any,
    policy: ExitPolicy,
    onward: Onward | None,
) -> tuple[tuple, list]:
    logits, carried = stages[k](tensors)
    probabilities, scores = exit_answer(logits, policy, k)
    exits = tf.fill(tf.shape(scores), k)
    here = (probabilities, exits, scores)
    is_last = k == len(stages) - 1
    if is_last and onward is None:
        return here, []
    exiting = exits_early(scores, thresholds[:, k])

    def go_on():
        some_exit = tf.reduce_any(exiting)

        def remaining():
            # Not tf.logical_not: the optimiser turns `not (score < t)` into
            # `score >= t`, which is wrong for NaN.
            rows = tf.where(tf.equal(tf.cast(exiting, tf.int32), 0))
            index = rows[:, 0]
            return rows, [tf.gather(t, index) for t in (*carried, thresholds)]

        def all_rows():
            return tf.zeros([0, 1], tf.int64), [*carried, thresholds]

        rows, (*further, their_thresholds) = tf.cond(some_exit, remaining, all_rows)
        if is_last:
            assert onward is not None
            return here, onward.encode(further)
        # The scope starts at the root. Nested scopes would make every name contain all
        # those above it, and the graph grow with the square of the exits.
        with tf.name_scope(f"{exit_name(k + 2)}/"):
            later, sent = _from_stage(
                k + 1, stages, further, their_thresholds, policy, onward
            )

        def merged():
            return tuple(
                tf.tensor_scatter_nd_update(before, rows, after)
                for before, after in zip(here, later, strict=True)
            )

        return tf.cond(some_exit, merged, lambda: later), sent

    def stop():
        return here, onward.empty() if onward is not None else []

    return tf.cond(tf.reduce_all(exiting), stop, go_on)


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
