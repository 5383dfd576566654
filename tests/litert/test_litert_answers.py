"""A LiteRT version answers as its Keras model does."""

from __future__ import annotations

import keras
import numpy as np
import odd_models
import pytest
from keras import layers

from branchy_tf import EarlyExitPredictor, ExitPolicy, exits, litert, versions
from branchy_tf.errors import BranchyError
from branchy_tf.litert import composing
from branchy_tf.litert.engine import EARLY_EXIT

MODELS = [
    odd_models.skip_across_the_cut,
    odd_models.several_inputs,
    odd_models.exits_off_exits,
    odd_models.attention,
    odd_models.many_exits,
]
TOLERANCE = 1e-4


def splitting(scores: np.ndarray) -> list[float]:
    """Thresholds in the widest gap between the scores of each exit."""
    ordered = np.sort(scores[:, :-1], axis=0)
    below = np.diff(ordered, axis=0).argmax(axis=0)
    gates = np.arange(ordered.shape[1])
    return ((ordered[below, gates] + ordered[below + 1, gates]) / 2).tolist()


class Pair:
    """A version and its Keras model, for the same rows."""

    def __init__(self, model, policy, folder) -> None:
        self.version = litert.export(model, folder, "net", policy)
        self.ours = EarlyExitPredictor(self.version)
        self.theirs = EarlyExitPredictor(model, policy)

    def check(self, batch, limits=None) -> np.ndarray:
        """Compares a batch, and each row alone; returns the exits.

        Args:
            batch: rows by input name.
            limits: thresholds; default: some that part the rows.
        """
        if limits is None:
            limits = splitting(self.theirs.all_exits(batch)[1])
        expected = self.theirs.predict(batch, thresholds=limits)
        together = self.ours.predict(batch, thresholds=limits)
        rows = [
            self.ours.predict(
                {n: a[i : i + 1] for n, a in batch.items()}, thresholds=limits
            )
            for i in range(len(expected))
        ]
        for exit_indices in (together.exits, np.concatenate([r.exits for r in rows])):
            assert exit_indices.tolist() == expected.exits.tolist()
        for field in ("probabilities", "scores"):
            wanted = getattr(expected, field)
            alone = np.concatenate([getattr(row, field) for row in rows])
            np.testing.assert_allclose(getattr(together, field), wanted, atol=TOLERANCE)
            np.testing.assert_allclose(alone, wanted, atol=TOLERANCE)
        return expected.exits


@pytest.mark.parametrize("builder", MODELS, ids=lambda b: b.__name__)
def test_odd_models_answer_as_in_keras(builder, tmp_path):
    model, arrays = odd_models.build(builder)
    number = len(model.outputs)
    policy = ExitPolicy(thresholds=[0.5] * (number - 1))
    pair = Pair(model, policy, tmp_path)
    names = list(versions.describe(pair.version).inputs)
    batch = dict(zip(names, arrays, strict=True))
    assert len(set(pair.check(batch))) > 1, "the rows part"
    for k in range(number):
        forced = [np.inf if n >= k else 0 for n in range(number - 1)]
        assert set(pair.check(batch, forced)) == {k}


def masked(mask: float = 0.0) -> keras.Model:
    """Two exits over four numbers; `mask` is added to the logits of the last class."""
    keras.utils.set_random_seed(1)
    values = keras.Input((4,), name="values")
    shift = keras.ops.convert_to_tensor([0.0, 0.0, 0.0, 0.0, mask])

    def head(features, name):
        return layers.Identity(name=name)(layers.Dense(5)(features) + shift)

    x = layers.Dense(8, activation="relu", name="one")(values)
    outputs = {"exit_1": head(x, "exit_1")}
    x = layers.Dense(8, activation="relu", name="two")(x)
    return keras.Model(values, outputs | {"exit_2": head(x, "exit_2")}, name="masked")


ROWS = np.random.default_rng(2).normal(size=(12, 4)).astype(np.float32)


@pytest.mark.parametrize("criterion", ["entropy", "max_prob", "margin"])
@pytest.mark.parametrize("mask", [0.0, -np.inf])
def test_every_criterion_with_temperatures_and_masked_classes(criterion, mask, tmp_path):
    temperatures = [0.5, 2.0] if mask else None
    policy = ExitPolicy(criterion=criterion, thresholds=[0.3], temperatures=temperatures)
    model = masked(mask)
    pair = Pair(model, policy, tmp_path)
    assert np.isfinite(pair.ours.all_exits(ROWS)[1]).all()
    assert set(pair.check({"values": ROWS})) == {0, 1}


@pytest.fixture(scope="module", params=["entropy", "max_prob", "margin"])
def engine(request, tmp_path_factory) -> litert.LiteRTEngine:
    """An engine, which checks nothing, and at whose thresholds every row exits first."""
    policy = ExitPolicy(criterion=request.param, thresholds=[np.inf])
    folder = tmp_path_factory.mktemp(request.param)
    return litert.LiteRTEngine(litert.export(masked(), folder, "net", policy))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_never_exits_early(engine, value):
    rows = ROWS.copy()
    rows[3, 2] = value
    limits = {"thresholds": np.float32([[np.inf]])}
    together = engine.early_exit({"values": rows} | limits)["exit"]
    alone = [
        engine.early_exit({"values": rows[i : i + 1]} | limits)["exit"][0]
        for i in range(len(rows))
    ]
    assert together.tolist() == alone == [int(i == 3) for i in range(len(rows))]


