"""B-LeNet: LeNet with one early exit, for images the size of MNIST's."""

from __future__ import annotations

from collections.abc import Mapping

import keras
from keras import layers

from branchy_tf import graphs
from branchy_tf.exits import Head, add_exits, logits_head
from branchy_tf.zoo import registry


def _conv(x, filters: int, name: str):
    # Padding by 3 lets a 5x5 kernel see past the border: the map grows by 2.
    x = layers.ZeroPadding2D(3, name=f"{name}_pad")(x)
    return layers.Conv2D(filters, 5, name=name)(x)


def _pool_relu(x, name: str):
    # padding="same" keeps the last partial window, as the original does.
    x = layers.MaxPooling2D(2, padding="same", name=f"{name}_pool")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _trunk(input_shape, classes: int, name: str) -> keras.Model:
    # An input of dtype uint8 tells every later step, the exported signature
    # among them, that this network reads raw pixels.
    pixels = keras.Input(input_shape, dtype="uint8", name="images")
    # Scaled to 0...1 and not centred: the black border of a digit is then the
    # same 0 as the padding.
    x = layers.Rescaling(1.0 / 255, name="rescale")(pixels)
    x = _pool_relu(_conv(x, 5, "conv_1"), "conv_1")
    x = _pool_relu(_conv(x, 10, "conv_2"), "conv_2")
    x = _pool_relu(_conv(x, 20, "conv_3"), "conv_3")
    x = layers.Flatten(name="flatten")(x)
    # No activation here: so it is in the original.
    x = layers.Dense(84, name="dense")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(pixels, x, name=name)


def _paper_head(features, classes: int, name: str):
    x = _pool_relu(features, f"{name}_in")
    x = layers.Conv2D(10, 3, padding="same", name=f"{name}_conv")(x)
    x = _pool_relu(x, name)
    x = layers.Flatten(name=f"{name}_flatten")(x)
    return logits_head(x, classes, name)


@registry.register
def branchy_lenet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    weights: str | None = None,
    exits: str | Mapping[str, Head] | None = None,
    name: str = "branchy_lenet",
) -> keras.Model:
    """Builds B-LeNet, two exits.

    Args:
        input_shape: (height, width, channels), channels last, at least 8 x 8.
        classes: number of classes.
        weights: None, a tag (see `list_weights`), or the path of a `.keras` or
            `.weights.h5` file of this architecture.
        exits: where and what: "paper" (the default), or `{layer name: head}` as
            in `exits.add_exits`.
        name: name of the model.

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
    settled = registry.settle(
        "branchy_lenet", weights, input_shape=input_shape, classes=classes, exits=exits
    )
    exits = settled["exits"]
    input_shape = registry.check_input_shape(input_shape, minimum=8)
    classes = registry.check_classes(classes)
    graphs.check_name(name)
    trunk = _trunk(input_shape, classes, name)
    heads = registry.choose_exits(exits, ("paper",), lambda _: {"conv_1": _paper_head})
    model = add_exits(trunk, heads, name)
    return registry.load_weights(model, "branchy_lenet", weights)
