from __future__ import annotations

import keras
import numpy as np
import pytest
import small

from branchy_tf import exits
from branchy_tf.errors import BranchyError
from branchy_tf.training import losses

NAMES = ["exit_1", "exit_2"]


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


@pytest.fixture
def rows():
    return small.dataset().train


def test_joint_loss_is_the_weighted_sum_of_the_exits(rows):
    model = small.model()
    logits = {k: np.asarray(v, float) for k, v in model(rows.images).items()}
    by_hand = {k: cross_entropy(v, rows.labels) for k, v in logits.items()}
    losses.compile_joint(model, NAMES, keras.optimizers.SGD(), [1.0, 0.3])
    figures = model.evaluate(
        rows.images,
        dict.fromkeys(exits.exit_names(model), rows.labels),
        # Keras averages an exit's loss over batches, even if the last is smaller.
        batch_size=len(rows),
        verbose=0,
        return_dict=True,
    )
    assert figures["exit_1_loss"] == pytest.approx(by_hand["exit_1"], rel=1e-5)
    assert figures["exit_2_loss"] == pytest.approx(by_hand["exit_2"], rel=1e-5)
    assert figures["loss"] == pytest.approx(
        1.0 * by_hand["exit_1"] + 0.3 * by_hand["exit_2"], rel=1e-5
    )
    for name in NAMES:
        share = (logits[name].argmax(axis=1) == rows.labels).mean()
        assert figures[f"{name}_accuracy"] == pytest.approx(share)


def test_one_step_follows_the_weighted_gradient(rows):
    model = small.model()
    before = model.get_layer("exit_2").get_weights()
    features = keras.Model(model.input, model.get_layer("exit_2").input)
    error = softmax(np.asarray(model(rows.images)["exit_2"], float))
    error[np.arange(len(rows)), rows.labels] -= 1
    gradient = np.asarray(features(rows.images)).T @ error / len(rows)

    losses.compile_joint(model, NAMES, keras.optimizers.SGD(0.5), [1.0, 0.3])
    targets = dict.fromkeys(exits.exit_names(model), rows.labels)
    model.fit(rows.images, targets, batch_size=len(rows), verbose=0)
    np.testing.assert_allclose(
        model.get_layer("exit_2").get_weights()[0],
        before[0] - 0.5 * 0.3 * gradient,
        atol=1e-6,
    )


def test_an_exit_with_weight_zero_is_not_trained(rows):
    model = small.model()
    before = {name: model.get_layer(name).get_weights()[0] for name in NAMES}
    losses.compile_joint(model, NAMES, keras.optimizers.SGD(0.5), [0.0, 1.0])
    model.fit(
        rows.images,
        dict.fromkeys(exits.exit_names(model), rows.labels),
        batch_size=30,
        verbose=0,
    )
    after = {name: model.get_layer(name).get_weights()[0] for name in NAMES}
    np.testing.assert_array_equal(after["exit_1"], before["exit_1"])
    assert (after["exit_2"] != before["exit_2"]).any()


def test_baseline_loss_is_the_final_exit_alone(rows):
    model = small.model()
    by_hand = cross_entropy(np.asarray(model(rows.images)["exit_2"], float), rows.labels)
    plain = exits.baseline(model)
    losses.compile_baseline(plain, "exit_2", keras.optimizers.SGD())
    figures = plain.evaluate(rows.images, rows.labels, verbose=0, return_dict=True)
    assert sorted(figures) == ["exit_2_accuracy", "loss"]
    assert figures["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_loss_weights_default_to_one_for_each():
    assert losses.check_loss_weights(NAMES, None) == [1.0, 1.0]
    assert losses.check_loss_weights(NAMES, [1, 0]) == [1.0, 0.0]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.3, 0.3], []])
def test_wrong_number_of_loss_weights(weights):
    with pytest.raises(BranchyError) as caught:
        losses.check_loss_weights(NAMES, weights)
    assert str(caught.value) == (
        "`loss_weights` must have one entry for each exit. Exits: exit_1, exit_2. "
        f"Received {len(weights)}: {weights}. Pass --loss_weights=1.0,0.3, in exit "
        "order."
    )


@pytest.mark.parametrize(
    "weights", [[1.0, -0.3], [float("nan"), 1.0], [1.0, float("inf")], [0.0, 0.0]]
)
def test_rejects_invalid_loss_weights(weights):
    with pytest.raises(BranchyError) as caught:
        losses.check_loss_weights(NAMES, weights)
    assert "must be finite, non-negative and not all zero." in str(caught.value)
    assert str(weights) in str(caught.value)
