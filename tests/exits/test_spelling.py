"""Exits as a flag spells them."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from branchy_tf import exits
from branchy_tf.errors import BranchyError
from branchy_tf.exits import parse_exits


def chain() -> keras.Model:
    x = inputs = keras.Input((16, 16, 3))
    for i in range(1, 5):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv_{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="chain")


def layers_of(model, exit_: str) -> dict[str, str]:
    """{layer of an exit's branch: its class}."""
    return {
        layer.name.removeprefix(f"{exit_}_"): type(layer).__name__
        for layer in model.layers
        if layer.name.startswith(f"{exit_}_")
    }


def test_reads_every_kind_of_head():
    text = "conv_1 = conv( 8, 6 ) ; conv_2=pool(4);conv_3=linear;pool=branchy_tf.exits:"
    model = parse_exits(text + "logits_head").add_to(chain())
    assert exits.exit_names(model) == [f"exit_{n}" for n in range(1, 6)]
    assert [model.get_layer(f"exit_1_conv_{n}").filters for n in (1, 2)] == [8, 6]
    assert model.get_layer("exit_2_pool").pool_size == (4, 4)
    assert layers_of(model, "exit_3") == {"mean": "GlobalAveragePooling2D"}
    assert layers_of(model, "exit_4") == {}
    for number, name in enumerate(["conv_1", "conv_2", "conv_3", "pool"], start=1):
        first = {1: "exit_1_conv_1", 2: "exit_2_pool", 3: "exit_3_mean", 4: "exit_4"}
        read = model.get_layer(first[number]).input
        assert read._keras_history.operation.name == name


@pytest.mark.parametrize("text", ["auto:2", " auto: 2 ", "auto:2=conv(8)"])
def test_proposes_layers(text):
    model = parse_exits(text).add_to(chain())
    assert exits.exit_names(model) == ["exit_1", "exit_2", "exit_3"]
    assert ("conv_1" in layers_of(model, "exit_1")) == ("conv" in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "at exit 1 of 1, 'a': expected LAYER=HEAD, for example block_3=conv(64)."),
        ("a=linear;", "at exit 2 of 2, '': expected LAYER=HEAD"),
        ("a=;b=linear", "at exit 1 of 2, 'a=': expected LAYER=HEAD"),
        ("=linear", "at exit 1 of 1, '=linear': expected LAYER=HEAD"),
        ("a=linear,b=linear", "'a=linear,b=linear': expected the head linear, conv(FIL"),
        ("a=cnov(3)", "pool(SIZE) or module:function after = (did you mean conv?)."),
        ("a=conv", "expected whole numbers of at least 1 in parentheses, as in conv(64)"),
        ("a=conv()", "expected whole numbers of at least 1 in parentheses, as in conv"),
        ("a=conv(64", "expected the head linear, conv(FILTERS,...), pool(SIZE) or"),
        ("a=conv(64,)", "expected whole numbers of at least 1"),
        ("a=conv(0)", "expected whole numbers of at least 1"),
        ("a=conv(6.5)", "expected whole numbers of at least 1"),
        ("a=pool(2,3)", "expected one number in parentheses, as in pool(4)."),
        ("a=pool", "in parentheses, as in pool(4)."),
        ("a=linear(3)", "expected linear without parentheses."),
        ("a=linear;a=linear", "2 of 2, 'a=linear': expected another layer; 'a' has an"),
        ("auto:", "at '' after auto:: expected a whole number of at least 1, as in"),
        ("auto:0", "at '0' after auto:: expected a whole number of at least 1"),
        ("auto:two", "at 'two' after auto:: expected a whole number"),
        ("auto:2=", "at '' after =: expected the head linear, conv(FILTERS,...)"),
        ("auto:2=cone(3)", "at 'cone(3)' after =: expected the head linear"),
        ("a=no_such_module_here:f", "There is no Python module no_such_module_here."),
        ("a=math:hypot", "The head math:hypot must be a function (features, classes, "),
    ],
)
def test_says_what_was_expected_where(text, expected):
    with pytest.raises(BranchyError) as caught:
        parse_exits(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
