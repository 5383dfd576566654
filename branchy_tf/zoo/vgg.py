"""B-VGG: VGG-16 for 32 x 32 images, with batch norm and early exits."""

from __future__ import annotations

from collections.abc import Mapping

import keras
from keras import layers

from branchy_tf import files
from branchy_tf.exits import Head, conv_head
from branchy_tf.zoo import registry

# (filters, convolutions) of each block; a pooling by 2 follows each.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def _trunk(input_shape, classes: int, name: str) -> keras.Model:
    pixels = keras.Input(input_shape, dtype="uint8", name="images")
    x = layers.Rescaling(1.0 / 127.5, offset=-1.0, name="rescale")(pixels)
    for block, (filters, convolutions) in enumerate(_BLOCKS, start=1):
        for number in range(1, convolutions + 1):
            prefix = f"block_{block}_conv_{number}"
            x = layers.Conv2D(
                filters,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                name=prefix,
            )(x)
            x = layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"{prefix}_bn"
            )(x)
            x = layers.ReLU(name=f"{prefix}_relu")(x)
        x = layers.MaxPooling2D(2, name=f"block_{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(pixels, x, name=name)


def _exit_sets() -> dict[str, dict[str, Head]]:
    return {
        "light": {
            "block_2_pool": conv_head([128, 128], strides=[2, 1]),
            "block_3_pool": conv_head([128], strides=2),
            "block_4_pool": conv_head([128], strides=1),
        }
    }


@registry.register
def branchy_vgg(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    weights: files.Path | None = None,
    exits: str | Mapping[str, Head] | None = None,
    name: str = "branchy_vgg",
) -> keras.Model:
    """Builds B-VGG, with four exits.

    It has VGG-16's thirteen convolutions, each with batch norm, followed by global
    average pooling and one dense layer in place of the original's three.

    Args:
        input_shape: (height, width, channels), channels last, at least 32 x 32.
        classes: the number of classes, at least 2.
        weights: None, a tag (see `list_weights`), or the path of a `.keras` or
            `.weights.h5` file of this architecture.
        exits: places and heads: "light" (the default: after the second, third
            and fourth block), or `{layer name: head}` as in `exits.add_exits`.
        name: the name of the model.

    Returns:
        A `keras.Model` from raw pixels 0...255, uint8 [B, H, W, C], to logits
        `{"exit_1": [B, classes], ..., "exit_4": ...}`, float32. Normalisation
        is inside the model.

    Raises:
        BranchyError: an argument is out of range, or the weights do not fit.

    References:
        Simonyan, Zisserman: Very Deep Convolutional Networks (2015), arXiv
        1409.1556, configuration D.

    Example:

    ```python
    model = branchy_vgg(classes=100)
    model(images)["exit_1"]     # logits [B, 100]
    ```
    """
    return registry.assemble(
        "branchy_vgg",
        _trunk,
        _exit_sets,
        minimum_side=32,
        input_shape=input_shape,
        classes=classes,
        weights=weights,
        exits=exits,
        name=name,
    )
