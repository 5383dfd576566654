"""Exit heads: they turn a feature map of the trunk into logits.

A head is any callable `(features, classes, name) -> logits`: `features` is a symbolic
tensor [B, ...], `name` the exit's name, and the logits are [B, classes]. A head starts
the names of its layers with the exit's name, so that one model can hold many heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers

from branchy_tf import checks, graphs
from branchy_tf.errors import BranchyError

Head = Callable[[keras.KerasTensor, int, str], keras.KerasTensor]


def linear_head(
    features: keras.KerasTensor, classes: int, name: str
) -> keras.KerasTensor:
    """Global average pooling and one dense layer, the cheapest head.

    Args:
        features: [B, ..., C], averaged over the axes in between.
        classes: the number of classes.
        name: the name of the exit.

    Returns:
        Logits [B, classes].

    Raises:
        BranchyError: `features` has more than three axes in between, or none at all.

    References:
        Panda, Sengupta, Roy: Conditional Deep Learning (2016), arXiv 1509.08971.

    Example:

    ```python
    add_exits(model, {"block_3": linear_head})
    ```
    """
    if len(features.shape) != 2:
        pool = _for_rank("GlobalAveragePooling", features, "linear_head", name)
        features = pool(name=f"{name}_mean")(features)
    return logits_head(features, classes, name)


def conv_head(
    filters: int | Sequence[int],
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 2,
    readout: Head = linear_head,
) -> Head:
    """A head of convolutions, each with batch norm and ReLU, followed by `readout`.

    Args:
        filters: the output channels of each convolution.
        kernel_size: one for all convolutions, or one for each.
        strides: one for all convolutions, or one for each.
        readout: the head after the convolutions. `pool_head` suits early layers,
            where the position of a feature in the image still matters.

    Returns:
        A head for feature maps [B, ..., C] with one to three axes in between.

    Raises:
        BranchyError: the numbers are not positive or differ in length, or `readout`
            is not a head.

    Example:

    ```python
    add_exits(model, {"block_3": conv_head(filters=[32, 64])})
    add_exits(model, {"block_1": conv_head([16, 32], readout=pool_head(4))})
    ```
    """
    filters = _numbers("filters", filters, None)
    sizes = _numbers("kernel_size", kernel_size, len(filters))
    steps = _numbers("strides", strides, len(filters))
    if not takes_features(readout):
        raise BranchyError(
            "`readout` must be a callable (features, classes, name) -> logits. Received "
            f"{checks.shown(readout)}. For example: pool_head(4)."
        )

    def head(features: keras.KerasTensor, classes: int, name: str) -> keras.KerasTensor:
        x = features
        for i, (width, size, step) in enumerate(
            zip(filters, sizes, steps, strict=True), start=1
        ):
            x = _for_rank("Conv", x, "conv_head", name)(
                width,
                size,
                step,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                name=f"{name}_conv_{i}",
            )(x)
            x = layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"{name}_bn_{i}"
            )(x)
            x = layers.ReLU(name=f"{name}_relu_{i}")(x)
        return readout(x, classes, name)

    return head


def pool_head(size: int) -> Head:
    """Average pooling in windows and one dense layer on the flattened result.

    Unlike `linear_head`, it keeps the position of a feature in the image.

    Args:
        size: the side of a window and its stride, in pixels.

    Returns:
        A head for feature maps [B, ..., C] of fixed size.

    Raises:
        BranchyError: `size` is not a positive whole number.

    Example:

    ```python
    add_exits(model, {"block_3": pool_head(8)})
    ```
    """
    (size,) = _numbers("size", size, 1)

    def head(features: keras.KerasTensor, classes: int, name: str) -> keras.KerasTensor:
        pool = _for_rank("AveragePooling", features, "pool_head", name)
        if None in features.shape[1:]:
            raise BranchyError(
                f"pool_head for {name} needs a feature map of known size; received shape "
                f"{tuple(features.shape)}. Build the model for images of one size, or "
                "choose linear_head."
            )
        x = pool(size, padding="same", name=f"{name}_pool")(features)
        return logits_head(layers.Flatten(name=f"{name}_flatten")(x), classes, name)

    return head


def logits_head(
    features: keras.KerasTensor, classes: int, name: str
) -> keras.KerasTensor:
    """The last layer of an exit: a dense layer from [B, F] to logits [B, classes]."""
    # float32 whatever the precision of the rest: in a short format, a confidence
    # close to 1 has no digits left.
    return layers.Dense(classes, dtype="float32", name=name)(features)


def takes_features(head: object) -> bool:
    """Whether `head` can be called as (features, classes, name)."""
    # A layer accepts any arguments and would fail with its own error.
    if not callable(head) or isinstance(head, layers.Layer) or graphs.is_keras_2(head):
        return False
    try:
        inspect.signature(head).bind("features", "classes", "name")
    except (TypeError, ValueError):  # other arguments, or a builtin without a signature
        return False
    return True


def _for_rank(
    kind: str, features: keras.KerasTensor, head: str, name: str
) -> type[keras.Layer]:
    """The 1D, 2D or 3D class of a layer that fits `features`."""
    axes = len(features.shape) - 2
    if not 1 <= axes <= 3:
        raise BranchyError(
            f"{head} for {name} needs a feature map (batch, ..., channels) with 1 to 3 "
            f"axes in between; received shape {tuple(features.shape)}. Choose another "
            "layer or head."
        )
    return getattr(layers, f"{kind}{axes}D")


def _numbers(name: str, given: object, length: int | None) -> list[int]:
    """`length` positive whole numbers from a sequence or from one number for all."""
    values = [given] * (length or 1)
    try:
        if isinstance(given, Sequence | np.ndarray) and np.ndim(given) == 1:
            values = list(given)
        numbers = [checks.whole_number(name, n, at_least=1) for n in values]
    except ValueError:  # also NumPy's, of a ragged sequence
        numbers = []
    if not numbers or length not in (None, len(numbers)):
        count = "" if length is None else f", {length} of them"
        raise BranchyError(
            f"`{name}` must be positive whole numbers{count}, or one for all. Received "
            f"{checks.shown(given)}."
        )
    return numbers
