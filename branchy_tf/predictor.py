"""Early exit in this process: the exported routing, without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import checks
from branchy_tf.policy import PolicyLike, check
from branchy_tf.results import Predictions
from branchy_tf.saved_model.early_exit import EarlyExitModule, LogitsModule
from branchy_tf.zoo.policies import policy_for


class LogitsPredictor:
    """Every exit's logits; it decides nothing and needs no policy.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.

    Example:

    ```python
    logits = LogitsPredictor(model).logits(images)      # float32 [B, N, classes]
    ```
    """

    def __init__(self, model: keras.Model) -> None:
        self._module = LogitsModule(model)

    @property
    def num_exits(self) -> int:
        """N."""
        return len(self._module.exit_names)

    def logits(
        self,
        images: Any,
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Every exit's logits to every row, which no temperature has touched.

        Args:
            images: [B, ...] of the model's input shape and dtype (zoo models:
                raw pixels, uint8); for several inputs a dict by name.
            batch_size: rows to run at a time.
            progress: called with the number of rows of each finished batch.

        Returns:
            float32 [B, N, classes].
        """
        arrays, rows = self._check(images)
        return _run(self._module.logits, arrays, rows, batch_size, progress)["logits"]

    def _check(self, images: Any) -> tuple[dict[str, np.ndarray], int]:
        expected = {
            spec.name: checks.TensorSpec(tuple(spec.shape), spec.dtype.as_numpy_dtype)
            for spec in self._module.specs
        }
        return checks.batch(images, expected)


class EarlyExitPredictor(LogitsPredictor):
    """Answers batches with a multi-exit model, each row at the exit it needs.

    It runs the very graph that `export` writes, weights frozen as they are now;
    train the model further and you need a new predictor.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: an `ExitPolicy`, the path of a thresholds.json, or what brings a policy,
            such as `zoo.calibration(...)`. Plain numbers are thresholds for
            `criterion`: N-1 of them; a row leaves at exit n if its score is below
            thresholds[n-1]; 0 lets none leave, infinity all.
        criterion: with plain thresholds, name of the score: entropy (the default),
            max_prob or margin.
        temperatures: with plain thresholds, N numbers that the exits' logits are
            divided by; default: 1.
        thresholds: plain thresholds by name, in place of `policy`.

    Attributes:
        policy: the `ExitPolicy`.

    Raises:
        BranchyError: the policy does not fit the model, or was calibrated for other
            weights.

    Example:

    ```python
    predictor = EarlyExitPredictor(model, "runs/lenet/thresholds.json")
    predictor = EarlyExitPredictor(model, thresholds=[0.025])
    answer = predictor.predict(images)      # uint8 [B, 28, 28, 1]
    answer.labels, answer.exits
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        policy: PolicyLike | None = None,
        criterion: str | None = None,
        temperatures: Sequence[float] | None = None,
        *,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.policy = policy_for(model, policy, criterion, temperatures, thresholds)
        self._module: EarlyExitModule = EarlyExitModule(model, self.policy)

    def predict(
        self, images: Any, thresholds: Any = None, batch_size: int = 256
    ) -> Predictions:
        """Answers each row at the first exit that is sure enough.

        Args:
            images: [B, ...] of the model's input shape and dtype (zoo models:
                raw pixels, uint8); for several inputs a dict by name.
            thresholds: N-1 numbers or [B, N-1]; default: the predictor's own.
            batch_size: rows to run at a time.

        Returns:
            `Predictions` of B rows; empty for B = 0.

        Raises:
            BranchyError: inputs or thresholds of a wrong shape, dtype or value.
        """
        arrays, rows = self._check(images)
        limits = check(
            self.policy.thresholds if thresholds is None else thresholds,
            self.num_exits,
            rows,
        )
        limits = np.broadcast_to(limits, (rows, limits.shape[1]))
        function = self._module.functions["early_exit"]
        parts = _run(function, arrays | {"thresholds": limits}, rows, batch_size)
        return Predictions(parts["probabilities"], parts["exit"], parts["score"])

    def all_exits(
        self,
        images: Any,
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every exit's answer to every row.

        Args:
            images: as for `predict`.
            batch_size: rows to run at a time.
            progress: called with the number of rows of each finished batch.

        Returns:
            `(probabilities [B, N, classes], scores [B, N])`, float32.
        """
        arrays, rows = self._check(images)
        function = self._module.functions["all_exits"]
        parts = _run(function, arrays, rows, batch_size, progress)
        return parts["probabilities"], parts["scores"]


def _run(
    function: Callable[..., dict[str, Any]],
    arrays: dict[str, np.ndarray],
    rows: int,
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, np.ndarray]:
    batch_size = checks.whole_number("batch_size", batch_size, at_least=1)
    parts = []
    # One batch at least: an empty one gives empty results of the right shape.
    for start in range(0, max(rows, 1), batch_size):
        batch = {
            name: tf.constant(array[start : start + batch_size])
            for name, array in arrays.items()
        }
        parts.append(function(**batch))
        if progress is not None:
            progress(min(batch_size, rows - start))
    return {
        name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]
    }
