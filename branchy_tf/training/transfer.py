"""Starting from the weights of another model, layer by layer."""

from __future__ import annotations

import pathlib
import shutil

import keras
from absl import logging

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.training.run_folder import load_keras_file


def copy_layers(model: keras.Model, path: files.Path) -> list[str]:
    """Copies the weights of equally named layers of equal shapes.

    So a multi-exit model starts from a baseline, a model for other classes
    from all but its heads, and a ResNet-110 from a ResNet-20, whose blocks it
    begins with: its further blocks start as the identity.

    Args:
        model: receives them.
        path: a `.keras` file.

    Returns:
        Names of the layers with weights that keep their own.

    Raises:
        BranchyError: no such file, or no layer fits.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise BranchyError(f"There is no file {path} to take weights from.")
    source = {layer.name: layer for layer in load_keras_file(path).layers}
    fresh, copied = [], 0
    for layer in model.layers:
        if not layer.weights:
            continue
        theirs = source.get(layer.name)
        if theirs is None or _shapes(theirs) != _shapes(layer):
            fresh.append(layer.name)
            continue
        layer.set_weights(theirs.get_weights())
        copied += 1
    if not copied:
        raise BranchyError(
            f"No layer of {path} has the name and shapes of one of {model.name}: nothing "
            "could be taken over. Pass a file of the same family."
        )
    logging.info(
        "%d layers start from %s, %d anew%s.",
        copied,
        path,
        len(fresh),
        f" ({', '.join(fresh[:4])}{' ...' if len(fresh) > 4 else ''})" if fresh else "",
    )
    return fresh


def take_baseline(model: keras.Model, path: files.Path, to: files.Path) -> None:
    """Starts `model` from a trained baseline, and keeps its file in the run.

    Args:
        model: the baseline of the model to train.
        path: baseline.keras of another run.
        to: where to keep it.

    Raises:
        BranchyError: it is not the baseline of this model.
    """
    fresh = copy_layers(model, path)
    if fresh:
        raise BranchyError(
            f"{path} is no baseline of {model.name}: layer {fresh[0]!r} is missing or "
            "of another shape."
        )
    with files.replacing(to) as beside:
        shutil.copyfile(path, beside)


def _shapes(layer) -> list[tuple]:
    return [tuple(weight.shape) for weight in layer.weights]
