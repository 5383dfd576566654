from __future__ import annotations

import time

import keras
import pytest
import small
import tensorflow as tf

from branchy_tf import training
from branchy_tf.training import batches, fitting, phases
from zoo.studies import training_timers


@pytest.fixture(autouse=True)
def _no_tracing():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


SETTINGS = training.Settings(batch_size=10, augmentation="shift")


def test_dataset_makes_the_requested_number_of_steps():
    dataset = training_timers.some_steps(small.dataset(), 4, 10)
    # One more step, which is not timed.
    assert fitting.steps_per_epoch(dataset, SETTINGS) == 5
    assert len(dataset.validation) == 10


def test_step_timer_skips_the_first_step(monkeypatch):
    train_step = keras.Model.train_step
    naps = iter([2.0, 0.05, 0.05])

    def slow(self, data):
        time.sleep(next(naps))
        return train_step(self, data)

    monkeypatch.setattr(keras.Model, "train_step", slow)
    model = small.model()
    phase = phases.baseline_phase(model, SETTINGS)
    dataset = training_timers.some_steps(small.dataset(), 2, 10)
    before = model.get_weights()
    seconds = training_timers.StepTimer(phase, dataset, SETTINGS)()
    # The first step, which builds the graph, takes 2 s and is not counted.
    assert 0.05 <= seconds < 1
    assert next(naps, None) is None
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def test_batch_timer_makes_batches_anew_at_each_call(monkeypatch):
    augment = batches.augment

    def slow(*arguments):
        time.sleep(0.05)
        return augment(*arguments)

    monkeypatch.setattr(batches, "augment", slow)
    phase = phases.branches_phase(small.model(), SETTINGS)
    made = fitting.make_batches(phase, small.dataset(), SETTINGS)
    timer = training_timers.BatchTimer(made, len(made))
    assert min(timer(), timer()) >= 0.05


def test_figures_match_hand_computed_values():
    assert training_timers.figures((0.2, 0.25, 0.5), 50) == {
        "ms_per_step": 250, "low": 200, "high": 500, "images_per_second": 200,
    }  # fmt: skip


def test_compares_joint_with_baseline_steps_of_the_same_kind():
    times = [
        ("baseline", "float32", "off", 10),
        ("joint", "float32", "off", 12),
        ("baseline", "float32", "on", 5),
        ("joint", "float32", "on", 6.5),
        # No baseline was timed in this precision.
        ("joint", "mixed_bfloat16", "on", 1),
    ]
    keys = ("phase", "precision", "jit", "ms_per_step")
    steps = [dict(zip(keys, row, strict=True)) for row in times]
    off, on = training_timers.joint_over_baseline(steps, macs_ratio=1.1)
    assert (off["jit"], off["ratio"], off["within"]) == ("off", 1.2, True)
    assert (on["jit"], on["ratio"], on["within"]) == ("on", 1.3, False)
    assert off["allowed"] == pytest.approx(1.265)
