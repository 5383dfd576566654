from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.exits import confidence
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.saved_model import export
from branchy_tf.saved_model.session import SessionModel

LOGITS = np.random.default_rng(0).normal(scale=4, size=(50, 7)).astype("float32")


def score(logits, criterion):
    probabilities, scores = confidence.probabilities_and_scores(logits, criterion)
    return np.asarray(probabilities), np.asarray(scores)


def test_probabilities_are_the_softmax():
    np.testing.assert_allclose(
        score(LOGITS, "entropy")[0], special.softmax(LOGITS, axis=-1), rtol=1e-5
    )


def test_entropy_is_in_nats():
    expected = stats.entropy(special.softmax(LOGITS.astype("float64"), axis=-1), axis=-1)
    np.testing.assert_allclose(score(LOGITS, "entropy")[1], expected, rtol=1e-4)


def test_max_prob_and_margin():
    ordered = np.sort(special.softmax(LOGITS.astype("float64"), axis=-1))
    _, scores = score(LOGITS, "max_prob")
    np.testing.assert_allclose(scores, 1 - ordered[:, -1], rtol=1e-4, atol=1e-6)
    _, scores = score(LOGITS, "margin")
    expected = 1 - (ordered[:, -1] - ordered[:, -2])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
def test_scores_are_never_negative_and_finite_for_extreme_logits(criterion):
    _, scores = score(np.float32([[1e4, 0, -1e4], [0, 0, 0], [80, 80, 0]]), criterion)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores[0] < 1e-6 < scores[1]


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
def test_nan_logit_scores_nan(criterion):
    _, scores = score(np.float32([[np.nan, 1, 2], [3, 1, 2]]), criterion)
    assert np.isnan(scores[0])
    assert not np.isnan(scores[1])


def test_low_precision_logits_are_scored_in_float32():
    logits = keras.ops.cast(LOGITS, "float16")
    probabilities, scores = confidence.probabilities_and_scores(logits)
    assert probabilities.dtype == scores.dtype == "float32"


def test_unknown_criterion_error_lists_the_known():
    with pytest.raises(BranchyError, match="entropy, max_prob, margin"):
        score(LOGITS, "mood")


INF = np.inf
# Invalid logits: NaN, +inf, or a row without any class.
NO_PREDICTION = [
    [np.nan, 1, 2], [INF, 1, 2], [INF, INF, INF], [-INF, INF, 0], [-INF, -INF, -INF],
    [np.nan, -INF, INF], [np.nan, -INF, -INF],
]  # fmt: skip


def reference(logits, criterion, temperature=1.0):
    """The score of one row in float64, by the formula of the paper."""
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits.max()):
        return np.nan
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    if criterion == "entropy":
        return sum(-q * np.log(q) for q in p if q > 0)
    *_, second, best = np.sort([0, *p])
    return 1 - best if criterion == "max_prob" else 1 - (best - second)


def odd_logits(seed: int) -> np.ndarray:
    """[8, classes] of any scale, with classes masked out."""
    random = np.random.default_rng(seed)
    classes = int(random.choice([1, 2, 3, 10, 10_000]))
    logits = random.normal(size=(8, classes)) * 10.0 ** random.integers(-3, 38)
    logits[random.random(logits.shape) < random.choice([0, 0.3, 0.9])] = -np.inf
    # At least one class stays.
    logits[np.arange(8), random.integers(classes, size=8)] = random.normal()
    return np.clip(logits, np.finfo(np.float32).min, None, where=logits > -np.inf,
                   out=logits).astype(np.float32)  # fmt: skip


def at_exit_1(logits, criterion, temperature):
    """Probabilities and scores at an exit with this temperature."""
    policy = ExitPolicy(
        criterion=criterion, thresholds=[0.1], temperatures=[temperature, 1.0]
    )
    return confidence.exit_answer(logits, policy, 0)


