"""Prunes, clusters or quantises a tf_keras model layer by layer; for the worker alone.

tensorflow-model-optimization refuses a whole model for a single layer that it does not
know, such as Rescaling. Here only the layers with kernels are wrapped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from branchy_tf.compression.settings import Settings
from branchy_tf.errors import BranchyError

# The share of the steps after which no more weights are pruned, and the times that the
# masks are chosen anew until then.
_PRUNING_SHARE = 0.5
_MASKS = 50
_VERBS = {"prune": "prune", "cluster": "cluster", "qat": "quantize"}


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A model that learns to be compressed.

    Attributes:
        model: the model to train.
        strip: `strip(model)`, the trained model without wrappers.
        changed: `{layer: indices of its compressed weights}`.
        callbacks: for `fit`.
    """

    model: tf_keras.Model
    strip: Callable[[tf_keras.Model], tf_keras.Model]
    changed: dict[str, list[int]]
    callbacks: list[tf_keras.callbacks.Callback] = dataclasses.field(default_factory=list)


def wrap(twin: tf_keras.Model, settings: Settings, steps: int) -> Wrapped:
    """Wraps a model for the method of `settings`.

    Args:
        twin: the model, whose layers are shared.
        settings: of the compression.
        steps: the training steps in all.

    Raises:
        BranchyError: tensorflow-model-optimization does not know a layer with a kernel,
            or nothing is left to compress.
    """
    method = settings.method
    if method == "qat":
        wrapped = _quantized(twin, settings)
    elif method == "prune":
        wrapped = _pruned(twin, settings, steps)
    else:
        wrapped = _clustered(twin, settings)
    if not wrapped.changed:
        raise BranchyError(
            f"No layer of {twin.name!r} is left to {_VERBS[method]}: pass fewer "
            "--skip_layers"
            + (", or fewer --clusters than weights." if method == "cluster" else ".")
        )
    return wrapped


def _pruned(twin: tf_keras.Model, settings: Settings, steps: int) -> Wrapped:
    last = max(1, int(_PRUNING_SHARE * steps))
    frequency = -(-last // _MASKS)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=settings.sparsity,
        begin_step=0,
        # The schedule acts only on multiples of its frequency.
        end_step=max(1, last // frequency) * frequency,
        frequency=frequency,
    )

    def prune(layer: tf_keras.layers.Layer) -> tuple[Any, list[Any]]:
        wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, schedule)
        return wrapper, layer.get_prunable_weights()

    model, changed = _layer_by_layer(twin, settings, prune)
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    return Wrapped(model, tfmot.sparsity.keras.strip_pruning, changed, callbacks)


def _clustered(twin: tf_keras.Model, settings: Settings) -> Wrapped:
    def cluster(layer: tf_keras.layers.Layer) -> tuple[Any, list[Any]]:
        wrapper = tfmot.clustering.keras.cluster_weights(
            layer,
            number_of_clusters=settings.clusters,
            cluster_centroids_init=(
                tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
            ),
            preserve_sparsity=_is_sparse(layer),
        )
        weights = [weight for _, weight in layer.get_clusterable_weights()]
        # k-means needs more weights than clusters, and these are few values already.
        if any(np.prod(weight.shape) <= settings.clusters for weight in weights):
            return layer, []
        return wrapper, weights

    model, changed = _layer_by_layer(twin, settings, cluster)
    return Wrapped(model, tfmot.clustering.keras.strip_clustering, changed)


def _layer_by_layer(
    twin: tf_keras.Model,
    settings: Settings,
    method: Callable[[tf_keras.layers.Layer], tuple[Any, list[Any]]],
) -> tuple[tf_keras.Model, dict[str, list[int]]]:
    """The model with the layers wrapped that `method` knows.

    Args:
        method: `(wrapper, the weights that it compresses)` of a layer; raises
            `ValueError` for one that it does not know.
    """
    changed: dict[str, list[int]] = {}
    wrappers: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for layer in _with_kernels(twin):
        if layer.name in settings.skip_layers:
            continue
        try:
            wrapper, weights = method(layer)
        except ValueError:
            unknown[layer.name] = layer
            continue
        if weights:
            wrappers[layer.name] = wrapper
            own = [id(weight) for weight in layer.weights]
            changed[layer.name] = [own.index(id(weight)) for weight in weights]
    _refuse(unknown, settings)
    model = tf_keras.models.clone_model(
        twin, clone_function=lambda layer: wrappers.get(layer.name, layer)
    )
    return model, changed


