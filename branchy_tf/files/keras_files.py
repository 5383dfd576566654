"""Loads Keras model files, or explains why that fails."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from branchy_tf import files
from branchy_tf.errors import BranchyError, one_line

_MEND = "Copy it again, or save the model again with model.save('NAME.keras')."
# Packages that Keras imports on its own.
_SHIPS_LAYERS = ("keras_hub", "keras_cv", "keras_nlp")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def load_keras_file(path: files.Path) -> keras.Model:
    """Loads a model from a `.keras` file.

    Args:
        path: the file.

    Returns:
        The model, not compiled.

    Raises:
        BranchyError: the file is missing, damaged, of another format, written by Keras
            2, or has classes that are not registered, which the message names.

    Example:

    ```python
    model = load_keras_file("runs/lenet/model.keras")
    ```
    """
    path = pathlib.Path(path)
    with explained(path):
        path.stat()
        model = keras.models.load_model(path, compile=False)
    if not isinstance(model, keras.Model):
        raise BranchyError(
            f"{path} holds a Keras {type(model).__name__}; expected a whole model. "
            f"{_MEND}"
        )
    return model


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Explains why Keras cannot read a model file.

    Keras's message for an unregistered class begins with a page of configuration, and
    for a file of Keras 2 with an unrelated error.

    Args:
        path: the file that the block reads.
    """
    with files.reading(path, "a Keras model", _MEND):
        try:
            yield
        except Exception as error:
            reason = _foreign_code(path) or written_by_keras_2(path)
            if reason is None and path.exists() and not zipfile.is_zipfile(path):
                # Keras would report a missing file.
                raise ValueError("it is no .keras archive") from error
            if reason is None:
                raise
            raise BranchyError(
                f"{path} cannot be read as a Keras model: {reason}"
            ) from error


def read_config(path: pathlib.Path) -> Any:
    """The model's configuration in a `.keras` file; None if it cannot be read."""
    return _read_member(path, "config.json")


def _read_member(path: pathlib.Path, name: str) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read(name))
    except Exception:
        return None


def _foreign_code(path: pathlib.Path) -> str | None:
    """What in a model is neither Keras's nor registered; None if nothing."""
    config = read_config(path)
    if '"__lambda__"' in json.dumps(config):
        return (
            "a Lambda layer in it holds Python code, which is not run from a file. Write "
            "that layer as a class, registered with "
            "keras.saving.register_keras_serializable."
        )
    found = dict(_unregistered(config))
    if not found:
        return None
    # A class from a script has no module to import.
    modules = ", ".join(sorted({*filter(None, found.values())})) or "a script"
    return (
        f"not registered here: {one_line(', '.join(sorted(found)))}. Import the module "
        "that registers it with keras.saving.register_keras_serializable before you load "
        "the file, in a command with --import=MODULE; it was saved from "
        f"{one_line(modules)}."
    )


def _unregistered(config: Any) -> Iterator[tuple[str, str]]:
    """`(name, module or "")` of the classes and functions that Keras will not find."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            found = _unknown(part)
            if found is not None:
                yield found
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _unknown(part: Mapping[str, Any]) -> tuple[str, str] | None:
    name, module = part.get("class_name"), part.get("module") or ""
    if "registered_name" not in part or not (
        isinstance(name, str) and isinstance(module, str)
    ):
        return None
    registered = part["registered_name"]
    if name == "function":
        registered, module = part.get("config"), ""
        # Keras's own functions have no package in their names.
        if not isinstance(registered, str) or ">" not in registered:
            return None
    package = module.partition(".")[0]
    if package == "keras" or (package in _SHIPS_LAYERS and _is_installed(package)):
        return None
    name = registered if isinstance(registered, str) else name
    return None if keras.saving.get_registered_object(name) else (name, module)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def written_by_keras_2(path: pathlib.Path) -> str | None:
    """Why a file or folder is of Keras 2, and what to do; None if it is not."""
    mend = "Load it with tf_keras, build the same model in Keras 3 and copy its weights."
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return (
                "it is the folder of a TensorFlow SavedModel, which Keras 3 does not "
                f"load. {mend}"
            )
        return None
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_HDF5)) == _HDF5:
            return f"it is an HDF5 file, the format of Keras 2. {mend}"
    metadata = _read_member(path, "metadata.json")
    version = metadata.get("keras_version") if isinstance(metadata, Mapping) else None
    if isinstance(version, str) and version.startswith("2."):
        return f"it was saved by Keras {one_line(version)}. {mend}"
    return None
