"""The signatures of an early-exit model as one `tf.Module`."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import checks, exits, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.saved_model import freezing, routing


class LogitsModule(tf.Module):
    """Every exit's logits of a multi-exit model, without routing.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        frozen: whether weights are constants instead of variables.
        input_dtype: the dtype of the inputs, which are cast to the model's in the
            graph; default: the model's own.
        max_rows: the largest number of rows in a request, checked before anything is
            computed; default: no limit.

    Attributes:
        logits: a `tf.function` from the model's inputs to every exit's logits
            [B, N, C]; it is not served.
        specs: the specs of the inputs in the signatures, in order.
        input_names: the names of the inputs.
        model_dtypes: the dtypes that the inputs are cast to.
        max_rows: the largest number of rows in a request, or None.

    Raises:
        BranchyError: an argument does not fit the model.
    """

    def __init__(
        self,
        model: keras.Model,
        frozen: bool = True,
        input_dtype: str | None = None,
        max_rows: int | None = None,
    ) -> None:
        super().__init__()
        graphs.check_backend()
        tensors = exits.exit_tensors(model)
        exits.check_logits(tensors)
        self.exit_names = list(tensors)
        self.classes = exits.num_classes(model)
        self.specs = _input_specs(model, input_dtype)
        self.input_names = [spec.name for spec in self.specs]
        self.model_dtypes = [tensor.dtype for tensor in model.inputs]
        self.max_rows = (
            None
            if max_rows is None
            else checks.whole_number("max_rows", max_rows, at_least=1, at_most=2**31 - 1)
        )
        _check_weights(model)
        self._stages = freezing.stage_functions(model, frozen)
        # Tracked, so that loading a SavedModel fills them.
        self._tables = freezing.tables(model)
        # The plain variables: a Session does not restore variables that are reachable
        # only through Keras layers.
        self._weights = [] if frozen else [v.value for v in model.variables]
        self.logits = self._all_logits()

    def _check(self, tensors: Sequence[Any], thresholds: Any = None) -> list:
        """The inputs after all checks; operations must use these, not the originals."""
        # A server does not check shapes: a wrong rank would abort it, and a fully
        # convolutional network would answer a wrong height or width.
        checked = [
            tf.ensure_shape(tensor, spec.shape)
            for tensor, spec in zip(tensors, self.specs, strict=True)
        ]
        rows, *others = [tf.shape(tensor)[0] for tensor in checked]
        assertions = [
            _assert(
                tf.equal(rows, other), "The inputs differ in their rows:", rows, other
            )
            for other in others
        ]
        if self.max_rows is not None:
            assertions.append(
                _assert(
                    rows <= self.max_rows,
                    f"A request holds at most {self.max_rows} rows; split it. Received:",
                    rows,
                )
            )
        if thresholds is not None:
            given = tf.shape(thresholds)[0]
            assertions.append(
                _assert(
                    tf.equal(given, 1) | tf.equal(given, rows),
                    "thresholds must have 1 row, or one for each row of the inputs. "
                    "Received rows of thresholds and of inputs:",
                    given,
                    rows,
                )
            )
        # Without control dependencies, nothing would wait for an assertion.
        with tf.control_dependencies(assertions):
            return [tf.identity(tensor) for tensor in checked]

    def _cast(self, checked: list) -> list:
        return [
            cast_input(tensor, dtype)
            for tensor, dtype in zip(checked, self.model_dtypes, strict=True)
        ]

    def _all_logits(self):
        def logits(*tensors):
            prepared = self._cast(self._check(tensors))
            return {"logits": routing.all_logits(self._stages, prepared, self.classes)}

        return _signature(logits, self.specs)


class EarlyExitModule(LogitsModule):
    """A multi-exit model with the signatures that are served.

    | signature | inputs | outputs |
    | --- | --- | --- |
    | early_exit | the model's, thresholds [B or 1, N-1] | probabilities, exit, score |
    | serving_default | the model's | the same, with the default thresholds |
    | all_exits | the model's | probabilities [B, N, C], scores [B, N] |

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: the policy of requests without thresholds. Thresholds in a request are
            used with the policy's criterion and temperatures. Plain numbers are
            thresholds for entropy.
        frozen: as for `LogitsModule`.
        input_dtype: as for `LogitsModule`.
        max_rows: as for `LogitsModule`.

    Attributes:
        functions: `{signature name: tf.function}`, for `tf.saved_model.save`.
        policy: the `ExitPolicy`.

    A row with NaN or infinity in its inputs never exits early; the final exit answers it.

    Raises:
        BranchyError: an argument does not fit the model.
    """

    def __init__(
        self,
        model: keras.Model,
        policy: PolicyLike,
        frozen: bool = True,
        input_dtype: str | None = None,
        max_rows: int | None = None,
    ) -> None:
        number = len(exits.exit_names(model))
        self.policy = ExitPolicy.of(policy).check_exits(number)
        super().__init__(model, frozen, input_dtype, max_rows)
        self.functions = {
            "early_exit": self._early_exit(),
            "serving_default": self._serving_default(),
            "all_exits": self._all_exits(),
        }

    def save(self, path: pathlib.Path) -> None:
        """Writes a SavedModel with the signatures only."""
        save(self, path, self.functions)

    def _route(self, tensors: Sequence[Any], thresholds: Any) -> dict[str, Any]:
        thresholds = tf.ensure_shape(thresholds, [None, len(self.exit_names) - 1])
        checked = self._check(tensors, thresholds)
        probabilities, exit_index, score = routing.early_exit(
            self._stages,
            self._cast(checked),
            _disable_for_nonfinite(checked, thresholds),
            self.policy,
            self.classes,
        )
        return {"probabilities": probabilities, "exit": exit_index, "score": score}

    def _early_exit(self):
        # Only a default that is a tensor reaches the SignatureDef.
        thresholds = tf.constant(self.policy.limits)
        spec = tf.TensorSpec([None, thresholds.shape[1]], tf.float32, "thresholds")

        def early_exit(*arguments):
            *tensors, limits = arguments
            return self._route(tensors, limits)

        return _signature(early_exit, [*self.specs, spec], {"thresholds": thresholds})

    def _serving_default(self):
        def serving_default(*tensors):
            return self._route(tensors, tf.constant(self.policy.limits))

        return _signature(serving_default, self.specs)

    def _all_exits(self):
        def all_exits(*tensors):
            probabilities, scores = routing.all_exits(
                self._stages,
                self._cast(self._check(tensors)),
                self.policy,
                self.classes,
            )
            return {"probabilities": probabilities, "scores": scores}

        return _signature(all_exits, self.specs)


def save(module: tf.Module, path: pathlib.Path, signatures: dict[str, Any]) -> None:
    """Writes a SavedModel for inference."""
    # A custom gradient (swish, straight-through estimators, int8) captures tensors of
    # its stage, which cannot be saved. A server needs no gradients.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), signatures=signatures, options=options)


def _assert(condition: Any, message: str, *values: Any) -> Any:
    # The raw op, because tf.debugging's would add a branch to each request.
    return tf.raw_ops.Assert(condition=condition, data=[tf.constant(message), *values])


def _disable_for_nonfinite(inputs: list, thresholds: Any) -> Any:
    """The thresholds, NaN for rows with NaN or infinity in their inputs.

    The scores do not show it: fused kernels turn relu(NaN) into 0, and a cast to
    integers turns NaN into a number.
    """
    for tensor in inputs:
        if tensor.dtype.is_floating:
            axes = list(range(1, len(tensor.shape)))
            finite = tf.reduce_all(tf.math.is_finite(tensor), axis=axes)
            thresholds = tf.where(finite[:, None], thresholds, float("nan"))
    return thresholds


def _check_weights(model: keras.Model) -> None:
    # Fused kernels can turn NaN into 0, and rows would exit early with wrong answers.
    for variable in model.variables:
        values = keras.ops.convert_to_numpy(variable)
        if "float" in variable.dtype and np.isnan(values).any():
            raise BranchyError(
                f"The weight {variable.path} of {model.name!r} holds NaN; expected "
                "numbers. Training has diverged: train again with a lower learning rate."
            )


def cast_input(tensor: Any, dtype: str) -> Any:
    """Casts a served input to the model's dtype; rounds floats to whole pixels."""
    if tensor.dtype.is_floating and tf.as_dtype(dtype).is_integer:
        # A plain cast would truncate 254.9 to 254 and wrap 256 around to 0.
        return tf.saturate_cast(tf.round(tensor), dtype)
    return tf.cast(tensor, dtype)


