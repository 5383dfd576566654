from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from branchy_tf import exits, stages, training, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, conv_head, linear_head, pool_head
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.saved_model import export


def trunk(top=None, name: str = "trunk") -> keras.Model:
    """c1 - c2 - pool - top on 8 x 8 images; top: a softmax layer of 4 classes."""
    keras.utils.set_random_seed(5)
    images = keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(5, 3, activation="relu", name="c1")(images)
    x = layers.Conv2D(6, 3, activation="relu", name="c2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    top = top or layers.Dense(4, activation="softmax", name="predictions")
    return keras.Model(images, top(x), name=name)


def sequential() -> keras.Model:
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(5, 3, name="c1"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="predictions"),
        ],
        name="in_a_row",
    )


def mobile_net() -> keras.Model:
    return keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=4)


def mobile_net_v2() -> keras.Model:
    return keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=4)


def images_for(model) -> np.ndarray:
    shape = (6, *model.inputs[0].shape[1:])
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def names(model) -> set[str]:
    """The names of its layers without inputs, which Sequential does not list."""
    kind = layers.InputLayer
    return {layer.name for layer in model.layers if not isinstance(layer, kind)}


def assert_log_of(logits, probabilities):
    """Checks that logits equal log-probabilities up to a constant for each row."""
    difference = np.asarray(logits) - np.log(np.asarray(probabilities))
    difference -= difference.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(difference, 0, atol=1e-4)


def complaint(heads, model=None) -> str:
    with pytest.raises(BranchyError) as caught:
        add_exits(trunk() if model is None else model, heads)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("build", "heads"),
    [
        (trunk, {"c1": conv_head([4]), "c2": linear_head}),
        (sequential, {"c1": pool_head(2)}),
        (mobile_net, {"conv_pw_3_relu": linear_head, "conv_pw_8_relu": conv_head([8])}),
        # Inside a block and across its skip connection.
        (mobile_net_v2, {"block_2_expand_relu": linear_head, "block_4_add": linear_head}),
    ],
    ids=["own", "sequential", "mobile_net", "mobile_net_v2"],
)
def test_adds_exits_and_leaves_the_model_unchanged(build, heads, tmp_path):
    model = build()
    config, before = model.get_config(), model.get_weights()
    images = images_for(model)
    probabilities = np.asarray(model(images))
    branchy = add_exits(model, heads)

    *early, final = exits.exit_names(branchy)
    assert len(early) == len(heads)
    assert branchy.name == f"branchy_{model.name}"
    logits = branchy(images)
    assert {tuple(z.shape) for z in logits.values()} == {(6, 4)}
    assert_log_of(logits[final], probabilities)

    new, old = names(branchy), names(model)
    assert all(name.startswith("exit_") for name in new - old)
    assert old - new <= {layer.name for layer in model.layers[-1:] if not layer.weights}
    shared = {id(v) for v in branchy.variables}
    assert all(id(v) in shared for v in model.weights)

    assert model.get_config() == config
    np.testing.assert_array_equal(model(images), probabilities)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    assert all(type(layer).__module__.startswith("keras.") for layer in branchy.layers)
    branchy.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")(images)
    for name in logits:
        np.testing.assert_array_equal(again[name], logits[name])


def in_an_activation(x):
    return layers.Activation("softmax")(layers.Dense(4, name="predictions")(x))


def in_a_softmax_layer(x):
    return layers.Softmax()(layers.Dense(4, name="predictions")(x))


def in_an_operation(x):
    return ops.softmax(layers.Dense(4, name="predictions")(x))


def in_a_dense_layer_without_bias(x):
    return layers.Dense(4, "softmax", use_bias=False, name="predictions")(x)


def followed_by_layers_that_pass_it_on(x):
    # As in mixed precision, where probabilities must be float32.
    x = layers.Dense(4, "softmax", name="predictions")(x)
    x = layers.Identity()(layers.Activation("linear", dtype="float32")(x))
    return layers.Flatten()(layers.Reshape((4,))(layers.Dropout(0.5)(x)))


@pytest.mark.parametrize(
    "top",
    [None, in_an_activation, in_a_softmax_layer, in_an_operation,
     in_a_dense_layer_without_bias, followed_by_layers_that_pass_it_on],
)  # fmt: skip
def test_drops_a_final_softmax(top):
    model = trunk(top)
    branchy = add_exits(model, {"c1": linear_head})
    images = images_for(model)
    assert_log_of(branchy(images)["exit_2"], model(images))
    ours, theirs = branchy.get_layer("predictions"), model.get_layer("predictions")
    assert ours.kernel is theirs.kernel
    assert ours.bias is theirs.bias
    assert len(ours.trainable_weights) == len(theirs.trainable_weights)


