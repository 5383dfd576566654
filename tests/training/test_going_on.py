"""One training at a time in a folder; more epochs; early stopping; callbacks."""

from __future__ import annotations

import multiprocessing.synchronize
import os
import pathlib
import signal
import time

import commands
import keras
import numpy as np
import pytest
import small
import tensorflow as tf

from branchy_tf import training
from branchy_tf.errors import BranchyError
from branchy_tf.training import callbacks, early_stopping
from branchy_tf.training.callbacks import AtomicBackup


@pytest.fixture(autouse=True)
def _no_tracing():
    # Tracing a graph takes a second, longer than these few steps.
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def train(folder, own=(), **settings):
    model = small.model()
    training.train(
        model,
        small.dataset(),
        training.Settings(**{"learning_rate": 0.01, "batch_size": 15} | settings),
        training.RunFolder(folder),
        callbacks=own,
    )
    return model


def rows(folder):
    return training.read_history(training.RunFolder(folder).history)


def assert_same_weights(ours, theirs):
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "branches_only", "baseline_epochs": 1, "augmentation": "shift"}],
)
def test_more_epochs_equal_one_long_training(tmp_path, settings):
    train(tmp_path / "short", epochs=1, **settings)
    longer = train(tmp_path / "short", epochs=3, **settings)
    whole = train(tmp_path / "whole", epochs=3, **settings)
    assert_same_weights(longer, whole)
    assert rows(tmp_path / "short") == rows(tmp_path / "whole")
    saved = training.RunFolder(tmp_path / "short").load_model()
    assert_same_weights(saved, whole)
    flags = training.RunFolder(tmp_path / "short").read_flags()
    assert flags["epochs"] == "3"


def test_a_finished_training_gives_its_weights_again(tmp_path):
    first = train(tmp_path, epochs=1)
    before = (tmp_path / "model.keras").stat().st_mtime_ns
    assert_same_weights(train(tmp_path, epochs=1), first)
    assert (tmp_path / "model.keras").stat().st_mtime_ns == before
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 4}, "other settings: `seed` was 0 and is now 4. Pass the same"),
        ({"epochs": 1}, "`epochs` was 2 and is now 1."),
        ({"epochs": 3, "patience": 2}, "`patience` was unset and is now 2."),
        ({"epochs": 3}, "has no backup of its last epoch, so it cannot be trained for"),
    ],
)
def test_refuses_to_go_on_otherwise(tmp_path, changes, expected):
    train(tmp_path, epochs=2)
    if changes == {"epochs": 3}:
        (tmp_path / "backup" / "joint").rename(tmp_path / "elsewhere")
    with pytest.raises(BranchyError) as caught:
        train(tmp_path, **{"epochs": 2} | changes)
    assert expected in str(caught.value)
    assert (tmp_path / "model.keras").is_file()