def _signature(
    function: Callable, specs: Sequence[tf.TensorSpec], defaults: dict | None = None
):
    """A tf.function whose arguments are named like the specs."""
    # TensorFlow reads the names of the inputs from the Python signature, and they are
    # known only at run time.
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                spec.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=(defaults or {}).get(spec.name, inspect.Parameter.empty),
            )
            for spec in specs
        ]
    )
    return tf.function(function, input_signature=list(specs), autograph=False)


def _input_specs(model: keras.Model, input_dtype: str | None) -> list[tf.TensorSpec]:
    tensors = model.inputs
    if any(tensor.shape[0] is not None for tensor in tensors):
        raise BranchyError(
            f"{model.name} fixes its batch size: inputs of shape "
            f"{[tuple(tensor.shape) for tensor in tensors]}; expected (None, ...)."
        )
    for tensor in tensors:
        if tensor.dtype == "string":
            raise BranchyError(
                f"The input {tensor.name!r} of {model.name!r} takes strings; expected "
                "numbers. Move the layer that looks the strings up out of the model, and "
                "pass the model its integers."
            )
    try:
        dtypes = [
            tf.as_dtype(tensor.dtype if input_dtype is None else input_dtype)
            for tensor in tensors
        ]
        numeric = all(d.is_floating or d.is_integer or d.is_bool for d in dtypes)
    except Exception:  # invalid dtypes raise various types
        numeric = False
    if not numeric:
        raise BranchyError(
            f"`input_dtype` must be a dtype such as uint8 or float32. Received "
            f"{checks.shown(input_dtype)}."
        )
    names = graphs.input_names(model)
    if len(set(names)) < len(names) or "thresholds" in names:
        raise BranchyError(
            f"{model.name} has inputs named {', '.join(names)}; expected different "
            "names, none of them thresholds. Name each keras.Input."
        )
    return [
        tf.TensorSpec(tensor.shape, dtype, name)
        for tensor, dtype, name in zip(tensors, dtypes, names, strict=True)
    ]
