from __future__ import annotations

import json
import sys
import types
from concurrent import futures

import numpy as np
import pretend
import pytest
import small

from branchy_tf import costs
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.tuning import ThresholdTuner

SCORES, LABELS = pretend.rows(30_000)
TEACHING = np.arange(3000)


def client(**options):
    return pretend.Client(SCORES, LABELS, **options)


def taught(asked=None, **options):
    tuner = ThresholdTuner(asked or client(), pretend.MACS, **options)
    tuner.learn(TEACHING)
    return tuner


def test_learns_from_the_full_network_then_lets_rows_leave():
    asked = client()
    tuner = ThresholdTuner(asked, pretend.MACS, seed=1)
    exits = []
    for start in range(0, 20_000, 20):
        rows = np.arange(start, start + 20)
        answer = tuner.predict(rows)
        # Whichever way it asked, these are the labels of the exits it names.
        np.testing.assert_array_equal(answer.labels, LABELS[rows, answer.exits])
        np.testing.assert_array_equal(answer.scores, SCORES[rows, answer.exits])
        assert answer.model_version == 1
        exits.append(answer.exits)
    assert np.all(exits[:30])
    assert tuner.status()["state"] == "tuned"
    late = np.concatenate(exits[-200:])
    assert (late == 0).mean() > 0.2
    agrees = LABELS[np.arange(20_000), np.concatenate(exits)] == LABELS[:20_000, 1]
    assert agrees.reshape(-1, 2000).mean(axis=1).min() >= 0.99
    assert 40 < asked.asked["all_exits"] < 300
    assert asked.asked["predict"] == 1000 - asked.asked["all_exits"]


def test_asks_every_exit_for_a_share_of_the_requests():
    asked = client()
    tuner = taught(asked, share=0.2)
    for row in range(3000, 4000):
        tuner.predict(np.array([row]))
    assert 150 < asked.asked["all_exits"] - 1 < 300


def test_falls_back_at_once_through_a_drift():
    tuner = taught()
    drifted = pretend.Client(*pretend.rows(30_000, seed=2, harm=0.1, factor=0.3))
    tuner._client = drifted
    lost = 0
    for row in range(2000):
        answer = tuner.predict(np.array([row]))
        lost += int(answer.labels[0] != drifted.labels[row, 1])
    status = tuner.status()
    assert status["changes"] == 1
    assert lost <= 20
    # So that the static thresholds break the budget of 20 widely.
    static = taught().thresholds
    kept = (drifted.scores[:2000, 0] >= static[0]) | (
        drifted.labels[:2000, 0] == drifted.labels[:2000, 1]
    )
    assert 2000 - kept.sum() > 150


def test_threads_share_it():
    asked = client()
    tuner = taught(asked, share=0.1)
    before = tuner.status()["rows"]

    def ask(thread):
        for number in range(100):
            rows = np.arange(3) + 3 * (100 * thread + number)
            answer = tuner.predict(rows)
            np.testing.assert_array_equal(answer.labels, LABELS[rows, answer.exits])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert sum(asked.asked.values()) == 801
    # No labelled row was lost or counted twice.
    labelled = 3 * (asked.asked["all_exits"] - 1)
    assert labelled > 100
    assert tuner.status()["rows"] == min(before + labelled, 6000)


def test_rows_that_left_by_older_thresholds_are_no_news():
    tuner = taught()
    older = tuner.thresholds

    class Slow(pretend.Client):
        def predict(self, images, thresholds, **options):
            np.testing.assert_array_equal(thresholds, older)
            # Meanwhile another thread learns more.
            tuner.learn(np.arange(3000, 9000))
            return super().predict(images, thresholds, **options)

    tuner._client = Slow(SCORES, LABELS)
    tuner._strategy._alarm.see = None  # watching would fail
    learn = tuner._strategy.observe
    tuner._strategy.observe = lambda scores, labels: (
        tuner._strategy.forget(), learn(scores, labels),
        setattr(tuner._strategy._alarm, "see", None),
    )  # fmt: skip
    tuner.predict(np.array([1]))
    assert (tuner.thresholds != older).all()


def test_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "state" / "tuner.json"
    with taught(state_file=path) as tuner:
        for row in range(3000, 3400):
            tuner.predict(np.array([row]))
        before = tuner.status()
    asked = client()
    again = ThresholdTuner(asked, pretend.MACS, state_file=path, seed=9)
    assert again.status() == before
    again.predict(np.array([1]))
    assert asked.asked == {"predict": 1, "all_exits": 0}
    assert [p.name for p in path.parent.iterdir()] == ["tuner.json"]


