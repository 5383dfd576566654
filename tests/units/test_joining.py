"""Several fronts that share one later unit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from branchy_tf import EarlyExitPredictor, ExitPolicy, exits, units
from branchy_tf.errors import BranchyError
from branchy_tf.serving import EarlyExitClient

CLASSES = 3


def network(filters: int, channels: int = 1, classes: int = CLASSES) -> keras.Model:
    """Two exits; the first part is as wide as `filters`, the cut always [B, 4, 4, 6]."""
    images = keras.Input((8, 8, channels), dtype="uint8")
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    early = exits.logits_head(layers.Flatten()(x), classes, "exit_1")
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(
        images, {"exit_1": early, "exit_2": exits.logits_head(x, classes, "exit_2")}
    )


def camera(seed: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is the third that is bright."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, 256)
    images = random.integers(0, 80, (256, 8, 8, channels))
    for i, label in enumerate(labels):
        images[i, :, label * 3 : label * 3 + 2] += 120
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def parts():
    """Two unlike fronts and a tail."""
    keras.utils.set_random_seed(1)
    airport, tail = units.cut(network(4), ["exit_1"], ["front", "tail"])
    road, _ = units.cut(network(8, 3), ["exit_1"], ["front", "unused"])
    return {"airport": airport, "road": road}, tail


def fit(model: keras.Model, inputs: dict, labels: dict) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss={name: loss for name in model.output})
    targets = {name: labels[name.partition("_exit_")[0]] for name in model.output}
    model.fit(inputs, targets, epochs=12, batch_size=32, verbose=0)


def accuracy(front, tail, images, labels) -> list[float]:
    outputs = units.as_network([front, tail])(images, training=False)
    return [
        float((np.asarray(logits).argmax(1) == labels).mean())
        for logits in outputs.values()
    ]


@pytest.fixture(scope="module")
def trained(parts):
    fronts, tail = parts
    data = {"airport": camera(1), "road": camera(2, 3)}
    model = units.join(fronts, tail)
    fit(model, {k: v[0] for k, v in data.items()}, {k: v[1] for k, v in data.items()})
    return fronts, tail, data


def test_is_one_model_with_an_input_for_each_front(parts):
    fronts, tail = parts
    model = units.join(fronts, tail)
    assert sorted(model.input) == ["airport", "road"]
    assert sorted(model.output) == [
        "airport_exit_1", "airport_exit_2", "road_exit_1", "road_exit_2"
    ]  # fmt: skip
    # The tail is there once.
    mine = {id(weight) for weight in tail.model.weights}
    assert mine <= {id(weight) for weight in model.weights}
    count = sum(front.model.count_params() for front in fronts.values())
    assert model.count_params() == count + tail.model.count_params()


def test_joint_training_trains_every_front_and_the_tail(trained):
    fronts, tail, data = trained
    for name, front in fronts.items():
        assert min(accuracy(front, tail, *data[name])) > 0.9


def test_a_new_front_learns_against_a_frozen_tail(trained):
    _, tail, _ = trained
    before = [weight.copy() for weight in tail.model.get_weights()]
    keras.utils.set_random_seed(3)
    gate, _ = units.cut(network(5, 2), ["exit_1"])
    images, labels = camera(4, 2)
    model = units.join({"gate": gate}, tail, freeze_tail=True)
    fit(model, {"gate": images}, {"gate": labels})
    for old, new in zip(before, tail.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    tail.model.trainable = True
    assert accuracy(gate, tail, images, labels)[-1] > 0.9


def test_fronts_are_served_with_their_own_thresholds(trained, tmp_path, gateway):
    fronts, tail, data = trained
    policies = {
        "airport": ExitPolicy(thresholds=[0.0]),
        "road": ExitPolicy(thresholds=[np.inf]),
    }
    found = units.joined(fronts, tail)
    units.export(found, tmp_path, policies, codec="none")
    with gateway(tmp_path / "cascade.yaml") as served:
        for i, (name, policy) in enumerate(policies.items()):
            images = data[name][0][:50]
            with EarlyExitClient(served.address, name, timeout=30) as client:
                answer = client.predict(images)
                expected = EarlyExitPredictor(
                    units.as_network([found[i], found[-1]]), policy
                ).predict(images)
                np.testing.assert_array_equal(answer.exits, expected.exits)
                np.testing.assert_allclose(
                    answer.probabilities, expected.probabilities, atol=1e-5
                )
                assert not answer.degraded.any()
        # Each exits elsewhere, though the tail is the same.
        assert served.metric("branchy_cascade_exits_total", model="road", exit="exit_1")
        assert served.metric(
            "branchy_cascade_exits_total", model="airport", exit="exit_2"
        )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda front, tail: units.join(
                {"gate": units.cut(network(4, classes=7), ["exit_1"])[0]}, tail
            ),
            ["'gate' has 7 classes", "'tail' has 3"],
        ),
        (
            lambda front, tail: units.join(
                {"gate": units.cut(network(4), ["exit_1"], sends="image")[0]},
                units.cut(network(4), ["exit_1"], sends="image")[1],
            ),
            ["takes images, which need no front"],
        ),
        (lambda front, tail: units.join({}, tail), ["must be a dict of units"]),
        (
            lambda front, tail: units.join({"tail": front}, tail),
            ["both named 'tail'"],
        ),
    ],
)
def test_rejects_what_cannot_be_joined(parts, make, said):
    fronts, tail = parts
    with pytest.raises(BranchyError) as caught:
        make(fronts["airport"], tail)
    for part in said:
        assert part in str(caught.value)


def test_fronts_need_policies_that_agree_on_the_tail(parts, tmp_path):
    fronts, tail = parts
    found = units.joined(fronts, tail)
    one = ExitPolicy(thresholds=[0.1])
    with pytest.raises(BranchyError, match="pass a dict with the policy of each"):
        units.export(found, tmp_path, one)
    with pytest.raises(BranchyError, match="expected airport, road"):
        units.export(found, tmp_path, {"airport": one})
    other = one.replace(temperatures=[1.0, 2.0])
    with pytest.raises(BranchyError, match="scores the exits of 'tail'"):
        units.export(found, tmp_path, {"airport": one, "road": other})
    assert not list(tmp_path.iterdir())
