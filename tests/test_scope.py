"""Tasks other than one label per example are refused where they first show."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from branchy_tf import data, training
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, linear_head

TASKS = {
    "multi-label": (
        lambda x: layers.Dense(4, "sigmoid")(layers.Flatten()(x)),
        "several labels for one example are out of scope",
    ),
    "regression": (
        lambda x: layers.Dense(1)(layers.Flatten()(x)),
        "A single number, as in regression, is out of scope",
    ),
    "segmentation": (
        lambda x: layers.Conv2D(3, 1)(x),
        "An answer for each position, as in segmentation or tagging, is out of scope",
    ),
}


def network(top) -> keras.Model:
    x = keras.Input((8, 8, 1))
    return keras.Model(x, top(layers.Conv2D(3, 3, padding="same", name="conv")(x)))


@pytest.mark.parametrize("task", TASKS)
def test_exits_are_not_added_to_networks_for_other_tasks(task):
    top, expected = TASKS[task]
    with pytest.raises(BranchyError, match=expected):
        add_exits(network(top), {"conv": linear_head})


HEADS = {
    "multi-label": (
        lambda x, name: layers.Dense(4, "sigmoid", name=name)(layers.Flatten()(x)),
        "ends in sigmoid; expected logits",
    ),
    "regression": (
        lambda x, name: layers.Dense(1, name=name)(layers.Flatten()(x)),
        "as in regression, is out of scope",
    ),
    "segmentation": (
        lambda x, name: layers.Conv2D(3, 1, name=name)(x),
        "as in segmentation or tagging, is out of scope",
    ),
}


@pytest.mark.parametrize("task", HEADS)
def test_exits_made_by_hand_are_not_trained_for_other_tasks(task, tmp_path):
    head, expected = HEADS[task]
    x = keras.Input((8, 8, 1))
    model = keras.Model(x, {name: head(x, name) for name in ("exit_1", "exit_2")})
    rows = data.Split(np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 2)
    folder = training.RunFolder(tmp_path / "run")
    with pytest.raises(BranchyError, match=expected):
        training.train(
            model, data.Dataset("rows", 2, rows, rows, rows), training.Settings(), folder
        )
    assert not folder.model.exists()


random = np.random.default_rng(0)
TARGETS = {
    "multi-label": (random.integers(0, 2, (40, 4)), "Several labels or quantities"),
    "regression": (random.random(40), "classify and predict no quantities"),
    "whole quantities": (np.arange(40) * 7, "too many for classes"),
    "segmentation": (random.integers(0, 3, (40, 8, 8)), "and segmentation, are out of"),
}


@pytest.mark.parametrize("task", TARGETS)
def test_targets_of_other_tasks_are_not_loaded(task, tmp_path):
    labels, expected = TARGETS[task]
    images = np.zeros((40, 8, 8), np.uint8)
    path = tmp_path / "rows.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(BranchyError, match=expected):
        data.load(str(path))