def test_training_the_exits_trains_the_model():
    model = trunk()
    branchy = add_exits(model, {"c1": linear_head})
    branchy.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    before = model.get_weights()
    labels = np.arange(6) % 4
    images = images_for(model)
    branchy.train_on_batch(images, {"exit_1": labels, "exit_2": labels})
    assert all(
        (ours != theirs).any()
        for ours, theirs in zip(model.get_weights(), before, strict=True)
    )
    assert_log_of(branchy(images)["exit_2"], model(images))


@pytest.mark.parametrize("activation", [None, "linear"])
def test_keeps_logits_unchanged(activation):
    model = trunk(layers.Dense(4, activation=activation))
    images = images_for(model)
    branchy = add_exits(model, {"c1": linear_head}, name="mine")
    assert branchy.name == "mine"
    np.testing.assert_array_equal(branchy(images)["exit_2"], model(images))


def test_a_baseline_accepts_new_exits(tmp_path):
    first = add_exits(trunk(), {"c1": linear_head}, name="first")
    again = add_exits(exits.baseline(first), {"c1": conv_head([3]), "c2": linear_head})
    assert exits.exit_names(again) == ["exit_1", "exit_2", "exit_3"]
    images = images_for(first)
    np.testing.assert_array_equal(again(images)["exit_3"], first(images)["exit_2"])
    assert again.get_layer("c1").kernel is first.get_layer("c1").kernel
    assert len([name for name in names(again) if name.startswith("exit_")]) == 8
    again.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")(images)
    np.testing.assert_array_equal(loaded["exit_3"], first(images)["exit_2"])