@pytest.mark.parametrize("limit", [np.nan, -1.0, 0.0])
def test_thresholds_that_let_no_row_exit(engine, limit):
    limits = {"thresholds": np.float32([[limit]])}
    for rows in (ROWS, ROWS[:1]):
        assert set(engine.early_exit({"values": rows} | limits)["exit"]) == {1}


def test_scores_that_are_nan_never_exit_early(tmp_path):
    """Finite inputs may overflow inside the network."""
    keras.utils.set_random_seed(1)
    values = keras.Input((4,), name="values")
    x = keras.ops.multiply(values, 3e38)
    difference = layers.Dense(5, name="dense")(x - 2 * x + x * 1e30 - x * 1e30)
    outputs = {"exit_1": layers.Identity(name="exit_1")(difference)}
    outputs["exit_2"] = layers.Dense(5, name="exit_2")(values)
    model = keras.Model(values, outputs)
    for criterion in ("entropy", "max_prob", "margin"):
        policy = ExitPolicy(criterion=criterion, thresholds=[np.inf])
        predictor = EarlyExitPredictor(litert.export(model, tmp_path, "net", policy))
        rows = np.full((2, 4), 1e38, np.float32)
        assert predictor.predict(rows).exits.tolist() == [1, 1]
        assert predictor.predict(rows[:1]).exits.tolist() == [1]


def test_no_rows_give_empty_answers(engine):
    empty = {"values": ROWS[:0], "thresholds": np.float32([[1.0]])}
    shapes = {name: value.shape for name, value in engine.early_exit(empty).items()}
    assert shapes == {"probabilities": (0, 5), "exit": (0,), "score": (0,)}
    assert engine.all_exits(empty)["probabilities"].shape == (0, 2, 5)
    assert engine.logits(empty).shape == (0, 2, 5)


def test_each_row_may_have_its_own_thresholds(engine):
    limits = np.float32([[0], [np.inf], [np.nan]] * 4)
    found = engine.early_exit({"values": ROWS, "thresholds": limits})
    assert found["exit"].tolist() == [1, 0, 1] * 4


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_inputs_keep_their_dtype(dtype, tmp_path):
    keras.utils.set_random_seed(0)
    values = keras.Input((6,), dtype=dtype, name="values")
    x = layers.Dense(4, activation="relu")(keras.ops.cast(values, "float32") / 10.0)
    outputs = {"exit_1": exits.logits_head(x, 3, "exit_1")}
    outputs["exit_2"] = exits.logits_head(layers.Dense(4)(x), 3, "exit_2")
    model = keras.Model(values, outputs)
    pair = Pair(model, ExitPolicy(thresholds=[0.9]), tmp_path)
    rows = np.random.default_rng(0).integers(0, 20, (9, 6)).astype(dtype)
    assert pair.ours._engine.inputs["values"].dtype == dtype
    assert len(set(pair.check({"values": rows}))) == 2


def test_tokens_through_an_embedding(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(11, 6)(tokens)
    outputs = {"exit_1": exits.linear_head(layers.Flatten()(x), 3, "exit_1")}
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(5, 3, activation="relu")(x))
    outputs["exit_2"] = exits.linear_head(x, 3, "exit_2")
    model = keras.Model(tokens, outputs)
    pair = Pair(model, ExitPolicy(thresholds=[0.5]), tmp_path)
    rows = np.random.default_rng(0).integers(0, 11, (9, 7)).astype("int32")
    assert len(set(pair.check({"tokens": rows}))) == 2


def test_a_single_exit_has_no_thresholds(tmp_path):
    values = keras.Input((4,), name="values")
    model = keras.Model(values, {"exit_1": exits.logits_head(values, 3, "exit_1")})
    version = litert.export(model, tmp_path, "net", ExitPolicy(thresholds=[]))
    predictor = EarlyExitPredictor(version)
    for rows in (ROWS, ROWS[:1]):
        found = predictor.predict(rows)
        expected = keras.ops.softmax(model(rows)["exit_1"])
        np.testing.assert_allclose(found.probabilities, expected, atol=TOLERANCE)
        assert set(found.exits) == {0}


def test_the_whole_graph_is_a_chain_of_branches_of_built_in_operators(tmp_path):
    model, _ = odd_models.build(odd_models.many_exits)
    number = len(model.outputs)
    version = litert.export(model, tmp_path, "net", [0.5] * (number - 1))
    content = (version / EARLY_EXIT).read_bytes()
    found = composing.operators(content)
    assert "IF" in found
    assert all(name.isupper() for name in found)


def test_int8_refuses_infinite_logits(tmp_path):
    labels = np.arange(12) % 4
    with pytest.raises(BranchyError, match=r"masked classes.*--quantize=dynamic"):
        litert.export(
            masked(-np.inf), tmp_path, "net", [0.5],
            quantize="int8", images=ROWS, labels=labels, examples=ROWS,
        )  # fmt: skip
    assert not list(tmp_path.glob("net/*"))
    litert.export(
        masked(-np.inf), tmp_path, "net", [0.5],
        quantize="dynamic", images=ROWS, labels=labels, max_accuracy_drop=0.5,
    )  # fmt: skip
