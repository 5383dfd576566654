"""Early exit in this process, without a server, in one of several engines."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from branchy_tf import checks, files, versions
from branchy_tf.checks import ranges
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, PolicyLike, check
from branchy_tf.results import Predictions

if TYPE_CHECKING:
    # A device that runs an exported version has neither Keras nor TensorFlow.
    import keras


class Engine(Protocol):
    """Computes what a predictor returns, from inputs that are already checked.

    Attributes:
        inputs: what the model takes, by input name.
        num_exits: N, the final exit included.
    """

    @property
    def inputs(self) -> Mapping[str, checks.TensorSpec]: ...

    @property
    def num_exits(self) -> int: ...

    def logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Every exit's logits, float32 [B, N, classes]."""

    def early_exit(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The row's `{"probabilities", "exit", "score"}`.

        The arrays include `thresholds`, float32 [1 or B, N-1].
        """

    def all_exits(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every exit's `{"probabilities": [B, N, classes], "scores": [B, N]}`."""


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
        from branchy_tf.saved_model.early_exit import LogitsModule
        from branchy_tf.saved_model.engines import ModuleEngine

        self._engine: Engine = ModuleEngine(LogitsModule(model))
        self._most_rows: int | None = None

    @property
    def num_exits(self) -> int:
        """N, the final exit included."""
        return self._engine.num_exits

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

        Raises:
            BranchyError: the inputs have a wrong shape, dtype or value, or the predictor
                runs a SavedModel, which has no signature for logits.
        """
        arrays, rows = checks.batch(images, self._engine.inputs)

        def run(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": self._engine.logits(batch)}

        return self._in_batches(run, arrays, rows, batch_size, progress)["logits"]

    def _in_batches(
        self,
        run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]],
        arrays: Mapping[str, np.ndarray],
        rows: int,
        batch_size: int,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, np.ndarray]:
        size = checks.whole_number("batch_size", batch_size, at_least=1)
        size = min(size, self._most_rows or size)
        if rows <= size:
            found = run(arrays)
            if progress is not None:
                progress(rows)
            return found
        parts = []
        for start in range(0, rows, size):
            # Thresholds may have one row for all.
            batch = {
                name: array if len(array) == 1 else array[start : start + size]
                for name, array in arrays.items()
            }
            parts.append(run(batch))
            if progress is not None:
                progress(min(size, rows - start))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class EarlyExitPredictor(LogitsPredictor):
    """Predicts with a multi-exit model; each row takes the first confident exit.

    Takes a Keras model, or the folder of a version that `export` wrote. A LiteRT version
    runs in LiteRT, where neither TensorFlow nor Keras is needed; a SavedModel in a
    Session, as in a server; a Keras model through the graph that `export` would write.
    The weights are frozen when the predictor is created: after further training, create
    a new one. `predict` and `all_exits` may be called from several threads.

    If the policy knows what its weights were trained on, as those of `calibrate` and of
    the zoo do, rows of another scale are refused (0...1 instead of 0...255, say), and
    doubtful ones warned of once; `checks.ranges` has the rule.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`; or the folder of a
            version, such as "exports/my_model/1".
        policy: an `ExitPolicy`, the path of a thresholds.json, or an object with a
            policy, such as `zoo.calibration(...)`. N-1 plain numbers are thresholds for
            `criterion`: a row takes exit n if its score is below thresholds[n-1]. With
            0 no row takes the exit, with infinity every row does. A version brings its
            own policy; another one may have other thresholds, but not another criterion
            or other temperatures, which are part of the exported graph.
        criterion: with plain thresholds, the name of the score: entropy (the default),
            max_prob or margin.
        temperatures: with plain thresholds, N positive numbers that the logits of the
            exits are divided by; default: 1.
        thresholds: plain thresholds, instead of `policy`.
        threads: with a version, the threads inside one operation. Default: LiteRT's is 1,
            TensorFlow's is one per core.

    Attributes:
        policy: the `ExitPolicy`.

    Raises:
        BranchyError: the policy does not fit the model, or was calibrated for other
            weights; the folder holds no version, or LiteRT is not installed.

    Example:

    ```python
    predictor = EarlyExitPredictor(model, "runs/lenet/thresholds.json")
    predictor = EarlyExitPredictor(model, thresholds=[0.025])
    predictor = EarlyExitPredictor("exports/lenet/1", threads=2)
    answer = predictor.predict(images)      # uint8 [B, 28, 28, 1]
    answer.labels, answer.exits
    ```
    """

    def __init__(
        self,
        model: keras.Model | files.Path,
        policy: PolicyLike | None = None,
        criterion: str | None = None,
        temperatures: Sequence[float] | None = None,
        *,
        thresholds: Sequence[float] | None = None,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            threads = checks.whole_number("threads", threads, at_least=1)
        self._most_rows = None
        if isinstance(model, (str, os.PathLike)):
            engine, known = _load(model, threads)
            self._most_rows = known.max_rows
            self._engine = engine
            self.policy = _fitting(
                known.policy, policy, criterion, temperatures, thresholds
            )
        else:
            from branchy_tf.saved_model.early_exit import EarlyExitModule
            from branchy_tf.saved_model.engines import ModuleEngine
            from branchy_tf.zoo.policies import policy_for

            if threads is not None:
                raise BranchyError(
                    "`threads` is for the folder of a version. For a Keras model, call "
                    "tf.config.threading.set_intra_op_parallelism_threads."
                )
            self.policy = policy_for(model, policy, criterion, temperatures, thresholds)
            self._engine = ModuleEngine(EarlyExitModule(model, self.policy))
        self._limits = self.policy.limits
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
        arrays, rows = checks.batch(images, self._engine.inputs)
        self._check_scale(arrays)
        arrays["thresholds"] = (
            self._limits
            if thresholds is None
            else check(thresholds, self.num_exits, rows)
        )
        parts = self._in_batches(self._engine.early_exit, arrays, rows, batch_size)
        return Predictions(parts["probabilities"], parts["exit"], parts["score"])

    def _check_scale(self, arrays: Mapping[str, np.ndarray]) -> None:
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
        arrays, rows = checks.batch(images, self._engine.inputs)
        parts = self._in_batches(
            self._engine.all_exits, arrays, rows, batch_size, progress
        )
        return parts["probabilities"], parts["scores"]


def _load(path: files.Path, threads: int | None) -> tuple[Engine, versions.Description]:
    """The engine for a version folder, by its format."""
    engine: Any
    if versions.find_format(files.path(path)) == versions.LITERT:
        from branchy_tf.litert.engine import LiteRTEngine

        engine = LiteRTEngine(path, threads)
    else:
        from branchy_tf.saved_model.engines import SessionEngine

        engine = SessionEngine(path, threads)
    return engine, engine.description


def _fitting(
    exported: ExitPolicy,
    given: PolicyLike | None,
    criterion: str | None,
    temperatures: Sequence[float] | None,
    thresholds: Sequence[float] | None,
) -> ExitPolicy:
    """The policy of an exported version, with the thresholds that the user gave.

    Raises:
        BranchyError: both a policy and thresholds, or what the exported graph cannot do.
    """
    if given is not None and thresholds is not None:
        raise BranchyError(
            "Pass either a policy or plain thresholds=[...], one number for each early "
            "exit."
        )
    wanted = exported
    given = thresholds if given is None else given
    if given is not None:
        brought = isinstance(given, (ExitPolicy, str, os.PathLike)) or hasattr(
            given, "policy"
        )
        wanted = ExitPolicy.of(given).check_exits(exported.num_exits)
        if not brought:
            wanted = exported.replace(thresholds=wanted.thresholds)
    changes: dict[str, Any] = {}
    if criterion is not None:
        changes["criterion"] = criterion
    if temperatures is not None:
        changes["temperatures"] = temperatures
    wanted = wanted.replace(**changes)
    # As float32, in which the graph holds them.
    ours, theirs = (
        np.asarray(one.temperatures, np.float32) for one in (wanted, exported)
    )
    if wanted.criterion != exported.criterion or (ours != theirs).any():
        raise BranchyError(
            f"The version was exported for the criterion {exported.criterion} with "
            f"temperatures {checks.shown(exported.temperatures)}, which are part of its "
            f"graph; received {wanted.criterion} with "
            f"{checks.shown(wanted.temperatures)}. Pass thresholds alone, or export "
            "again with that policy."
        )
    return wanted
