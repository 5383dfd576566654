from __future__ import annotations

import pathlib

import numpy as np
import pytest
import small

from branchy_tf.errors import BranchyError
from branchy_tf.training import RunFolder
from branchy_tf.training.run_folder import load_keras_file, parse_flags


def complaint(call, *args) -> str:
    with pytest.raises(BranchyError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_do_not_depend_on_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    folder = RunFolder("runs/lenet")
    monkeypatch.chdir("/")
    assert folder.model == tmp_path / "runs" / "lenet" / "model.keras"
    assert RunFolder("~/lenet").path == pathlib.Path("/home/someone/lenet")


def test_model_comes_back_exactly(tmp_path):
    folder, model = RunFolder(tmp_path), small.model()
    model.save(folder.model)
    images = small.dataset().test.images
    loaded, expected = folder.load_model()(images), model(images)
    for name in ("exit_1", "exit_2"):
        np.testing.assert_array_equal(loaded[name], expected[name])


def test_folder_without_a_training(tmp_path):
    folder = RunFolder(tmp_path)
    assert complaint(folder.load_model) == (
        f"{tmp_path} holds no model.keras. Pass the --run_dir of a finished training."
    )
    assert complaint(folder.read_flags) == (
        f"{tmp_path} holds no train.flags. Pass the --run_dir of a training."
    )


def test_unfinished_training_says_how_to_resume(tmp_path):
    folder = RunFolder(tmp_path)
    folder.flags.write_text("--model=branchy_lenet\n--epochs=3\n")
    assert complaint(folder.load_model) == (
        f"{tmp_path} holds no model.keras. Its training is not finished: run train "
        f"again with --flagfile={folder.flags} --run_dir={tmp_path}."
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a model",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-2000] + b"\x01" * 1000 + content[-1000:],
        lambda content: b"\x00" * 300 + content[300:],
    ],
    ids=["empty", "text", "cut short", "overwritten", "overwritten start"],
)
def test_damaged_model(tmp_path, damage):
    path = tmp_path / "model.keras"
    small.model().save(path)
    path.write_bytes(damage(path.read_bytes()))
    text = complaint(load_keras_file, path)
    assert text.startswith(f"{path} cannot be read as a Keras model: ")


def test_flags_are_read_as_written():
    text = "# a comment\n\n--model_args=depth=20,classes=5\n--weights=\n  --epochs=3\n"
    assert parse_flags(text) == {
        "model_args": "depth=20,classes=5",
        "weights": "",
        "epochs": "3",
    }
