"""Each kind of layer against a count by hand, and its attributes against its graph."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from branchy_tf import costs, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.exits import propose_exits
from branchy_tf.multiply_adds import by_graph, by_layer, operations


def model(layer, *shapes, call=None) -> keras.Model:
    """`layer` alone, on inputs of these shapes."""
    inputs = [keras.Input(shape) for shape in shapes]
    given = inputs if len(inputs) > 1 else inputs[0]
    return keras.Model(inputs, call(*inputs) if call else layer(given))


def in_graph(built: keras.Model) -> int:
    return sum(by_graph.macs_by_node(built).values())


GATE = 3 * 5 + 5 * 5  # input 3, state 5

LAYERS = {
    "dense": (layers.Dense(7), (5, 3), 5 * 3 * 7),
    "einsum": (layers.EinsumDense("abc,cd->abd", (None, 6)), (5, 3), 5 * 3 * 6),
    "einsum heads": (
        layers.EinsumDense("abc,cde->abde", (None, 3, 4)), (5, 6), 5 * 6 * 3 * 4
    ),
    "einsum with ellipsis": (layers.EinsumDense("...x,xy->...y", 6), (5, 3), 5 * 3 * 6),
    "convolution": (
        layers.Conv2D(8, 3, strides=2, padding="same"), (9, 9, 4), 5 * 5 * 9 * 4 * 8
    ),
    "channels first": (
        layers.Conv2D(8, 3, data_format="channels_first"), (4, 6, 6), 16 * 9 * 4 * 8
    ),
    "groups": (layers.Conv2D(8, 3, groups=4), (7, 7, 8), 5 * 5 * 9 * 2 * 8),
    "dilated": (layers.Conv2D(2, 3, dilation_rate=2), (9, 9, 1), 5 * 5 * 9 * 2),
    "dilated, padded": (
        layers.Conv2D(2, 3, dilation_rate=(2, 3), padding="same"), (9, 10, 1), 90 * 9 * 2
    ),
    "dilated groups": (
        layers.Conv2D(8, 3, groups=2, dilation_rate=2), (9, 9, 8), 25 * 9 * 4 * 8
    ),
    "1D": (layers.Conv1D(6, 5, padding="causal"), (10, 3), 10 * 5 * 3 * 6),
    "1D dilated": (layers.Conv1D(6, 3, dilation_rate=3), (10, 3), 4 * 3 * 3 * 6),
    "3D": (layers.Conv3D(2, 2), (3, 3, 3, 1), 8 * 8 * 2),
    "3D dilated": (layers.Conv3D(2, 2, dilation_rate=2), (5, 5, 5, 1), 27 * 8 * 2),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 4), 81 * 4 * 2),
    "depthwise dilated": (
        layers.DepthwiseConv2D(3, dilation_rate=2), (9, 10, 4), 5 * 6 * 9 * 4
    ),
    "depthwise 1D": (layers.DepthwiseConv1D(3, padding="same"), (9, 4), 9 * 3 * 4),
    "separable": (layers.SeparableConv2D(7, 3), (5, 5, 4), 9 * (9 * 4 + 4 * 7)),
    "separable 1D": (
        layers.SeparableConv1D(7, 3, depth_multiplier=2), (9, 4), 7 * (3 * 8 + 8 * 7)
    ),
    "transposed": (layers.Conv2DTranspose(6, 3, strides=2), (4, 4, 2), 16 * 9 * 2 * 6),
    "transposed 1D": (layers.Conv1DTranspose(6, 3, strides=2), (4, 2), 4 * 3 * 2 * 6),
    "transposed 3D": (layers.Conv3DTranspose(6, 3), (4, 4, 4, 2), 64 * 27 * 2 * 6),
    "activation": (layers.ReLU(), (5, 3), 0),
    "batch norm": (layers.BatchNormalization(), (5, 3), 0),
    "layer norm": (layers.LayerNormalization(axis=(1, 2)), (5, 3), 0),
    "group norm": (layers.GroupNormalization(2), (5, 4), 0),
    "pooling": (layers.AveragePooling2D(2), (4, 4, 2), 0),
    "resizing": (layers.Resizing(3, 3), (4, 4, 2), 0),
    "embedding": (layers.Embedding(10, 4), (7,), 0),
    "lstm": (layers.LSTM(5), (7, 3), 7 * 4 * GATE),
    "lstm unrolled": (layers.LSTM(5, unroll=True), (7, 3), 7 * 4 * GATE),
    "lstm sequences": (layers.LSTM(5, return_sequences=True), (7, 3), 7 * 4 * GATE),
    "gru": (layers.GRU(5), (7, 3), 7 * 3 * GATE),
    "gru, reset before": (layers.GRU(5, reset_after=False), (7, 3), 7 * 3 * GATE),
    "simple rnn": (layers.SimpleRNN(5, go_backwards=True), (7, 3), 7 * GATE),
    "bidirectional": (layers.Bidirectional(layers.LSTM(5)), (7, 3), 2 * 7 * 4 * GATE),
    "cells": (
        layers.RNN([layers.LSTMCell(5), layers.GRUCell(4)]),
        (7, 3),
        7 * (4 * GATE + 3 * (5 * 4 + 4 * 4)),
    ),
    "convolutional lstm": (
        layers.ConvLSTM2D(4, 3, padding="same"), (5, 6, 6, 2), 5 * 36 * 9 * (2 + 4) * 16
    ),
    "masked lstm": (
        keras.Sequential([layers.Embedding(9, 3, mask_zero=True), layers.LSTM(5)]),
        (7,),
        7 * 4 * GATE,
    ),
    "time distributed": (
        layers.TimeDistributed(layers.Conv2D(4, 3)), (7, 5, 5, 3), 7 * 9 * 9 * 3 * 4
    ),
    "spectral norm": (layers.SpectralNormalization(layers.Dense(5)), (7, 4), 7 * 4 * 5),
    "lambda": (layers.Lambda(lambda x: ops.matmul(x, x)), (6, 6), 6 * 6 * 6),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layer_macs_equal_a_count_by_hand(name):
    layer, shape, expected = LAYERS[name]
    built = model(layer, shape)
    assert costs.macs(built) == expected
    # Where the attributes told, the graph says the same.
    assert in_graph(built) == expected


TWO_INPUTS = {
    "attention": (layers.Attention(), 2 * 6 * 7 * 8),
    # The scores are products element by element and sums.
    "additive attention": (layers.AdditiveAttention(), 6 * 7 * 8),
    "dot": (layers.Dot(axes=2), 6 * 7 * 8),
}


@pytest.mark.parametrize("name", TWO_INPUTS)
def test_macs_of_layers_without_weights(name):
    layer, expected = TWO_INPUTS[name]
    assert costs.macs(model(layer, (6, 8), (7, 8))) == expected


def test_multi_head_attention():
    heads, key, value, width = 2, 4, 5, 8
    layer = layers.MultiHeadAttention(heads, key, value_dim=value)
    built = model(layer, (6, width), (7, 10), call=lambda q, v: layer(q, v))
    projected = 6 * width * heads * key + 7 * 10 * heads * (key + value)
    attended = heads * 6 * 7 * (key + value)
    assert costs.macs(built) == projected + attended + 6 * heads * value * width


def test_grouped_query_attention():
    heads, groups, key, width = 4, 2, 5, 8
    layer = layers.GroupQueryAttention(key, heads, groups)
    built = model(layer, (6, width), (7, width), call=lambda q, v: layer(q, v))
    projected = 6 * width * heads * key + 2 * 7 * width * groups * key
    attended = 2 * heads * 6 * 7 * key
    assert costs.macs(built) == projected + attended + 6 * heads * key * width


def test_functions_of_keras_ops():
    def call(a, b):
        return ops.einsum("bij,bkj->bik", a, b) @ ops.tensordot(b, ops.ones((8, 3)), 1)

    built = model(None, (6, 8), (7, 8), call=call)
    assert costs.macs(built) == 6 * 7 * 8 + 7 * 8 * 3 + 6 * 7 * 3


class Block(layers.Layer):
    """Made of layers, weights and functions of keras.ops."""

    def __init__(self):
        super().__init__()
        self.dense, self.convolution = layers.Dense(8), layers.Conv1D(3, 3)

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 6))
        self.dense.build(shape)
        self.convolution.build((*shape[:-1], 8))

    def call(self, x):
        x = self.convolution(self.dense(x))
        return ops.einsum("btc,cd->btd", x, self.kernel) @ ops.ones((6, 2))


def test_a_layer_of_ones_own():
    expected = 7 * 4 * 8 + 5 * 3 * 8 * 3 + 5 * 3 * 6 + 5 * 6 * 2
    assert costs.macs(model(Block(), (7, 4))) == expected


class Steps(layers.Layer):
    """Multiplies by a matrix in each of `number` times three steps."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def call(self, x):
        def three(_, x):
            return ops.fori_loop(0, 3, lambda _, x: x @ ops.ones((4, 4)), x)

        return ops.fori_loop(0, self.number, three, x)


