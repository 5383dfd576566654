"""A unit as a graph with one signature, for TF Serving."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf import graphs
from branchy_tf.policy import ExitPolicy, exits_early
from branchy_tf.saved_model import early_exit, freezing, routing
from branchy_tf.stages import Stage
from branchy_tf.units.codecs import Codec
from branchy_tf.units.cutting import FEATURES, Unit
from branchy_tf.units.interfaces import MADE_FOR, SIGNATURE
from branchy_tf.units.joining import check_fit


class UnitModule(early_exit.ServedModule):
    """A unit with the signature `unit`.

    | inputs | |
    | --- | --- |
    | the network's, or `features_1` ... | as the unit before it sends them |
    | `features_made_for` | int64 [B], with features: the weights they were made for |
    | `thresholds` | float32 [B or 1, K], one for each exit that rows may go on from |

    | outputs | |
    | --- | --- |
    | `probabilities` | float32 [B, C], at the exit that the row reached |
    | `exit` | int32 [B], that exit, counted from the unit's first |
    | `score` | float32 [B], its score |
    | `onward` | bool [B], except in the last unit: whether the row goes on |
    | `features_1` ..., `features_made_for` | [M, ...], only for the M rows that go on |

    Args:
        unit: the unit.
        policy: the policy of its exits; see `policy_of`.
        codec: the form in which features travel, to it and from it.
        following: the next unit; None after the last.
        frozen: whether weights are constants instead of variables.
        input_dtype: the dtype of the served images; default: the model's own.
        max_rows: the largest number of rows in a request.

    Attributes:
        fingerprint: of the unit's weights.
        function: the `tf.function` of the signature.
        policy: the policy.
        sends: the specs of the features that it sends.

    Raises:
        BranchyError: the tensors do not fit the next unit, or cannot be sent.
    """

    def __init__(
        self,
        unit: Unit,
        policy: ExitPolicy,
        codec: str = "none",
        following: Unit | None = None,
        frozen: bool = True,
        input_dtype: str | None = None,
        max_rows: int | None = None,
    ) -> None:
        graphs.check_backend()
        self.unit = unit
        self.policy = policy
        self._incoming: Codec | None = None
        made_for = tf.TensorSpec([None], tf.int64, MADE_FOR)
        if unit.takes == FEATURES:
            self._incoming = Codec(codec, unit.model.inputs, unit.inputs)
            specs = [*self._incoming.specs, made_for]
        else:
            specs = early_exit.input_specs(unit.model, input_dtype)
        super().__init__(specs, max_rows)
        early_exit.check_weights(unit.model)
        freezing.check_layer_names(unit.model)
        self._stages = freezing.as_functions(unit.stages, frozen)
        self._tables = freezing.tables(unit.model)
        self._weights = [] if frozen else [v.value for v in unit.model.variables]
        self.fingerprint = unit.fingerprint
        self.sends: list[tf.TensorSpec] = []
        self._onward: routing.Onward | None = None
        if unit.carried:
            assert following is not None
            check_fit(unit, following)
            outgoing = Codec(codec, unit.carried, following.inputs)
            self.sends = [*outgoing.specs, made_for]
            destination = _as_int64(following.fingerprint)
            narrow = _encoder(unit, frozen)

            def encode(carried: list) -> list:
                rows = tf.shape(carried[0])[:1]
                made = tf.fill(rows, tf.constant(destination, tf.int64))
                return [*outgoing.encode(narrow(carried)), made]

            self._onward = routing.Onward(encode, self.sends)
        self.function = self._signature()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.unit.classes

    def prepare(self, arrays: Mapping[str, np.ndarray]) -> list[Any]:
        """What the unit's Keras model gets for arrays that are sent to the unit."""
        *parts, last = (tf.constant(arrays[spec.name]) for spec in self.specs)
        if self._incoming is not None:
            return self._incoming.decode(parts)
        return self._cast([*parts, last])

    def _cast(self, tensors: Sequence[Any]) -> list[Any]:
        return [
            early_exit.cast_input(tensor, wanted.dtype)
            for tensor, wanted in zip(tensors, self.unit.model.inputs, strict=True)
        ]

    def save(self, path: pathlib.Path) -> None:
        """Writes a SavedModel with the signature."""
        early_exit.save(self, path, {SIGNATURE: self.function})

    def _signature(self) -> Any:
        # Only a default that is a tensor reaches the SignatureDef.
        thresholds = tf.constant(self.policy.limits)
        spec = tf.TensorSpec([None, thresholds.shape[1]], tf.float32, "thresholds")

        def unit(*arguments):
            *tensors, limits = arguments
            return self._answer(tensors, limits)

        return early_exit.signature(unit, [*self.specs, spec], {"thresholds": thresholds})

    def _answer(self, tensors: Sequence[Any], thresholds: Any) -> dict[str, Any]:
        number = len(self.policy.thresholds)
        thresholds = tf.ensure_shape(thresholds, [None, number])
        checked = self.check(tensors, thresholds)
        if self._incoming is None:
            values = checked
            prepared = self._cast(checked)
        else:
            *parts, made_for = checked
            with tf.control_dependencies([self._check_made_for(made_for)]):
                prepared = [tf.identity(t) for t in self._incoming.decode(parts)]
            values = prepared
        limits = early_exit.disable_for_nonfinite(values, thresholds)
        (probabilities, index, score), features = routing.route(
            self._stages, prepared, limits, self.policy, self.classes, self._onward
        )
        found = {"probabilities": probabilities, "exit": index, "score": score}
        if self.unit.next is not None:
            exiting = exits_early(
                score, tf.broadcast_to(limits, [_rows(index), number])[:, -1]
            )
            # Not tf.logical_not; see `routing`.
            stays = tf.equal(tf.cast(exiting, tf.int32), 0)
            found["onward"] = tf.equal(index, number - 1) & stays
        return found | {
            spec.name: tensor for spec, tensor in zip(self.sends, features, strict=True)
        }

    def _check_made_for(self, made_for: Any) -> Any:
        return tf.raw_ops.Assert(
            condition=tf.reduce_all(
                tf.equal(made_for, tf.constant(_as_int64(self.fingerprint), tf.int64))
            ),
            data=[
                tf.constant(
                    f"These features were made for other weights than {self.unit.name} "
                    f"has ({self.fingerprint}). Export all units of one network "
                    "together, and serve them together. Received:"
                ),
                made_for,
            ],
        )


