from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import small
import tensorflow as tf
from keras import layers

from branchy_tf import exits, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import losses, weighting
from branchy_tf.training.callbacks import AtomicBackup


@pytest.fixture(autouse=True)
def _no_tracing():
    # Tracing a graph takes seconds, longer than these few steps.
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def _float64():
    # The policy follows floatx only until some test has set it.
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


def three_exits() -> keras.Model:
    """Batch norm in the trunk, so that a step has other state than its weights."""
    keras.utils.set_random_seed(3)
    x = values = keras.Input((6,))
    outputs = {}
    for number in (1, 2, 3):
        x = layers.Dense(5, activation="tanh", name=f"block_{number}")(x)
        x = layers.BatchNormalization(name=f"norm_{number}")(x)
        outputs[f"exit_{number}"] = layers.Dense(4, name=f"exit_{number}")(x)
    return keras.Model(values, outputs)


def weighted(plain, delta=0.8, ratio=0.75, rate=0.5, loss_weights=(1.0, 0.5, 2.0)):
    model = weighting.WeightedModel(
        plain.input, plain.output, loss_weights, delta, ratio, seed=7
    )
    names = list(plain.output)
    losses.compile_joint(model, names, keras.optimizers.SGD(rate), loss_weights)
    return model


def batch(rows=9, seed=1):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 6))
    y = dict.fromkeys(("exit_1", "exit_2", "exit_3"), random.integers(0, 4, rows))
    return x, y, random.uniform(0.5, 2, rows)


def meta_gradient(model, first, second):
    values = weighting._values(model.weight_network.parameters)
    return weighting._gradient(lambda p: model.meta_loss(p, first, second), values)


@pytest.mark.usefixtures("_float64")
def test_the_meta_gradient_is_that_of_finite_differences():
    model = weighted(three_exits())
    first, second = batch(seed=1), batch(seed=2)
    values = weighting._values(model.weight_network.parameters)
    before = [np.array(v) for v in model.weights]
    found = meta_gradient(model, first, second)
    random = np.random.default_rng(5)
    for at, gradient in enumerate(found):
        # Along one direction through all numbers of a parameter.
        along = random.normal(size=gradient.shape)
        moved = []
        for step in (1e-6, -1e-6):
            changed = list(values)
            changed[at] = values[at] + step * along
            moved.append(float(model.meta_loss(changed, first, second)))
        expected = (moved[0] - moved[1]) / 2e-6
        assert abs(expected) > 1e-5
        assert float(np.sum(gradient * along)) == pytest.approx(expected, rel=1e-5)
    # Neither the pseudo update nor batch norm leaves a trace.
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, np.array(new))


@pytest.mark.usefixtures("_float64")
def test_a_row_gains_weight_where_its_gradient_helps():
    """dL/dv_in = -(r / B) <grad L at t', grad of row i's loss at exit n at t>."""
    model = weighted(three_exits(), loss_weights=(1.0, 1.0, 1.0))
    (x, y, _), second = batch(rows=6), batch(seed=2)[:2]
    theta = weighting._values(model.trainable_variables)
    wanted = tf.Variable(np.ones((6, 3)))
    # In place of the network, so that the weights themselves can be differentiated by.
    model.weight_network.call = lambda _, parameters: wanted * parameters[0]
    one = [tf.constant(1.0, tf.float64)]
    with tf.GradientTape() as tape:
        value = model.meta_loss(one, (x, y), second)
    found = tape.gradient(value, wanted)

    def of_row(i, n):
        with tf.GradientTape() as inner:
            inner.watch(theta)
            loss = model._row_losses(y, model._answers(theta, x))[i, n]
        return inner.gradient(loss, theta, unconnected_gradients="zero")

    with tf.GradientTape() as inner:
        inner.watch(theta)
        each = model._row_losses(y, model._answers(theta, x))
        total = tf.reduce_mean(tf.reduce_sum(each, axis=1))
    step = inner.gradient(total, theta)
    moved = [t - 0.5 * s for t, s in zip(theta, step, strict=True)]
    with tf.GradientTape() as inner:
        inner.watch(moved)
        answers = model._answers(moved, second[0])
        surest = np.stack([tf.nn.softmax(z).numpy().max(1) for z in answers.values()], 1)
        given = np.array(weighting.allocated(surest, model._shares), float)
        counted = given * model._row_losses(second[1], answers)
        loss = tf.reduce_sum(tf.reduce_sum(counted, 0) / given.sum(0))
    towards = inner.gradient(loss, moved)
    for i, n in ((0, 0), (2, 1), (5, 2)):
        product = sum(
            float(tf.reduce_sum(a * b))
            for a, b in zip(of_row(i, n), towards, strict=True)
        )
        assert float(found[i, n]) == pytest.approx(-0.5 / 6 * product, rel=1e-6)