@pytest.mark.parametrize("number", [0, 1, 9])
def test_loops_inside_loops(number):
    assert costs.macs(model(Steps(number), (4,))) == number * 3 * 4 * 4


@pytest.mark.parametrize("positive", [True, False])
def test_a_branch_that_is_known_counts_alone(positive):
    def call(x):
        return tf.cond(
            tf.constant(positive),
            lambda: x @ tf.ones((4, 2)) @ tf.ones((2, 4)),
            lambda: x @ tf.ones((4, 4)),
        )

    built = model(layers.Lambda(call, output_shape=(4,)), (4,))
    # tf.cond picks the branch itself; a function hides the constant.
    assert costs.macs(built) == 16
    traced = tf.function(
        lambda flag, x: tf.cond(
            flag, lambda: x @ tf.ones((4, 2)), lambda: x @ tf.ones((4, 3))
        )
    )
    hidden = layers.Lambda(lambda x: traced(tf.constant(positive), x), output_shape=(4,))
    assert costs.macs(model(hidden, (4,))) == (8 if positive else 12)


def test_rows_folded_into_the_batch_count_each():
    dense = layers.Dense(4)
    built = model(None, (8, 8, 3), call=lambda x: dense(ops.reshape(x, (-1, 16, 3))))
    assert costs.macs(built) == 64 * 3 * 4