def test_a_killed_one_goes_on_from_its_last_change_of_state(tmp_path):
    path = tmp_path / "tuner.json"
    tuner = taught(state_file=path)
    assert ThresholdTuner(client(), pretend.MACS, state_file=path).thresholds.any()
    tuner._client = pretend.Client(*pretend.rows(300, seed=2, factor=5))
    for row in range(300):
        tuner.predict(np.array([row]))
        if tuner.status()["state"] != "tuned":
            break
    killed = ThresholdTuner(client(), pretend.MACS, state_file=path)
    assert killed.status()["state"] == "suspicious"
    assert not killed.thresholds.any()


def test_learns_anew_with_another_version(tmp_path):
    path = tmp_path / "tuner.json"
    tuner = taught(state_file=path)
    tuner._client = client(version=2)
    tuner.predict(np.array([1]))
    status = tuner.status()
    assert (status["state"], status["model_version"]) == ("learning", 2)
    assert json.loads(path.read_text())["model_version"] == 2
    # Also after a restart.
    again = ThresholdTuner(client(version=3), pretend.MACS, state_file=path)
    again.learn(TEACHING)
    assert again.status()["rows"] == 3000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a JSON list"),
        ('{"criterion": "entropy"}', "no state of a threshold tuner"),
        ("alarm", "damaged"),
        ("rows", "damaged"),
        ("evidence", "damaged"),
        ("policy", "damaged"),
        ("thresholds", "do not follow from its evidence"),
        ("costs", r"written for costs \[1.0, 9.0\]; this tuner has \[1.0, 4.0\]"),
        ("budget", "written for budget 0.9; this tuner has 0.99"),
    ],
)
def test_refuses_a_state_that_is_damaged_or_foreign(tmp_path, content, expected):
    path = tmp_path / "tuner.json"
    taught(state_file=path).close()
    saved = json.loads(path.read_text())
    if content == "alarm":
        del saved["policy"]["alarm"]
    elif content == "evidence":
        saved["policy"]["evidence"] = [None, {"scores": 1e300}]
    elif content == "policy":
        saved["policy"] = "learned"
    elif content == "rows":
        saved["policy"]["evidence"]["scores"].pop()
    elif content == "thresholds":
        saved["policy"]["thresholds"] = [0.9]
    elif content == "costs":
        saved["policy"]["costs"] = [1.0, 9.0]
    elif content == "budget":
        saved["policy"]["budget"] = 0.9
    path.write_text(json.dumps(saved) if content.isalpha() else content)
    before = path.read_bytes()
    with pytest.raises(BranchyError, match=expected) as caught:
        ThresholdTuner(client(), pretend.MACS, state_file=path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_answers_also_where_the_state_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    tuner = taught(state_file=tmp_path / "file" / "tuner.json")
    assert len(tuner.predict(np.array([1, 2]))) == 2
    tuner.close()


def test_an_error_is_the_callers_and_teaches_nothing():
    def fail(*_, **__):
        raise ServerError("UNAVAILABLE", "no server")

    tuner = taught()
    before = tuner.status()
    tuner._client = types.SimpleNamespace(predict=fail, all_exits=fail)
    for call in (tuner.predict, tuner.learn):
        with pytest.raises(ServerError, match="no server"):
            call(np.array([1]))
    assert tuner.status() == before


def test_hands_options_on():
    asked = client()
    tuner = taught(asked)
    tuner.predict(np.array([1]), timeout=3)
    tuner.learn(np.array([1]), timeout=4)
    assert asked.options == [{}, {"timeout": 3}, {"timeout": 4}]


def test_works_around_a_predictor():
    model, images = small.model(), small.dataset().train.images
    predictor = EarlyExitPredictor(model, [0.5])
    tuner = ThresholdTuner(predictor, costs.cumulative_macs(model))
    answer = tuner.predict(images)
    np.testing.assert_allclose(
        answer.probabilities, predictor.predict(images, [0.0]).probabilities, atol=1e-6
    )
    assert (answer.exits == 1).all()
    assert tuner.status()["rows"] == len(images)
    # The predictor knows what its scores are.
    assert tuner.policy == predictor.policy.replace(thresholds=[0.0])


def test_hands_on_the_policy_in_force(tmp_path):
    served = ExitPolicy(criterion="margin", thresholds=[0.5], temperatures=[2, 1])
    served.save(tmp_path / "thresholds.json")
    for given in (served, tmp_path / "thresholds.json"):
        tuner = taught(client(), policy=given)
        assert tuner.thresholds.any()
        assert tuner.policy == served.replace(thresholds=tuner.thresholds)
    with pytest.raises(BranchyError, match="Pass policy="):
        taught(client()).policy  # noqa: B018
    with pytest.raises(BranchyError, match="expected 1"):
        taught(client(), policy=[0.1, 0.2])
