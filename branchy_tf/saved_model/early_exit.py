"""The signatures of an early-exit model as one `tf.Module`."""

from __future__ import annotations

import inspect
import keyword
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from branchy_tf import exits
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.saved_model import freezing, routing


class LogitsModule(tf.Module):
    """Every exit's logits of a multi-exit model; nothing is decided.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        frozen: weights as constants instead of variables.
        input_dtype: dtype of the inputs; default: the model's own. They are cast to
            the model's in the graph.

    Attributes:
        logits: a `tf.function` from the model's inputs to every exit's logits
            [B, N, C]; it is not served.
        specs: of the model's inputs in the signatures, in order.
        input_names: their names.
        model_dtypes: the dtypes that they are cast to.

    Raises:
        BranchyError: an argument does not fit the model.
    """

    def __init__(
        self, model: keras.Model, frozen: bool = True, input_dtype: str | None = None
    ) -> None:
        super().__init__()
        self.exit_names = exits.exit_names(model)
        self.classes = exits.num_classes(model)
        self.specs = _input_specs(model, input_dtype)
        self.input_names = [spec.name for spec in self.specs]
        self.model_dtypes = [tensor.dtype for tensor in model.inputs]
        self._stages = freezing.stage_functions(model, frozen)
        # The plain variables: a Session does not restore those that are only
        # reached through Keras layers.
        self._weights = [] if frozen else [v.value for v in model.variables]
        self.logits = self._all_logits()

    def _prepare(self, tensors: Sequence[Any]) -> list:
        """Checks and casts the inputs; nothing may touch them before."""
        # A server checks neither: a wrong rank would abort it, a wrong height or
        # width be answered by a network that is convolutional all through.
        checked = [
            tf.ensure_shape(tensor, spec.shape)
            for tensor, spec in zip(tensors, self.specs, strict=True)
        ]
        rows = [tf.shape(tensor)[0] for tensor in checked]
        for other in rows[1:]:
            tf.debugging.assert_equal(rows[0], other, "Inputs differ in their rows.")
        return [
            cast_input(tensor, dtype)
            for tensor, dtype in zip(checked, self.model_dtypes, strict=True)
        ]

    def _all_logits(self):
        def logits(*tensors):
            prepared = self._prepare(tensors)
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
        policy: of a request without thresholds; a request that brings its own gets
            them with this criterion and these temperatures. Plain numbers are
            thresholds for entropy.
        frozen: weights as constants instead of variables.
        input_dtype: dtype of the served inputs; default: the model's own. They
            are cast to the model's in the graph.

    Attributes:
        functions: `{signature name: tf.function}`, as `tf.saved_model.save` takes them.
        policy: the `ExitPolicy`.

    Raises:
        BranchyError: an argument does not fit the model.
    """

    def __init__(
        self,
        model: keras.Model,
        policy: PolicyLike,
        frozen: bool = True,
        input_dtype: str | None = None,
    ) -> None:
        number = len(exits.exit_names(model))
        self.policy = ExitPolicy.of(policy).check_exits(number)
        super().__init__(model, frozen, input_dtype)
        self.functions = {
            "early_exit": self._early_exit(),
            "serving_default": self._serving_default(),
            "all_exits": self._all_exits(),
        }

    def save(self, path: pathlib.Path) -> None:
        """Writes a SavedModel with the signatures, and nothing else."""
        tf.saved_model.save(self, str(path), signatures=self.functions)

    def _route(self, tensors: Sequence[Any], thresholds: Any) -> dict[str, Any]:
        prepared = self._prepare(tensors)
        thresholds = tf.ensure_shape(thresholds, [None, len(self.exit_names) - 1])
        probabilities, exit_index, score = routing.early_exit(
            self._stages,
            prepared,
            thresholds,
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
                self._prepare(tensors),
                self.policy,
                self.classes,
            )
            return {"probabilities": probabilities, "scores": scores}

        return _signature(all_exits, self.specs)


def cast_input(tensor: Any, dtype: str) -> Any:
    """A served input as the model takes it; floats are rounded to whole pixels."""
    if tensor.dtype.is_floating and tf.as_dtype(dtype).is_integer:
        # A plain cast would cut 254.9 to 254, and wrap 256 around to 0.
        return tf.saturate_cast(tf.round(tensor), dtype)
    return tf.cast(tensor, dtype)


def _signature(
    function: Callable, specs: Sequence[tf.TensorSpec], defaults: dict | None = None
):
    """A tf.function whose arguments are named like the specs."""
    # The names of the model's inputs are known only now; TensorFlow reads them
    # from the Python signature.
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
    try:
        dtypes = [tf.as_dtype(input_dtype or tensor.dtype) for tensor in tensors]
        numeric = all(d.is_floating or d.is_integer or d.is_bool for d in dtypes)
    except TypeError:
        numeric = False
    if not numeric:
        raise BranchyError(
            f"`input_dtype` must be a dtype such as uint8 or float32. Received "
            f"{input_dtype!r}."
        )
    if len(tensors) == 1 and len(tensors[0].shape) == 4:
        names = ["images"]
    else:
        names = [_identifier(tensor.name) for tensor in tensors]
    if len(set(names)) < len(names) or "thresholds" in names:
        raise BranchyError(
            f"{model.name} has inputs named {', '.join(names)}; expected different "
            "names, none of them thresholds. Name each keras.Input."
        )
    return [
        tf.TensorSpec(tensor.shape, dtype, name)
        for tensor, dtype, name in zip(tensors, dtypes, names, strict=True)
    ]


def _identifier(name: str) -> str:
    """A name that a Python argument, and so a signature's input, can have."""
    plain = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    usable = plain.isidentifier() and not keyword.iskeyword(plain)
    return plain if usable else f"input_{plain}"
