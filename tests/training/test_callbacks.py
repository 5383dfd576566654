from __future__ import annotations

import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.training import read_history
from branchy_tf.training.callbacks import AtomicBackup, HistoryFile

STEPS = 2
EPOCHS = 4


class Killed(BaseException):
    """Ends a training at a chosen moment, as SIGKILL would: nothing cleans up."""


def fit(folder, *more, epochs=EPOCHS):
    """Trains a tiny model with a backup; returns it and its number of epochs."""
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    # Adam, whose moments must be restored too for the same weights.
    model.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    history = model.fit(
        random.normal(size=(10, 4)),
        random.normal(size=(10, 3)),
        batch_size=10 // STEPS,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        callbacks=[*more, AtomicBackup(folder)],
    )
    return model, len(history.epoch)


def assert_same_weights(model, other):
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("never_killed") / "backup")[0]


@pytest.fixture
def killed_in_epoch(tmp_path, monkeypatch):
    """Trains until `moment` in an epoch, from 1; returns the epochs started."""

    def until(epoch, moment):
        begun = []

        class Arm(keras.callbacks.Callback):
            def on_epoch_begin(self, number, logs=None):
                begun.append(number + 1)
                if number + 1 == epoch:
                    MOMENTS[moment](monkeypatch)

        with pytest.raises(Killed):
            fit(tmp_path / "backup", Arm())
        monkeypatch.undo()
        return begun

    return until


def _in_call(monkeypatch, owner, name, number=1, instead=None):
    """Kills during a call of `owner.name`, after calling `instead` if given."""
    real, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        calls.append(name)
        if len(calls) < number:
            return real(*args, **kwargs)
        if instead is not None:
            instead(real, *args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, killing)


def _half_the_weights(real, model, filepath, **kwargs):
    real(model, filepath, **kwargs)
    content = pathlib.Path(filepath).read_bytes()
    pathlib.Path(filepath).write_bytes(content[: len(content) // 2])


MOMENTS = {
    "before the weights": lambda m: _in_call(m, keras.Model, "save_weights"),
    "amid the weights": lambda m: _in_call(
        m, keras.Model, "save_weights", instead=_half_the_weights
    ),
    "before the epoch's number": lambda m: _in_call(
        m, keras.Model, "save_weights", instead=lambda real, *a, **k: real(*a, **k)
    ),
    "before the old one steps aside": lambda m: _in_call(m, pathlib.Path, "rename"),
    "before the next one takes its place": lambda m: _in_call(
        m, pathlib.Path, "rename", number=2
    ),
    # The first two calls of an epoch remove leftovers.
    "before the old one is removed": lambda m: _in_call(m, shutil, "rmtree", number=3),
}


@pytest.mark.parametrize(
    ("moment", "backed_up"),
    [
        ("before the weights", 2),
        ("amid the weights", 2),
        ("before the epoch's number", 2),
        ("before the old one steps aside", 2),
        ("before the next one takes its place", 2),
        ("before the old one is removed", 3),
    ],
)
def test_resumes_as_if_never_killed(
    tmp_path, killed_in_epoch, never_killed, moment, backed_up
):
    killed_in_epoch(3, moment)
    model, epochs = fit(tmp_path / "backup")
    assert epochs == EPOCHS - backed_up
    assert int(model.optimizer.iterations) == EPOCHS * STEPS
    assert_same_weights(model, never_killed)
    assert sorted(os.listdir(tmp_path)) == ["backup"]


@pytest.mark.parametrize("moment", ["amid the weights", "before the epoch's number"])
def test_starts_again_if_killed_before_the_first_backup(
    tmp_path, killed_in_epoch, never_killed, moment
):
    killed_in_epoch(1, moment)
    assert os.listdir(tmp_path) == ["backup.next"]
    model, epochs = fit(tmp_path / "backup")
    assert epochs == EPOCHS
    assert_same_weights(model, never_killed)


def test_survives_a_second_kill_right_after_the_first(tmp_path, killed_in_epoch):
    killed_in_epoch(3, "before the next one takes its place")
    assert not (tmp_path / "backup").exists()
    # The next attempt must not remove the restored backup.
    assert killed_in_epoch(3, "amid the weights") == [3]
    assert fit(tmp_path / "backup")[1] == EPOCHS - 2


def test_restores_a_finished_phase_without_training(tmp_path):
    first, _ = fit(tmp_path / "backup", epochs=3)
    again, epochs = fit(tmp_path / "backup", epochs=3)
    assert epochs == 0
    assert_same_weights(again, first)
    metadata = (tmp_path / "backup" / "training_metadata.json").read_text()
    assert json.loads(metadata)["epoch"] == 3


def figures(value):
    return {"loss": value, "exit_1_loss": value, "exit_1_accuracy": 0.5}


def test_history_has_a_column_for_each_figure(tmp_path):
    path = tmp_path / "history.csv"
    HistoryFile(path, "joint", ["exit_1", "exit_2"]).on_epoch_end(0, {"loss": 1 / 3})
    assert path.read_text().splitlines() == [
        "phase,epoch,loss,exit_1_loss,exit_1_accuracy,exit_2_loss,exit_2_accuracy,"
        "val_loss,val_exit_1_loss,val_exit_1_accuracy,val_exit_2_loss,"
        "val_exit_2_accuracy",
        "joint,1,0.333333,,,,,,,,,",
    ]


def test_history_of_an_epoch_trained_again_replaces_the_old(tmp_path):
    path = tmp_path / "history.csv"
    for epoch in range(2):
        HistoryFile(path, "baseline", ["exit_1"]).on_epoch_end(epoch, figures(9.0))
    for epoch in range(3):
        HistoryFile(path, "joint", ["exit_1"]).on_epoch_end(epoch, figures(8.0))
    # Resumed from the backup of epoch 1, so later epochs are trained again.
    HistoryFile(path, "joint", ["exit_1"]).on_epoch_end(1, figures(7.0))
    rows = [(r["phase"], r["epoch"], r["loss"]) for r in read_history(path)]
    assert rows == [
        ("baseline", "1", "9"),
        ("baseline", "2", "9"),
        ("joint", "1", "8"),
        ("joint", "2", "7"),
    ]


def test_no_history_yet(tmp_path):
    assert read_history(tmp_path / "history.csv") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"phase,epoch\njoint,1\x00\n", ""),
        (b"a,b\n1,2\n", "it has no columns phase and epoch"),
        (b"phase,epoch,loss\njoint,1\n", "row 1 has the wrong number of cells"),
        (b"phase,epoch,loss\njoint,1,2\njoint,2,2,3\n", "row 2 has the wrong number"),
        (b"phase,epoch,loss\njoint,one,2\n", "'one'"),
        (b"phase,epoch,loss\njoint,1,much\n", "'much'"),
        (b'phase,epoch,loss\njoint,1,"2', ""),
    ],
)
def test_a_damaged_history_is_named(tmp_path, content, expected):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(BranchyError) as caught:
        read_history(path)
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be read as the history of a training: ")
    assert expected in text
    assert text.isprintable()


@pytest.mark.parametrize("name", ["*.weights.h5", "*.json"])
def test_a_damaged_backup_is_named(tmp_path, name):
    folder = tmp_path / "backup"
    fit(folder, epochs=1)
    (damaged,) = folder.glob(name)
    damaged.write_bytes(b"not what it was")
    with pytest.raises(BranchyError, match=r"backup of a training: .* Remove it to"):
        fit(folder)
