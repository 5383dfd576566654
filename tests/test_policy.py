from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import small

import branchy_tf
from branchy_tf import files, graphs, policy, thresholds, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import confidence
from branchy_tf.policy import SMALLEST, ExitPolicy


def test_only_scores_below_the_threshold_exit_early():
    scores = np.float32([[0.1, 9, 9], [0.2, 0.1, 9], [0.2, 0.3, 9], [0.5, 0.5, 0]])
    assert thresholds.exit_indices(scores, [0.2, 0.3]).tolist() == [0, 1, 2, 2]


def test_no_row_exits_at_zero_and_all_at_infinity():
    scores = np.float32([[0, 0], [1, 0], [1e30, 0]])
    assert thresholds.exit_indices(scores, [0]).tolist() == [1, 1, 1]
    assert thresholds.exit_indices(scores, [np.inf]).tolist() == [0, 0, 0]


def test_nan_does_not_exit_early():
    assert thresholds.exit_indices(np.float32([[np.nan, 0]]), [np.inf]).tolist() == [1]


def test_each_row_may_have_its_own_thresholds():
    scores = np.float32([[0.5, 0], [0.5, 0]])
    assert thresholds.exit_indices(scores, [[0.4], [0.6]]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.1], "expected 2"),
        ([0.1, 0.2, 0.3], "expected 2"),
        ([0.1, -0.2], "received -0.2"),
        ([0.1, float("nan")], "received nan"),
        (0.1, "expected 2"),
        (["a", "b"], "must be numbers"),
        (np.zeros((3, 2)), "3 rows for 4 examples"),
        ([[0.1], [0.2, 0.3]], "must be numbers"),
    ],
)
def test_rejects_invalid_thresholds(given, message):
    with pytest.raises(BranchyError, match=message):
        thresholds.check(given, num_exits=3, rows=4)


def test_within_tolerance_are_rows_that_reach_an_exit_close_to_its_threshold():
    scores = np.float32([[0.2, 9], [0.2001, 9], [0.3, 9], [0.1, 9]])
    assert thresholds.within_tolerance(scores, [0.20005], 1e-4).tolist() == [1, 1, 0, 0]
    assert not thresholds.within_tolerance(scores, [0], 1e-4).any()
    assert not thresholds.within_tolerance(scores, [np.inf], 1e-4).any()
    # The row takes the first exit, so its score at the second does not matter.
    scores = np.float32([[0.1, 0.5, 9], [0.9, 0.5, 9]])
    assert thresholds.within_tolerance(scores, [0.2, 0.5], 1e-4).tolist() == [False, True]


@pytest.mark.parametrize("exit_index", [0, 1, 2])
def test_forcing_sends_every_row_to_one_exit(exit_index):
    scores = np.float32([[0, 0, 0], [1, 2, 3], [1e30, 1e30, 0]])
    limits = thresholds.forcing(exit_index, 3)
    assert limits.dtype == np.float32
    assert set(thresholds.exit_indices(scores, limits)) == {exit_index}


def test_many_vectors_match_one_by_one():
    random = np.random.default_rng(0)
    scores = random.random((50, 4), np.float32)
    scores[3, 1], scores[4, 0] = np.nan, np.inf
    vectors = random.random((7, 3), np.float32)
    vectors[0], vectors[1], vectors[2, 0] = 0, np.inf, scores[5, 0]
    together = thresholds.exits_by_vector(scores, vectors)
    assert together.dtype == np.int32
    alone = [thresholds.exit_indices(scores, vector) for vector in vectors]
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(together)) == 4


@pytest.mark.parametrize(
    "given",
    [[1.0], [1, -1], [1, 0], [1, np.nan], [1, np.inf], [1, 1e-40], [1, 1e39], "12", 3],
)
def test_rejects_invalid_temperatures(given):
    if given == "12":
        given = ["one", "two"]
    with pytest.raises(BranchyError, match="2 positive numbers"):
        thresholds.check_temperatures(given, 2)


