"""Units of a network answer as the whole network does."""

from __future__ import annotations

import keras
import numpy as np
import odd_models
import pytest

from branchy_tf import EarlyExitPredictor, ExitPolicy, exits, stages, units, zoo
from branchy_tf.errors import BranchyError


def flow(parts, inputs: list) -> dict:
    """Every exit's logits, from unit to unit."""
    found, current = {}, inputs
    for unit in parts:
        if unit.takes == "image":
            current = inputs
        outputs = unit.model(current, training=False)
        found |= {name: outputs[name] for name in unit.exits}
        current = [outputs[f"features_{i + 1}"] for i in range(len(unit.carried))]
    return found


@pytest.mark.parametrize("builder", odd_models.ALL)
@pytest.mark.parametrize("sends", ["features", "image"])
def test_units_of_odd_models_compute_the_same_logits(builder, sends):
    model, inputs = odd_models.build(builder)
    names = exits.exit_names(model)
    expected = model(keras.tree.pack_sequence_as(model.input, inputs), training=False)
    parts = units.cut(model, names[:-1], sends=sends)
    assert [unit.exits for unit in parts] == [[name] for name in names]
    assert [unit.next for unit in parts] == [*(u.name for u in parts[1:]), None]
    for name, logits in flow(parts, inputs).items():
        np.testing.assert_array_equal(logits, expected[name])


@pytest.mark.parametrize("at", [[], ["exit_2"], ["exit_3", "exit_7"]])
def test_units_may_hold_several_stages(at):
    model, inputs = odd_models.build(odd_models.many_exits)
    parts = units.cut(model, at)
    assert [name for unit in parts for name in unit.exits] == exits.exit_names(model)
    expected = model(inputs, training=False)
    for name, logits in flow(parts, inputs).items():
        np.testing.assert_array_equal(logits, expected[name])


def test_a_unit_that_gets_the_image_computes_no_earlier_head():
    model = zoo.branchy_resnet(input_shape=(32, 32, 3), depth=20)
    front, later = units.cut(model, ["exit_1"], sends="image")
    assert not front.carried
    whole = stages.split(model)
    heads = {layer.name for layer in whole[0].model.layers} & {"exit_1"}
    assert heads == {"exit_1"}
    assert "exit_1" not in {layer.name for layer in later.stages[0].model.layers}


def test_cuts_may_send_different_things():
    model, inputs = odd_models.build(odd_models.shared_layers)
    parts = units.cut(model, ["exit_1", "exit_2"], sends=["features", "image"])
    assert [unit.takes for unit in parts] == ["image", "features", "image"]
    assert [bool(unit.carried) for unit in parts] == [True, False, False]
    expected = model(inputs, training=False)
    for name, logits in flow(parts, inputs).items():
        np.testing.assert_array_equal(logits, expected[name])


def test_units_share_their_layers_with_the_network(lenet):
    front, _ = units.cut(lenet, ["exit_1"])
    assert {id(w) for w in front.model.weights} <= {id(w) for w in lenet.weights}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"at": ["exit_9"]}, "Unknown exit to cut at 'exit_9'. Known: exit_1, exit_2"),
        ({"at": ["exit_2"]}, "Nothing comes after exit_2"),
        ({"at": ["exit_1", "exit_1"]}, "different exits in order"),
        ({"at": ["exit_1"], "names": ["a"]}, "1 names for 2 units"),
        ({"at": ["exit_1"], "names": ["a", "a"]}, "Two units are named 'a'"),
        ({"at": ["exit_1"], "names": ["a", "b/c"]}, "'b/c'"),
        ({"at": ["exit_1"], "sends": "nothing"}, "Unknown sends 'nothing'"),
        ({"at": ["exit_1"], "sends": ["image"] * 2}, "2 entries for 1 cuts"),
    ],
)
def test_rejects_cuts_that_cannot_be_made(lenet, arguments, said):
    with pytest.raises(BranchyError) as caught:
        units.cut(lenet, **arguments)
    assert said in str(caught.value)


def resnet_20() -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(4)
    model = odd_models.settled(zoo.branchy_resnet(input_shape=(16, 16, 3), depth=20))
    random = np.random.default_rng(2)
    return model, random.integers(0, 256, (40, 16, 16, 3), np.uint8)


