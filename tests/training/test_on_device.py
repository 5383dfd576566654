"""Data on the device, and several steps in one call."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import small

from branchy_tf import data, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import batches, fitting, phases

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def labels_of(split: data.Split) -> dict:
    return {"exit_1": split.labels}


@pytest.fixture(scope="module")
def on_device():
    pytest.importorskip("jax", reason="the data path on the device is for JAX")
    from branchy_tf.training import on_device

    return on_device


@pytest.fixture(scope="module")
def images() -> data.Split:
    random = np.random.default_rng(0)
    pixels = random.integers(1, 256, (23, 9, 6, 3), dtype=np.uint8)
    weights = random.random(23).astype(np.float32)
    return data.Split(pixels, random.integers(0, 5, 23), weights)


@pytest.mark.parametrize("name", data.AUGMENTATIONS)
def test_batches_equal_those_that_numpy_prepares(on_device, images, name):
    arguments = (images, labels_of, 5, name, [7])
    host = batches.Batches(*arguments)
    calls = on_device.Calls(*arguments, steps_per_call=3)
    # Steps 1 to 3, step 4, and the last 3 rows.
    assert len(calls) == 3
    for epoch in (0, 2):
        host.start_epoch(epoch)
        calls.start_epoch(epoch)
        made = []
        for (call,) in (calls[i] for i in range(len(calls))):
            for step in range(int(call.steps)):
                draws = call.draws
                if draws is not None:
                    draws = data.Draws(*(x if x is None else x[step] for x in draws))
                rows = call.rows[step]
                whole = images.inputs, images.labels, images.weights
                made.append(calls._batch(on_device.jax.device_put(whole), rows, draws))
        assert len(made) == len(host) == 5
        for ours, theirs in zip(made, (host[i] for i in range(5)), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1]["exit_1"], theirs[1]["exit_1"])
            np.testing.assert_array_equal(ours[2], theirs[2])


def test_calls_have_the_same_shape_whatever_their_steps(on_device, images):
    calls = on_device.Calls(images, labels_of, 5, "flip_shift_cutout", [7], 3)
    (full,), (part,), (rest,) = (calls[i] for i in range(3))
    assert [int(call.steps) for call in (full, part, rest)] == [3, 1, 1]
    assert full.rows.shape == part.rows.shape == (3, 5)
    assert full.draws.corners.shape == part.draws.corners.shape == (3, 5, 2)
    assert rest.rows.shape == (1, 3)


@pytest.mark.parametrize(
    ("batch_size", "steps_per_call", "expected"),
    [(23, 4, [(1, 23)]), (40, 4, [(1, 23)]), (10, 40, [(2, 10), (1, 3)])],
)
def test_a_call_is_no_longer_than_the_epoch(
    on_device, images, batch_size, steps_per_call, expected
):
    calls = on_device.Calls(images, labels_of, batch_size, "none", [7], steps_per_call)
    assert [calls[i][0].rows.shape for i in range(len(calls))] == expected


def test_several_inputs_and_tables_need_no_augmentation(on_device):
    rows = {"a": np.arange(12).reshape(6, 2), "b": np.arange(6.0)[:, None]}
    split = data.Split(rows, np.arange(6))
    calls = on_device.Calls(split, labels_of, 2, "none", [7], 3)
    (call,) = calls[0]
    taken, targets, weights = calls._batch((rows, split.labels, None), call.rows[1], None)
    np.testing.assert_array_equal(taken["a"][:, 0], 2 * call.rows[1])
    np.testing.assert_array_equal(taken["b"][:, 0], call.rows[1])
    np.testing.assert_array_equal(targets["exit_1"], call.rows[1])
    assert weights is None


def test_data_too_large_for_the_device_stay_where_they_are(
    on_device, images, monkeypatch
):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": self.limit}

    device = Device()
    monkeypatch.setattr(on_device.jax, "devices", lambda: [device])
    size = images.inputs.nbytes
    for device.limit, fits in ((4 * size, True), (4 * size - 1, False)):
        assert on_device.has_room(images) == fits


@pytest.fixture(scope="module")
def trained(on_device, tmp_path_factory) -> dict:
    """What jax_trainings.py prints."""
    folder = tmp_path_factory.mktemp("jax")
    done = subprocess.run(
        [sys.executable, str(HERE / "jax_trainings.py"), folder / "runs"],
        env=os.environ
        | {
            "KERAS_BACKEND": "jax",
            # The resumed training compiles nothing anew.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_close(ours, theirs):
    for one, other in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for row, expected in zip(ours[1], theirs[1], strict=True):
        assert row.keys() == expected.keys()
        for key in row.keys() - {"phase"}:
            assert float(row[key]) == pytest.approx(float(expected[key]), rel=1e-4)


def test_trains_as_from_batches_of_numpy_and_without_tensorflow(trained):
    assert_close(trained["several"], trained["host"])
    # Every step; 3 steps, 1 step and the smaller batch.
    assert (trained["host"][2], trained["several"][2]) == (5, 3)


def test_a_phase_compiles_one_step_for_each_size_of_a_batch(trained):
    assert sorted(trained["traced"]) == [[2, 8, 8, 1], [7, 8, 8, 1]]


def test_a_killed_training_resumes_bit_for_bit(trained):
    assert trained["killed"]
    assert trained["resumed"][:2] == trained["several"][:2]


def test_trains_in_mixed_precision_and_saves_float32(trained):
    (row,), calls, policies = trained["bfloat16"]
    assert np.isfinite(float(row["val_loss"]))
    # On the CPU a call has one step.
    assert calls == 3
    assert policies == ["float32"]


def test_tensorflow_runs_several_steps_in_a_call(tmp_path):
    seen = {}
    for steps in (None, 2):
        model, calls = small.model(), []
        note = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, calls=calls: calls.append(batch)
        )
        training.train(
            model,
            small.dataset(),
            training.Settings(epochs=1, batch_size=7, steps_per_call=steps),
            training.RunFolder(tmp_path / str(steps)),
            callbacks=[note],
        )
        seen[steps] = model.get_weights(), calls
    for one, other in zip(seen[None][0], seen[2][0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert seen[None][1] == [0, 1, 2, 3, 4]
    assert len(seen[2][1]) == 3


def test_data_that_are_read_on_access_are_batched_by_numpy(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    dataset = small.dataset()
    lazy = data.View(dataset.train.images, np.arange(30))
    dataset = dataclasses.replace(dataset, train=data.Split(lazy, dataset.train.labels))
    settings = training.Settings(batch_size=10, steps_per_call=2)
    phase = phases.branches_phase(small.model(), settings)
    trainer = fitting.compiled(phase, settings, 3)
    trainer.jit_compile = True
    made = fitting.feed(trainer, phase, dataset, settings)
    assert type(made) is batches.Batches
    assert trainer.steps_per_execution == 2


def test_pytorch_runs_one_step_in_a_call(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    settings = training.Settings(steps_per_call=2)
    with pytest.raises(BranchyError, match="Keras on PyTorch runs one step in a call"):
        settings.check(small.model(), small.dataset())


@pytest.mark.parametrize("value", [0, 1.5, "many"])
def test_rejects_invalid_numbers_of_steps(value):
    with pytest.raises(BranchyError, match="`steps_per_call` must be a whole number"):
        training.Settings(steps_per_call=value)
