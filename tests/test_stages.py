from __future__ import annotations

import itertools

import keras
import numpy as np
import odd_models
import pytest
import tensorflow as tf
from keras import layers

from branchy_tf import costs, exits, stages
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import freezing


def whole(model, inputs):
    outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(outputs[name]) for name in exits.exit_names(model)]


def in_stages(functions, inputs):
    live, answers = [tf.constant(value) for value in inputs], []
    for function in functions:
        logits, live = function(live)
        answers.append(np.asarray(logits))
    return answers


@pytest.mark.parametrize("builder", odd_models.ALL, ids=lambda b: b.__name__)
def test_stages_are_the_model_bit_for_bit(builder):
    model, inputs = odd_models.build(builder)
    parts = stages.split(model)
    assert [part.name for part in parts] == exits.exit_names(model)
    for ours, theirs in zip(in_stages(parts, inputs), whole(model, inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("builder", odd_models.ALL, ids=lambda b: b.__name__)
def test_frozen_stages_are_the_model_within_rounding(builder):
    model, inputs = odd_models.build(builder)
    frozen = freezing.stage_functions(model, frozen=True)
    for ours, theirs in zip(in_stages(frozen, inputs), whole(model, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("builder", odd_models.ALL, ids=lambda b: b.__name__)
def test_every_operation_is_in_one_stage_alone(builder):
    model, _ = odd_models.build(builder)
    total = sum(costs.macs(part.model) for part in stages.split(model))
    assert total == costs.macs(model)


def test_each_stage_takes_what_the_one_before_carries():
    model, _ = odd_models.build(odd_models.several_live_tensors)
    parts = stages.split(model)
    for tensor, whole_input in zip(parts[0].model.inputs, model.inputs, strict=True):
        assert tensor.shape == whole_input.shape
    for before, after in itertools.pairwise(parts):
        carried = before.model.outputs[1:]
        assert [t.shape for t in carried] == [t.shape for t in after.model.inputs]
        assert [t.dtype for t in carried] == [t.dtype for t in after.model.inputs]
    # The image is read again after the last cut, so it crosses both.
    assert sum(t.shape == (None, 8, 8, 3) for t in parts[2].model.inputs) >= 1


def test_stages_share_the_layers_and_keep_the_model_unchanged():
    model, inputs = odd_models.build(odd_models.skip_across_the_cut)
    before = model.get_config()
    parts = stages.split(model)
    assert {id(w) for part in parts for w in part.model.weights} == {
        id(w) for w in model.weights
    }
    assert model.get_config() == before
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(whole(again, inputs)[1], whole(model, inputs)[1])


def test_a_mask_across_the_cut_is_refused():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 8, mask_zero=True)(tokens)
    exit_1 = layers.Dense(3, name="exit_1")(layers.GlobalAveragePooling1D()(x))
    exit_2 = layers.Dense(3, name="exit_2")(layers.LSTM(4)(x))
    model = keras.Model(tokens, {"exit_1": exit_1, "exit_2": exit_2})
    with pytest.raises(BranchyError, match="mask"):
        stages.split(model)


def test_a_model_without_named_exits_is_refused():
    x = keras.Input((3,))
    model = keras.Model(x, {"early": layers.Dense(2, name="early")(x)})
    with pytest.raises(BranchyError, match="exit_1"):
        stages.split(model)


def test_a_subclassed_model_is_refused():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(BranchyError, match="functional"):
        stages.split(Mine())