def test_temperatures_default_to_one():
    assert thresholds.check_temperatures(None, 3) == (1.0, 1.0, 1.0)


DENORMAL = 1.4e-45


def test_policy_has_one_normal_form():
    plain = ExitPolicy(thresholds=[0.1, 2])
    assert plain == ExitPolicy(
        criterion="entropy", thresholds=np.array([0.1, 2.0]), temperatures=(1, 1, 1)
    )
    assert plain == ExitPolicy(thresholds=[[0.1, 2]])
    assert hash(plain) == hash(ExitPolicy(thresholds=(0.1, 2.0)))
    assert plain.thresholds == (0.1, 2.0)
    assert plain.temperatures == (1.0, 1.0, 1.0)
    assert plain.num_exits == 3
    assert plain != plain.replace(criterion="margin")
    assert plain != plain.replace(temperatures=[1, 1, 2])
    # Equality ignores the weights it was calibrated for.
    assert plain == plain.replace(weights="ab")
    with pytest.raises(AttributeError):
        plain.criterion = "margin"
    assert ExitPolicy(thresholds=[]).num_exits == 1
    assert ExitPolicy.final_exit_only(3) == ExitPolicy(thresholds=[0, 0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thresholds": [-0.1]}, "received -0.1"),
        ({"thresholds": [-1e-40]}, "at least 0"),
        ({"thresholds": [math.nan]}, "received nan"),
        ({"thresholds": ["low"]}, "must be numbers"),
        ({"thresholds": 0.1}, "has shape"),
        ({"thresholds": [[0.1], [0.2]]}, "2 rows"),
        ({"thresholds": [0.1], "criterion": "mood"}, "entropy, max_prob, margin"),
        ({"thresholds": [0.1], "temperatures": [1]}, "2 positive numbers"),
        ({"thresholds": [0.1], "temperatures": [1, 0]}, "2 positive numbers"),
    ],
)
def test_rejects_invalid_policies(given, message):
    with pytest.raises(BranchyError, match=message):
        ExitPolicy(**given)


def test_policy_is_for_a_number_of_exits():
    assert ExitPolicy(thresholds=[0.1]).check_exits(2) == ExitPolicy(thresholds=[0.1])
    with pytest.raises(
        BranchyError, match="expected 2, one for each exit but the final one"
    ):
        ExitPolicy(thresholds=[0.1]).check_exits(3)


def test_policy_decides_exits():
    scores = np.float32([[0.1, 9, 9], [0.2, 0.1, 9], [np.nan, 0.3, 9], [0, 0.1, 9]])
    chosen = ExitPolicy(thresholds=[0.2, 0.3])
    assert chosen.exit_indices(scores).tolist() == [0, 1, 2, 0]
    assert chosen.exit_indices(scores).dtype == np.int32
    assert ExitPolicy(thresholds=[0, math.inf]).exit_indices(scores).tolist() == [1] * 4


def test_policy_survives_its_file(tmp_path):
    path = tmp_path / "thresholds.json"
    chosen = ExitPolicy(
        criterion="margin",
        thresholds=[0.1, math.inf],
        temperatures=[2, 1, 0.5],
        weights="ab",
    )
    chosen.save(path)
    for found in (
        ExitPolicy.load(path),
        ExitPolicy.of(path),
        ExitPolicy.of(str(path)),
        thresholds.Calibration.read(path, ["exit_1", "exit_2", "exit_3"], "ab").policy,
    ):
        assert found == chosen
        assert found.weights == "ab"


