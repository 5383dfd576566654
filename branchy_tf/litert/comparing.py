"""Compares a LiteRT version with the float32 model that it was exported from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.litert.engine import LiteRTEngine
from branchy_tf.results import Predictions
from branchy_tf.saved_model import agreement
from branchy_tf.saved_model.early_exit import EarlyExitModule


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A LiteRT version and its float32 model on the same rows, each at its thresholds.

    Attributes:
        num_examples: the number of rows.
        accuracy: of the version, a fraction of 1; None without labels.
        float32_accuracy: of the float32 model; None without labels.
        exit_rates: the shares of rows at each exit of the version.
        float32_exit_rates: those of the float32 model.
        labels: the share of rows with the same label, a fraction of 1. Where thresholds
            were calibrated again, rows that now take another exit count too.
        exit_labels: for each exit alone, the share of rows with the same label: what
            quantising itself leaves.
    """

    num_examples: int
    accuracy: float | None
    float32_accuracy: float | None
    exit_rates: Sequence[float]
    float32_exit_rates: Sequence[float]
    labels: float
    exit_labels: Sequence[float]

    @property
    def accuracy_drop(self) -> float:
        """The float32 model's accuracy less the version's."""
        assert self.accuracy is not None
        assert self.float32_accuracy is not None
        return self.float32_accuracy - self.accuracy

    def __str__(self) -> str:
        def rates(values: Sequence[float]) -> str:
            return " ".join(f"{rate:.1%}" for rate in values)

        changed = [1 - share for share in self.exit_labels]
        text = (
            f"{1 - self.labels:.2%} of {self.num_examples:,} rows get another label than "
            f"in float32, at each exit alone {rates(changed)}; exit rates "
            f"{rates(self.exit_rates)}, in float32 {rates(self.float32_exit_rates)}"
        )
        if self.accuracy is not None:
            text += f"; accuracy {self.accuracy:.2%}, in float32 "
            text += f"{self.float32_accuracy:.2%}"
        return text


def compare(
    engine: LiteRTEngine,
    module: EarlyExitModule,
    images: Any,
    labels: np.ndarray | None,
) -> Comparison:
    """Routes rows through a LiteRT version and its float32 model.

    Args:
        engine: the version.
        module: the float32 model with its own policy.
        images: [n, ...] of the model's input shape and dtype; a dict by name for several
            inputs.
        labels: int [n], or None.

    Raises:
        BranchyError: the images are missing or do not fit the model.
    """
    number = module.policy.num_exits
    parts: tuple[list[dict[str, Any]], ...] = ([], [])
    same = []
    limits = {"thresholds": engine.description.policy.limits}
    for batch in agreement.batches(module, images):
        parts[0].append(engine.early_exit(batch | limits))
        parts[1].append(module.functions["serving_default"](**batch))
        every = engine.logits(batch), np.asarray(module.logits(**batch)["logits"])
        same.append(every[0].argmax(axis=-1) == every[1].argmax(axis=-1))
    ours, exact = map(_joined, parts)
    return Comparison(
        num_examples=len(ours),
        accuracy=_accuracy(ours, labels),
        float32_accuracy=_accuracy(exact, labels),
        exit_rates=ours.exit_rates(number).tolist(),
        float32_exit_rates=exact.exit_rates(number).tolist(),
        labels=float(np.mean(ours.labels == exact.labels)),
        exit_labels=np.concatenate(same).mean(axis=0).tolist(),
    )


def _joined(parts: Sequence[dict[str, Any]]) -> Predictions:
    def whole(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(part[name]) for part in parts])

    return Predictions(whole("probabilities"), whole("exit"), whole("score"))


def _accuracy(answers: Predictions, labels: np.ndarray | None) -> float | None:
    return None if labels is None else float(np.mean(answers.labels == labels))


def check(
    found: Comparison, quantize: str, max_accuracy_drop: float, max_disagreement: float
) -> None:
    """Raises `BranchyError` if a version is too far from its float32 model.

    Args:
        found: the result of `compare`.
        quantize: how the version is quantised, for the message.
        max_accuracy_drop: the largest drop of the accuracy, a fraction of 1.
        max_disagreement: the largest share of rows with another label at an exit, a
            fraction of 1. The choice of exits does not count: where thresholds are
            calibrated again, another choice may cost as much and be correct as often.
    """
    # Written so that NaN is refused.
    if found.accuracy is not None and not found.accuracy_drop <= max_accuracy_drop:
        raise BranchyError(
            f"Quantised ({quantize}), the accuracy drops by "
            f"{100 * found.accuracy_drop:.2f} points, from {found.float32_accuracy:.2%} "
            f"to {found.accuracy:.2%}; expected at most {100 * max_accuracy_drop:.2f}. "
            f"{_mend(quantize)}, or allow more with --max_accuracy_drop."
        )
    worst = min(found.exit_labels)
    if not worst >= 1 - max_disagreement:
        raise BranchyError(
            f"Quantised ({quantize}), {1 - worst:.2%} of {found.num_examples:,} rows get "
            f"another label at an exit; expected at most {max_disagreement:.2%}. "
            f"{_mend(quantize)}, or allow more with --max_disagreement."
        )


def _mend(quantize: str) -> str:
    return f"Export with --quantize={'dynamic' if quantize == 'int8' else 'none'}"