def as_graph(criterion, temperature, classes=None):
    """The scores in an optimised graph, run as in a server."""

    @tf.function(input_signature=[tf.TensorSpec([None, classes], tf.float32)])
    def run(logits):
        return at_exit_1(logits, criterion, temperature)

    return run


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
@pytest.mark.parametrize("temperature", [1.0, 1e-30, 0.05, 20.0, 1e30])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "graph"])
def test_scores_follow_the_formula_for_logits_of_any_kind(criterion, temperature, kind):
    for seed in range(12):
        logits = odd_logits(seed)
        given = tf.constant(logits) if kind == "tensor" else logits
        ask = (
            as_graph(criterion, temperature, logits.shape[-1])
            if kind == "graph"
            else lambda x: at_exit_1(x, criterion, temperature)
        )
        probabilities, scores = ask(given)
        expected = [reference(row, criterion, temperature) for row in logits]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, rtol=1e-5)
        assert (np.asarray(probabilities)[logits == -np.inf] == 0).all()


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("row", NO_PREDICTION)
def test_invalid_logits_score_nan_and_never_exit_early(criterion, temperature, row):
    logits = np.float32([row, [3, 1, 2]])
    for ask in (
        lambda x: at_exit_1(x, criterion, temperature),
        as_graph(criterion, temperature, 3),
    ):
        probabilities, scores = ask(logits)
        assert np.isnan(scores[0])
        assert np.isnan(np.asarray(probabilities[0])).any()
        assert not thresholds.exits_early(np.asarray(scores), np.float32(np.inf))[0]
        assert np.isfinite(scores[1])


@pytest.mark.parametrize(
    ("row", "entropy", "max_prob", "margin"),
    [
        ([5], 0, 0, 0),
        ([-1e38], 0, 0, 0),
        ([-INF, 2, -INF], 0, 0, 0),
        ([7, 7, -INF], np.log(2), 0.5, 1),
        ([0, 0, 0, 0], np.log(4), 0.75, 1),
        ([3e38, 3e38, -3e38], np.log(2), 0.5, 1),
        ([0] * 10_000, np.log(10_000), 1 - 1e-4, 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_at_the_edges(row, entropy, max_prob, margin, dtype):
    for criterion, expected in zip(
        ("entropy", "max_prob", "margin"), (entropy, max_prob, margin), strict=True
    ):
        _, scores = score(np.array([row], dtype), criterion)
        np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
def test_masked_classes_in_short_formats(dtype, criterion):
    logits = keras.ops.cast([[1.5, -2.0, -INF], [-INF, -INF, 60000.0]], dtype)
    _, scores = at_exit_1(logits, criterion, 2.0)
    expected = [
        reference(row, criterion, 2.0)
        for row in np.array(keras.ops.cast(logits, "float32"))
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
def test_masked_classes_exit_early_in_an_export(criterion, tmp_path):
    keras.utils.set_random_seed(4)
    values = keras.Input((5,), name="values")
    # Inputs and weights must not be NaN, so each row looks up what is added to its
    # logits: NaN is the sum of two infinities.
    kind = keras.Input((1,), dtype="uint8", name="kind")
    added = np.zeros((256, 4), "float32")
    added[0, 2:] = added[1, 1:] = added[2] = -INF
    added[3, 0] = added[4, 1] = INF
    subtracted = np.zeros((256, 4), "float32")
    subtracted[4, 1] = -INF
    extras = [
        keras.layers.Flatten()(keras.layers.Embedding(256, 4, weights=[table])(kind))
        for table in (added, subtracted)
    ]
    sums = {
        name: keras.layers.Add(name=name)([keras.layers.Dense(4)(values), *extras])
        for name in ("exit_1", "exit_2")
    }
    model = keras.Model([values, kind], sums)
    policy = ExitPolicy(criterion=criterion, thresholds=[0.4], temperatures=[0.5, 2.0])
    folder = export(model, tmp_path, "masked", policy)
    rows = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")
    kinds = np.arange(6, dtype="uint8")[:, None]
    feed = {"values": rows, "kind": kinds}
    logits = [np.asarray(z) for z in model([rows, kinds]).values()]
    expected = [
        [reference(row, criterion, t) for row in z]
        for z, t in zip(logits, (0.5, 2.0), strict=True)
    ]
    session = SessionModel(folder)
    try:
        every = session.run("all_exits", feed)["scores"]
        limits = np.float32([[INF]])
        answer = session.run("early_exit", feed | {"thresholds": limits})
    finally:
        session.close()
    np.testing.assert_allclose(every, np.transpose(expected), rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(answer["exit"], [0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(np.isnan(answer["score"]), [0, 0, 1, 1, 1, 0])
    predictor = EarlyExitPredictor(model, [INF], criterion, [0.5, 2.0])
    mine = predictor.predict(feed)
    np.testing.assert_array_equal(mine.exits, answer["exit"])
    np.testing.assert_allclose(mine.scores, answer["score"], atol=2e-6)