def test_a_trained_zoo_baseline_accepts_new_exits():
    lenet = exits.baseline(zoo.branchy_lenet(weights="mnist"))
    branchy = add_exits(lenet, {"conv_1_relu": linear_head})
    images = np.zeros((2, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(branchy(images)["exit_2"], lenet(images))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    "inner",
    [lambda: keras.Sequential([keras.Input((6,)), layers.Dense(4)]), Subclassed],
    ids=["sequential", "subclassed"],
)
def test_keeps_the_logits_of_a_sub_model_unchanged(inner):
    model = trunk(inner())
    images = images_for(model)
    branchy = add_exits(model, {"c1": linear_head})
    np.testing.assert_array_equal(branchy(images)["exit_2"], model(images))


def test_a_frozen_layer_stays_frozen_without_its_softmax():
    model = trunk()
    model.trainable = False
    branchy = add_exits(model, {"c1": linear_head})
    assert {v.path for v in branchy.trainable_weights} == {"exit_1/kernel", "exit_1/bias"}


def test_names_exits_whatever_their_heads_call_their_layers():
    def head(features, classes, name):
        return ops.mean(layers.Conv2D(classes, 1, name=f"{name}_map")(features), (1, 2))

    branchy = add_exits(trunk(), {"c1": head, "c2": head})
    assert exits.exit_names(branchy) == ["exit_1", "exit_2", "exit_3"]


def test_exits_are_float32_in_a_model_of_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        branchy = add_exits(
            trunk(),
            {"c1": linear_head, "c2": lambda x, n, name: ops.mean(x, (1, 2))[:, :n]},
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert branchy.get_layer("c1").compute_dtype == "bfloat16"
    assert {z.dtype for z in branchy.output.values()} == {"float32"}


def test_an_exit_may_start_from_the_branch_of_another(tmp_path):
    branchy = add_exits(
        trunk(),
        {"c1": conv_head([4, 3]), "exit_1_conv_1": linear_head, "c2": linear_head},
    )
    assert exits.exit_names(branchy) == ["exit_1", "exit_2", "exit_3", "exit_4"]
    images = images_for(branchy)
    whole = branchy(images, training=False)
    mean = branchy.get_layer("exit_2_mean").input._keras_history.operation
    assert mean.name == "exit_1_conv_1"
    live = [images]
    for stage in stages.split(branchy):
        logits, live = stage(live)
        np.testing.assert_array_equal(logits, whole[stage.name])
    assert stage.name == "exit_4"
    branchy.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")(images, training=False)
    np.testing.assert_array_equal(again["exit_2"], whole["exit_2"])


def test_several_inputs_keep_their_structure():
    image = keras.Input((8, 8, 3), name="image")
    extra = keras.Input((2,), name="extra")
    x = layers.GlobalAveragePooling2D(name="pool")(image)
    x = layers.Concatenate()([layers.Dense(4, name="d")(x), extra])
    model = keras.Model({"image": image, "extra": extra}, layers.Dense(3)(x))
    branchy = add_exits(model, {"d": linear_head})
    assert set(branchy.input) == {"image", "extra"}
    feed = {"image": np.ones((2, 8, 8, 3)), "extra": np.ones((2, 2))}
    np.testing.assert_array_equal(branchy(feed)["exit_2"], model(feed))


def reshaped_softmax(x):
    x = layers.Softmax(name="s")(layers.Reshape((3, 2))(x))
    return layers.Flatten()(x)


class Doubling(layers.Dense):
    """A Dense layer that computes something else than its configuration says."""

    def call(self, inputs):
        return super().call(2 * inputs)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (
            layers.Dense(4, "sigmoid", name="out"),
            "Model 'trunk' ends in layer 'out' with the activation sigmoid; expected "
            "logits or softmax. With a sigmoid each class has an answer of its own; "
            "several labels for one example are out of scope. If there is one label, "
            "return the logits.",
        ),
        (
            lambda x: layers.ReLU(name="out")(layers.Dense(4)(x)),
            "ends in layer 'out' with the activation relu; expected logits or softmax.",
        ),
        (
            lambda x: ops.sigmoid(layers.Dense(4)(x)),
            "with the activation sigmoid; expected logits or softmax.",
        ),
        (
            layers.EinsumDense("af,fb->ab", 4, "softmax", name="out"),
            "ends in layer 'out', a EinsumDense with softmax inside. Expected a plain "
            "Dense or a separate softmax layer.",
        ),
        (
            Doubling(4, "softmax", name="out"),
            "ends in layer 'out', a Doubling with softmax inside. Expected a plain Dense",
        ),
        (
            reshaped_softmax,
            "Model 'trunk' reshapes the output of its softmax 's'. Expected logits, or a "
            "softmax over (batch, classes).",
        ),
        (
            lambda x: layers.Dropout(0.1)(layers.Dense(4, "sigmoid", name="out")(x)),
            "ends in layer 'out' with the activation sigmoid; expected logits or",
        ),
        (
            layers.Dense(1),
            "has an output of shape (None, 1); expected (batch, classes) with at least 2 "
            "classes. A single number, as in regression, is out of scope; for two "
            "classes, give the last layer two units and no activation.",
        ),
        (
            layers.Dense(1, "sigmoid"),
            "has an output of shape (None, 1); expected (batch, classes)",
        ),
        (
            layers.Reshape((2, 3)),
            "has an output of shape (None, 2, 3); expected (batch, classes) with at "
            "least 2 classes. An answer for each position, as in segmentation or "
            "tagging, is out of scope; pool the positions before the last layer.",
        ),
    ],
)
def test_rejects_models_without_logits(top, expected):
    assert expected in complaint({"c1": linear_head}, trunk(top))


def with_lora(layer, alpha: float):
    """LoRA as after fine-tuning: not zero, and with its own scale."""
    layer.enable_lora(2, lora_alpha=alpha)
    random = np.random.default_rng(8)
    layer.lora_kernel_b.assign(random.normal(size=layer.lora_kernel_b.shape))


def test_a_layer_keeps_its_lora_when_its_softmax_is_dropped(tmp_path):
    model = trunk()
    plain = np.asarray(model(images_for(model)))
    with_lora(model.get_layer("predictions"), alpha=5.0)
    images = images_for(model)
    before = np.asarray(model(images))
    assert np.abs(before - plain).max() > 0.01
    branchy = add_exits(model, {"c1": linear_head})
    assert_log_of(branchy(images)["exit_2"], before)
    theirs = {id(v) for v in model.trainable_variables}
    assert theirs <= {id(v) for v in branchy.trainable_variables}
    branchy.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert_log_of(again(images)["exit_2"], before)
    # Later training changes both models.
    model.get_layer("predictions").lora_kernel_b.assign_add(np.ones((2, 4)))
    assert_log_of(branchy(images)["exit_2"], model(images))