def policy_of(unit: Unit, policy: ExitPolicy, before: int) -> ExitPolicy:
    """The part of a network's policy that is about one unit's exits.

    Args:
        unit: the unit.
        policy: of the whole network.
        before: the number of exits before the unit's first.

    Returns:
        A policy with a threshold for each exit that rows may go on from. Its last
        temperature is the next unit's first, or the final exit's.
    """
    end = before + len(unit.exits)
    assert policy.temperatures is not None
    temperatures = policy.temperatures[before : end + 1]
    return policy.replace(
        thresholds=policy.thresholds[before:end], temperatures=temperatures
    )


def _encoder(unit: Unit, frozen: bool) -> Callable[[list], list]:
    """The encoder of a unit's bottleneck; the identity without one."""
    if unit.encoder is None:
        return list
    # It is a function of tensors like a stage, which returns the first one apart.
    (run,) = freezing.as_functions([Stage(f"{unit.name}_encoder", unit.encoder)], frozen)

    def narrow(carried: list) -> list:
        first, others = run(carried)
        return [first, *others]

    return narrow


def _rows(tensor: Any) -> Any:
    return tf.shape(tensor)[0]


def _as_int64(fingerprint: str) -> int:
    """The 16 hexadecimal digits as a signed number of 64 bits."""
    return int.from_bytes(bytes.fromhex(fingerprint), "big", signed=True)
