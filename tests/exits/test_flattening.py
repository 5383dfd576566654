"""Models inside a model are inlined without a change to weights or outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, linear_head, propose_exits
from branchy_tf.exits.flattening import flatten

SIZE = 32


def network(**arguments) -> keras.Model:
    shape = (SIZE, SIZE, 3)
    return keras.applications.MobileNetV2(shape, 0.35, weights=None, **arguments)


def bare():
    return network(classes=5)


def behind_rescaling():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, -1),
            network(classes=5),
        ]
    )


def behind_normalisation():
    images = keras.Input((SIZE, SIZE, 3))
    norm = layers.Normalization(mean=[120, 115, 100], variance=[3000, 3100, 3300])
    return keras.Model(images, network(classes=5)(norm(images)))


def behind_resizing():
    images = keras.Input((20, 24, 3), dtype="uint8")
    x = layers.Resizing(SIZE, SIZE)(images)
    return keras.Model(images, network(classes=5)(layers.Rescaling(1 / 255)(x)))


def frozen_behind_augmentation():
    """Transfer learning as the guides of Keras write it."""
    images = keras.Input((SIZE, SIZE, 3))
    augment = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    base = network(include_top=False)
    base.trainable = False
    x = base(layers.Rescaling(1 / 127.5, -1)(augment(images)), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, layers.Dense(5)(x))


def nested_twice():
    inner = keras.Sequential([keras.Input((SIZE, SIZE, 3)), network(classes=5)])
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), inner, layers.Softmax()])


def whole_pixels_into_a_float_input():
    """Keras casts them on entry; the first layer alone would not."""
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    return keras.Model(images, network(classes=5)(images))


def images_for(model) -> np.ndarray:
    given = model.inputs[0]
    pixels = np.random.default_rng(1).integers(0, 256, (4, *given.shape[1:]))
    return pixels.astype(given.dtype)


ALL = [
    bare, behind_rescaling, behind_normalisation, behind_resizing,
    frozen_behind_augmentation, nested_twice, whole_pixels_into_a_float_input,
]  # fmt: skip


@pytest.mark.parametrize("build", ALL)
def test_applications_keep_weights_and_outputs_to_the_digit(build, tmp_path):
    keras.utils.set_random_seed(2)
    model = build()
    images, before = images_for(model), model.get_weights()
    expected = np.asarray(model(images, training=False))
    places = ["block_2_add", *propose_exits(model, 1)]
    branchy = add_exits(model, dict.fromkeys(places, linear_head))
    assert branchy.get_layer("Conv1").kernel is not None
    assert not any(isinstance(layer, keras.Model) for layer in branchy.layers)

    shared = {id(weight) for weight in branchy.weights}
    assert {id(weight) for weight in model.weights} <= shared
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    frozen = {id(w) for w in model.non_trainable_weights}
    assert frozen <= {id(w) for w in branchy.non_trainable_weights}

    logits = branchy(images, training=False)
    final = logits["exit_3"]
    given = final if build is frozen_behind_augmentation else ops.softmax(final)
    np.testing.assert_array_equal(given, expected)
    branchy.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")(images, training=False)
    for name, value in logits.items():
        np.testing.assert_array_equal(again[name], value)


def test_training_computes_the_same():
    keras.utils.set_random_seed(2)
    images = keras.Input((8, 8, 3))
    inner_in = keras.Input((8, 8, 4))
    x = layers.BatchNormalization(name="norm")(inner_in)
    inner = keras.Model(inner_in, layers.Conv2D(4, 3, name="conv")(x), name="inner")
    x = inner(layers.Conv2D(4, 1, name="first")(images))
    model = keras.Model(images, layers.Dense(3)(layers.Flatten()(x)))
    flat, outputs = flatten(model)
    assert list(outputs) == ["inner"]
    batch = np.random.default_rng(0).normal(2, 3, (16, 8, 8, 3)).astype("float32")
    norm = flat.get_layer("norm")
    start = norm.get_weights()
    results = []
    for either in (model, flat):
        norm.set_weights(start)
        results.append((np.asarray(either(batch, training=True)), norm.get_weights()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    # It was the batch that normalised.
    assert (results[0][0] != np.asarray(model(batch, training=False))).any()


def test_a_recorded_training_argument_reaches_the_layers():
    inner_in = keras.Input((50,))
    noise = keras.Model(inner_in, layers.Dropout(0.5, seed=1)(inner_in), name="noise")
    values = keras.Input((50,))
    model = keras.Model(values, layers.Dense(2)(noise(values, training=True)))
    flat, _ = flatten(model)
    # Dropout stays active although nothing asks for training.
    rows = np.ones((3, 50), "float32")
    assert (np.asarray(flat(rows)) != np.asarray(flat(rows))).any()


def test_a_model_without_models_inside_is_returned_itself():
    model = bare()
    assert flatten(model).model is model


def test_the_name_of_an_inlined_model_stands_for_its_output():
    images = keras.Input((SIZE, SIZE, 3))
    base = network(include_top=False)
    x = layers.GlobalAveragePooling2D()(base(images))
    model = keras.Model(images, layers.Dense(4)(layers.Dense(8)(x)))
    branchy = add_exits(model, {"block_3_expand": linear_head, base.name: linear_head})
    mean = branchy.get_layer("exit_2_mean").input
    assert mean._keras_history.operation.name == "out_relu"
    last = keras.Sequential([keras.Input((SIZE, SIZE, 3)), bare()])
    with pytest.raises(BranchyError, match="comes after its logits"):
        add_exits(last, {last.layers[-1].name: linear_head})


def test_equal_names_keep_one_model_whole():
    values = keras.Input((6,))
    left = layers.Dense(6, activation="relu", name="hidden")
    right = layers.Dense(6, activation="relu", name="hidden")
    x = keras.Sequential([keras.Input((6,)), left], name="left")(values)
    x = keras.Sequential([keras.Input((6,)), right], name="right")(x)
    model = keras.Model(values, layers.Dense(3)(x))
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    branchy = add_exits(model, {"hidden": linear_head, "right": linear_head})
    np.testing.assert_array_equal(branchy(rows)["exit_3"], model(rows))
    assert isinstance(branchy.get_layer("right"), keras.Sequential)


def test_a_model_that_is_called_twice_is_inlined_twice():
    values = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="d")], name="inner")
    model = keras.Model(values, layers.Dense(3)(layers.ReLU()(inner(inner(values)))))
    flat, outputs = flatten(model)
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.testing.assert_array_equal(flat(rows), model(rows))
    assert len(outputs["inner"]) == 2
    with pytest.raises(BranchyError, match="gives 2 tensors"):
        add_exits(model, {"d": linear_head})


def test_several_inputs_and_outputs_in_a_dict():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    outputs = {"sum": layers.Add(name="plus")([a, b]), "first": layers.ReLU(name="r")(a)}
    inner = keras.Model({"a": a, "b": b}, outputs, name="inner")
    values = keras.Input((4,))
    made = inner({"b": layers.Dense(4)(values), "a": values})
    model = keras.Model(values, layers.Concatenate()([made["first"], made["sum"]]))
    flat, _ = flatten(model)
    assert flat is not model
    rows = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    np.testing.assert_array_equal(flat(rows), model(rows))


def test_an_input_of_another_rank_keeps_the_model_whole():
    """Keras adds the missing axis on entry."""
    inner = keras.Sequential([keras.Input((6, 1)), layers.Flatten(), layers.Dense(4)])
    values = keras.Input((6,))
    model = keras.Model(values, layers.Dense(3)(inner(values)))
    assert flatten(model).model is model