def test_products_of_weights_alone_do_not_count():
    dense = layers.Dense(5)
    dense.build((None, 4))
    dense.enable_lora(2)
    built = model(dense, (4,))
    assert costs.macs(built) == in_graph(built) == 4 * 5


def test_a_quantised_layer():
    dense = layers.Dense(5)
    dense.build((None, 4))
    dense.quantize("int8")
    assert costs.macs(model(dense, (4,))) == 4 * 5


def test_a_model_for_a_fixed_number_of_rows():
    x = keras.Input(batch_shape=(6, 7, 3))
    attention = layers.MultiHeadAttention(1, 2)
    y = layers.Dense(4)(attention(x, x))
    expected = 4 * 7 * 3 * 2 + 2 * 7 * 7 * 2 + 7 * 3 * 4
    assert costs.macs(keras.Model(x, y)) == expected


def test_counting_changes_no_state():
    dropout, norm = layers.Dropout(0.5), layers.BatchNormalization()
    attention = layers.MultiHeadAttention(1, 2)
    x = keras.Input((7, 3))
    built = keras.Model(x, norm(dropout(attention(x, x))))
    before = [ops.convert_to_numpy(variable) for variable in built.variables]
    costs.macs(built)
    after = [ops.convert_to_numpy(variable) for variable in built.variables]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_a_layer_of_cudnn():
    """It is built without a GPU; running it would need one."""
    steps, rows, features, units = 7, 2, 3, 5
    for mode, gates in (("lstm", 4), ("gru", 3)):
        with tf.Graph().as_default() as graph:
            output, *_ = tf.raw_ops.CudnnRNNV3(
                input=tf.zeros((steps, rows, features)),
                input_h=tf.zeros((1, rows, units)),
                input_c=tf.zeros((1, rows, units)),
                params=tf.zeros(gates * (GATE + 2) * units),
                sequence_lengths=tf.fill([rows], steps),
                rnn_mode=mode,
            )
        assert graph is output.graph
        counted = operations.count([output.op], operations.KnownValues())
        assert counted == steps * rows * gates * (GATE * units)