@pytest.mark.parametrize("regularised", ["kernel_constraint", "kernel_regularizer"])
def test_constraints_and_regularisers_go_with_the_kernel(regularised):
    given = {"kernel_constraint": "max_norm", "kernel_regularizer": "l2"}[regularised]
    top = layers.Dense(4, "softmax", name="predictions", **{regularised: given})
    model = trunk(top)
    branchy = add_exits(model, {"c1": linear_head})
    assert_log_of(branchy(images_for(model))["exit_2"], model(images_for(model)))
    kernel = branchy.get_layer("predictions").kernel
    assert (kernel.constraint or kernel.regularizer) is not None
    np.testing.assert_allclose(sum(branchy.losses), sum(model.losses))


def over_the_rows(x):
    return layers.Softmax(axis=0, name="out")(layers.Dense(4)(x))


def masked(x):
    x = layers.Dense(4)(x)
    return layers.Softmax(name="out")(x, mask=ops.greater(x, 0))


class Tempered(layers.Softmax):
    def call(self, inputs):
        return super().call(inputs / 3)


def replaced(x):
    layer = layers.Dense(4, "softmax", name="out")
    layer.build(x.shape)
    layer.call = lambda inputs: ops.softmax(ops.matmul(inputs, layer.kernel) / 3)
    return layer(x)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (over_the_rows, "ends in the softmax 'out', which is not a softmax of its"),
        (masked, "ends in the softmax 'out', which is not a softmax of its"),
        (Tempered(name="out"), "gives probabilities (non-negative, with the same"),
        (
            type("Softmax", (Tempered,), {})(name="out"),
            "ends in layer 'out', a Softmax with softmax inside.",
        ),
        (replaced, "ends in layer 'out', a Dense with softmax inside."),
        (
            layers.Dense(4, "softmax", activity_regularizer="l2", name="out"),
            "ends in layer 'out', a Dense with softmax inside.",
        ),
        (
            layers.SpectralNormalization(layers.Dense(4, "softmax"), name="out"),
            "ends in layer 'out', a SpectralNormalization with softmax inside.",
        ),
    ],
)
def test_keeps_a_softmax_that_does_more(top, expected):
    assert expected in complaint({"c1": linear_head}, trunk(top))


def test_rejects_a_quantised_softmax_layer():
    model = trunk()
    model.quantize("int8")
    text = complaint({"c1": linear_head}, model)
    assert "ends in layer 'predictions', a Dense with softmax inside." in text


@pytest.mark.parametrize("nested", [False, True])
def test_channels_first_is_refused(nested):
    images = keras.Input((3, 8, 8))
    x = layers.Conv2D(5, 3, data_format="channels_first", name="c1")(images)
    inner = keras.Model(images, x, name="inner")
    x = inner(images) if nested else x
    x = layers.GlobalAveragePooling2D("channels_first")(x)
    model = keras.Model(images, layers.Dense(4)(x), name="trunk")
    expected = (
        "Layer 'c1' of {} is channels first; exits read channels-last features. Build it "
        "with data_format='channels_last'."
    )
    found = complaint({"inner" if nested else "c1": linear_head}, model)
    assert found == expected.format("'trunk'")
    with pytest.raises(BranchyError, match="channels first"):
        exits.propose_exits(model, 1)


def test_rejects_channels_first_as_the_keras_setting():
    model = trunk()
    keras.config.set_image_data_format("channels_first")
    try:
        text = complaint({"c1": linear_head}, model)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert "Keras is set to channels_first. Call keras.config.set_image_data" in text


def test_a_model_with_several_outputs():
    x = keras.Input((3,))
    outputs = [layers.Dense(2, name=name)(x) for name in ("a", "b")]
    text = complaint({"a": linear_head}, keras.Model(x, outputs, name="two"))
    assert text == (
        "Model 'two' has 2 outputs: a, b. Expected one. Select the one that classifies: "
        "keras.Model(model.input, output)."
    )


def test_a_model_of_keras_2():
    tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed")
    values = tf_keras.Input((4,))
    x = tf_keras.layers.Dense(3, name="d1")(values)
    functional = tf_keras.Model(values, tf_keras.layers.Dense(2)(x), name="old")
    sequential = tf_keras.Sequential([tf_keras.layers.Dense(2)], name="old")
    for model in (functional, sequential):
        for ask in (
            lambda m: add_exits(m, {"d1": linear_head}),
            lambda m: exits.propose_exits(m, 1),
            exits.baseline,
            exits.exit_names,
            stages.split,
            lambda m: EarlyExitPredictor(m, [0.5]),
            lambda m: export(m, "/nowhere", "old", [0.5]),
            lambda m: training.Settings(epochs=1)._check_exits(m),
        ):
            with pytest.raises(BranchyError) as caught:
                ask(model)
            assert str(caught.value) == (
                "Expected a functional keras.Model, received 'old', a tf_keras (Keras "
                "2) model. Build it with Keras 3 (`import keras`) and copy its weights: "
                "new.set_weights(old.get_weights())."
            )
    found = complaint({"c1": tf_keras.layers.Dense(4)})
    assert found.startswith("The head at 'c1' must be a callable (features,")


