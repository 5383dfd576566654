"""Bottlenecks at a cut: part of the network, and cut in the middle."""

from __future__ import annotations

import contextlib

import commands
import keras
import numpy as np
import odd_models
import pytest
import small

from branchy_tf import EarlyExitPredictor, ExitPolicy, exits, files, stages, units
from branchy_tf.errors import BranchyError


def images(rows: int = 60) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (rows, 8, 8, 1), np.uint8)


def test_the_encoder_belongs_to_the_front_and_the_decoder_to_the_tail():
    model = units.add_bottlenecks(small.model(), {"exit_1": 2})
    front, tail = units.cut(model, ["exit_1"])
    assert [tuple(t.shape) for t in front.carried] == [(None, 2)]
    names = [{layer.name for layer in unit.model.layers} for unit in (front, tail)]
    assert "exit_1_encoder_1" in names[0] - names[1]
    assert "exit_1_decoder_1" in names[1] - names[0]
    # As whole stages, the encoder is computed only for rows that go on.
    first, second = stages.split(model)
    assert first.encoder is None
    assert "exit_1_encoder_1" in {layer.name for layer in second.model.layers}


def test_starts_as_a_projection():
    plain = small.model()
    # A layer of 6 units behind one of 5 channels loses one direction of six.
    model = units.add_bottlenecks(plain, {"exit_1": 5})
    encoder, decoder = (
        model.get_layer(f"exit_1_{part}_1").kernel.numpy()
        for part in ("encoder", "decoder")
    )
    np.testing.assert_allclose(encoder.T, decoder)
    np.testing.assert_allclose(decoder @ encoder, np.eye(5), atol=1e-6)
    exit_1 = plain(images())["exit_1"]
    np.testing.assert_array_equal(model(images())["exit_1"], exit_1)


@pytest.mark.parametrize("builder", odd_models.ALL)
def test_units_of_odd_models_with_bottlenecks_equal_the_whole_model(builder):
    model, inputs = odd_models.build(builder)
    *early, _ = exits.exit_names(model)
    narrow = 0
    for name in early:
        # Of some, only the images cross the cut, or what is narrow already.
        with contextlib.suppress(BranchyError):
            model = units.add_bottlenecks(model, {name: 2})
            narrow += 1
    assert narrow
    expected = model(keras.tree.pack_sequence_as(model.input, inputs), training=False)
    current, found = inputs, {}
    for unit in units.cut(model, early):
        outputs = unit.model(current, training=False)
        found |= {name: outputs[name] for name in unit.exits}
        current = [outputs[f"features_{i + 1}"] for i in range(len(unit.carried))]
    for name, logits in found.items():
        np.testing.assert_array_equal(logits, expected[name])


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_exported_units_send_narrow_features_and_answer_the_same(tmp_path, freeze):
    model = units.add_bottlenecks(small.model(), {"exit_1": 2})
    plain = EarlyExitPredictor(model, ExitPolicy(thresholds=[0.0]))
    _, scores = plain.all_exits(images())
    policy = ExitPolicy(thresholds=[float(np.median(scores[:, 0]))])
    parts = units.cut(model, ["exit_1"], ["device", "cloud"])
    device, _ = units.export(parts, tmp_path, policy, codec="none", freeze=freeze)
    with units.Cascade(tmp_path / "cascade.yaml") as cascade:
        answer = cascade.predict(images())
    expected = EarlyExitPredictor(model, policy).predict(images())
    assert len(set(expected.exits)) == 2
    np.testing.assert_array_equal(answer.exits, expected.exits)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-6)
    described = files.read_json(device / "assets.extra/branchy.json")
    assert described["features"]["features_1"]["shape"] == [None, 2]
    # 64 x 6 of the layer, 6 x 3 of the exit and 6 x 2 of the encoder.
    assert described["macs"] == [64 * 6 + 6 * 3 + 6 * 2]


def test_a_cut_may_add_bottlenecks():
    model, inputs = odd_models.build(odd_models.many_exits)
    parts = units.cut(model, ["exit_2", "exit_4"], bottleneck=[None, 3])
    assert [tensor.shape[-1] for tensor in parts[1].carried] == [3]
    assert parts[0].carried[0].shape[-1] > 3
    assert set(units.as_network(parts)(inputs)) == set(exits.exit_names(model))


def test_train_knows_the_bottleneck_and_cut_finds_it(mnist_5k, tmp_path):
    small.write_npz(tmp_path / "digits.npz", mnist_5k)
    run = tmp_path / "run"
    flags = [
        "--model=branchy_lenet", f"--dataset={tmp_path}/digits.npz", "--epochs=1",
        "--bottleneck=2", f"--run_dir={run}",
    ]  # fmt: skip
    trained = commands.run("train", *flags)
    assert trained.status == 0, trained.stderr
    assert "--bottleneck=2" in (run / "train.flags").read_text()
    model = keras.models.load_model(run / "model.keras")
    kernel = model.get_layer("exit_1_encoder_1").kernel.numpy().reshape(5, 2)
    # It was trained: no longer orthogonal.
    assert np.abs(kernel.T @ kernel - np.eye(2)).max() > 1e-4
    front, _ = units.cut(model, ["exit_1"])
    assert [tuple(t.shape) for t in front.carried] == [(None, 30, 30, 2)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: units.add_bottlenecks(m, {"exit_2": 2}), "Known: exit_1"),
        (lambda m: units.add_bottlenecks(m, {"exit_1": 0}), "at least 1"),
        (lambda m: units.add_bottlenecks(m, {"exit_1": 6}), "more than 6 channels"),
        (
            lambda m: units.add_bottlenecks(
                units.add_bottlenecks(m, {"exit_1": 3}), {"exit_1": 2}
            ),
            "already has a bottleneck after exit_1",
        ),
        (lambda m: units.cut(m, "exit_1", bottleneck=[2, 2]), "2 entries for 1 cuts"),
        (
            lambda m: units.cut(m, "exit_1", sends="image", bottleneck=[2]),
            "where the image is sent",
        ),
        (lambda m: units.parse_bottlenecks("wide", m), "cannot be read at 'wide'"),
        (lambda m: units.parse_bottlenecks("exit_3=4", m), "Known: exit_1"),
    ],
)
def test_rejects_bottlenecks_that_cannot_be(make, said):
    with pytest.raises(BranchyError) as caught:
        make(small.model())
    assert said in str(caught.value)
