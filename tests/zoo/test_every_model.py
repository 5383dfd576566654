"""One set of checks for every model of the zoo and every set of exits."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import branchy_tf
from branchy_tf import exits, graphs, saved_model, stages, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import probabilities_and_scores
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.zoo import vgg


@dataclasses.dataclass(frozen=True)
class Case:
    """A model small enough for every check."""

    name: str
    smallest: int
    exits: str
    others: tuple[tuple[str, Any], ...] = ()
    channels: int = 3

    def build(self, **changes: Any) -> keras.Model:
        """Three classes, images of the smallest side, seeded weights."""
        keras.utils.set_random_seed(4)
        shape = (self.smallest, self.smallest, self.channels)
        settings = {"input_shape": shape, "classes": 3, "exits": self.exits}
        # VGG's blocks take seconds a test at their full width.
        blocks = [(filters // 16, convolutions) for filters, convolutions in vgg._BLOCKS]
        with mock.patch.object(vgg, "_BLOCKS", blocks):
            return zoo.build(self.name, **settings | dict(self.others) | changes)


CASES = [
    Case("branchy_alexnet", 16, "paper"),
    Case("branchy_alexnet", 16, "light"),
    Case("branchy_lenet", 8, "paper", channels=1),
    Case("branchy_msdnet", 16, "paper", (("blocks", 3),)),
    Case("branchy_resnet", 16, "paper", (("depth", 8),)),
    Case("branchy_resnet", 16, "light", (("depth", 8),)),
    Case("branchy_vgg", 32, "light"),
]
MODELS = list({case.name: case for case in CASES}.values())

each_case = pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda c: "-".join([c.name, c.exits, *(str(v) for _, v in c.others)]),
)
each_model = pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name)


@functools.cache
def built(case: Case) -> keras.Model:
    """An untrained model without its initial symmetries; do not change it."""
    model = case.build()
    random = np.random.default_rng(4)
    for weight in model.weights:
        # Blocks start as the identity, and batch norm with trivial statistics.
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith(("beta", "bias", "moving_mean")):
            weight.assign(random.uniform(-0.2, 0.2, weight.shape))
    return model


def images_for(model: keras.Model, rows: int = 5) -> np.ndarray:
    shape = (rows, *model.inputs[0].shape[1:])
    return np.random.default_rng(1).integers(0, 256, shape).astype("uint8")


def complaint(case: Case, **changes: Any) -> str:
    with pytest.raises(BranchyError) as caught:
        case.build(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_model_is_checked():
    assert {case.name for case in CASES} == set(zoo.list_models())


@each_model
def test_every_set_of_exits_is_checked(case):
    text = complaint(case, exits="none")
    known = text.partition("`exits` must be one of ")[2].split(", or ")[0]
    assert text.endswith("or {layer name: head}. Received 'none'.")
    assert {c.exits for c in CASES if c.name == case.name} == set(known.split(", "))


@each_case
def test_exits_answer_raw_pixels_with_logits(case):
    model = built(case)
    assert model.name == case.name
    assert model.input.dtype == "uint8"
    outputs = model(images_for(model), training=False)
    assert list(outputs) == exits.exit_names(model)
    assert len(outputs) >= 2
    for logits in outputs.values():
        assert logits.shape == (5, 3)
        assert logits.dtype == tf.float32
        assert np.isfinite(logits).all()
        # Images get different logits.
        assert np.ptp(logits, axis=0).min() > 0


@each_case
def test_gradients_reach_what_an_exit_needs_and_nothing_else(case):
    model = built(case)
    images = images_for(model)
    variables = model.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(images, training=False)
        losses = {name: tf.reduce_sum(z**2) for name, z in outputs.items()}
    reached_by_any = set()
    for name, logits in exits.exit_tensors(model).items():
        nodes = graphs.nodes_between(model.inputs, [logits])
        needed = {
            v.path for node in nodes for v in getattr(node.operation, "variables", [])
        }
        found = tape.gradient(losses[name], [v.value for v in variables])
        reached = {
            v.path
            for v, gradient in zip(variables, found, strict=True)
            if gradient is not None and np.abs(gradient).max() > 0
        }
        assert reached == needed & {v.path for v in variables}, name
        others = {path for path in reached if path.startswith("exit_")}
        assert all(path.startswith(f"{name}") for path in others)
        reached_by_any |= reached
    assert reached_by_any == {v.path for v in variables}


@each_case
def test_a_file_holds_the_model(case, tmp_path):
    model = built(case)
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    images = images_for(model)
    expected = model(images, training=False)
    for name, logits in again(images, training=False).items():
        np.testing.assert_array_equal(logits, expected[name])
    # The builder reads the same file.
    settled = case.build(weights=str(tmp_path / "model.keras"))
    for ours, theirs in zip(settled.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@each_case
def test_stages_are_the_model_bit_for_bit(case):
    model = built(case)
    images = images_for(model)
    whole = model(images, training=False)
    parts = stages.split(model)
    live = [images]
    for part in parts:
        logits, live = part(live)
        np.testing.assert_array_equal(logits, whole[part.name])
    assert [part.name for part in parts] == list(whole)
    assert live == []


@each_case
def test_an_exported_version_answers_like_the_predictor(case, tmp_path):
    model = built(case)
    images = images_for(model, rows=12)
    logits = np.stack(list(model(images, training=False).values()), axis=1)
    probabilities, scores = probabilities_and_scores(logits, "entropy")
    # Half of the remaining rows exit at each early exit.
    limits = np.median(scores, axis=0)[:-1].tolist()
    expected = branchy_tf.EarlyExitPredictor(model, limits).predict(images)
    assert len(set(expected.exits)) == len(limits) + 1
    np.testing.assert_allclose(
        expected.probabilities,
        np.asarray(probabilities)[range(12), expected.exits],
        atol=1e-4,
    )

    # Weights are constants in the predictor and variables here.
    module = saved_model.EarlyExitModule(model, limits, frozen=False)
    module.save(tmp_path)
    session = SessionModel(tmp_path)
    answer = session.run("early_exit", {"images": images})
    session.close()
    np.testing.assert_array_equal(answer["exit"], expected.exits)
    np.testing.assert_allclose(answer["probabilities"], expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(answer["score"], expected.scores, rtol=1e-4, atol=1e-5)


@each_model
def test_accepts_other_image_shapes_and_classes(case):
    shape = (case.smallest + 5, case.smallest + 9, 2)
    model = case.build(input_shape=shape, classes=7, name="mine")
    assert model.name == "mine"
    assert model.input_shape == (None, *shape)
    assert exits.num_classes(model) == 7
    outputs = model(images_for(model, rows=2), training=False)
    assert {tuple(logits.shape) for logits in outputs.values()} == {(2, 7)}


@each_model
def test_accepts_custom_exits(case):
    names = [layer.name for layer in branchy_tf.baseline(built(case)).layers]
    # The first feature map, and one in the middle.
    heads = {names[n]: exits.linear_head for n in (2, len(names) // 2)}
    model = case.build(exits=heads)
    assert exits.exit_names(model) == ["exit_1", "exit_2", "exit_3"]
    assert model.get_layer("exit_1_mean").input is model.get_layer(names[2]).output
    assert "no layer 'nowhere'" in complaint(case, exits={"nowhere": exits.linear_head})


@each_model
def test_packaged_weights_are_complete_and_fit(case, shipped):
    for tag, packaged in zoo.list_packaged(case.name).items():
        packaged.check()
        model = shipped(case.name, tag)
        # That they are loaded is tested by the recorded answers.
        outputs = model(images_for(model), training=False)
        assert all(np.isfinite(logits).all() for logits in outputs.values())
        text = complaint(case, weights=tag, classes=packaged.arguments["classes"] + 1)
        assert f"The weights {tag!r} of {case.name} are for " in text


@each_model
@pytest.mark.parametrize("classes", [1, 0, -3, 2.0, "10", None])
def test_rejects_invalid_classes(case, classes):
    assert complaint(case, classes=classes) == (
        f"`classes` must be a whole number of at least 2. Received {classes!r}."
    )


@each_model
@pytest.mark.parametrize("name", ["", "a/b", 5, None])
def test_rejects_invalid_names(case, name):
    assert complaint(case, name=name) == (
        f"`name` must be a non-empty string without '/'. Received {name!r}."
    )


@each_model
def test_rejects_invalid_input_shapes(case):
    small, side = case.smallest - 1, case.smallest
    shapes = [(small, side, 3), (side, small, 3), (3, side, side), (None, None, 3)]
    for shape in [*shapes, (side, side), (side, side, 0), (float(side), side, 3), side]:
        assert complaint(case, input_shape=shape) == (
            "`input_shape` must be (height, width, channels), channels last, with height "
            f"and width of at least {side}. Received {shape}."
        )


@each_model
def test_channels_first_is_refused(case):
    keras.config.set_image_data_format("channels_first")
    try:
        text = complaint(case)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert "Keras is set to channels_first. Call keras.config.set_image_data" in text


@each_model
def test_unknown_weights(case):
    text = complaint(case, weights="imaginary")
    assert text.startswith(f"Unknown weights 'imaginary' for {case.name}. Expected ")
    assert text.endswith("the path of a .keras or .weights.h5 file.")
    assert complaint(case, weights="none.keras") == (
        "There is no weights file none.keras."
    )


@each_model
def test_rejects_unknown_arguments(case):
    assert f"{case.name} has no argument 'alpha'. It takes: " in complaint(case, alpha=1)


def test_a_deep_resnet_has_more_light_exits():
    model = zoo.branchy_resnet((16, 16, 3), depth=38, exits="light")
    firsts = [model.get_layer(f"exit_{n}_conv_1").input for n in (1, 2, 3, 4)]
    assert [graphs.producer(tensor).operation.name for tensor in firsts] == [
        "stack_1_block_1", "stack_1_block_3", "stack_1_block_6", "stack_2_block_3",
    ]  # fmt: skip
    assert exits.exit_names(model)[-1] == "exit_5"


@pytest.mark.parametrize("depth", [2, 7, 9, 20.0, "20", True])
def test_rejects_invalid_depths(depth):
    case = next(case for case in CASES if case.name == "branchy_resnet")
    assert complaint(case, depth=depth) == (
        f"`depth` must be 6 n + 2, e.g. 20, 32, 44, 56 or 110. Received {depth!r}."
    )