def test_models_without_a_graph():
    class Mine(keras.Model):
        def call(self, x):
            return x

    assert "received Mine. A subclassed model" in complaint({"a": linear_head}, Mine())
    unbuilt = keras.Sequential([layers.Dense(3)], name="later")
    assert complaint({"a": linear_head}, unbuilt) == (
        "Sequential model 'later' has no input shape yet. Begin it with "
        "keras.Input(shape)."
    )


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("c3", "Model 'trunk' has no layer 'c3'. Closest: c2, c1. See model.summary()."),
        ("zzz", "Model 'trunk' has no layer 'zzz'. See model.summary()."),
        (0, "Model 'trunk' has no layer 0. See model.summary()."),
        (None, "Model 'trunk' has no layer None. See model.summary()."),
        (
            layers.Dense(3, name="c1"),
            "Exits are placed by layer name. Received the Dense itself; pass its name, "
            "'c1'.",
        ),
        (
            "predictions",
            "Layer 'predictions' makes the output of 'trunk', which is already the final "
            "exit. Place the exit at an earlier layer.",
        ),
        (
            "images",
            "Layer 'images' is the input of 'trunk' or comes after its logits. Place the "
            "exit at a layer in between.",
        ),
    ],
)
def test_rejects_invalid_places(place, expected):
    assert complaint({place: linear_head}) == expected


def test_a_place_after_the_logits():
    def top(x):
        return layers.Softmax(name="end")(layers.Dense(4, name="logits")(x))

    assert "or comes after its logits" in complaint({"end": linear_head}, trunk(top))
    assert "'logits' makes the output" in complaint({"logits": linear_head}, trunk(top))


