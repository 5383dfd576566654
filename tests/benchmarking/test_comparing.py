from __future__ import annotations

import pytest
import small

from branchy_tf.benchmarking import comparing, tables
from branchy_tf.errors import BranchyError
from branchy_tf.predictor import EarlyExitPredictor

INPUTS = {"images": small.dataset().train.images}


class Answering:
    """Stands for a process; gives the predictor's answers, or others."""

    def __init__(self, predictor, routed=True, wrong=0):
        answers = predictor.predict(INPUTS)
        probabilities, _ = predictor.all_exits(INPUTS)
        labels = answers.labels if routed else probabilities[:, -1].argmax(axis=-1)
        labels = labels.copy()
        labels[:wrong] = (labels[:wrong] + 1) % 3
        self.reply = {
            "labels": labels.tolist(),
            "exits": answers.exits.tolist() if routed else None,
        }

    def ask(self, do, contender, rows):
        assert do == "answer"
        return {key: value and value[:rows] for key, value in self.reply.items()}


@pytest.mark.parametrize("peer", ["onnxruntime", "pytorch", "early_exit_bfloat16"])
def test_notices_a_contender_that_computes_something_else(peer):
    predictor = EarlyExitPredictor(small.model(), [1.0])
    routed = peer != "onnxruntime"

    def check(wrong):
        processes = {"early_exit": Answering(predictor)}
        processes[peer] = Answering(predictor, routed, wrong)
        answers, full = comparing._expected(predictor, INPUTS)
        comparing._check_answers(processes, answers, full)
        return answers.exits

    assert check(wrong=1).tolist() == predictor.predict(INPUTS).exits.tolist()
    wrong = 7 if peer == "early_exit_bfloat16" else 5
    found = f"{peer} agrees with the predictor on {30 - wrong} of 30 images"
    with pytest.raises(BranchyError, match=found):
        check(wrong)


def timed(**milliseconds):
    return {name: {"ms_per_image": value} for name, value in milliseconds.items()}


def test_the_ideal_is_each_stage_at_the_share_of_rows_that_enter_it():
    rows = timed(keras_export=10, frozen=6, early_exit=4, stage_1=1, stage_2=5)
    over_keras, over_frozen = comparing._gains(rows, [1.0, 0.4])
    assert over_keras == {
        "over": "keras_export",
        "gain": 2.5,
        "ideal_gain": pytest.approx(10 / 3),
        "share_of_ideal": pytest.approx(0.75),
    }
    assert over_frozen["gain"] == 1.5


def test_routing_costs_count_from_the_final_exit():
    forced = {f"forced_exit_{k}": k for k in range(1, 12)}
    rows = timed(**forced, unrouted=10, stage_1=0.5)
    assert comparing._routing(rows, batch=8) == {
        "last_over_unrouted": 1.1,
        "first_over_stage": 2.0,
        "first_extra_us": 4000.0,
    }


RESULT = {
    "machine": {"processor": "some", "cores": 2, "python": "3", "keras": "3.15"},
    "results": [
        {"contender": name, "batch": batch, "threads": 1, "ms_per_image": ms}
        | {"low": ms - 0.01, "high": ms + 0.01}
        for name, ms in (("keras_export", 0.02), ("early_exit", 0.04))
        for batch in (1, 8)
        if (name, batch) != ("early_exit", 8)
    ],
    "gains": [
        {"batch": 1, "threads": 1, "over": "keras_export", "gain": 0.5}
        | {"ideal_gain": 2.0, "share_of_ideal": 0.25}
    ],
    "bfloat16_gains": [],
    "routing": [],
    "memory": [],
    "left_out": {"pytorch": "torch not installed"},
}


def test_the_text_reports_losses_and_absent_contenders():
    text = tables.text(RESULT)
    assert "does not pay at batch 1, 1 thread: it takes 2.00 times as long" in text
    assert "pytorch is left out: torch not installed" in text
    (line,) = (row for row in text.splitlines() if row.startswith("early_exit"))
    assert line.split() == ["early_exit", "0.0400", "-"]


def test_each_row_names_its_machine():
    rows = tables.flat(RESULT)
    assert len(rows) == 3
    assert rows[0]["processor"] == "some"
    assert rows[0]["versions"] == "python=3 keras=3.15"
    assert rows[2]["contender"] == "early_exit"
    assert RESULT["machine"]["cores"] == 2
