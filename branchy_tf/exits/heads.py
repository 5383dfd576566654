"""Exit heads: what turns a feature map of the trunk into logits.

A head is any callable `(features, classes, name) -> logits`, where `features`
is a symbolic tensor [B, ...], `name` the exit's, and logits are [B, classes].
A head names its layers after its exit, so any number of them fit in one model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import layers

from branchy_tf import checks, graphs
from branchy_tf.errors import BranchyError

Head = Callable[[Any, int, str], Any]

_CONVS = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}
_MEANS = {
    3: layers.GlobalAveragePooling1D,
    4: layers.GlobalAveragePooling2D,
    5: layers.GlobalAveragePooling3D,
}
_POOLS = {
    3: layers.AveragePooling1D,
    4: layers.AveragePooling2D,
    5: layers.AveragePooling3D,
}


def linear_head(features, classes: int, name: str):
    """Global average pooling and one dense layer.

    The head of conditional deep learning: cheap, and as good as the features
    are linearly separable.

    Args:
        features: [B, ..., C]; the axes between are averaged away.
        classes: number of classes.
        name: of the exit.

    Returns:
        Logits [B, classes].

    References:
        Panda, Sengupta, Roy: Conditional Deep Learning (2016), arXiv 1509.08971.

    Example:

    ```python
    add_exits(model, {"block_3": linear_head})
    ```
    """
    return logits_head(_mean(features, name), classes, name)


def conv_head(
    filters: Sequence[int],
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 2,
    readout: Head = linear_head,
) -> Head:
    """A head of convolutions, each with batch norm and ReLU, then `readout`.

    Args:
        filters: of each convolution.
        kernel_size: of each convolution, or of all.
        strides: of each convolution, or of all.
        readout: the head behind the convolutions; `pool_head` where the place of
            a feature in the image still matters.

    Returns:
        A head for feature maps [B, ..., C] with 1 to 3 axes between.

    Raises:
        BranchyError: the numbers are not positive, or of different lengths, or
            `readout` is no head.

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

    def head(features, classes: int, name: str):
        x = features
        for i, (n, size, step) in enumerate(
            zip(filters, sizes, steps, strict=True), start=1
        ):
            conv = _for_rank(_CONVS, x, "conv_head", name)
            x = conv(
                n,
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
    """Average pooling in windows of `size`, and one dense layer on what is left.

    Unlike `linear_head` it still knows where in the image a feature was.

    Args:
        size: side of a window; also its stride.

    Raises:
        BranchyError: not a positive whole number.

    Example:

    ```python
    add_exits(model, {"block_3": pool_head(8)})
    ```
    """
    (size,) = _numbers("size", size, 1)

    def head(features, classes: int, name: str):
        pool = _for_rank(_POOLS, features, "pool_head", name)
        if None in features.shape[1:]:
            raise BranchyError(
                f"pool_head for {name} needs a feature map of known size; received shape "
                f"{tuple(features.shape)}. Build the model for images of one size, or "
                "choose linear_head."
            )
        x = pool(size, padding="same", name=f"{name}_pool")(features)
        x = layers.Flatten(name=f"{name}_flatten")(x)
        return logits_head(x, classes, name)

    return head


def logits_head(features, classes: int, name: str):
    """The last layer of the exit `name`: a dense layer from [B, F] to logits."""
    # Logits in float32 whatever the precision of the rest: a confidence close
    # to 1 has no digits left in a short format.
    return layers.Dense(classes, dtype="float32", name=name)(features)


def takes_features(head: Any) -> bool:
    """Whether `head` can be called as (features, classes, name)."""
    # A layer can be called with anything, and would complain in its own words.
    if not callable(head) or isinstance(head, layers.Layer) or graphs.is_keras_2(head):
        return False
    try:
        inspect.signature(head).bind("features", "classes", "name")
    except (TypeError, ValueError):  # other arguments, or a builtin without a signature
        return False
    return True


def _mean(features, name: str):
    if len(features.shape) == 2:
        return features
    return _for_rank(_MEANS, features, "linear_head", name)(name=f"{name}_mean")(features)


def _for_rank(kinds: dict[int, Any], features, head: str, name: str) -> Any:
    rank = len(features.shape)
    if rank not in kinds:
        raise BranchyError(
            f"{head} for {name} needs a feature map (batch, ..., channels) with 1 to 3 "
            f"axes between; received shape {tuple(features.shape)}. Choose another "
            "layer or head."
        )
    return kinds[rank]


def _numbers(name: str, given: Any, length: int | None) -> list[int]:
    """A list of `length` positive whole numbers from one or from several."""
    if isinstance(given, np.ndarray):
        given = given.tolist()
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    values = list(given) if several else [given] * (length or 1)
    try:
        values = [checks.whole_number(name, n, at_least=1) for n in values]
    except BranchyError:
        values = []
    if not values or length not in (None, len(values)):
        wanted = "positive whole numbers" + (
            "" if length is None else f", {length} of them"
        )
        raise BranchyError(
            f"`{name}` must be {wanted}, or one for all. Received {checks.shown(given)}."
        )
    return values
