"""Early exit in this process, without a server: runs the exported graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import checks
from branchy_tf.checks import ranges
from branchy_tf.policy import PolicyLike, check
from branchy_tf.results import Predictions
from branchy_tf.saved_model.early_exit import EarlyExitModule, LogitsModule
from branchy_tf.zoo.policies import policy_for


class LogitsPredictor:
    """Computes every exit's logits; needs no policy.

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
        """N, the final exit included."""
        return len(self._module.exit_names)

    def logits(
        self,
        images: Any,
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Every exit's logits for every row, before any temperature.

        Args:
            images: [B, ...] of the model's input shape and dtype (zoo models: raw
                pixels, uint8); a dict by name for several inputs.
            batch_size: the number of rows per batch.
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
    """Predicts with a multi-exit model; each row takes the first confident exit.

    Runs the same graph that `export` writes. The weights are frozen when the predictor
    is created: after further training, create a new one.

    If the policy knows what its weights were trained on, as those of `calibrate` and of
    the zoo do, rows of another scale are refused (0...1 instead of 0...255, say), and
    doubtful ones warned of once; `checks.ranges` has the rule.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: an `ExitPolicy`, the path of a thresholds.json, or an object with a
            policy, such as `zoo.calibration(...)`. N-1 plain numbers are thresholds for
            `criterion`: a row takes exit n if its score is below thresholds[n-1]. With
            0 no row takes the exit, with infinity every row does.
        criterion: with plain thresholds, the name of the score: entropy (the default),
            max_prob or margin.
        temperatures: with plain thresholds, N positive numbers that the logits of the
            exits are divided by; default: 1.
        thresholds: plain thresholds, instead of `policy`.

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
        self._has_warned = False

    def predict(
        self, images: Any, thresholds: Any = None, batch_size: int = 256
    ) -> Predictions:
        """Predicts each row at the first exit that is confident enough.

        Args:
            images: [B, ...] of the model's input shape and dtype (zoo models: raw
                pixels, uint8); a dict by name for several inputs.
            thresholds: N-1 numbers or [B, N-1]; default: the policy's.
            batch_size: the number of rows per batch.

        Returns:
            `Predictions` of B rows; empty for B = 0.

        Raises:
            BranchyError: inputs or thresholds have a wrong shape, dtype or value, or
                the inputs have another scale than the training's.
        """
        arrays, rows = self._check(images)
        self._check_scale(arrays)
        limits = check(
            self.policy.thresholds if thresholds is None else thresholds,
            self.num_exits,
            rows,
        )
        limits = np.broadcast_to(limits, (rows, limits.shape[1]))
        function = self._module.functions["early_exit"]
        parts = _run(function, arrays | {"thresholds": limits}, rows, batch_size)
        return Predictions(parts["probabilities"], parts["exit"], parts["score"])

    def _check_scale(self, arrays: dict[str, np.ndarray]) -> None:
        mend = "If they are right, pass policy.replace(inputs=None)."
        warning = ranges.check(self.policy.inputs, arrays, mend)
        if warning is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(warning, stacklevel=3)

    def all_exits(
        self,
        images: Any,
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every exit's answer to every row.

        Args:
            images: as for `predict`.
            batch_size: the number of rows per batch.
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
    # At least one batch: an empty one gives empty results of the right shape.
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