def data_dependent_loop(x):
    return ops.while_loop(
        lambda x: ops.max(x) < 5, lambda x: (x @ ops.ones((4, 4)),), (x,)
    )[0]


def unequal_branches(x):
    return ops.cond(ops.max(x) > 0, lambda: x @ ops.ones((4, 4)), lambda: x)


def python(x):
    return tf.numpy_function(lambda a: a, [x], tf.float32)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (data_dependent_loop, "it runs a loop whose length depends on the data"),
        (unequal_branches, "it runs one of several branches, whose costs differ"),
        (python, "it runs the operation PyFunc"),
        (lambda x: tf.signal.rfft(x), "it runs the operation RFFT"),
    ],
)
def test_says_which_layer_cannot_be_counted_and_what_to_do(function, why):
    x = keras.Input((4,))
    odd = layers.Lambda(function, output_shape=(4,), dtype="float32", name="odd")
    y = layers.Dense(3, name="logits")(layers.Dense(4)(odd(layers.Dense(4)(x))))
    built = keras.Model(x, y)
    expected = (
        f"The multiply-adds of layer 'odd' (Lambda) cannot be counted: {why}. Give the "
        "layer's class an attribute `macs`, its multiply-adds for one example."
    )
    for decide in (costs.macs, lambda m: propose_exits(m, 1)):
        with pytest.raises(BranchyError) as caught:
            decide(built)
        assert str(caught.value) == expected


class Declared(layers.Layer):
    """Cannot be counted, but says what it costs."""

    macs = 100

    def call(self, x):
        return data_dependent_loop(x)


def test_a_layer_may_declare_its_cost():
    x = keras.Input((4,))
    twice = Declared()
    y = layers.Dense(3)(layers.SimpleRNN(2)(ops.expand_dims(twice(twice(x)), 1)))
    assert costs.macs(keras.Model(x, y)) == 2 * 100 + (4 * 2 + 2 * 2) + 2 * 3


@pytest.mark.parametrize("declared", [-1, 1.5, True, "many"])
def test_rejects_an_invalid_declaration(declared):
    layer = Declared(name="mine")
    layer.macs = declared
    with pytest.raises(BranchyError) as caught:
        costs.macs(model(layer, (4,)))
    assert str(caught.value) == (
        f"The attribute `macs` of layer 'mine' is {declared!r}; expected its "
        "multiply-adds for one example, a whole number."
    )


@pytest.mark.parametrize("layer", [layers.Conv2D(4, 3), layers.Dense(4)])
def test_rejects_inputs_of_unknown_size(layer):
    x = keras.Input((None, None, 3))
    with pytest.raises(BranchyError, match="fixed height and width"):
        costs.macs(keras.Model(x, layer(x)))


def test_rejects_texts_of_unknown_length():
    layer = layers.MultiHeadAttention(1, 2)
    built = model(None, (None, 3), call=lambda x: layer(x, x))
    with pytest.raises(BranchyError, match="fixed number of tokens"):
        costs.macs(built)


def test_another_backend_counts_what_attributes_tell(monkeypatch):
    simple = model(layers.Dense(4), (3,))
    x = keras.Input((3,))
    added = keras.Model(x, layers.Dense(3)(x) + x)
    attention = layers.MultiHeadAttention(1, 2)
    other = model(attention, (7, 3), call=lambda x: attention(x, x))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert costs.macs(simple) == 12
    assert costs.macs(added) == 9
    with pytest.raises(BranchyError, match="Set KERAS_BACKEND=tensorflow, under which"):
        costs.macs(other)


def test_every_call_of_a_layer_has_its_own_count():
    dense = layers.Dense(4)
    x = keras.Input((4,))
    built = keras.Model(x, dense(dense(x)))
    nodes = graphs.nodes_in_order(built)
    assert [by_layer.node_macs(node) for node in nodes] == [16, 16]
    assert by_graph.macs_by_node(built) == {id(node): 16 for node in nodes}
