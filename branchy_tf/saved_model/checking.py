"""Checks a version that was just written, before servers can see it."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import exits
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.policy import ExitPolicy, exit_indices, forcing
from branchy_tf.saved_model import agreement, warmup
from branchy_tf.saved_model.early_exit import EarlyExitModule, cast_input
from branchy_tf.saved_model.session import SessionModel, opened

# Folding and fusing change the order of sums, and thereby the logits, by at most this
# much relative to the largest one. In bfloat16, fused operations also skip roundings.
TOLERANCE = 1e-4
TOLERANCE_BFLOAT16 = 2e-2
_ROWS = 8


def check_version(
    path: pathlib.Path,
    model: keras.Model,
    module: EarlyExitModule,
    policy: ExitPolicy,
    tolerance: float = TOLERANCE,
    images: Any = None,
) -> None:
    """Loads a written version into a Session and compares it with the Keras model.

    Args:
        path: the folder of the version.
        model: the exported model.
        module: the module that was written.
        policy: the policy; the version must have its thresholds as defaults.
        tolerance: the largest difference of logits, relative to the largest logit.
        images: real images, whose rows must take the exits that their scores imply;
            None skips this check.

    Raises:
        BranchyError: the version does not load, or its answers differ from the model's.
    """
    session = opened(path, "model")
    try:
        _check_answers(session, model, module, policy, tolerance)
        if images is not None:
            _check_decisions(session, module, policy, tolerance, images)
    except tf.errors.OpError as error:
        raise BranchyError(
            f"The exported model fails on a valid request: {first_line(error)}"
        ) from None
    finally:
        session.close()


def _check_answers(
    session: SessionModel,
    model: keras.Model,
    module: EarlyExitModule,
    policy: ExitPolicy,
    relative: float,
) -> None:
    defaults = policy.limits
    found = session.signatures["early_exit"].defaults
    if "thresholds" not in found or not np.array_equal(
        tf.make_ndarray(found["thresholds"]), defaults
    ):
        raise BranchyError("The exported model lost its default thresholds.")

    inputs = warmup.example_inputs(module, min(_ROWS, module.max_rows or _ROWS))
    logits = _keras_logits(model, inputs, module)
    expected, scores, largest = _answers(logits, policy)
    tolerance = relative * max(1.0, largest)
    everything = session.run("all_exits", inputs)
    check_same(
        "probabilities of all_exits", everything["probabilities"], expected, tolerance
    )
    check_same("scores of all_exits", everything["scores"], scores, tolerance)

    num_exits = len(module.exit_names)
    forced = [forcing(k, num_exits) for k in range(num_exits)]
    # Thresholds at the medians of the scores split the batch.
    splitting = np.median(scores, axis=0)[:-1]
    for limits in [*forced, splitting, defaults[0]]:
        limits = np.float32(limits)[None]
        answer = session.run("early_exit", inputs | {"thresholds": limits})
        _check_routing(answer, expected, scores, limits, tolerance)
    default = session.run("serving_default", inputs)
    _check_routing(default, expected, scores, defaults, tolerance)

    empty = {name: value[:0] for name, value in inputs.items()}
    for signature in module.functions:
        for name, value in session.run(signature, empty).items():
            if len(value):
                raise BranchyError(
                    f"The exported model answers an empty batch with {len(value)} rows "
                    f"of {name}."
                )


def _check_decisions(
    session: SessionModel,
    module: EarlyExitModule,
    policy: ExitPolicy,
    relative: float,
    images: Any,
) -> None:
    """Checks that real rows take the exits that every exit's scores imply."""
    logits, answers = [], []
    for batch in agreement.batches(module, images):
        logits.append(module.logits(**batch)["logits"].numpy())
        answers.append(session.run("serving_default", batch))
    expected, scores, largest = _answers(np.concatenate(logits), policy)
    answer = {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
    tolerance = relative * max(1.0, largest)
    policy.check_routing(scores, answer["exit"], tolerance, "The exported graph")
    rows = np.flatnonzero(policy.exit_indices(scores) == answer["exit"])
    check_same(
        "probabilities of early_exit on real images",
        answer["probabilities"][rows],
        expected[rows, answer["exit"][rows]],
        tolerance,
    )


def _answers(
    logits: np.ndarray, policy: ExitPolicy
) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities [B, N, C], scores [B, N], and the largest finite |logit|."""
    each = [exit_answer(logits[:, k], policy, k) for k in range(policy.num_exits)]
    probabilities, scores = (
        np.stack([np.asarray(part[i]) for part in each], axis=1) for i in range(2)
    )
    scaled = logits / np.array(policy.temperatures, np.float32)[:, None]
    # Masked classes have -inf.
    largest = np.abs(scaled[np.isfinite(scaled)]).max(initial=0)
    return probabilities, scores, float(largest)


def _keras_logits(
    model: keras.Model, inputs: dict[str, np.ndarray], module: EarlyExitModule
) -> np.ndarray:
    """The logits [B, N, C] of the Keras model itself."""
    tensors = [
        cast_input(tf.constant(inputs[name]), dtype)
        for name, dtype in zip(module.input_names, module.model_dtypes, strict=True)
    ]
    flat = keras.tree.pack_sequence_as(model.input, tensors)
    outputs = model(flat, training=False)
    return np.stack(
        [np.asarray(outputs[name], np.float32) for name in exits.exit_names(model)],
        axis=1,
    )


def _check_routing(
    answer: dict[str, np.ndarray],
    expected: np.ndarray,
    scores: np.ndarray,
    limits: np.ndarray,
    tolerance: float,
) -> None:
    # Rounding decides rows whose score is at a threshold.
    uncertain = np.abs(scores[:, :-1] - limits) <= tolerance
    rows = np.flatnonzero(~uncertain.any(axis=1))
    where = exit_indices(scores, limits)[rows]
    if not np.array_equal(answer["exit"][rows], where):
        raise BranchyError(
            f"The exported model takes exits {answer['exit'][rows].tolist()}, the Keras "
            f"model {where.tolist()} (thresholds {limits.tolist()})."
        )
    check_same(
        "probabilities of early_exit",
        answer["probabilities"][rows],
        expected[rows, where],
        tolerance,
    )
    check_same(
        "scores of early_exit", answer["score"][rows], scores[rows, where], tolerance
    )


def check_same(
    what: str, found: np.ndarray, expected: np.ndarray, tolerance: float
) -> None:
    if not np.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        difference = float(np.nanmax(np.abs(found - expected)))
        raise BranchyError(
            f"The {what} differ by {difference:.2g} from the Keras model's; expected at "
            f"most {tolerance:.2g}."
        )
