"""Keras model files: loaded, or told what they lack."""

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
# Packages that Keras imports by itself.
_SHIPS_LAYERS = ("keras_hub", "keras_cv", "keras_nlp")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def load_keras_file(path: files.Path) -> keras.Model:
    """Loads a model from a `.keras` file.

    Args:
        path: of the file.

    Returns:
        The model, not compiled.

    Raises:
        BranchyError: there is no such file; it is damaged or something else; it holds
            classes that are not registered here, which the message names; or Keras 2
            has written it.

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
            f"{path} holds a {type(model).__name__} of Keras; expected a whole model. "
            f"{_MEND}"
        )
    return model


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Tells why Keras cannot read a model from a file, whatever it raises.

    Keras's own message for a class that is not registered begins with a page of the
    model's configuration, and for a file of Keras 2 with whatever went wrong first.

    Args:
        path: of the file that the block reads.
    """
    with files.reading(path, "a Keras model", _MEND):
        try:
            yield
        except Exception as error:
            reason = _foreign_code(path) or written_by_keras_2(path)
            if reason is None and path.exists() and not zipfile.is_zipfile(path):
                # Keras would say that there is no such file.
                raise ValueError("it is no .keras archive") from error
            if reason is None:
                raise
            raise BranchyError(
                f"{path} cannot be read as a Keras model: {reason}"
            ) from error


def read_config(path: pathlib.Path) -> Any:
    """The model's configuration in a `.keras` file; None where there is none.

    For looking before Keras does, or after: a file that cannot be read is Keras's to
    refuse.
    """
    return _read_member(path, "config.json")


def _read_member(path: pathlib.Path, name: str) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read(name))
    except Exception:
        return None


def _foreign_code(path: pathlib.Path) -> str | None:
    """What of a model is not in Keras nor registered; None for nothing."""
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
    # A script that was run has no name to be imported by.
    modules = ", ".join(sorted({*filter(None, found.values())})) or "a script"
    return (
        f"not registered here: {one_line(', '.join(sorted(found)))}. Import the module "
        "that registers it with keras.saving.register_keras_serializable before you load "
        f"the file; it was saved from {one_line(modules)}."
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
        # Keras's own have no package before their name.
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
    """What of Keras 2 the file or folder is, and what to do; None for anything else."""
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
