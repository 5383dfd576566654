from __future__ import annotations

import json

import commands
import keras
import numpy as np
import odd_models
import pytest
import small
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

from branchy_tf import exits, saved_model, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import agreement
from branchy_tf.saved_model.bfloat16 import in_bfloat16
from branchy_tf.saved_model.session import SessionModel

HALF = 2**-8


def formats(model: keras.Model) -> dict[str, str]:
    """The dtypes that a model's layers with weights compute in."""
    return {layer.name: layer.compute_dtype for layer in model.layers if layer.weights}


def check_close(model: keras.Model, short: keras.Model, inputs) -> None:
    inputs = keras.tree.pack_sequence_as(model.input, inputs)
    before, after = model(inputs, training=False), short(inputs, training=False)
    for name, logits in before.items():
        assert after[name].dtype == tf.float32
        off = np.abs(after[name] - logits).max() / np.abs(logits).max()
        assert 0 < off < 10 * HALF, name


def test_everything_but_the_logits_is_in_bfloat16():
    model = odd_models.settled(zoo.build("branchy_resnet", depth=8, exits="light"))
    before = model.get_weights()
    short = in_bfloat16(model)
    kinds = formats(short)
    heads = {"exit_1", "exit_2", "logits"}
    assert {name for name, kind in kinds.items() if kind == "float32"} == heads
    assert len(kinds) == 14 + 3
    assert [tensor.dtype for tensor in short.inputs] == ["uint8"]
    assert short.get_layer("rescale").compute_dtype == "float32"
    assert short.get_layer("stack_1_block_1_add").compute_dtype == "bfloat16"
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    check_close(model, short, [images])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "builder",
    [
        odd_models.several_inputs,
        odd_models.exits_off_exits,
        odd_models.nested_model,
        odd_models.shared_layers,
    ],
)
def test_odd_models_are_close(builder):
    model, inputs = odd_models.build(builder)
    short = in_bfloat16(model)
    assert exits.exit_names(short) == exits.exit_names(model)
    assert "bfloat16" in formats(short).values()
    check_close(model, short, inputs)


def test_bfloat16_preserves_the_lora_scale():
    values = keras.Input((5,))
    adapted = layers.Dense(4, activation="relu", name="adapted")
    x = adapted(values)
    outputs = {name: layers.Dense(3, name=name)(x) for name in ("exit_1", "exit_2")}
    model = keras.Model(values, outputs)
    adapted.enable_lora(2, lora_alpha=9)
    adapted.lora_kernel_b.assign(np.random.default_rng(8).normal(size=(2, 4)))
    rows = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")
    check_close(model, in_bfloat16(model), [rows])


