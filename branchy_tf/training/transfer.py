"""Starting from the weights of another model, layer by layer."""

from __future__ import annotations

import pathlib
import shutil

import keras
from absl import logging

from branchy_tf import checks, exits, files, graphs
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
    graphs.check_functional(model)
    ours, theirs = _layers(model), _layers(_load(path))
    fresh = [name for name in ours if _shapes(name, theirs) != _shapes(name, ours)]
    copied = len(ours) - len(fresh)
    if not copied:
        raise BranchyError(
            f"No layer of {path} has the name and shapes of one of {model.name}: nothing "
            "could be taken over. Pass a file of the same family."
        )
    for name in ours.keys() - set(fresh):
        ours[name].set_weights(theirs[name].get_weights())
    logging.info(
        "%d layers start from %s, %d anew%s.",
        copied,
        path,
        len(fresh),
        f" ({', '.join(fresh[:4])}{' ...' if len(fresh) > 4 else ''})" if fresh else "",
    )
    return fresh


def take_baseline(model: keras.Model, path: files.Path, to: files.Path) -> None:
    """Starts `model` from the trunk of another run.

    Args:
        model: the baseline of the model to train.
        path: baseline.keras of a run, which is kept as this run's, too; or its
            model.keras, whose trunk other exits have shaped: such a run has no
            trained baseline of its own.
        to: where to keep a baseline.

    Raises:
        BranchyError: it has not the layers of this model.
    """
    source, has_exits = read_baseline(model, path)
    theirs = _layers(source)
    for name, layer in _layers(model).items():
        layer.set_weights(theirs[name].get_weights())
    if not has_exits:
        with files.replacing(to) as beside:
            shutil.copyfile(path, beside)


def read_baseline(model: keras.Model, path: files.Path) -> tuple[keras.Model, bool]:
    """`(the network in a file without its branches, whether it had any)`.

    Args:
        model: the baseline of the model to train; it is not changed.
        path: as `take_baseline` has it.

    Raises:
        BranchyError: it has not the layers of this model.
    """
    source = _load(path)
    has_exits = isinstance(source.output, dict)
    if has_exits:
        source = exits.baseline(source)
    ours, theirs = _layers(model), _layers(source)
    for name in [*ours, *theirs]:
        if _shapes(name, theirs) != _shapes(name, ours):
            raise BranchyError(
                f"{path} is no {model.name}: layer {name!r} is not in both, or of "
                "another shape. Pass the baseline.keras of a run with the same model."
            )
    return source, has_exits


def _load(path: files.Path) -> keras.Model:
    path = pathlib.Path(checks.path("path", path))
    if not path.is_file():
        raise BranchyError(f"There is no file {path} to take weights from.")
    return load_keras_file(path)


def _layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    return {layer.name: layer for layer in model.layers if layer.weights}


def _shapes(name: str, layers: dict[str, keras.layers.Layer]) -> list[tuple]:
    """The shapes of a layer's weights; none if there is no such layer."""
    weights = layers[name].weights if name in layers else []
    return [tuple(weight.shape) for weight in weights]
