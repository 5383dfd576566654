"""The shipped weights answer as they did when their answers were recorded.

`tests/recorded/answers.npz` holds the first test images of MNIST (160) and of CIFAR-10
re-encoded as JPEG (40), and what each set of weights answered at its calibrated policy.
No score lies closer than 0.001 to a threshold, so rounding moves no row to another exit.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import branchy_tf
from branchy_tf import zoo

RECORDED = np.load(pathlib.Path(__file__).parent.parent / "recorded" / "answers.npz")
SETS = [(model, tag) for model in zoo.list_models() for tag in zoo.list_weights(model)]


@pytest.mark.parametrize(("model", "tag"), SETS)
def test_shipped_weights_answer_as_recorded(model, tag, shipped):
    predictor = branchy_tf.EarlyExitPredictor(
        shipped(model, tag), zoo.calibration(model, tag)
    )
    images = RECORDED["images_mnist" if tag == "mnist" else "images_cifar10"]
    answer = predictor.predict(images)
    recorded = f"{model}_{tag}"
    np.testing.assert_array_equal(answer.exits, RECORDED[f"{recorded}_exits"])
    np.testing.assert_allclose(
        answer.probabilities, RECORDED[f"{recorded}_probabilities"], atol=2e-5
    )
    np.testing.assert_allclose(answer.scores, RECORDED[f"{recorded}_scores"], atol=1e-4)


def test_the_recorded_rows_leave_at_several_exits():
    for model, tag in SETS:
        exits = RECORDED[f"{model}_{tag}_exits"]
        assert len(np.unique(exits)) > 1, (model, tag)