def test_weights_are_one_on_average_and_within_their_bound():
    network = weighting.WeightNetwork(3, 0.8, seed=1)
    rows = np.random.default_rng(2).exponential(size=(50, 3)).astype("float32")
    found = np.array(network(rows))
    assert found.shape == (50, 3)
    assert found.mean() == pytest.approx(1, abs=1e-5)
    assert found.std() > 0.01
    assert np.abs(found - 1).max() < 2 * 0.8
    # Half the strength, half the distance from 1.
    half = np.array(weighting.WeightNetwork(3, 0.4, seed=1)(rows))
    np.testing.assert_allclose(half - 1, (found - 1) / 2, atol=1e-6)


def test_weights_follow_the_formula():
    network = weighting.WeightNetwork(2, 0.5, seed=1)
    a, a_bias, b, b_bias = (np.array(v) for v in network.parameters)
    rows = np.float32([[0.1, 2.0], [1.5, 0.3], [0.0, 0.0]])
    p = np.tanh(np.maximum(rows @ a + a_bias, 0) @ b + b_bias)
    np.testing.assert_allclose(
        np.array(network(rows)), 1 + 0.5 * (p - p.mean()), rtol=1e-5
    )


def test_rows_exit_where_they_are_surest():
    surest = np.float32(
        [[0.9, 0.5], [0.6, 0.9], [0.8, 0.8], [0.7, 0.6], [0.5, 0.7], [0.4, 0.4]]
    )
    surest = np.column_stack([surest, np.zeros(6, "float32")])
    found = np.array(weighting.allocated(surest, [0.34, 0.34, 0.32]))
    assert found.sum(axis=1).tolist() == [1] * 6
    # Rows 0 and 2 leave first; of the others, 1 and 4 are surest at exit_2.
    assert found.argmax(axis=1).tolist() == [0, 1, 0, 2, 1, 2]


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 1.5])
def test_each_exit_gets_its_share(rows, ratio):
    from branchy_tf.thresholds import geometric_rates

    shares = geometric_rates(ratio, 4)
    surest = np.random.default_rng(1).random((rows, 4)).astype("float32")
    counts = np.array(weighting.allocated(surest, shares)).sum(axis=0)
    early = [int(rows * share + 1e-4) for share in shares[:3]]
    assert counts.tolist() == [*early, rows - sum(early)]


def test_the_loss_is_weighted_in_training_alone():
    model = weighted(three_exits())
    x, y, rows = batch()
    answers = model(x)
    each = np.array(model._row_losses(y, answers))
    learned = np.array(model.weight_network(each))
    found = float(model.compute_loss(x, y, answers, rows, training=True))
    expected = ((learned * rows[:, None] * each).mean(axis=0) * [1.0, 0.5, 2.0]).sum()
    assert found == pytest.approx(expected, rel=1e-5)
    found = float(model.compute_loss(x, y, answers, training=False))
    assert found == pytest.approx((each.mean(axis=0) * [1.0, 0.5, 2.0]).sum(), rel=1e-5)


def test_a_step_trains_both_networks_apart():
    model = weighted(three_exits())
    trained = {v.path for v in model.trainable_variables}
    assert not [path for path in trained if "weight_network" in path]
    before = {v.path: np.array(v) for v in model.variables}
    x, y, rows = batch()
    model.train_on_batch(x, y, rows)
    assert int(np.array(model.weight_network.optimizer.iterations)) == 1
    assert int(np.array(model.optimizer.iterations)) == 1
    moved = {v.path for v in model.variables if (before[v.path] != np.array(v)).any()}
    parameters = {v.path for v in model.weight_network.parameters}
    assert trained | parameters <= moved
    # Only the step itself, on the whole batch, moves the statistics of batch norm.
    plain = three_exits()
    plain(x, training=True)
    np.testing.assert_allclose(
        plain.get_layer("norm_1").moving_mean,
        model.get_layer("norm_1").moving_mean,
        rtol=1e-5,
    )


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_batches_give_finite_steps(rows):
    model = weighted(three_exits())
    x, y, _ = batch(rows)
    model.train_on_batch(x, y)
    for variable in model.variables:
        assert np.isfinite(np.array(variable)).all(), variable.path


def test_the_weight_network_learns_what_the_meta_loss_rewards():
    model = weighted(three_exits(), rate=1.0)
    model.weight_network.optimizer.learning_rate = 0.01
    first, second = batch(40)[:2], batch(40)[:2]
    network = model.weight_network

    def loss():
        values = weighting._values(network.parameters)
        return float(model.meta_loss(values, first, second))

    before = loss()
    for _ in range(10):
        network.optimizer.apply(meta_gradient(model, first, second), network.parameters)
    assert loss() < before - 0.01


