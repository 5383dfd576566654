from __future__ import annotations

import dataclasses
import os

import keras
import numpy as np
import pytest
import small
import tensorflow as tf

from branchy_tf import data, exits, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import losses
from branchy_tf.training.callbacks import AtomicBackup

TRUNK = ("dense_1", "dense_2", "exit_2")


@pytest.fixture(autouse=True)
def _no_tracing():
    # Tracing a graph takes a second, longer than these few steps.
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def weights(model, names=TRUNK):
    return {name: model.get_layer(name).get_weights()[0] for name in names}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def train(folder, **settings):
    model = small.model()
    training.train(
        model,
        small.dataset(),
        training.Settings(learning_rate=0.01, batch_size=10, **settings),
        training.RunFolder(folder),
    )
    return model


def rows(folder):
    return training.read_history(training.RunFolder(folder).history)


def test_joint_phase_starts_from_the_baseline(tmp_path, monkeypatch):
    at_start = {}
    compile_joint = losses.compile_joint

    def noting(model, *args):
        at_start.update(weights(model))
        compile_joint(model, *args)

    monkeypatch.setattr(losses, "compile_joint", noting)
    model = train(tmp_path, mode="baseline_first", baseline_epochs=2, epochs=1)
    saved = keras.models.load_model(tmp_path / "baseline.keras")
    assert_equal(at_start, weights(saved))
    assert set(saved.output_names) == {"exit_2"}
    for name, values in at_start.items():
        # Trained in both phases.
        assert (values != weights(small.model())[name]).any()
        assert (values != weights(model)[name]).any()
    assert [(row["phase"], row["epoch"]) for row in rows(tmp_path)] == [
        ("baseline", "1"), ("baseline", "2"), ("joint", "1"),
    ]  # fmt: skip


def test_baseline_phase_does_not_train_the_branch(tmp_path, monkeypatch):
    at_start = {}
    monkeypatch.setattr(
        losses, "compile_joint", lambda model, *_: at_start.update(exits=model)
    )
    with pytest.raises(ValueError, match="compile"):
        train(tmp_path, mode="baseline_first", baseline_epochs=1, epochs=1)
    assert_equal(
        weights(at_start["exits"], ["exit_1"]), weights(small.model(), ["exit_1"])
    )


def test_joint_mode_trains_no_baseline(tmp_path):
    model = train(tmp_path, epochs=2, loss_weights=[1.0, 0.3])
    assert sorted(os.listdir(tmp_path)) == [
        "backup", "data.json", "data.npz", "history.csv", "logs", "model.keras",
        "train.flags",
    ]  # fmt: skip
    assert os.listdir(tmp_path / "logs") == ["joint"]
    assert_equal(
        weights(keras.models.load_model(tmp_path / "model.keras")), weights(model)
    )
    for row in rows(tmp_path):
        expected = float(row["exit_1_loss"]) + 0.3 * float(row["exit_2_loss"])
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-4)


def test_augmentation_is_not_part_of_the_model(tmp_path):
    train(tmp_path / "plain", epochs=1)
    train(tmp_path / "varied", epochs=1, augmentation="flip_shift")
    model = keras.models.load_model(tmp_path / "varied" / "model.keras")
    assert [x.name for x in model.layers] == [x.name for x in small.model().layers]
    varied, plain = rows(tmp_path / "varied")[0], rows(tmp_path / "plain")[0]
    # The saved model keeps the names of the exits.
    assert all(varied.values())
    assert varied["loss"] != plain["loss"]


def test_validation_rows_are_not_augmented(tmp_path):
    folder = training.RunFolder(tmp_path)
    model = train(tmp_path, epochs=1, augmentation="flip_shift")
    split = small.dataset().validation
    logits = np.asarray(model(split.images)["exit_2"])
    share = (logits.argmax(axis=1) == split.labels).mean()
    row = training.read_history(folder.history)[0]
    assert float(row["val_exit_2_accuracy"]) == pytest.approx(share)


