"""B-ResNet: the residual networks for 32 x 32 images, with early exits."""

from __future__ import annotations

from collections.abc import Mapping

import keras
from keras import layers

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.exits import Head, conv_head, linear_head
from branchy_tf.zoo import registry

_FILTERS = (16, 32, 64)


def _conv_bn(x, filters: int, size: int, strides: int, name: str, **bn):
    x = layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn", **bn)(
        x
    )


def _block(x, filters: int, strides: int, name: str):
    """Two 3 x 3 convolutions beside a shortcut."""
    y = _conv_bn(x, filters, 3, strides, f"{name}_1")
    y = layers.ReLU(name=f"{name}_1_relu")(y)
    # A block starts as the identity, so a trained ResNet-20 can be grown into a
    # ResNet-110.
    y = _conv_bn(y, filters, 3, 1, f"{name}_2", gamma_initializer="zeros")
    if strides > 1 or x.shape[-1] != filters:
        x = _conv_bn(x, filters, 1, strides, f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=name)(x)


def _blocks(depth: int | None) -> int:
    """The number of blocks in each stack."""
    try:
        whole = checks.whole_number("depth", 110 if depth is None else depth, at_least=8)
    except BranchyError:
        whole = 0
    if whole % 6 != 2:
        raise BranchyError(
            f"`depth` must be 6 n + 2, e.g. 20, 32, 44, 56 or 110. Received {depth!r}."
        )
    return (whole - 2) // 6


def _trunk(input_shape, classes: int, name: str, depth: int | None) -> keras.Model:
    pixels = keras.Input(input_shape, dtype="uint8", name="images")
    x = layers.Rescaling(1.0 / 127.5, offset=-1.0, name="rescale")(pixels)
    x = _conv_bn(x, _FILTERS[0], 3, 1, "stem")
    x = layers.ReLU(name="stem")(x)
    for stack, filters in enumerate(_FILTERS, start=1):
        for block in range(1, _blocks(depth) + 1):
            strides = 2 if stack > 1 and block == 1 else 1
            x = _block(x, filters, strides, f"stack_{stack}_block_{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(pixels, x, name=name)


def _paper_branch_1(features, classes: int, name: str):
    return conv_head([64, 32, 32], kernel_size=[5, 3, 3], strides=1)(
        features, classes, name
    )


def _paper_branch_2(features, classes: int, name: str):
    x = _block(features, features.shape[-1], 1, f"{name}_block")
    return linear_head(x, classes, name)


def _exit_sets(depth: int | None) -> dict[str, dict[str, Head]]:
    blocks = _blocks(depth)
    middle = -(-blocks // 2)
    first_stack = [middle] if blocks < 6 else [blocks // 6, middle, blocks]
    # Three strided convolutions cost as much as a block of the trunk.
    early = conv_head([32, 64, 64], strides=[2, 2, 1])
    late = conv_head([64, 64], strides=[2, 1])
    return {
        "paper": {"stem": _paper_branch_1, f"stack_1_block_{blocks}": _paper_branch_2},
        "light": {
            **{f"stack_1_block_{block}": early for block in first_stack},
            f"stack_2_block_{middle}": late,
        },
    }


@registry.register
def branchy_resnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    weights: files.Path | None = None,
    depth: int | None = None,
    exits: str | Mapping[str, Head] | None = None,
    name: str = "branchy_resnet",
) -> keras.Model:
    """Builds B-ResNet, with three exits ("paper") or up to five ("light").

    Args:
        input_shape: (height, width, channels), channels last, at least 16 x 16.
        classes: the number of classes, at least 2.
        weights: None, a tag (see `list_weights`), or the path of a `.keras` or
            `.weights.h5` file of this architecture.
        depth: 6 n + 2, with n blocks in each of the three stacks, e.g. 20, 32, 44,
            56 or 110. Default: 110. A tag fixes it.
        exits: places and heads: "paper" (the default), "light", or `{layer name:
            head}` as in `exits.add_exits`. A tag fixes it.
        name: the name of the model.

    Returns:
        A `keras.Model` from raw pixels 0...255, uint8 [B, H, W, C], to logits
        `{"exit_1": [B, classes], ...}`, float32. Normalisation is inside the
        model.

    Raises:
        BranchyError: an argument is out of range, or the weights do not fit.

    References:
        He, Zhang, Ren, Sun: Deep Residual Learning (CVPR 2016), arXiv
        1512.03385, section 4.2 (the trunk; shortcuts that change shape are
        1 x 1 convolutions). Teerapittayanon, McDanel, Kung: BranchyNet (ICPR
        2016), arXiv 1709.01686, and the authors' release (the paper's exits,
        here with batch norm in place of local response normalisation and with
        global average pooling before the dense layers).

    Example:

    ```python
    model = branchy_resnet(depth=20, exits="light")
    model(images)["exit_1"]     # logits [B, 10]
    ```
    """
    return registry.assemble(
        "branchy_resnet",
        _trunk,
        _exit_sets,
        minimum_side=16,
        input_shape=input_shape,
        classes=classes,
        weights=weights,
        exits=exits,
        name=name,
        depth=depth,
    )