class OwnCall(keras.Model):
    """A functional model with a `call` of its own."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


def test_a_place_inside_a_sub_model():
    inner_in = keras.Input((6,))
    hidden = layers.Dense(5, name="hidden")(inner_in)
    inner = OwnCall(inner_in, layers.Dense(4)(hidden), name="inner")
    model = trunk(lambda x: layers.Dense(4)(inner(x)))
    assert complaint({"hidden": linear_head}, model) == (
        "Layer 'hidden' is inside the sub-model 'inner', which cannot be inlined into "
        "'trunk': it has its own call method or a mask, or shares a layer name with "
        "another part. Build it on the outer tensor (input_tensor=), or place the exit "
        "at 'inner'."
    )
    assert len(exits.exit_names(add_exits(model, {"inner": linear_head}))) == 2
    deeper = trunk(keras.Sequential([keras.Input((6,)), inner], name="outer"))
    assert "'hidden' is inside the sub-model 'inner'" in complaint(
        {"hidden": linear_head}, deeper
    )


def test_a_layer_that_is_called_twice():
    twice = layers.Dense(6, name="twice")
    model = trunk(lambda x: layers.Dense(4)(twice(twice(x))))
    assert complaint({"twice": linear_head}, model) == (
        "Layer 'twice' gives 2 tensors (it is called several times or has several "
        "outputs); an exit needs one. Choose another layer."
    )


def test_a_layer_that_another_model_calls_too():
    model = trunk()
    layers.Dense(3)(model.get_layer("pool")(keras.Input((5, 5, 6))))
    assert len(exits.exit_names(add_exits(model, {"pool": linear_head}))) == 2


def test_a_layer_without_a_gradient():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Flatten(name="flat")(tokens)
    x = layers.Flatten()(layers.Embedding(9, 3)(x))
    model = keras.Model(tokens, layers.Dense(2)(x))
    assert complaint({"flat": linear_head}, model) == (
        "Layer 'flat' gives int32 values, which carry no gradient. Place the exit at a "
        "later layer."
    )


def test_exits_out_of_order():
    expected = (
        "Exits must be given in order from the input, but layer 'c1' comes before 'c2'. "
        "Give 'c1' first."
    )
    assert complaint({"c2": linear_head, "c1": linear_head}) == expected
    tree = {"c2": conv_head([3]), "exit_1_conv_1": linear_head, "c1": linear_head}
    assert complaint(tree) == expected


@pytest.mark.parametrize("heads", [{}, None, "c1", ["c1"], 1, linear_head])
def test_rejects_heads_that_are_not_a_mapping(heads):
    assert complaint(heads).startswith(
        "`heads` must be {layer name: head} with at least one entry. Received "
    )


def wide(x, classes, name):
    return linear_head(x, classes + 1, name)


def flat(x, classes, name):
    return layers.Conv2D(classes, 1, name=name)(x)


def constant(x, classes, name):
    return np.zeros((1, classes))


def of_itself(x, classes, name):
    return layers.Dense(classes, name=name)(keras.Input((3,)))


def probabilities(x, classes, name):
    return layers.Dense(classes, "softmax", name=name)(ops.mean(x, (1, 2)))


def likely(x, classes, name):
    return layers.Activation("linear")(ops.sigmoid(linear_head(x, classes, name)))


def sure(x, classes, name):
    return ops.cast(linear_head(x, classes, name) > 0, "int32")


def short(x, classes, name):
    return layers.Dense(classes, dtype="bfloat16", name=name)(ops.mean(x, (1, 2)))


def unnamed(x, classes, name):
    return layers.Dense(classes, name="c2")(ops.mean(x, (1, 2)))


LOGITS = (
    "The head at 'c1' must return logits of shape (batch, 4), computed from its "
    "features. "
)
CALLABLE = "The head at 'c1' must be a callable (features, classes, name) -> logits. "


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (32, CALLABLE + "Received 32. For example: conv_head(filters=[32])."),
        (layers.Dense(4), CALLABLE),
        (pool_head, CALLABLE),
        (lambda features: features, CALLABLE),
        (conv_head, "`filters` must be positive whole numbers, or one for all. Received"),
        (wide, LOGITS + "Received (None, 5)."),
        (flat, LOGITS + "Received (None, 6, 6, 4)."),
        (constant, LOGITS + "Received ndarray."),
        (lambda *_: None, LOGITS + "Received NoneType."),
        (of_itself, "The head at 'c1' does not read its features, so no gradient"),
        (probabilities, "The head at 'c1' ends in softmax; expected logits. Drop the"),
        (likely, "The head at 'c1' ends in sigmoid; expected logits. Drop the"),
        (sure, "The head at 'c1' gives int32 values, which carry no gradient."),
        (short, "The head at 'c1' gives bfloat16 logits; expected float32. Pass dtype"),
        (unnamed, "2 layers of 'trunk' and its heads would be called 'c2'. Rename the"),
    ],
)
def test_rejects_heads_without_logits(head, expected):
    assert complaint({"c1": head}).startswith(expected)


def test_features_may_be_logits_already():
    model = trunk(lambda x: layers.Dense(4)(layers.Dense(4, name="aux")(x)))
    branchy = add_exits(model, {"aux": lambda features, classes, name: features})
    assert branchy.get_layer("exit_1").input is branchy.get_layer("aux").output


@pytest.mark.parametrize("name", ["", "a/b", 5])
def test_rejects_invalid_names(name):
    with pytest.raises(BranchyError) as caught:
        add_exits(trunk(), {"c1": linear_head}, name)
    assert str(caught.value) == (
        f"`name` must be a non-empty string without '/'. Received {name!r}."
    )


def test_two_heads_that_use_the_same_names():
    def head(x, classes, name):
        return linear_head(layers.ReLU(name="hidden")(x), classes, name)

    assert "would be called 'hidden'" in complaint({"c1": head, "c2": head})


@pytest.mark.parametrize("taken", ["exit_1", "exit_2", "exit_1_mean"])
def test_a_model_that_uses_the_names_of_exits(taken):
    model = trunk(lambda x: layers.Dense(4)(layers.ReLU(name=taken)(x)))
    assert complaint({"c1": linear_head}, model) == (
        f"2 layers of 'trunk' and its heads would be called {taken!r}. Rename the "
        "model's layer, or start the head's layer name with the `name` that the head "
        "receives."
    )


def test_an_input_that_uses_the_name_of_an_exit():
    x = keras.Input((3,), name="exit_1")
    model = keras.Model(x, layers.Dense(2)(layers.Dense(3, name="d")(x)))
    assert "would be called 'exit_1'" in complaint({"d": linear_head}, model)