def test_a_killed_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    on_epoch_end = AtomicBackup.on_epoch_end

    def killed(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        on_epoch_end(self, epoch, logs)

    settings = {"epochs": 3, "augmentation": "flip_shift"}
    with monkeypatch.context() as patch:
        patch.setattr(AtomicBackup, "on_epoch_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", **settings)
    gone_on = train(tmp_path / "killed", **settings)
    unbroken = train(tmp_path / "unbroken", **settings)
    # The same rows in the same order with the same augmentation.
    assert rows(tmp_path / "killed") == rows(tmp_path / "unbroken")
    assert_equal(weights(gone_on), weights(unbroken))


@pytest.mark.parametrize("phase", ["baseline", "joint"])
def test_trains_an_epoch_without_a_backup_again(tmp_path, monkeypatch, phase):
    class Killed(BaseException):
        pass

    on_epoch_end = AtomicBackup.on_epoch_end

    def killed(self, epoch, logs=None):
        # Its row is already in history.csv.
        if self._folder.name == phase and epoch == 1:
            raise Killed
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(AtomicBackup, "on_epoch_end", killed)
    settings = {"mode": "baseline_first", "baseline_epochs": 2, "epochs": 2}
    with pytest.raises(Killed):
        train(tmp_path, **settings)
    assert rows(tmp_path)[-1]["phase"] == phase
    assert rows(tmp_path)[-1]["epoch"] == "2"
    assert not (tmp_path / "model.keras").exists()
    monkeypatch.undo()
    trained = []
    fit = keras.Model.fit

    def counting(model, *args, **kwargs):
        history = fit(model, *args, **kwargs)
        trained.append(len(history.epoch))
        return history

    monkeypatch.setattr(keras.Model, "fit", counting)
    train(tmp_path, **settings)
    assert trained == {"baseline": [1, 2], "joint": [1]}[phase]
    assert [(row["phase"], row["epoch"]) for row in rows(tmp_path)] == [
        ("baseline", "1"), ("baseline", "2"), ("joint", "1"), ("joint", "2"),
    ]  # fmt: skip
    # For more epochs.
    assert os.listdir(tmp_path / "backup") == ["joint"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"mode": "both"},
            "Unknown mode 'both'. Known: joint, baseline_first, branches_only, detached.",
        ),
        (
            {"schedule": "linear"},
            "Unknown schedule 'linear'. Known: constant, cosine, one_cycle, step.",
        ),
        ({"augmentation": "blur"}, "Unknown augmentation 'blur'."),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1. Received 0."),
        ({"baseline_epochs": -1}, "whole number of at least 0. Received -1."),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1. Rec"),
        ({"learning_rate": 0.0}, "must be a finite number above 0. Received 0.0."),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be a finite number"),
        ({"loss_weights": [1.0]}, "`loss_weights` must have one entry for each exit."),
        (
            {"loss_weights": [1.0, 0.0], "distillation": (0.5, 3.0)},
            "`distillation` needs a trained final exit, but in mode joint its loss "
            "weight is 0. Received `loss_weights` [1.0, 0.0]. Give the final exit a "
            "weight.",
        ),
    ],
)
def test_rejects_invalid_settings(tmp_path, changes, expected):
    folder = training.RunFolder(tmp_path / "run")
    with pytest.raises(BranchyError) as caught:
        training.train(
            small.model(), small.dataset(), training.Settings(**changes), folder
        )
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_rejects_more_classes_than_the_model_has():
    dataset = dataclasses.replace(small.dataset(), classes=4)
    with pytest.raises(BranchyError) as caught:
        training.Settings().check(small.model(), dataset)
    assert "small has 3 classes, but small has 4." in str(caught.value)
    assert "--model_args=classes=4" in str(caught.value)


def test_rejects_images_of_another_shape():
    images = np.zeros((3, 9, 8, 1), np.uint8)
    split = data.Split(images, np.arange(3))
    dataset = data.Dataset("wide", 3, split, split, split)
    with pytest.raises(BranchyError) as caught:
        training.Settings().check(small.model(), dataset)
    assert str(caught.value) == (
        "small reads inputs of shape (8, 8, 1), but wide holds images of shape (9, 8, "
        "1). Build the model for them: --model_args=input_shape=9x8x1."
    )


def test_unknown_sides_fit_any_image():
    pixels = keras.Input((None, None, 1))
    logits = keras.layers.GlobalAveragePooling2D()(pixels)
    model = keras.Model(pixels, {"exit_1": exits.logits_head(logits, 3, "exit_1")})
    data.check_fits(model, small.dataset())
