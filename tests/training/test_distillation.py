from __future__ import annotations

import keras
import numpy as np
import pytest
import small
import tensorflow as tf
from keras import layers

from branchy_tf import exits
from branchy_tf.errors import BranchyError
from branchy_tf.training import distillation, losses


def three_exits() -> keras.Model:
    keras.utils.set_random_seed(3)
    x = pixels = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 32)(x))
    outputs = {}
    for number in (1, 2, 3):
        x = layers.Dense(5, activation="tanh", name=f"block_{number}")(x)
        outputs[f"exit_{number}"] = exits.logits_head(x, 3, f"exit_{number}")
    return keras.Model(pixels, outputs)


def distilled(plain, weights, gamma, temperature) -> distillation.DistilledModel:
    model = distillation.DistilledModel(
        plain.input, plain.output, weights, gamma, temperature
    )
    names = exits.exit_names(plain)
    losses.compile_joint(model, names, keras.optimizers.SGD(), model.label_weights())
    return model


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def by_hand(logits, labels, weights, gamma, temperature) -> float:
    def cross_entropy(z):
        return -log_softmax(z)[np.arange(len(labels)), labels].mean()

    def divergence(z):
        teacher, student = log_softmax(last / temperature), log_softmax(z / temperature)
        return (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()

    *early, last = (np.asarray(z, float) for z in logits)
    total = weights[-1] * cross_entropy(last)
    for weight, z in zip(weights, early, strict=False):
        learnt = temperature**2 * divergence(z)
        total += weight * ((1 - gamma) * cross_entropy(z) + gamma * learnt)
    return total


def figures(model, rows) -> dict:
    return model.evaluate(
        rows.images,
        dict.fromkeys(model.output, rows.labels),
        batch_size=len(rows),
        verbose=0,
        return_dict=True,
    )


@pytest.mark.parametrize(
    ("weights", "gamma", "temperature"),
    [
        ([1.0, 1.0, 1.0], 0.5, 3.0),
        ([1.0, 0.5, 0.3], 0.9, 1.0),
        ([0.2, 0.0, 2.0], 1.0, 4.0),
    ],
)
def test_the_loss_follows_the_formula(weights, gamma, temperature):
    rows = small.dataset().train
    plain = three_exits()
    model = distilled(plain, weights, gamma, temperature)
    expected = by_hand(
        plain(rows.images).values(), rows.labels, weights, gamma, temperature
    )
    assert figures(model, rows)["loss"] == pytest.approx(expected, rel=1e-5)


def test_reports_the_loss_that_it_trains():
    rows = small.dataset().train
    model = distilled(three_exits(), [1.0, 0.5, 0.3], 0.5, 3.0)
    before = figures(model, rows)
    history = model.fit(
        rows.images, dict.fromkeys(model.output, rows.labels), 30, epochs=3, verbose=0
    ).history
    assert history["loss"][0] == pytest.approx(before["loss"], rel=1e-5)
    assert history["loss"][2] < history["loss"][1] < history["loss"][0]


def test_labels_get_the_rest_of_the_weight():
    model = distilled(three_exits(), [1.0, 0.5, 0.3], 0.8, 3.0)
    assert model.label_weights() == pytest.approx([0.2, 0.1, 0.3])
    model = distilled(three_exits(), [1.0, 0.5, 0.3], 1.0, 3.0)
    assert model.label_weights() == [0.0, 0.0, 0.3]


def test_the_teacher_gets_no_gradient_from_distillation():
    rows = small.dataset().train
    plain = three_exits()
    # Without its own loss, only distillation could change the teacher.
    model = distilled(plain, [1.0, 1.0, 0.0], 0.5, 3.0)
    labels = dict.fromkeys(model.output, rows.labels)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(rows.images, labels, model(rows.images))
    found = tape.gradient(loss, plain.trainable_variables, unconnected_gradients="zero")
    sizes = {
        v.path: float(np.abs(g).max())
        for v, g in zip(plain.trainable_variables, found, strict=True)
    }
    teacher = {path for path in sizes if path.startswith(("block_3", "exit_3"))}
    assert len(teacher) == 4
    assert {path for path, size in sizes.items() if size == 0} == teacher


@pytest.mark.parametrize(
    ("gamma", "temperature", "shown"),
    [(0, 3, "0,3"), (-0.5, 3, "-0.5,3"), (1.01, 3, "1.01,3"), (0.5, 0, "0.5,0"),
     (0.5, -1, "0.5,-1"), (float("nan"), 1, "nan,1"), (0.5, float("nan"), "0.5,nan")],
)  # fmt: skip
def test_rejects_numbers_out_of_range(gamma, temperature, shown):
    with pytest.raises(BranchyError) as caught:
        distillation.check(gamma, temperature)
    assert str(caught.value) == (
        "`distillation` must be two numbers gamma,tau, 0 < gamma <= 1 and tau > 0. "
        f"Received {shown}. Pass for example --distillation=0.5,3."
    )


def test_accepts_numbers_in_range():
    for gamma, temperature in [(1, 1), (1e-3, 100), (0.5, 0.1)]:
        distillation.check(gamma, temperature)


def test_masked_classes_add_no_loss():
    values = keras.Input((4,))
    mask = np.float32([0, 0, 0, -np.inf])
    outputs = {
        name: layers.Identity(name=name)(layers.Dense(4)(values) + mask)
        for name in ("exit_1", "exit_2")
    }
    plain = keras.Model(values, outputs)
    rows = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    labels = np.arange(6) % 3
    model = distilled(plain, [1.0, 1.0], 0.5, 2.0)
    logits = [np.asarray(z)[:, :3] for z in plain(rows).values()]
    found = model.evaluate(
        rows, dict.fromkeys(outputs, labels), batch_size=6, return_dict=True, verbose=0
    )
    expected = by_hand(logits, labels, [1.0, 1.0], 0.5, 2.0)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    before = [np.array(v) for v in plain.weights]
    model.fit(rows, dict.fromkeys(outputs, labels), batch_size=6, verbose=0)
    assert all(np.isfinite(v).all() for v in plain.weights)
    for old, new in zip(before, plain.weights, strict=True):
        assert (old != np.array(new)).any()
