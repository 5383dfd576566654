from __future__ import annotations

import keras
import numpy as np
import pytest

from branchy_tf.training import optimizers


def rates(schedule, steps=100):
    made = optimizers._schedule(schedule, 0.1, steps)
    return [float(made(step)) for step in range(steps + 1)]


def test_cosine_schedule_falls_to_zero():
    found = rates("cosine")
    assert found[0] == pytest.approx(0.1)
    assert found[50] == pytest.approx(0.05)
    assert found[100] == pytest.approx(0.0, abs=1e-9)
    assert found == sorted(found, reverse=True)


def test_one_cycle_rises_over_a_fifth_and_falls_to_zero():
    found = rates("one_cycle")
    assert found[0] == pytest.approx(0.1 / 25)
    assert found[20] == pytest.approx(0.1)
    assert found[:21] == sorted(found[:21])
    assert found[20:] == sorted(found[20:], reverse=True)
    assert found[100] == pytest.approx(0.0, abs=1e-9)


def test_step_schedule_falls_at_half_and_three_quarters():
    found = rates("step")
    assert found[:50] == pytest.approx([0.1] * 50)
    assert found[50:75] == pytest.approx([0.01] * 25)
    assert found[75:] == pytest.approx([0.001] * 26)


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
def test_one_step_is_enough_for_every_schedule(schedule):
    optimizer = optimizers.build("sgd", 0.1, schedule, 0.0, steps=1)
    assert 0 < float(np.asarray(optimizer.learning_rate)) <= 0.1001


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_shrinks_kernels_alone(name):
    layer = keras.layers.Dense(2, bias_initializer="ones")
    layer.build((None, 3))
    before = [np.array(weight) for weight in layer.weights]
    optimizer = optimizers.build(name, 0.1, "constant", 0.5, steps=10)
    optimizer.apply([np.zeros_like(w) for w in before], layer.trainable_weights)
    kernel, bias = (np.array(weight) for weight in layer.weights)
    np.testing.assert_allclose(kernel, before[0] * (1 - 0.1 * 0.5), rtol=1e-5)
    np.testing.assert_array_equal(bias, before[1])