def middle_policy(model: keras.Model, images: np.ndarray) -> ExitPolicy:
    """Thresholds in the widest gap around each median, with unequal temperatures."""
    number = len(exits.exit_names(model))
    temperatures = [1.0 + 0.5 * k for k in range(number)]
    plain = ExitPolicy(thresholds=[0.0] * (number - 1), temperatures=temperatures)
    _, scores = EarlyExitPredictor(model, plain).all_exits(images)
    limits = []
    for k in range(number - 1):
        middle = np.sort(scores[:, k])[len(images) // 3 : -len(images) // 3]
        widest = np.diff(middle).argmax()
        limits.append(float(middle[widest : widest + 2].mean()))
    return plain.replace(thresholds=limits)


@pytest.mark.parametrize(
    ("at", "sends"),
    [
        ([], "features"),
        (["exit_2"], "features"),
        (["exit_1", "exit_2"], "features"),
        (["exit_1", "exit_2"], "image"),
    ],
)
def test_exported_units_of_an_untrained_resnet_take_the_same_exits(tmp_path, at, sends):
    model, images = resnet_20()
    policy = middle_policy(model, images)
    expected = EarlyExitPredictor(model, policy).predict(images)
    assert len(set(expected.exits.tolist())) == 3
    parts = units.cut(model, at, sends=sends)
    units.export(parts, tmp_path, policy, codec="none")
    with units.Cascade(tmp_path / "cascade.yaml") as cascade:
        answer = cascade.predict(images)
    np.testing.assert_array_equal(answer.exits, expected.exits)
    np.testing.assert_array_equal(answer.labels, expected.labels)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)
    assert not answer.degraded.any()


def test_exported_units_of_lenet_take_the_same_exits(
    network, policy, exact_dir, mnist_5k
):
    images = mnist_5k.test.images
    predictor = EarlyExitPredictor(network, policy)
    with units.Cascade(exact_dir / "cascade.yaml") as cascade:
        for limits in (None, [0.0], [np.inf], np.linspace(0, 1, 1000)[:, None]):
            expected = predictor.predict(images, limits)
            answer = cascade.predict(images, limits)
            np.testing.assert_array_equal(answer.exits, expected.exits)
            np.testing.assert_array_equal(answer.labels, expected.labels)
            np.testing.assert_allclose(
                answer.probabilities, expected.probabilities, atol=1e-6
            )


@pytest.mark.parametrize("codec", ["uint8", "float16"])
def test_lossy_codecs_keep_the_labels(network, policy, tmp_path, mnist_5k, codec):
    images = mnist_5k.test.images[:500]
    units.export(units.cut(network, ["exit_1"]), tmp_path, policy, codec=codec)
    with units.Cascade(tmp_path / "cascade.yaml") as cascade:
        answer = cascade.predict(images, [0.0])
    expected = EarlyExitPredictor(network, policy).predict(images, [0.0])
    np.testing.assert_array_equal(answer.exits, expected.exits)
    assert (answer.labels == expected.labels).mean() > 0.99
    # It was coded at all.
    assert (answer.probabilities != expected.probabilities).any()


@pytest.mark.parametrize(
    "builder", [odd_models.several_inputs, odd_models.several_live_tensors]
)
def test_units_of_models_with_several_tensors_are_exported(tmp_path, builder):
    model, inputs = odd_models.build(builder)
    policy = ExitPolicy(thresholds=[0.0] * (len(exits.exit_names(model)) - 1))
    parts = units.cut(model, exits.exit_names(model)[:-1])
    units.export(parts, tmp_path, policy, codec="none")
    predictor = EarlyExitPredictor(model, policy)
    names = parts[0].inputs
    arrays = dict(zip(names, inputs, strict=True)) if len(names) > 1 else inputs[0]
    with units.Cascade(tmp_path / "cascade.yaml") as cascade:
        for limits in (None, [np.inf] * (len(parts) - 1)):
            expected = predictor.predict(arrays, limits)
            answer = cascade.predict(arrays, limits)
            np.testing.assert_array_equal(answer.exits, expected.exits)
            np.testing.assert_allclose(
                answer.probabilities, expected.probabilities, atol=1e-5
            )