def test_a_kill_amid_the_additional_epochs_loses_nothing(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self, epoch, logs=None):
        raise Killed

    settings = {"mode": "baseline_first", "baseline_epochs": 1}
    train(tmp_path / "killed", epochs=1, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(AtomicBackup, "on_epoch_end", killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed", epochs=3, **settings)
    gone_on = train(tmp_path / "killed", epochs=3, **settings)
    assert_same_weights(gone_on, train(tmp_path / "whole", epochs=3, **settings))
    assert [(r["phase"], r["epoch"]) for r in rows(tmp_path / "killed")] == [
        ("baseline", "1"), ("joint", "1"), ("joint", "2"), ("joint", "3"),
    ]  # fmt: skip


@pytest.fixture
def losses(monkeypatch):
    """`losses([...])` sets the val_loss that history.csv gets for each epoch."""
    written = callbacks.HistoryFile.on_epoch_end

    def use(values):
        def changed(self, epoch, logs=None):
            written(self, epoch, dict(logs) | {"val_loss": values[epoch]})

        monkeypatch.setattr(callbacks.HistoryFile, "on_epoch_end", changed)

    return use


def test_early_stopping_keeps_the_best_epoch(tmp_path, losses):
    losses([3.0, 1.0, 2.0, 1.0, 0.0])
    stopped = train(tmp_path / "run", epochs=5, patience=2)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4"]
    # The first of equals, the second epoch.
    assert_same_weights(stopped, train(tmp_path / "two", epochs=2))
    assert early_stopping.stopped_after(tmp_path / "run/history.csv", "joint", 2) == 4
    # More epochs do not wake it up.
    assert_same_weights(stopped, train(tmp_path / "run", epochs=6, patience=2))
    assert len(rows(tmp_path / "run")) == 4


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_early_stopping_survives_a_kill(tmp_path, monkeypatch, losses, epoch):
    class Killed(BaseException):
        pass

    losses([3.0, 1.0, float("nan"), 1.5, 0.0])
    on_epoch_end = AtomicBackup.on_epoch_end

    def killed(self, number, logs=None):
        if number == epoch:
            raise Killed
        on_epoch_end(self, number, logs)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicBackup, "on_epoch_end", killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed", epochs=5, patience=2)
    gone_on = train(tmp_path / "killed", epochs=5, patience=2)
    assert_same_weights(gone_on, train(tmp_path / "two", epochs=2))
    assert len(rows(tmp_path / "killed")) == 4


def test_callbacks_of_the_user_are_called(tmp_path):
    class Seen(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs = []

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append((epoch, "val_loss" in logs))
            if epoch == 1:
                self.model.stop_training = True

    seen = Seen()
    train(tmp_path, [seen], epochs=4)
    assert seen.epochs == [(0, True), (1, True)]
    assert len(rows(tmp_path)) == 2
    assert (tmp_path / "model.keras").is_file()


@pytest.mark.parametrize("own", [3, ["stop"], [keras.callbacks.Callback]])
def test_refuses_what_are_no_callbacks(tmp_path, own):
    with pytest.raises(BranchyError, match=r"must be a list of keras\.callbacks"):
        train(tmp_path / "run", own)
    assert not (tmp_path / "run").exists()


def hold(folder: pathlib.Path, held: multiprocessing.synchronize.Event) -> None:
    """Is in the folder, as a training is, until it is killed."""
    with training.RunFolder(folder).locked():
        held.set()
        time.sleep(300)


def test_a_second_training_in_one_folder_is_refused(tmp_path):
    held = commands.CONTEXT.Event()
    process = commands.CONTEXT.Process(target=hold, args=(tmp_path, held))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(BranchyError, match="Another process is training into"):
            train(tmp_path, epochs=1)
        assert os.listdir(tmp_path) == []
    finally:
        # Nothing of the process's own cleans up.
        process.kill()
        process.join(30)
    assert process.exitcode == -signal.SIGKILL
    train(tmp_path, epochs=1)
    assert (tmp_path / "model.keras").is_file()


def test_the_lock_ends_with_the_training(tmp_path):
    folder = training.RunFolder(tmp_path)
    for _ in range(2):
        with folder.locked(), pytest.raises(BranchyError, match="Another process"):
            folder.locked().__enter__()
    start = time.monotonic()
    with folder.locked():
        assert time.monotonic() - start < 60


def test_compiles_metrics_for_each_exit():
    model = small.model()
    top = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")
    training.compile_exits(model, loss_weights=[1, 0.3], metrics=["accuracy", top])
    split = small.dataset().train
    labels = training.by_exit(model, split.labels)
    history = model.fit(split.images, labels, epochs=1, verbose=0).history
    for name in ("exit_1", "exit_2"):
        assert 0 <= history[f"{name}_accuracy"][0] <= history[f"{name}_top_2"][0] <= 1
    expected = history["exit_1_loss"][0] + 0.3 * history["exit_2_loss"][0]
    assert history["loss"][0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"metrics": "accuracy"}, "`metrics` must be a list of names or keras.Metrics"),
        ({"metrics": [3]}, "`metrics` must be a list of names or keras.Metrics"),
        ({"loss_weights": [1]}, "`loss_weights` must have one entry for each exit"),
        ({"optimizer": "best"}, "small cannot be compiled so: "),
    ],
)
def test_refuses_to_compile_otherwise(arguments, expected):
    with pytest.raises(BranchyError) as caught:
        training.compile_exits(small.model(), **arguments)
    assert str(caught.value).startswith(expected)
