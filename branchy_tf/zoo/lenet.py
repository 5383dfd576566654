"""B-LeNet: LeNet with one early exit, for images the size of MNIST's."""

from __future__ import annotations

from collections.abc import Mapping

import keras
from keras import layers

from branchy_tf import files
from branchy_tf.exits import Head, logits_head
from branchy_tf.zoo import registry


def _conv(x, filters: int, name: str):
    # Padding by 3, not 2, as in the original: the map grows by 2.
    x = layers.ZeroPadding2D(3, name=f"{name}_pad")(x)
    return layers.Conv2D(filters, 5, name=name)(x)


def _pool_relu(x, name: str):
    # padding="same" keeps the last partial window, as the original does.
    x = layers.MaxPooling2D(2, padding="same", name=f"{name}_pool")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _trunk(input_shape, classes: int, name: str) -> keras.Model:
    # The dtype uint8 tells every later step, including the exported signature,
    # that this network reads raw pixels.
    pixels = keras.Input(input_shape, dtype="uint8", name="images")
    # Scaled to 0...1 and not centred: the black border of a digit is then the
    # same 0 as the padding.
    x = layers.Rescaling(1.0 / 255, name="rescale")(pixels)
    x = _pool_relu(_conv(x, 5, "conv_1"), "conv_1")
    x = _pool_relu(_conv(x, 10, "conv_2"), "conv_2")
    x = _pool_relu(_conv(x, 20, "conv_3"), "conv_3")
    x = layers.Flatten(name="flatten")(x)
    # No activation here, as in the original.
    x = layers.Dense(84, name="dense")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(pixels, x, name=name)


def _paper_head(features, classes: int, name: str):
    x = _pool_relu(features, f"{name}_in")
    x = layers.Conv2D(10, 3, padding="same", name=f"{name}_conv")(x)
    x = _pool_relu(x, name)
    x = layers.Flatten(name=f"{name}_flatten")(x)
    return logits_head(x, classes, name)


def _exit_sets() -> dict[str, dict[str, Head]]:
    return {"paper": {"conv_1": _paper_head}}


@registry.register
def branchy_lenet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    weights: files.Path | None = None,
    exits: str | Mapping[str, Head] | None = None,
    name: str = "branchy_lenet",
) -> keras.Model:
    """Builds B-LeNet, with two exits.

    Args:
        input_shape: (height, width, channels), channels last, at least 8 x 8.
        classes: the number of classes, at least 2.
        weights: None, a tag (see `list_weights`), or the path of a `.keras` or
            `.weights.h5` file of this architecture.
        exits: places and heads: "paper" (the default), or `{layer name: head}` as
            in `exits.add_exits`.
        name: the name of the model.

    Returns:
        A `keras.Model` from raw pixels 0...255, uint8 [B, H, W, C], to logits
        `{"exit_1": [B, classes], "exit_2": [B, classes]}`, float32.
        Normalisation is inside the model.

    Raises:
        BranchyError: an argument is out of range, or the weights do not fit.

    References:
        Teerapittayanon, McDanel, Kung: BranchyNet (ICPR 2016), arXiv
        1709.01686, section IV; layer sizes as in the authors' release. The
        trunk costs 1,140,070 multiply-adds at 28 x 28, its first exit 220,150.

    Example:

    ```python
    model = branchy_lenet()
    model(images)["exit_1"]     # logits [B, 10]
    ```
    """
    return registry.assemble(
        "branchy_lenet",
        _trunk,
        _exit_sets,
        minimum_side=8,
        input_shape=input_shape,
        classes=classes,
        weights=weights,
        exits=exits,
        name=name,
    )
