from __future__ import annotations

import keras
import numpy as np
import odd_models
import pytest
import tensorflow as tf
from keras import layers

from branchy_tf import exits, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, conv_head, linear_head
from branchy_tf.training import branches

REBUILDERS = [branches.detached, branches.equilibrium]
NOT_ONE_BY_ONE = [odd_models.exits_off_exits, odd_models.several_live_tensors]
BUILDERS = [builder for builder in odd_models.ALL if builder is not odd_models.mobile_net]


def chain(count: int) -> keras.Model:
    """`count` exits, each after a further dense layer: block_1, block_2 ..."""
    keras.utils.set_random_seed(6)
    x = values = keras.Input((5,))
    for number in range(1, count + 1):
        x = layers.Dense(5, activation="tanh", name=f"block_{number}")(x)
    trunk = keras.Model(values, layers.Dense(3, name="logits")(x), name="chain")
    return add_exits(trunk, {f"block_{n}": linear_head for n in range(1, count)})


def gradients(model, inputs, names=None) -> dict[str, np.ndarray]:
    """`{path: gradient}` of the summed loss of some exits; 0 without a gradient."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=False)
        loss = sum(
            tf.reduce_sum(outputs[n] ** 2) for n in names or exits.exit_names(model)
        )
    found = tape.gradient(
        loss, [v.value for v in variables], unconnected_gradients="zero"
    )
    return {v.path: np.array(g) for v, g in zip(variables, found, strict=True)}


def values(shape=(4, 5)) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def assert_same_function(ours, theirs, inputs):
    inputs = inputs if len(inputs) > 1 else inputs[0]
    for training in (False, True):
        found = ours(inputs, training=training)
        expected = theirs(inputs, training=training)
        assert list(found) == exits.exit_names(theirs)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("rebuilt", "builder"),
    [
        (rebuilt, builder)
        for rebuilt in REBUILDERS
        for builder in BUILDERS
        if rebuilt is branches.detached or builder not in NOT_ONE_BY_ONE
    ],
    ids=lambda function: function.__name__,
)
def test_forward_values_are_the_same_bit_for_bit(rebuilt, builder):
    model, inputs = odd_models.build(builder)
    again = rebuilt(model)
    assert_same_function(again, model, inputs)
    assert {id(v) for v in again.variables} >= {id(w) for w in model.weights}


@pytest.mark.parametrize("rebuilt", REBUILDERS)
def test_whole_numbers_and_masks_pass(rebuilt, recwarn):
    keras.utils.set_random_seed(6)
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 8, mask_zero=True)(tokens)
    exit_1 = linear_head(x, 3, "exit_1")
    # A branch from the input, whose values must stay integers.
    exit_2 = linear_head(layers.Embedding(10, 4)(tokens), 3, "exit_2")
    exit_3 = linear_head(layers.Dense(8)(x), 3, "exit_3")
    outputs = {"exit_1": exit_1, "exit_2": exit_2, "exit_3": exit_3}
    model = keras.Model(tokens, outputs)
    inputs = np.array([[1, 2, 3, 0, 0, 0], [9, 8, 7, 6, 5, 0]])
    assert_same_function(rebuilt(model), model, [inputs])
    assert not [w for w in recwarn if "does not support masking" in str(w.message)]


@pytest.mark.parametrize("scale", [0.0, 0.25])
def test_a_gradient_is_scaled_and_its_value_is_not(scale):
    x = tf.constant(values())
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = branches.ScaleGradient(scale)(x)
        loss = tf.reduce_sum(y**2)
    np.testing.assert_array_equal(y, x)
    found = tape.gradient(loss, x, unconnected_gradients="zero")
    np.testing.assert_allclose(found, scale * 2 * x, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equilibrium_gives_each_exit_the_same_share(count):
    model = chain(count)
    names = exits.exit_names(model)
    alone = {name: gradients(model, values(), [name]) for name in names}
    balanced = branches.equilibrium(model)
    for name in names:
        assert np.abs(alone[name]["block_1/kernel"]).max() > 0.01
        found = gradients(balanced, values(), [name])["block_1/kernel"]
        np.testing.assert_allclose(
            found, alone[name]["block_1/kernel"] / count, atol=1e-6
        )
    together = gradients(balanced, values())
    for number in range(1, count + 1):
        # After i exits, k - i remain, each with an equal share.
        left = count - number + 1
        path = f"block_{number}/kernel"
        total = sum(alone[name][path] for name in names)
        np.testing.assert_allclose(together[path], total / left, atol=1e-6)
    for name in names[:-1]:
        path = f"{name}/kernel"
        np.testing.assert_allclose(together[path], alone[name][path], atol=1e-6)


def test_equilibrium_around_skip_connections_and_at_a_shared_place():
    keras.utils.set_random_seed(6)
    x = inputs = keras.Input((5,))
    x = layers.Dense(5, activation="tanh", name="block_1")(x)
    # Two nodes of the trunk and two branches read this tensor.
    y = layers.Add()([x, layers.Dense(5, activation="tanh", name="block_2")(x)])
    outputs = {
        "exit_1": linear_head(x, 3, "exit_1"),
        "exit_2": linear_head(layers.Dense(4)(x), 3, "exit_2"),
        "exit_3": linear_head(y, 3, "exit_3"),
    }
    model = keras.Model(inputs, outputs)
    plain = gradients(model, values())
    found = gradients(branches.equilibrium(model), values())
    np.testing.assert_allclose(
        found["block_1/kernel"], plain["block_1/kernel"] / 3, atol=1e-6
    )
    np.testing.assert_allclose(
        found["block_2/kernel"], plain["block_2/kernel"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (
            odd_models.exits_off_exits,
            "Gradient equilibrium needs every branch to start from the trunk, but exit_2 "
            "starts from the branch of an earlier exit. Pass --gradient_scaling=none.",
        ),
        (
            odd_models.several_live_tensors,
            "Gradient equilibrium needs every branch to start at one place of the trunk, "
            "but exit_1 reads 2 of its tensors. Pass --gradient_scaling=none.",
        ),
    ],
)
def test_equilibrium_rejects_unsuitable_graphs(builder, expected):
    with pytest.raises(BranchyError) as caught:
        branches.equilibrium(builder())
    assert str(caught.value) == expected


def in_trunk(model) -> set[str]:
    layers_ = {id(n.operation): n.operation for n in branches.trunk(model)}.values()
    return {w.path for layer in layers_ for w in getattr(layer, "weights", [])}


def resnet() -> keras.Model:
    keras.utils.set_random_seed(6)
    model = zoo.branchy_resnet((16, 16, 3), classes=3, depth=8, exits="light")
    for weight in model.trainable_weights:
        # New blocks are the identity, so no gradient would reach their inner layers.
        if weight.path.endswith("gamma"):
            weight.assign(np.ones(weight.shape))
    return model


def test_detached_branches_send_no_gradient_to_the_trunk():
    model = resnet()
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3)).astype("uint8")
    plain = gradients(model, images)
    final = gradients(model, images, ["exit_3"])
    found = gradients(branches.detached(model), images)
    trunk = in_trunk(model)
    assert 0 < len(trunk & set(found)) < len(found)
    for path, gradient in found.items():
        expected = final[path] if path in trunk else plain[path]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(gradient).max() > 0
    assert any(
        np.abs(plain[path] - final[path]).max() > 1e-2 for path in trunk & set(found)
    )


def test_branches_of_a_detached_branch_stay_attached():
    keras.utils.set_random_seed(6)
    images = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, name="c1")(images)
    trunk = keras.Model(images, layers.Dense(3)(layers.Flatten()(x)))
    model = add_exits(trunk, {"c1": conv_head([3, 3]), "exit_1_relu_1": linear_head})
    found = gradients(branches.detached(model), values((4, 6, 6, 1)), ["exit_2"])
    assert np.abs(found["exit_1_conv_1/kernel"]).max() > 0
    assert np.abs(found["c1/kernel"]).max() == 0


def test_a_frozen_trunk_is_restored():
    inner_in = keras.Input((5,))
    inside = layers.Dense(5, name="inside")
    frozen = layers.Dense(5, name="frozen")
    inner = keras.Model(inner_in, frozen(inside(inner_in)), name="inner")
    x = keras.Input((5,))
    y = layers.Dense(5, name="outer")(inner(x))
    early = linear_head(inner.get_layer("inside")(x), 3, "exit_1")
    model = keras.Model(x, {"exit_1": early, "exit_2": linear_head(y, 3, "exit_2")})
    frozen.trainable = False
    before = {w.path for w in model.trainable_weights}
    with branches.frozen_trunk(model):
        assert {w.path for w in model.trainable_weights} == {
            "exit_1/kernel",
            "exit_1/bias",
        }
    assert {w.path for w in model.trainable_weights} == before
    assert not frozen.trainable
    assert inside.trainable
    with pytest.raises(KeyboardInterrupt), branches.frozen_trunk(model):
        raise KeyboardInterrupt
    assert {w.path for w in model.trainable_weights} == before
