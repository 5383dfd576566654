from __future__ import annotations

import keras
import numpy as np
import pytest
import small

from branchy_tf import exits, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import transfer
from branchy_tf.zoo import branchy_resnet

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (4, 16, 16, 3)).astype("uint8")


def resnet(depth: int, classes: int = 5) -> keras.Model:
    return branchy_resnet((16, 16, 3), classes, depth=depth, exits="light")


def stir(model: keras.Model) -> None:
    """Gives a model weights as after training: none is 0 or 1."""
    for weight in model.weights:
        low = 0.5 if weight.path.endswith(("gamma", "moving_variance")) else -0.3
        weight.assign(RNG.uniform(low, low + 0.7, weight.shape))


@pytest.fixture(scope="module")
def shallow() -> keras.Model:
    """ResNet-20 with random weights; do not change it."""
    model = resnet(20)
    stir(model)
    return model


@pytest.fixture(scope="module")
def baseline(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("shallow") / "baseline.keras"
    exits.baseline(shallow).save(path)
    return path


def test_a_deeper_resnet_computes_the_same_function(shallow, baseline):
    deep = resnet(32)
    fresh = training.copy_layers(deep, baseline)
    expected = np.asarray(shallow(IMAGES, training=False)["exit_3"])
    found = np.asarray(deep(IMAGES, training=False)["exit_3"])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    new = ("exit_", *(f"stack_{s}_block_{b}_" for s in (1, 2, 3) for b in (4, 5)))
    assert fresh
    assert all(name.startswith(new) for name in fresh)
    assert {name[:15] for name in fresh if name[0] == "s"} == {n[:15] for n in new[1:]}


def test_other_classes_keep_new_heads(shallow, tmp_path):
    shallow.save(tmp_path / "model.keras")
    other = resnet(20, classes=7)
    before = {w.path: np.array(w) for w in other.weights}
    fresh = training.copy_layers(other, tmp_path / "model.keras")
    assert sorted(fresh) == ["exit_1", "exit_2", "logits"]
    theirs = {w.path: np.array(w) for w in shallow.weights}
    for weight in other.weights:
        source = before if weight.path.split("/")[0] in fresh else theirs
        np.testing.assert_array_equal(weight, source[weight.path])


def test_a_file_of_another_family(tmp_path):
    path = tmp_path / "small.keras"
    small.model().save(path)
    model = resnet(8)
    before = model.get_weights()
    with pytest.raises(BranchyError) as caught:
        training.copy_layers(model, path)
    assert str(caught.value) == (
        f"No layer of {path} has the same name and shapes as a layer of branchy_resnet. "
        "Pass a file of the same family."
    )
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("content", [None, b"no model"])
def test_rejects_invalid_files(tmp_path, content):
    path = tmp_path / "none.keras"
    if content:
        path.write_bytes(content)
    with pytest.raises(BranchyError) as caught:
        training.copy_layers(small.model(), path)
    expected = "it is no .keras archive" if content else "There is no file"
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_takes_a_whole_baseline_and_copies_it(shallow, baseline, tmp_path):
    model = exits.baseline(resnet(20))
    taken = transfer.read_baseline(model, baseline)
    transfer.take_baseline(model, taken, tmp_path / "run" / "baseline.keras")
    np.testing.assert_array_equal(
        model(IMAGES, training=False), shallow(IMAGES, training=False)["exit_3"]
    )
    assert (tmp_path / "run" / "baseline.keras").read_bytes() == baseline.read_bytes()


def test_takes_the_trunk_of_other_exits_without_copying_it(shallow, tmp_path):
    path = tmp_path / "model.keras"
    shallow.save(path)
    model = exits.baseline(branchy_resnet((16, 16, 3), 5, depth=20, exits="paper"))
    taken = transfer.read_baseline(model, path)
    transfer.take_baseline(model, taken, tmp_path / "run" / "baseline.keras")
    np.testing.assert_array_equal(
        model(IMAGES, training=False), shallow(IMAGES, training=False)["exit_3"]
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (lambda: resnet(26), "stack_1_block_4_1_conv"),
        (lambda: resnet(14), "stack_1_block_3_1_conv"),
        (lambda: resnet(20, classes=6), "logits"),
    ],
    ids=["deeper", "shallower", "more classes"],
)
def test_rejects_the_baseline_of_another_model(model, layer, baseline):
    plain = exits.baseline(model())
    before = plain.get_weights()
    with pytest.raises(BranchyError) as caught:
        transfer.read_baseline(plain, baseline)
    assert str(caught.value) == (
        f"{baseline} does not match branchy_resnet_baseline: layer {layer!r} is missing "
        "in one of them or has another shape. Pass the baseline.keras of a run with the "
        "same model."
    )
    for ours, theirs in zip(plain.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_reads_a_network_inside_a_sequential_model(tmp_path):
    """As transfer learning often writes it, preprocessing first."""

    def network() -> keras.Model:
        values = keras.Input((6,))
        x = keras.layers.Dense(5, activation="relu", name="hidden")(values)
        top = keras.layers.Dense(3, activation="softmax", name="top")
        inner = keras.Model(values, top(x), name="inner")
        return keras.Sequential([keras.Input((6,)), keras.layers.Rescaling(0.5), inner])

    source = network()
    source.save(tmp_path / "source.keras")
    for read in ("copy", "baseline"):
        model = exits.add_exits(network(), {"hidden": exits.linear_head})
        if read == "copy":
            fresh = training.copy_layers(model, tmp_path / "source.keras")
            assert fresh == ["exit_1"]
        else:
            alone = exits.baseline(model)
            taken = transfer.read_baseline(alone, tmp_path / "source.keras")
            transfer.take_baseline(alone, taken, tmp_path / "run" / "baseline.keras")
        for name in ("hidden", "top"):
            theirs = source.layers[-1].get_layer(name).get_weights()
            for ours, given in zip(
                model.get_layer(name).get_weights(), theirs, strict=True
            ):
                np.testing.assert_array_equal(ours, given)