def test_converts_to_a_policy():
    known = zoo.calibration("branchy_lenet", "mnist")
    assert ExitPolicy.of(known) is known.policy
    assert ExitPolicy.of(known.policy) is known.policy
    assert ExitPolicy.of([0.1]) == ExitPolicy(thresholds=[0.1])
    with pytest.raises(BranchyError, match="There is no file"):
        ExitPolicy.of("nothing.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criterion": "mood"}, "thresholds.json: Unknown criterion 'mood'"),
        ({"thresholds": [0.1, -1]}, "thresholds.json: `thresholds` must be at least 0"),
        ({"temperatures": [1]}, "thresholds.json: `temperatures` must be 2"),
        ({"thresholds": [DENORMAL]}, "TensorFlow treats it as 0"),
        ({"thresholds": None}, "thresholds.json lacks thresholds"),
    ],
)
def test_rejects_a_file_without_a_valid_policy(tmp_path, change, message):
    path = tmp_path / "thresholds.json"
    ExitPolicy(thresholds=[0.1]).save(path)
    value = files.read_json(path) | change
    files.write_json(path, {k: v for k, v in value.items() if v is not None})
    with pytest.raises(BranchyError, match=message):
        ExitPolicy.load(path)


def test_criterion_names_match_the_criteria():
    assert tuple(confidence.CRITERIA) == policy.CRITERION_NAMES


def test_denormal_numbers_are_zeros_as_in_tensorflow():
    tiny = np.float32([0, DENORMAL, 1e-40, SMALLEST, np.inf, np.nan, -1e-40])
    expected = np.float32([0, 0, 0, SMALLEST, np.inf, np.nan, 0])
    np.testing.assert_array_equal(policy.flushed(tiny), expected)
    assert ExitPolicy(thresholds=[1e-40]).thresholds == (0.0,)
    assert ExitPolicy(thresholds=[SMALLEST]).thresholds == (SMALLEST,)
    assert thresholds.check([DENORMAL], 2).tolist() == [[0]]
    # No score is below a threshold of 0.
    scores = np.float32([[DENORMAL, 1], [-1e-40, 1], [0, 1]])
    assert ExitPolicy(thresholds=[0]).exit_indices(scores).tolist() == [1, 1, 1]
    assert ExitPolicy(thresholds=[SMALLEST]).exit_indices(scores).tolist() == [0, 0, 0]


@pytest.mark.parametrize("criterion", policy.CRITERION_NAMES)
def test_numpy_and_the_graph_agree_on_tiny_scores(criterion):
    leading = keras.Input((1,), name="leading")
    first = {"kernel_initializer": keras.initializers.Constant([[1, 0, 0]])}
    outputs = {
        name: keras.layers.Dense(3, name=name, **first)(leading)
        for name in ("exit_1", "exit_2")
    }
    chosen = ExitPolicy(criterion=criterion, thresholds=[1])
    predictor = branchy_tf.EarlyExitPredictor(keras.Model(leading, outputs), chosen)
    # Scores of all magnitudes down to 0; only NumPy keeps denormal ones.
    values = np.float32([0, 5, 20, 60, 80, 85, 88, 90, 95, 100, 103, 110])[:, None]
    _, scores = predictor.all_exits(values)
    for limit in (0, DENORMAL, 1e-40, SMALLEST, 1e-37, 1e-20, 1, np.inf):
        taken = predictor.predict(values, [limit]).exits
        decided = chosen.replace(thresholds=[limit]).exit_indices(scores)
        assert decided.tolist() == taken.tolist(), limit
    assert 0 < (predictor.predict(values, [SMALLEST]).exits == 0).mean() < 1


def test_finds_rows_misrouted_beyond_rounding():
    chosen = ExitPolicy(thresholds=[0.5])
    scores = np.column_stack([np.linspace(0, 1, 101), np.zeros(101)])
    exits = chosen.exit_indices(scores)
    assert not len(chosen.misrouted(scores, exits, 1e-3))
    # One row is at the threshold.
    turned = exits.copy()
    turned[50] = 0
    assert not len(chosen.misrouted(scores, turned, 1e-3))
    turned[20] = 1
    assert chosen.misrouted(scores, turned, 1e-3).tolist() == [20]
    # With all scores close to the threshold, some rows may change exits, but not all.
    scores = np.full((100, 2), 0.5)
    few = np.arange(100) >= 5
    assert not len(chosen.misrouted(scores, few.astype(int), 1e-3))
    many = np.arange(100) >= 6
    assert chosen.misrouted(scores, many.astype(int), 1e-3).tolist() == [*range(6)]