def train(folder, **settings):
    model = small.model()
    settings = {"sample_weighting": (0.8, 0.75), "epochs": 2} | settings
    training.train(
        model,
        small.dataset(),
        training.Settings(learning_rate=0.01, batch_size=20, **settings),
        training.RunFolder(folder),
    )
    return model


def test_a_killed_training_resumes_both_networks_bit_for_bit(tmp_path, monkeypatch):
    on_epoch_end = AtomicBackup.on_epoch_end
    at_end = []

    def killed(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        on_epoch_end(self, epoch, logs)

    def noting(self, epoch, logs=None):
        on_epoch_end(self, epoch, logs)
        if epoch == 1:
            at_end.append([np.array(v) for v in self.model.weight_network.variables])

    with monkeypatch.context() as patch:
        patch.setattr(AtomicBackup, "on_epoch_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed")
    monkeypatch.setattr(AtomicBackup, "on_epoch_end", noting)
    gone_on = train(tmp_path / "killed")
    unbroken = train(tmp_path / "unbroken")
    assert training.read_history(tmp_path / "killed" / "history.csv") == (
        training.read_history(tmp_path / "unbroken" / "history.csv")
    )
    for ours, theirs in zip(gone_on.weights, unbroken.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))
    # The parameters, Adam's moments and its count of steps.
    assert len(at_end[0]) > 8
    for ours, theirs in zip(*at_end, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_model_that_is_saved_is_the_plain_one(tmp_path):
    model = train(tmp_path, epochs=1, mode="baseline_first", baseline_epochs=1)
    saved = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in saved.layers] == [x.name for x in model.layers]
    flags = training.RunFolder(tmp_path).read_flags()
    assert flags["sample_weighting"] == "0.8,0.75"
    plain = train(tmp_path / "plain", epochs=1, sample_weighting=None)
    assert (saved.get_weights()[0] != plain.get_weights()[0]).any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sample_weighting": [0.8]}, "two numbers delta,ratio, e.g. 0.8,0.75. Received"),
        (
            {"sample_weighting": (0, 1)},
            "0 < delta <= 1 and ratio > 0. Received 0,1. Pass",
        ),
        ({"sample_weighting": (1.1, 1)}, "Received 1.1,1."),
        ({"sample_weighting": (0.5, 0)}, "Received 0.5,0."),
        ({"mode": "branches_only"}, "mode branches_only does not train the final one."),
        ({"distillation": (0.5, 3)}, "`sample_weighting` and `distillation` both change"),
    ],
)
def test_rejects_what_does_not_go_with_weighting(tmp_path, changes, expected):
    with pytest.raises(BranchyError) as caught:
        train(tmp_path / "run", **changes)
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_rejects_a_single_exit():
    pixels = keras.Input((8, 8, 1))
    logits = exits.logits_head(layers.Flatten()(pixels), 3, "exit_1")
    settings = training.Settings(sample_weighting=(0.8, 0.75))
    with pytest.raises(BranchyError, match="needs several exits to divide the rows"):
        settings.check(keras.Model(pixels, {"exit_1": logits}), small.dataset())


def test_rejects_backends_without_it(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    settings = training.Settings(sample_weighting=(0.8, 0.75))
    with pytest.raises(BranchyError) as caught:
        settings.check(small.model(), small.dataset())
    assert str(caught.value) == (
        "`sample_weighting` differentiates a training step, which works with Keras on "
        "tensorflow and jax. It runs on torch: set KERAS_BACKEND=tensorflow."
    )


_STEPS = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
import numpy as np
import test_weighting as t
with np.load({path!r}) as file:
    start = [file[f"arr_{{i}}"] for i in range(len(file.files))]
np.savez({path!r}, *t.after_steps(start))
"""


def after_steps(start=None):
    """The variables of both networks after two steps, from given ones."""
    model = weighted(three_exits(), rate=0.1)
    if start is not None:
        model.set_weights(start)
    for seed in (1, 2):
        x, y, rows = batch(12, seed)
        model.train_on_batch(x.astype("float32"), y, rows)
    return [np.array(weight) for weight in model.weights]


def test_jax_takes_the_same_steps(tmp_path):
    start = weighted(three_exits(), rate=0.1).get_weights()
    here = pathlib.Path(__file__).parent
    path = str(tmp_path / "weights.npz")
    np.savez(path, *start)
    script = _STEPS.format(tests=str(here.parent), here=str(here), path=path)
    subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        check=True,
        capture_output=True,
    )
    with np.load(path) as file:
        theirs = [file[f"arr_{i}"] for i in range(len(file.files))]
    for number, (ours, other) in enumerate(zip(after_steps(start), theirs, strict=True)):
        np.testing.assert_allclose(ours, other, rtol=2e-3, atol=2e-5, err_msg=str(number))
