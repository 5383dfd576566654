"""B-MSDNet: the multi-scale dense network for 32 x 32 images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
from keras import layers

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.exits import Head, conv_head
from branchy_tf.zoo import registry

# Channels are multiples of these, from the finest scale to the coarsest.
_FACTORS = (1, 2, 4)
_FIRST = 16
_GROWTH = 6
_SPACINGS = ("growing", "even")
_HEAD = conv_head([128, 128])


def _conv_bn(x, filters: int, size: int, strides: int, name: str):
    x = layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _bottleneck(x, filters: int, factor: int, strides: int, name: str):
    """A 1 x 1 convolution to at most factor x filters channels, then a 3 x 3 one."""
    x = _conv_bn(x, min(x.shape[-1], factor * filters), 1, 1, f"{name}_narrow")
    return _conv_bn(x, filters, 3, strides, name)


def _scales(pixels) -> dict[int, keras.KerasTensor]:
    """The first layer: {scale: feature map}, each from the next finer one."""
    found: dict[int, keras.KerasTensor] = {}
    x = layers.Rescaling(1.0 / 127.5, offset=-1.0, name="rescale")(pixels)
    for scale, factor in enumerate(_FACTORS):
        x = _conv_bn(x, _FIRST * factor, 3, 2 if scale else 1, f"scale_{scale + 1}")
        found[scale] = x
    return found


def _layer(
    before: Mapping[int, keras.KerasTensor], finest: int, number: int
) -> dict[int, keras.KerasTensor]:
    """Appends new channels to each scale from `finest` on.

    Half of a scale's new channels come from its own features, half from the next finer
    scale's.
    """
    after = {}
    for scale in range(finest, len(_FACTORS)):
        name = f"layer_{number}_scale_{scale + 1}"
        filters, own = _GROWTH * _FACTORS[scale], before[scale]
        if scale - 1 in before:
            parts = [
                own,
                _bottleneck(
                    before[scale - 1],
                    filters // 2,
                    _FACTORS[scale - 1],
                    2,
                    f"{name}_finer",
                ),
                _bottleneck(own, filters // 2, _FACTORS[scale], 1, f"{name}_own"),
            ]
        else:
            parts = [own, _bottleneck(own, filters, _FACTORS[scale], 1, f"{name}_own")]
        after[scale] = layers.Concatenate(name=name)(parts)
    return after


def _narrowed(
    scales: Mapping[int, keras.KerasTensor], number: int
) -> dict[int, keras.KerasTensor]:
    """Halves the channels of each scale, rounded down to a multiple of its factor."""
    after = {}
    for scale, x in scales.items():
        filters = x.shape[-1] // (2 * _FACTORS[scale]) * _FACTORS[scale]
        after[scale] = _conv_bn(
            x, filters, 1, 1, f"layer_{number}_scale_{scale + 1}_half"
        )
    return after


def _depths(blocks: int | None, spacing: str | None) -> list[int]:
    """The layer that ends each block, counted from 1.

    Raises:
        BranchyError: an argument is invalid.
    """
    number = checks.whole_number("blocks", 7 if blocks is None else blocks, at_least=2)
    if number > 11:
        raise BranchyError(f"`blocks` must be at most 11. Received {number}.")
    spacing = "growing" if spacing is None else spacing
    if spacing not in _SPACINGS:
        raise BranchyError(
            f"`spacing` must be one of {', '.join(_SPACINGS)}. Received "
            f"{checks.shown(spacing)}."
        )
    if spacing == "even":
        return [4 + 2 * block for block in range(number)]
    return [block * (block + 1) // 2 for block in range(1, number + 1)]


def _finest(number: int, depth: int) -> int:
    """The finest scale of a layer: a scale ends after each third of the network."""
    return (number - 1) // -(-depth // len(_FACTORS))


def _ends(depths: Sequence[int]) -> list[str]:
    """The layer that gives each block's coarsest features."""
    coarsest, total = len(_FACTORS), depths[-1]
    halved = [
        number > 1 and _finest(number, total) > _finest(number - 1, total)
        for number in depths
    ]
    return [
        f"layer_{number}_scale_{coarsest}" + ("_half_relu" if is_halved else "")
        for number, is_halved in zip(depths, halved, strict=True)
    ]


def _trunk(
    input_shape, classes: int, name: str, blocks: int | None, spacing: str | None
) -> keras.Model:
    depth = _depths(blocks, spacing)[-1]
    pixels = keras.Input(input_shape, dtype="uint8", name="images")
    scales = _scales(pixels)
    for number in range(1, depth + 1):
        finest = _finest(number, depth)
        ends = min(scales) < finest
        scales = _layer(scales, finest, number)
        if ends:
            scales = _narrowed(scales, number)
    logits = _HEAD(scales[len(_FACTORS) - 1], classes, "logits")
    return keras.Model(pixels, logits, name=name)


def _exit_sets(blocks: int | None, spacing: str | None) -> dict[str, dict[str, Head]]:
    *early, _ = _ends(_depths(blocks, spacing))
    return {"paper": dict.fromkeys(early, _HEAD)}


@registry.register
def branchy_msdnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    weights: files.Path | None = None,
    blocks: int | None = None,
    spacing: str | None = None,
    exits: str | Mapping[str, Head] | None = None,
    name: str = "branchy_msdnet",
) -> keras.Model:
    """Builds B-MSDNet, with an exit after each block.

    Features of three scales grow side by side, so that every exit classifies coarse
    features and no exit spoils those of a later one. What an exit does not need, such
    as fine features of the same layer, its stage does not compute.

    Its many small operations are slow in TensorFlow on CPUs.

    Args:
        input_shape: (height, width, channels), channels last, at least 16 x 16.
        classes: the number of classes, at least 2.
        weights: None, a tag (see `list_weights`), or the path of a `.keras` or
            `.weights.h5` file of this architecture.
        blocks: the number of blocks and exits, from 2 to 11. Default: 7. A tag fixes
            it.
        spacing: the layers of each block. "growing" (the default): block k has k, so
            5, 6, 7, 8 and 9 blocks make the paper's depths 15, 21, 28, 36 and 45.
            "even": the first has 4, the others 2. A tag fixes it.
        exits: places and heads: "paper" (the default), or `{layer name: head}` as in
            `exits.add_exits`. A tag fixes it.
        name: the name of the model.

    Returns:
        A `keras.Model` from raw pixels 0...255, uint8 [B, H, W, C], to logits
        `{"exit_1": [B, classes], ...}`, float32. Normalisation is inside the
        model.

    Raises:
        BranchyError: an argument is out of range, or the weights do not fit.

    References:
        Huang, Chen, Li, Wu, van der Maaten, Weinberger: Multi-Scale Dense Networks for
        Resource Efficient Image Classification (ICLR 2018), arXiv 1703.09844: the
        networks for CIFAR of appendix A, with three scales, growth rate 6, bottlenecks,
        and half the channels after each third of the layers.

    Example:

    ```python
    model = branchy_msdnet(blocks=5)
    model(images)["exit_1"]     # logits [B, 10]
    ```
    """
    return registry.assemble(
        "branchy_msdnet",
        _trunk,
        _exit_sets,
        minimum_side=16,
        input_shape=input_shape,
        classes=classes,
        weights=weights,
        exits=exits,
        name=name,
        blocks=blocks,
        spacing=spacing,
    )
