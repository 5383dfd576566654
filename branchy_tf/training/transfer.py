"""Starting from the weights of another model, layer by layer."""

from __future__ import annotations

import dataclasses
import shutil

import keras
from absl import logging

from branchy_tf import exits, files, graphs
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


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The trunk of another run.

    Attributes:
        path: the file it was read from.
        network: without branches.
        has_exits: whether the file has branches, which have shaped the trunk.
    """

    path: files.Path
    network: keras.Model
    has_exits: bool


def take_baseline(model: keras.Model, baseline: Baseline, to: files.Path) -> None:
    """Starts `model` from the trunk of another run.

    A baseline.keras is kept as this run's, too. A trunk that other exits have shaped
    is not: such a run has no trained baseline of its own.

    Args:
        model: the baseline of the model to train.
        baseline: as `read_baseline` gives it for this model.
        to: where to keep a baseline.
    """
    theirs = _layers(baseline.network)
    for name, layer in _layers(model).items():
        layer.set_weights(theirs[name].get_weights())
    if not baseline.has_exits:
        with files.replacing(to) as beside:
            shutil.copyfile(baseline.path, beside)


def read_baseline(model: keras.Model, path: files.Path) -> Baseline:
    """The network in a file, without its branches.

    Args:
        model: the baseline of the model to train; it is not changed.
        path: baseline.keras or model.keras of a run.

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
    return Baseline(path, source, has_exits)


def _load(path: files.Path) -> keras.Model:
    path = files.path(path)
    if not path.is_file():
        raise BranchyError(f"There is no file {path} to take weights from.")
    return load_keras_file(path)


def _layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    return {layer.name: layer for layer in model.layers if layer.weights}


def _shapes(name: str, layers: dict[str, keras.layers.Layer]) -> list[tuple]:
    """The shapes of a layer's weights; none if there is no such layer."""
    weights = layers[name].weights if name in layers else []
    return [tuple(weight.shape) for weight in weights]