@pytest.fixture(scope="module")
def alexnet():
    return zoo.branchy_alexnet(weights="cifar10")


def test_every_spelling_gives_the_same_answers(tmp_path):
    model, images = small.model(), small.dataset().train.images
    chosen = ExitPolicy(criterion="margin", thresholds=[0.9], temperatures=[2, 1])
    chosen.save(tmp_path / "thresholds.json")
    expected = branchy_tf.EarlyExitPredictor(model, chosen).predict(images)
    assert 0 < expected.exits.mean() < 1
    for predictor in (
        branchy_tf.EarlyExitPredictor(model, [0.9], "margin", [2, 1]),
        branchy_tf.EarlyExitPredictor(
            model, thresholds=[0.9], criterion="margin", temperatures=[2, 1]
        ),
        branchy_tf.EarlyExitPredictor(model, tmp_path / "thresholds.json"),
        branchy_tf.EarlyExitPredictor(model, str(tmp_path / "thresholds.json")),
    ):
        assert predictor.policy == chosen
        found = predictor.predict(images)
        np.testing.assert_array_equal(found.exits, expected.exits)
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Pass either a policy"),
        ({"policy": [0.1], "thresholds": [0.1]}, "either a policy"),
        (
            {"policy": ExitPolicy(thresholds=[0.1]), "criterion": "margin"},
            "has its own criterion",
        ),
        ({"policy": ExitPolicy(thresholds=[0.1, 0.2])}, "expected 1"),
        ({"policy": [0.1, 0.2], "temperatures": [1, 1]}, "expected 1, for exit_1"),
        ({"policy": ExitPolicy(thresholds=[0.1], weights="ab")}, "for other weights"),
        ({"policy": zoo.calibration("branchy_lenet", "mnist")}, "for other weights"),
        ({"policy": "no_such/thresholds.json"}, "There are no thresholds"),
    ],
)
def test_rejects_a_policy_that_does_not_fit(arguments, message):
    with pytest.raises(BranchyError, match=message):
        branchy_tf.EarlyExitPredictor(small.model(), **arguments)


def test_warns_of_plain_thresholds_for_weights_with_temperatures(alexnet):
    known = zoo.calibration("branchy_alexnet", "cifar10")
    with pytest.warns(UserWarning, match=r"'cifar10' of branchy_alexnet") as caught:
        branchy_tf.EarlyExitPredictor(alexnet, known.thresholds)
    (ours,) = [warning for warning in caught if warning.category is UserWarning]
    assert ours.filename == __file__
    assert "\n" not in str(ours.message)


@pytest.mark.filterwarnings("error::UserWarning")
def test_does_not_warn_otherwise(alexnet):
    known = zoo.calibration("branchy_alexnet", "cifar10")
    assert known.policy.weights == graphs.fingerprint(alexnet)
    assert branchy_tf.EarlyExitPredictor(alexnet, known).policy is known.policy
    branchy_tf.EarlyExitPredictor(alexnet, known.thresholds, None, known.temperatures)
    branchy_tf.EarlyExitPredictor(small.model(), [0.1])
    # Further training changes the weights.
    alexnet.weights[0].assign_add(alexnet.weights[0] * 0 + 1e-3)
    branchy_tf.EarlyExitPredictor(alexnet, known.thresholds)


def test_save_refuses_what_is_no_file(tmp_path):
    made = ExitPolicy(thresholds=[0.1])
    (tmp_path / "file").touch()
    for path, message in (
        ("gs://bucket/policy.json", "is a URL"),
        (tmp_path, "is a folder; expected a file"),
        (tmp_path / "file" / "policy.json", "is a file; expected a folder"),
    ):
        with pytest.raises(BranchyError, match=message):
            made.save(path)
