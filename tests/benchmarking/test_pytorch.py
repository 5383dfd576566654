"""The network in PyTorch is the network in Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from branchy_tf import exits, stages, zoo
from branchy_tf.exits import confidence
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install .[peers]"
)

from branchy_tf.benchmarking.pytorch_engine import EarlyExit  # noqa: E402
from branchy_tf.benchmarking.pytorch_layers import Network, translate  # noqa: E402

MODELS = [
    ("branchy_alexnet", {}),
    ("branchy_lenet", {}),
    ("branchy_resnet", {"depth": 8, "exits": "light"}),
    ("branchy_resnet", {"depth": 8, "exits": "paper"}),
    ("branchy_msdnet", {"blocks": 2}),
    ("branchy_vgg", {"input_shape": (35, 33, 3)}),
]


def built(name, arguments):
    """With batch norm statistics as training leaves them, not 0 and 1."""
    keras.utils.set_random_seed(1)
    model = zoo.build(name, **arguments)
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(
                random.uniform(0.5, 2, layer.moving_variance.shape)
            )
            layer.beta.assign(random.normal(0, 0.1, layer.beta.shape))
    images = random.integers(0, 256, (16, *model.input_shape[1:]), dtype=np.uint8)
    return model, {"images": images}


@pytest.mark.parametrize(("name", "arguments"), MODELS)
@pytest.mark.parametrize("criterion", ["entropy", "max_prob", "margin"])
def test_rows_leave_where_the_predictor_says(name, arguments, criterion):
    model, images = built(name, arguments)
    count = len(exits.exit_names(model))
    policy = ExitPolicy(
        criterion=criterion,
        thresholds=[0.0] * (count - 1),
        temperatures=[1.0 + 0.5 * k for k in range(count)],
    )
    _, scores = EarlyExitPredictor(model, policy).all_exits(images)
    # Between two scores, far from both.
    limits = []
    for gate in range(count - 1):
        ordered = np.sort(scores[:, gate])
        widest = 3 + np.diff(ordered[3:12]).argmax()
        limits.append(float(ordered[widest : widest + 2].mean()))
    policy = policy.replace(thresholds=limits)
    expected = EarlyExitPredictor(model, policy).predict(images)
    assert len(set(expected.exits)) > 1
    network = EarlyExit([Network(stage.model) for stage in stages.split(model)], policy)
    probabilities, left, found = network(images)
    np.testing.assert_array_equal(left, expected.exits)
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(found, expected.scores, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(2, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(2, (2, 5), padding="same"),
        layers.Conv2D(2, 4, strides=(2, 1)),
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.MaxPooling2D(2),
        layers.ZeroPadding2D(((1, 2), (3, 4))),
        layers.Flatten(),
        layers.GlobalAveragePooling2D(),
        layers.BatchNormalization(),
    ],
    ids=lambda layer: layer.name,
)
def test_layers_compute_the_same(layer):
    keras.utils.set_random_seed(2)
    pixels = keras.Input((7, 6, 3))
    model = keras.Model(pixels, layer(pixels))
    images = np.random.default_rng(2).normal(size=(2, 7, 6, 3)).astype(np.float32)

    (found,) = Network(model)([torch.from_numpy(images).movedim(-1, 1)])
    found = found.detach().numpy()
    if found.ndim == 4:
        found = np.moveaxis(found, 1, -1)
    np.testing.assert_allclose(found, model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.LayerNormalization(name="odd"), "odd is a LayerNormalization; known: "),
        (layers.Conv2D(2, 1, activation="gelu", name="odd"), "odd has the activation g"),
        (layers.Conv2D(2, 2, dilation_rate=2, name="odd"), "odd is grouped or dilated"),
        (layers.ReLU(max_value=6, name="odd"), "odd is not a plain ReLU"),
    ],
)
def test_rejects_unsupported_layers(layer, expected):
    layer(np.zeros((1, 4, 4, 2), np.float32))
    with pytest.raises(NotImplementedError, match=expected):
        translate(layer)


def relu(x):
    """Not Keras's, though it is called so."""
    return keras.ops.clip(x, 0, 6)


def quantised():
    layer = layers.Dense(2, name="odd")
    layer.build((None, 4, 4, 2))
    layer.quantize("int8")
    return layer


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (
            type("Dense", (layers.Dense,), {})(2, name="odd"),
            "does not compute what Keras's",
        ),
        (quantised(), "odd is quantised, or"),
        (layers.Dense(2, activation=relu, name="odd"), "odd has the activation relu"),
    ],
    ids=["subclass", "quantised", "activation"],
)
def test_rejects_layers_that_only_look_supported(layer, expected):
    layer(np.zeros((1, 4, 4, 2), np.float32))
    with pytest.raises(NotImplementedError, match=expected):
        translate(layer)


@pytest.mark.parametrize("layer", [layers.Conv2D(4, 3), layers.Dense(4)])
def test_lora_is_part_of_the_kernel(layer):
    pixels = keras.Input((7, 6, 3))
    model = keras.Model(pixels, layer(pixels))
    layer.enable_lora(2, lora_alpha=6)
    layer.lora_kernel_b.assign(
        np.random.default_rng(8).normal(size=layer.lora_kernel_b.shape)
    )
    if isinstance(layer, layers.Dense):
        pixels = keras.Input((3,))
        model = keras.Model(pixels, layer(pixels))
    images = np.random.default_rng(2).normal(size=(2, *model.input_shape[1:]))
    images = images.astype(np.float32)
    (found,) = Network(model)([torch.from_numpy(images).movedim(-1, 1)])
    found = np.moveaxis(found.detach().numpy(), 1, -1)
    np.testing.assert_allclose(found, model(images), atol=1e-4)


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
@pytest.mark.parametrize("temperature", [1.0, 0.05, 1e-30])
def test_scores_are_those_of_every_other_engine(criterion, temperature):
    inf = np.inf
    logits = np.float32(
        [[1, 2, 3], [1, -inf, 2], [-inf, -inf, 1], [3e38, -3e38, 0], [-inf] * 3,
         [inf, 0, 1], [np.nan, 0, 1]]
    )  # fmt: skip
    for given in (logits, logits[:, :1]):
        policy = ExitPolicy(
            criterion=criterion, thresholds=[], temperatures=[temperature]
        )
        network = EarlyExit(
            [lambda tensors, given=given: [torch.from_numpy(given)]], policy
        )
        *_, found = network(np.zeros((len(given), 1, 1, 1), np.uint8))
        _, expected = confidence.exit_answer(given, policy, 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
