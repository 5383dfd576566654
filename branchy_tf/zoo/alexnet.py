"""B-AlexNet: AlexNet for 32 x 32 images, with two early exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
from keras import layers

from branchy_tf import files
from branchy_tf.exits import Head, conv_head, logits_head
from branchy_tf.zoo import registry


def _conv(x, filters: int, size: int, name: str):
    return layers.Conv2D(
        filters, size, padding="same", kernel_initializer="he_normal", name=name
    )(x)


def _relu_pool(x, name: str):
    x = layers.ReLU(name=f"{name}_relu")(x)
    # padding="same" keeps the last partial window, as the original does.
    return layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)


def _norm(x, name: str):
    # The original has local response normalisation here, which Keras does not provide.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _trunk(input_shape, classes: int, name: str) -> keras.Model:
    pixels = keras.Input(input_shape, dtype="uint8", name="images")
    x = layers.Rescaling(1.0 / 127.5, offset=-1.0, name="rescale")(pixels)
    x = _norm(_relu_pool(_conv(x, 32, 5, "conv_1"), "conv_1"), "conv_1")
    x = _norm(_relu_pool(_conv(x, 64, 5, "conv_2"), "conv_2"), "conv_2")
    x = layers.ReLU(name="conv_3_relu")(_conv(x, 96, 3, "conv_3"))
    x = layers.ReLU(name="conv_4_relu")(_conv(x, 96, 3, "conv_4"))
    x = _relu_pool(_conv(x, 64, 3, "conv_5"), "conv_5")
    x = layers.Flatten(name="flatten")(x)
    for number, units in enumerate((256, 128), start=1):
        x = layers.Dense(units, activation="relu", name=f"dense_{number}")(x)
        x = layers.Dropout(0.5, name=f"dropout_{number}")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(pixels, x, name=name)


def _paper_head(filters: Sequence[int]) -> Head:
    """The paper's branch: ReLU, pooling, norm, convolutions, pooling, dense."""

    def head(features, classes: int, name: str):
        x = _norm(_relu_pool(features, f"{name}_in"), f"{name}_in")
        for number, width in enumerate(filters, start=1):
            x = _conv(x, width, 3, f"{name}_conv_{number}")
            if number < len(filters):
                x = layers.ReLU(name=f"{name}_conv_{number}_relu")(x)
        x = _relu_pool(x, name)
        x = layers.Flatten(name=f"{name}_flatten")(x)
        return logits_head(x, classes, name)

    return head


def _exit_sets() -> dict[str, dict[str, Head]]:
    return {
        "paper": {"conv_2": _paper_head([32, 32]), "conv_3": _paper_head([32])},
        "light": {
            "conv_1_bn": conv_head([32, 64], strides=2),
            "conv_2_bn": conv_head([64], strides=2),
        },
    }


@registry.register
def branchy_alexnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    weights: files.Path | None = None,
    exits: str | Mapping[str, Head] | None = None,
    name: str = "branchy_alexnet",
) -> keras.Model:
    """Builds B-AlexNet, with three exits.

    Args:
        input_shape: (height, width, channels), channels last, at least 16 x 16.
        classes: the number of classes, at least 2.
        weights: None, a tag (see `list_weights`), or the path of a `.keras` or
            `.weights.h5` file of this architecture.
        exits: places and heads: "paper" (the default), "light" (one earlier, both
            cheaper), or `{layer name: head}` as in `exits.add_exits`. A tag
            fixes it.
        name: the name of the model.

    Returns:
        A `keras.Model` from raw pixels 0...255, uint8 [B, H, W, C], to logits
        `{"exit_1": [B, classes], "exit_2": ..., "exit_3": ...}`, float32.
        Normalisation is inside the model.

    Raises:
        BranchyError: an argument is out of range, or the weights do not fit.

    References:
        Teerapittayanon, McDanel, Kung: BranchyNet (ICPR 2016), arXiv
        1709.01686, section IV; layer sizes as in the authors' release, with
        batch norm in place of local response normalisation.

    Example:

    ```python
    model = branchy_alexnet()
    model(images)["exit_1"]     # logits [B, 10]
    ```
    """
    return registry.assemble(
        "branchy_alexnet",
        _trunk,
        _exit_sets,
        minimum_side=16,
        input_shape=input_shape,
        classes=classes,
        weights=weights,
        exits=exits,
        name=name,
    )