def _quantized(twin: tf_keras.Model, settings: Settings) -> Wrapped:
    left = set(settings.skip_layers) | _integer_readers(twin)
    kernels = {layer.name: layer for layer in _with_kernels(twin)}
    layers = {layer.name: layer for layer in twin.layers}
    unknown: dict[str, Any] = {}

    def annotate(layer: tf_keras.layers.Layer) -> Any:
        if layer.name in left:
            return layer
        return tfmot.quantization.keras.quantize_annotate_layer(layer)

    while True:
        annotated = tf_keras.models.clone_model(twin, clone_function=annotate)
        try:
            with tfmot.quantization.keras.quantize_scope():
                model = tfmot.quantization.keras.quantize_apply(annotated)
            break
        except RuntimeError as error:
            # It names one layer at a time. Batch norm after a convolution is known,
            # elsewhere it is not, so only trying tells.
            found = re.match(r"Layer (.+?):<class", str(error))
            if found is None or found[1] in left:
                raise
            left.add(found[1])
            if layers[found[1]].trainable_weights:
                unknown[found[1]] = layers[found[1]]
    _refuse(unknown, settings)
    changed = {name: [0] for name in kernels if name not in left}
    masks = {
        layer.name: [tf.cast(kernel != 0, kernel.dtype) for kernel in _kernels(layer)]
        for layer in kernels.values()
        if _is_sparse(layer)
    }
    return Wrapped(model, lambda trained: trained, changed, [_KeepZeros(masks)])


class _KeepZeros(tf_keras.callbacks.Callback):
    """Sets the zeros of pruned kernels back to 0 after each step.

    tensorflow-model-optimization has a scheme for that, which fails for a network that
    begins with Rescaling.

    Args:
        masks: `{layer: one mask for each kernel}`, 0 where the kernel is 0.
    """

    def __init__(self, masks: Mapping[str, list[Any]]) -> None:
        super().__init__()
        self._masks = masks
        self._pairs: list[tuple[Any, Any]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self._pairs = [
            pair
            for wrapper in self.model.layers
            if hasattr(wrapper, "layer") and wrapper.layer.name in self._masks
            for pair in zip(
                _kernels(wrapper), self._masks[wrapper.layer.name], strict=True
            )
        ]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for kernel, mask in self._pairs:
            kernel.assign(kernel * mask)


def _integer_readers(model: tf_keras.Model) -> set[str]:
    """The names of layers that read whole numbers, which have no range to learn."""
    return {
        layer.name
        for layer in model.layers
        for node in layer.inbound_nodes
        for tensor in tf.nest.flatten(node.input_tensors)
        if not tensor.dtype.is_floating
    }


def _with_kernels(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    """The layers with a weight of two axes or more."""
    return [layer for layer in model.layers if _kernels(layer)]


def _kernels(layer: tf_keras.layers.Layer) -> list[Any]:
    return [weight for weight in layer.trainable_weights if len(weight.shape) > 1]


def _is_sparse(layer: tf_keras.layers.Layer) -> bool:
    """Whether a kernel has been pruned: trained weights are not 0 by chance."""
    return any((kernel.numpy() == 0).any() for kernel in _kernels(layer))


def _refuse(unknown: Mapping[str, Any], settings: Settings) -> None:
    if unknown:
        found = ", ".join(
            f"{name} ({type(layer).__name__})" for name, layer in sorted(unknown.items())
        )
        skip = ",".join([*settings.skip_layers, *sorted(unknown)])
        raise BranchyError(
            f"tensorflow-model-optimization cannot {_VERBS[settings.method]} these "
            f"layers: {found}. Leave them as they are with --skip_layers={skip}."
        )
