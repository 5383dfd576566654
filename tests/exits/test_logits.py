from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from branchy_tf import exits, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, linear_head
from branchy_tf.exits.logits import looks_bounded
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.saved_model import export
from branchy_tf.training import Settings


class Sparsemax(layers.Layer):
    """Probabilities from a custom layer, which names no activation."""

    def call(self, x):
        return ops.sparsemax(x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return ops.softmax(self.dense(x))


class Noisy(layers.Layer):
    """A layer with its own random numbers, also at inference."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.times = 0

    def call(self, x):
        self.times += 1
        self.calls.assign_add(1.0)
        x = x + keras.random.normal((3,), seed=self.seeds) + keras.random.normal((3,))
        return x + np.random.normal() + random.random()


def soft(x, **arguments):
    return layers.Dense(3, activation="softmax", **arguments)(x)


def inner(x, *more):
    features = keras.Input((5,))
    return keras.Sequential([features, layers.Dense(3), *more])(x)


def in_steps(x, kind, **arguments):
    steps = layers.Reshape((1, 5))(x)
    return layers.Flatten()(kind(layers.Dense(3, activation="softmax"))(steps))


PROBABILITIES = {
    "average": lambda x: layers.Average()([soft(x), soft(x)]),
    "sum": lambda x: layers.Add()([soft(x), soft(x)]),
    "scaled": lambda x: layers.Rescaling(4.0)(soft(x)),
    "weighted": lambda x: 0.3 * soft(x) + 0.7 * soft(x),
    "lambda": lambda x: layers.Lambda(ops.softmax)(layers.Dense(3)(x)),
    "clipped": lambda x: ops.clip(soft(x), 1e-7, 1.0),
    "product": lambda x: layers.Multiply()([soft(x), soft(x)]),
    "own layer": lambda x: Sparsemax()(layers.Dense(3)(x)),
    "time distributed": lambda x: in_steps(x, layers.TimeDistributed),
    "nested": lambda x: inner(x, layers.Lambda(ops.softmax)),
    "nested, averaged": lambda x: layers.Average()([inner(x, layers.Softmax()), soft(x)]),
    "subclassed": lambda x: Subclassed()(x),
    "spectral": lambda x: layers.SpectralNormalization(
        layers.Dense(3, activation="softmax")
    )(x),
    "zeroed": lambda x: layers.Lambda(ops.softmax)(
        layers.Dense(3, kernel_initializer="zeros")(x)
    ),
    "half precision": lambda x: ops.clip(soft(x, dtype="float16"), 0, 1),
    "sigmoid": lambda x: layers.Lambda(ops.sigmoid)(layers.Dense(3)(x)),
    "sigmoids": lambda x: layers.Average()(
        [layers.Dense(3, activation="sigmoid")(x) for _ in range(2)]
    ),
    "complement": lambda x: 1 - layers.Dense(3, activation="sigmoid")(x),
    "two classes": lambda x: ops.concatenate(
        [p := layers.Dense(1, activation="sigmoid")(x), 1 - p]
    ),
}

LOGITS = {
    "dense": lambda x: layers.Dense(3)(x),
    "one class": lambda x: layers.Dense(1)(x),
    "two classes": lambda x: layers.Dense(2)(x),
    "thousand classes": lambda x: layers.Dense(1000)(x),
    "zeroed": lambda x: layers.Dense(3, kernel_initializer="zeros")(x),
    "uniform bias": lambda x: layers.Dense(
        2, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.5)
    )(x),
    "constant zero": lambda x: 0.0 * layers.Dense(3)(x),
    "log": lambda x: ops.log(soft(x)),
    "average": lambda x: layers.Average()([layers.Dense(3)(x), layers.Dense(3)(x)]),
    "gated": lambda x: layers.Multiply()([layers.Dense(3)(x), soft(x)]),
    "after attention": lambda x: layers.Dense(3)(soft(x)),
    "positive": lambda x: layers.Lambda(ops.softplus)(layers.Dense(3)(x)),
    "not negative": lambda x: layers.Lambda(ops.relu)(layers.Dense(3)(x)),
    "of small features": lambda x: layers.Dense(2)(layers.Rescaling(1e-6)(x)),
    "from sigmoid features": lambda x: layers.Dense(2, kernel_initializer="ones")(
        layers.Dense(4, activation="sigmoid")(x)
    ),
    "normalised": lambda x: layers.BatchNormalization()(layers.Dense(3)(x)),
    "cosines": lambda x: layers.UnitNormalization()(layers.Dense(3)(x)),
    "masked class": lambda x: layers.Dense(3)(x) + np.float32([0, 0, -np.inf]),
    "nested": lambda x: inner(x),
    "half precision": lambda x: ops.cast(layers.Dense(3, dtype="float16")(x), "float32"),
}


def values_and(top):
    keras.utils.set_random_seed(7)
    values = keras.Input((5,), name="values")
    return values, top(layers.Dense(5, activation="relu", name="d1")(values))


@pytest.mark.parametrize("name", PROBABILITIES)
def test_rejects_hidden_probabilities(name):
    values, output = values_and(PROBABILITIES[name])
    with pytest.raises(BranchyError) as caught:
        add_exits(keras.Model(values, output, name="net"), {"d1": linear_head})
    assert str(caught.value).startswith("Model 'net' ")
    assert "\n" not in str(caught.value)

    def head(features, classes, _):
        return PROBABILITIES[name](features)

    values, output = values_and(lambda x: layers.Dense(3)(layers.Dense(5)(x)))
    if keras.Model(values, output).output_shape == (None, 3) and name != "two classes":
        with pytest.raises(BranchyError, match=r"^The head at 'd1' .*expected logits"):
            add_exits(keras.Model(values, output), {"d1": head})


@pytest.mark.parametrize("name", LOGITS)
def test_accepts_logits(name):
    values, output = values_and(LOGITS[name])
    assert looks_bounded(output) == ""
    if output.shape[-1] == 3:
        model = add_exits(keras.Model(values, output), {"d1": linear_head})
        batch = np.ones((2, 5), "float32")
        np.testing.assert_allclose(
            model(batch)["exit_2"], keras.Model(values, output)(batch)
        )


def test_trained_weights_return_logits(shipped):
    exits.check_logits(exits.exit_tensors(shipped("branchy_lenet", "mnist")))


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_zoo_model_returns_logits(name):
    # Depth makes no difference here.
    small = {"depth": 8} if name == "branchy_resnet" else {}
    exits.check_logits(exits.exit_tensors(zoo.build(name, **small)))


@pytest.mark.parametrize("top", ["softmax", "sigmoid", ops.softmax])
def test_rejects_a_model_built_by_hand_before_using_it(top, tmp_path):
    values = keras.Input((5,))
    x = layers.Dense(5)(values)
    outputs = {
        "exit_1": layers.Dense(3, name="exit_1")(x),
        "exit_2": layers.Identity(name="exit_2")(layers.Dense(3, activation=top)(x)),
    }
    model = keras.Model(values, outputs)
    with pytest.raises(BranchyError, match=r"^exit_2 .*expected logits"):
        EarlyExitPredictor(model, [0.5])
    with pytest.raises(BranchyError, match=r"^exit_2 .*expected logits"):
        export(model, tmp_path / "exports", "mine", [0.5])
    assert not (tmp_path / "exports").exists()
    with pytest.raises(BranchyError, match=r"^exit_2 .*expected logits"):
        Settings(epochs=1)._check_exits(model)


def test_checking_changes_no_state():
    values, output = values_and(
        lambda x: Noisy()(layers.Dropout(0.5)(layers.Dense(3)(x)))
    )
    model = keras.Model(values, output)
    before = [np.array(v) for v in model.variables]
    keras.utils.set_random_seed(11)
    expected = np.array(keras.random.normal((3,)))
    keras.utils.set_random_seed(11)
    states = random.getstate(), np.random.get_state()[1].tolist()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    times = model.layers[-1].times

    assert looks_bounded(output) == ""
    assert model.layers[-1].times == times + 2, "it was not run"
    for one, other in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    np.testing.assert_array_equal(keras.random.normal((3,)), expected)
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    assert not model.losses


def never(x):
    raise RuntimeError("not outside a graph")


@pytest.mark.parametrize(
    "build",
    [
        # A vocabulary of one token, a layer that cannot run, a fixed size.
        lambda: keras.Sequential(
            [keras.Input((4,), dtype="int32"), layers.Embedding(1, 2), layers.Flatten()]
        ),
        lambda: keras.Sequential(
            [keras.Input((4,)), layers.Lambda(never, output_shape=(3,))]
        ),
        lambda: keras.Sequential(
            [
                keras.Input((None, None, 3)),
                layers.Lambda(lambda x: ops.reshape(x, (-1, 7)), output_shape=(7,)),
            ]
        ),
    ],
    ids=["embedding", "raises", "size"],
)
def test_the_graph_alone_decides_when_layers_cannot_run(build):
    assert looks_bounded(build().outputs[0]) == ""


def test_checks_a_network_that_reads_tokens():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D(name="mean")(layers.Embedding(9, 4)(tokens))
    add_exits(keras.Model(tokens, layers.Dense(3)(x)), {"mean": linear_head})
    hidden = layers.Lambda(ops.softmax)(layers.Dense(3)(x))
    with pytest.raises(BranchyError, match="gives probabilities"):
        add_exits(keras.Model(tokens, hidden), {"mean": linear_head})


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_checks_logits_under_other_keras_backends(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    script = (
        "import keras, numpy as np\n"
        "from keras import layers, ops\n"
        "from branchy_tf.exits import add_exits, linear_head\n"
        "x = keras.Input((5,))\n"
        "y = layers.Dense(4, name='d1')(x)\n"
        "model = keras.Model(x, layers.Dense(3, activation='softmax')(y))\n"
        "branchy = add_exits(model, {'d1': linear_head})\n"
        "rows = np.ones((2, 5), 'float32')\n"
        "soft = ops.softmax(branchy(rows)['exit_2'])\n"
        "soft, given = map(ops.convert_to_numpy, (soft, model(rows)))\n"
        "np.testing.assert_allclose(soft, given, atol=1e-6)\n"
        "hidden = layers.Lambda(ops.softmax)(layers.Dense(3)(y))\n"
        "try:\n"
        "    add_exits(keras.Model(x, hidden), {'d1': linear_head})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert "gives probabilities" in done.stdout, done.stderr