class Strange(layers.Layer):
    """A layer whose config omits its arguments."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return super().get_config()


def test_names_a_layer_that_cannot_be_recreated():
    x = keras.Input((4,))
    y = Strange(2.0, name="strange")(layers.Dense(4)(x))
    outputs = {f"exit_{n}": layers.Dense(2, name=f"exit_{n}")(y) for n in (1, 2)}
    with pytest.raises(BranchyError, match="strange cannot be recreated in bfloat16"):
        in_bfloat16(keras.Model(x, outputs))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return small.dataset().train.images


@pytest.fixture(scope="module")
def version(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return saved_model.export(
        wide(), folder, "m", [0.5], precision="bfloat16", images=images,
        max_disagreement=0.5,
    )  # fmt: skip


def wide() -> keras.Model:
    """A model whose weights are most of its export."""
    keras.utils.set_random_seed(2)
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    exit_1 = exits.linear_head(x, 3, "exit_1")
    x = layers.Conv2D(256, 3, activation="relu")(x)
    outputs = {"exit_1": exit_1, "exit_2": exits.linear_head(x, 3, "exit_2")}
    return keras.Model(pixels, outputs, name="wide")


def test_bfloat16_export_has_half_the_bytes_and_the_same_signatures(version):
    content = (version / "saved_model.pb").read_bytes()
    bytes_of_weights = 4 * wide().count_params()
    assert bytes_of_weights / 2 < len(content) < bytes_of_weights / 2 + 150_000
    graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].graph_def
    nodes = [node for function in graph.library.function for node in function.node_def]
    convolutions = [node for node in nodes if node.op == "Conv2D"]
    assert {node.attr["T"].type for node in convolutions} == {
        tf.bfloat16.as_datatype_enum
    }
    session = SessionModel(version)
    early = session.signatures["early_exit"]
    kinds = {
        name: tf.as_dtype(info.dtype).name
        for name, info in [*early.inputs.items(), *early.outputs.items()]
    }
    assert kinds == {
        "images": "uint8",
        "thresholds": "float32",
        "probabilities": "float32",
        "exit": "int32",
        "score": "float32",
    }


def test_bfloat16_export_matches_the_model_up_to_rounding(version, images):
    model = wide()
    every = SessionModel(version).run("all_exits", {"images": images})
    logits = np.stack(list(model(images).values()), axis=1)
    expected = tf.nn.softmax(logits).numpy()
    assert 0 < np.abs(every["probabilities"] - expected).max() < HALF
    # Probabilities are computed in float32, so they sum to 1.
    np.testing.assert_allclose(every["probabilities"].sum(axis=-1), 1, atol=1e-6)


def test_bfloat16_export_reports_its_agreement(version, images, tmp_path):
    told = json.loads((version / "assets.extra/branchy.json").read_text())
    assert told["precision"] == "bfloat16"
    assert told["agreement"]["num_examples"] == len(images)
    assert 0.5 <= told["agreement"]["labels"] <= 1
    assert 0.5 <= told["agreement"]["exits"] <= 1
    plain = saved_model.export(small.model(), tmp_path, "m", [0.5])
    told = json.loads((plain / "assets.extra/branchy.json").read_text())
    assert told["precision"] == "float32"
    assert told["agreement"] is None


def modules(limit: float) -> list[saved_model.EarlyExitModule]:
    """One model, and another whose first exit always predicts class 0 with confidence."""
    one, other = small.model(), small.model()
    bias = other.get_layer("exit_1").bias
    bias.assign_add([50, 0, 0])
    return [saved_model.EarlyExitModule(m, [limit]) for m in (one, other)]


def test_compares_labels_and_exits_row_by_row(images, monkeypatch):
    monkeypatch.setattr(agreement, "_BATCH_SIZE", 7)
    one, other = modules(np.inf)
    found = agreement.compare(one, other, images)
    labels = one.functions["serving_default"](images)["probabilities"].numpy().argmax(1)
    assert found == agreement.Agreement(len(images), (labels == 0).mean(), 1.0)
    # Confident enough to exit early, unlike any row of the first model.
    one, other = modules(1e-9)
    assert agreement.compare(one, other, images).exits == 0


@pytest.mark.parametrize(
    ("labels", "exits_", "bound", "fails"),
    [
        (0.99, 1.0, 0.01, False),
        (0.989, 1.0, 0.01, True),
        (1.0, 0.98, 0.01, True),
        (1.0, 0.98, 0.02, False),
        (1.0, 1.0, float("nan"), True),
    ],
)
def test_rejects_too_little_agreement(labels, exits_, bound, fails):
    found = agreement.Agreement(1000, labels, exits_)
    if not fails:
        return agreement.check(found, bound)
    with pytest.raises(BranchyError, match=r"another label and .* take another exit"):
        agreement.check(found, bound)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "float32, bfloat16"),
        ({"images": None}, "`images` is missing"),
        ({"images": np.zeros((0, 8, 8, 1), "uint8")}, "no images"),
        ({"images": np.zeros((2, 8, 7, 1), "uint8")}, r"uint8 \[B, 8, 8, 1\]"),
        ({"max_disagreement": -1.0}, "from 0 to 1"),
    ],
)
def test_rejected_bfloat16_export_writes_nothing(images, tmp_path, change, message):
    arguments = {"precision": "bfloat16", "images": images} | change
    with pytest.raises(BranchyError, match=message):
        saved_model.export(small.model(), tmp_path / "exports", "m", [0.5], **arguments)
    assert not (tmp_path / "exports").exists()


def test_command_compares_on_the_validation_images(run_dir, tmp_path):
    flags = [f"--run_dir={run_dir}", f"--export_dir={tmp_path}", "--precision=bfloat16"]
    done = commands.run("export", *flags, "--max_disagreement=0.05")
    assert done.status == 0, done.stderr
    assert "of 500 images get another label" in done.stderr
    told = json.loads(
        (tmp_path / "branchy_lenet/1/assets.extra/branchy.json").read_text()
    )
    assert told["agreement"]["num_examples"] == 500
    refused = commands.run("export", *flags, "--max_disagreement=2")
    assert "2 % is 0.02" in refused.error
