from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import zipfile

import h5py
import keras
import pytest
import small
from keras import layers

from branchy_tf.errors import BranchyError
from branchy_tf.files.keras_files import load_keras_file
from branchy_tf.zoo import branchy_lenet

MODULE = """
import keras

@keras.saving.register_keras_serializable("mine")
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x

@keras.saving.register_keras_serializable("mine")
def squared(x):
    return x * x
"""
MODEL = """
from own_layers import *
values = keras.Input((4,))
x = Doubling()(values)
x = keras.layers.Dense(3, activation=squared)(x)
keras.Model(values, Doubling()(x)).save("model.keras")
"""
KERAS_2 = """
import os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tf_keras
model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
model.save("folder", save_format="tf")
model.save("model.h5")
model.save("model.keras", save_format="keras")
"""


def run(script: str, folder: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def own_layers(tmp_path_factory) -> pathlib.Path:
    """model.keras with classes and a function of own_layers.py, beside it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_layers.py").write_text(MODULE)
    run(MODEL, folder)
    return folder


def complaint(path) -> str:
    with pytest.raises(BranchyError) as caught:
        load_keras_file(path)
    text = str(caught.value)
    assert text.startswith(f"{path} ")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 600
    return text


def rezipped(path, **members) -> None:
    """Writes other content into members of a zip; their names are without suffix."""
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, value in content.items():
            file.writestr(name, members.get(name.split(".")[0], value))


def test_classes_that_are_missing_are_named_with_their_module(own_layers):
    assert complaint(own_layers / "model.keras").endswith(
        "model.keras cannot be read as a Keras model: not registered here: "
        "mine>Doubling, mine>squared. Import the module that registers it with "
        "keras.saving.register_keras_serializable before you load the file, in a command "
        "with --import=MODULE; it was "
        "saved from own_layers."
    )


def test_with_their_module_imported_it_loads(own_layers):
    run(
        "import own_layers; from branchy_tf.files.keras_files import load_keras_file; "
        "load_keras_file('model.keras')",
        own_layers,
    )


def test_only_what_is_missing_is_named(own_layers):
    class Doubling(layers.Layer):
        def call(self, x):
            return 2.0 * x

    with keras.saving.custom_object_scope({"mine>Doubling": Doubling}):
        text = complaint(own_layers / "model.keras")
    assert "not registered here: mine>squared. Import" in text


def test_a_class_of_a_script_has_no_module(own_layers, tmp_path):
    script = MODULE + MODEL.replace("from own_layers import *", "")
    run(script, tmp_path)
    text = complaint(tmp_path / "model.keras")
    assert "not registered here: mine>Doubling, mine>squared." in text
    assert text.endswith("it was saved from a script.")


def test_a_lambda_is_named_as_such(tmp_path):
    values = keras.Input((4,))
    keras.Model(values, layers.Lambda(lambda x: 2 * x)(values)).save(tmp_path / "a.keras")
    text = complaint(tmp_path / "a.keras")
    assert "a Lambda layer in it holds Python code, which is not run from a file" in text
    assert "safe_mode" not in text


@pytest.fixture(scope="module")
def keras_2(tmp_path_factory) -> pathlib.Path:
    """What tf_keras writes: model.h5, model.keras, and a SavedModel folder.keras."""
    folder = tmp_path_factory.mktemp("keras_2")
    run(KERAS_2, folder)
    return folder


def test_a_saved_model_folder_is_called_that(keras_2):
    text = complaint(keras_2 / "folder")
    assert "it is the folder of a TensorFlow SavedModel, which Keras 3 does not" in text
    assert "Load it with tf_keras" in text


def test_an_hdf5_file_is_called_that(keras_2, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes((keras_2 / "model.h5").read_bytes())
    assert "it is an HDF5 file, the format of Keras 2. Load" in complaint(path)


def test_a_file_that_keras_2_saved_is_loaded_or_told(keras_2, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes((keras_2 / "model.keras").read_bytes())
    # Keras 3 knows its layers.
    assert load_keras_file(path).output_shape == (None, 3)
    with zipfile.ZipFile(path) as file:
        metadata, config = (
            file.read(name).decode() for name in ("metadata.json", "config.json")
        )
    version = json.loads(metadata)["keras_version"]
    assert version.startswith("2.")
    rezipped(path, config=config.replace('"units"', '"old_units"'))
    assert f"it was saved by Keras {version}. Load it with tf_keras" in complaint(path)


def test_a_layer_alone_is_no_model(tmp_path):
    path = tmp_path / "model.keras"
    small.model().save(path)
    dense = keras.saving.serialize_keras_object(layers.Dense(3))
    rezipped(path, config=json.dumps(dense | {"build_config": {"input_shape": [2, 3]}}))
    complaint(path)


def test_what_is_not_there_or_no_archive(tmp_path):
    path = tmp_path / "model.keras"
    with pytest.raises(BranchyError, match=r"There is no file .*; expected a Keras"):
        load_keras_file(path)
    path.write_text("not a model")
    assert "cannot be read as a Keras model: it is no .keras archive. Copy" in (
        complaint(path)
    )
    path.unlink()
    path.mkdir()
    assert "it is no .keras archive" in complaint(path)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{}",
        '{"class_name": null}',
        '{"class_name": {"a": [1]}, "module": 3, "registered_name": [], "config": 1}',
        '{"class_name": "function", "registered_name": "function", "config": {}}',
        '{"module": "os", "class_name": "system", "config": "true", '
        '"registered_name": null}',
        "[" * 10**5,
    ],
    ids=lambda config: config[:20],
)
def test_configurations_that_are_none(tmp_path, config):
    path = tmp_path / "model.keras"
    small.model().save(path)
    rezipped(path, config=config)
    complaint(path)


def changed_shape(path) -> None:
    with h5py.File(path, "r+") as file:
        kernel = file["layers/dense/vars/0"]
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (10**6, 10**9), chunks=(1, 10**4))
        assert kernel.shape != (10**6, 10**9)


def test_weights_that_claim_petabytes(tmp_path):
    path, weights = tmp_path / "model.keras", tmp_path / "model.weights.h5"
    small.model().save(path)
    with zipfile.ZipFile(path) as file:
        weights.write_bytes(file.read("model.weights.h5"))
    changed_shape(weights)
    rezipped(path, model=weights.read_bytes())
    complaint(path)


@pytest.mark.parametrize("error", [RuntimeError("odd\n"), MemoryError(), IndexError()])
def test_whatever_keras_raises_is_one_line(tmp_path, monkeypatch, error):
    def load_model(*args, **kwargs):
        raise error

    path = tmp_path / "model.keras"
    small.model().save(path)
    monkeypatch.setattr(keras.models, "load_model", load_model)
    assert "cannot be read as a Keras model: " in complaint(path)


def test_weights_of_keras_2_are_called_that(keras_2, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes((keras_2 / "model.h5").read_bytes())
    with pytest.raises(BranchyError, match=r"do not fit branchy_lenet .* HDF5 file, the"):
        branchy_lenet(weights=str(path))


@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
@pytest.mark.parametrize("error", [RuntimeError("odd\n"), MemoryError(), IndexError()])
def test_whatever_comes_from_weights_is_one_line(tmp_path, monkeypatch, suffix, error):
    def load_weights(*args, **kwargs):
        raise error

    path = tmp_path / f"some.{suffix}"
    path.write_bytes(b"anything")
    monkeypatch.setattr(keras.Model, "load_weights", load_weights)
    with pytest.raises(BranchyError, match="do not fit branchy_lenet") as caught:
        branchy_lenet(weights=str(path))
    assert str(caught.value).isprintable()
