"""Copies weights from other models, layer by layer."""

from __future__ import annotations

import dataclasses
import shutil

import keras
from absl import logging

from branchy_tf import exits, files, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.exits.flattening import flatten
from branchy_tf.training import distributing
from branchy_tf.training.run_folder import load_keras_file


def copy_layers(model: keras.Model, path: files.Path) -> list[str]:
    """Copies the weights of layers with the same name and shapes.

    A multi-exit model can start from a baseline, a model for other classes from
    everything but its heads, and a ResNet-110 from a ResNet-20: its additional blocks
    start as the identity.

    Args:
        model: receives the weights.
        path: a `.keras` file.

    Returns:
        The names of the layers that keep their own weights.

    Raises:
        BranchyError: there is no such file, or no layer matches.

    Example:

    ```python
    copy_layers(branchy_resnet(depth=110), "runs/resnet20/model.keras")
    ```
    """
    graphs.check_functional(model)
    ours, theirs = _layers(model), _layers(_load(path))
    fresh = [name for name in ours if _shapes(name, theirs) != _shapes(name, ours)]
    copied = len(ours) - len(fresh)
    if not copied:
        raise BranchyError(
            f"No layer of {path} has the same name and shapes as a layer of "
            f"{model.name}. Pass a file of the same family."
        )
    for name in ours.keys() - set(fresh):
        ours[name].set_weights(theirs[name].get_weights())
    logging.info(
        "%d layers start from %s, %d from new weights%s.",
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
        path: its file.
        network: the network without branches.
        has_exits: whether the file has branches, which influenced the trunk.
    """

    path: files.Path
    network: keras.Model
    has_exits: bool


def take_baseline(model: keras.Model, baseline: Baseline, to: files.Path) -> None:
    """Starts `model` from the trunk of another run.

    A baseline.keras is copied to this run. A trunk that was trained with exits is not,
    because it is not a trained baseline.

    Args:
        model: the baseline of the model to train.
        baseline: the result of `read_baseline` for this model.
        to: the path of this run's baseline.
    """
    theirs = _layers(baseline.network)
    for name, layer in _layers(model).items():
        layer.set_weights(theirs[name].get_weights())
    if not baseline.has_exits and distributing.current().writes:
        with files.replacing(to) as beside:
            shutil.copyfile(baseline.path, beside)


def read_baseline(model: keras.Model, path: files.Path) -> Baseline:
    """Reads the network in a file, without its branches.

    Args:
        model: the baseline of the model to train, which stays unchanged.
        path: the baseline.keras or model.keras of a run.

    Raises:
        BranchyError: its layers differ from those of `model`.
    """
    source = _load(path)
    has_exits = isinstance(source.output, dict)
    if has_exits:
        source = exits.baseline(source)
    ours, theirs = _layers(model), _layers(source)
    for name in [*ours, *theirs]:
        if _shapes(name, theirs) != _shapes(name, ours):
            raise BranchyError(
                f"{path} does not match {model.name}: layer {name!r} is missing in one "
                "of them or has another shape. Pass the baseline.keras of a run with the "
                "same model."
            )
    return Baseline(path, source, has_exits)


def _load(path: files.Path) -> keras.Model:
    path = files.path(path)
    if not path.is_file():
        raise BranchyError(f"There is no file {path} to copy weights from.")
    model = load_keras_file(path)
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    # As in a model with exits, whose layers these are compared with.
    return flatten(model).model if graphs.has_nodes(model) else model


def _layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    return {layer.name: layer for layer in model.layers if layer.weights}


def _shapes(name: str, layers: dict[str, keras.layers.Layer]) -> list[tuple]:
    """The shapes of a layer's weights; empty if there is no such layer."""
    weights = layers[name].weights if name in layers else []
    return [tuple(weight.shape) for weight in weights]
