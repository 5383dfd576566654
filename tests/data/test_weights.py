from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
import small

from branchy_tf import data, exits, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import batches, losses
from branchy_tf.training.fitting import make_batches
from branchy_tf.training.phases import branches_phase


@pytest.fixture
def uneven() -> data.Dataset:
    """20 rows of class 0, 8 of class 1 and 4 of class 2, with names."""
    whole = small.dataset()
    labels = np.repeat([0, 1, 2], [20, 8, 2])
    train = dataclasses.replace(whole.train, labels=labels)
    return dataclasses.replace(whole, train=train, class_names=("a", "b", "7"))


def test_balanced_classes_count_as_much_and_rows_one_on_average(uneven):
    weights = data.class_weights("balanced", uneven)
    np.testing.assert_allclose(weights, [30 / 60, 30 / 24, 30 / 6])
    of_rows = data.weighted(uneven, "balanced").train.weights
    assert of_rows.mean() == pytest.approx(1)
    sums = np.bincount(uneven.train.labels, of_rows)
    np.testing.assert_allclose(sums, sums[0])


@pytest.mark.parametrize("given", [{"b": 2, "7": 3}, {"1": 2, "2": 3}, {1: 2, 2: 3}])
def test_weights_by_name_or_number(uneven, given, tmp_path):
    np.testing.assert_array_equal(data.class_weights(given, uneven), [1, 2, 3])
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(given))
    np.testing.assert_array_equal(data.class_weights(path, uneven), [1, 2, 3])
    np.testing.assert_array_equal(data.class_weights([1, 2, 3], uneven), [1, 2, 3])


def test_weights_of_rows_and_classes_multiply(uneven):
    train = dataclasses.replace(uneven.train, weights=np.arange(30, dtype=np.float32))
    both = data.weighted(dataclasses.replace(uneven, train=train), [1, 2, 0]).train
    np.testing.assert_array_equal(
        both.weights, np.arange(30) * np.repeat([1, 2, 0], [20, 8, 2])
    )
    assert data.weighted(uneven, None) is uneven


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"c": 2}, "has the class 'c'; known: a, b, 7."),
        ({"a": -1}, "`class_weights[a]` must be a finite number"),
        ({"a": "x"}, "`class_weights[a]` must be a finite number"),
        ([1, 2], "has shape (2,); expected 3 numbers"),
        ([0, 0, 0], "holds 0 to 0; expected finite, non-negative weights"),
        ("even", "must be balanced or the path of a .json file"),
        ("none.json", "There is no file none.json"),
    ],
)
def test_rejects_invalid_class_weights(uneven, given, expected):
    with pytest.raises(BranchyError) as caught:
        data.class_weights(given, uneven)
    assert expected in str(caught.value)


def test_balancing_needs_every_class(uneven):
    train = dataclasses.replace(uneven.train, labels=np.zeros(30, int))
    with pytest.raises(BranchyError, match="rows of every class, but b has none"):
        data.class_weights("balanced", dataclasses.replace(uneven, train=train))


def test_batches_carry_the_weights_of_their_rows(uneven):
    settings = training.Settings(batch_size=7)
    dataset = data.weighted(uneven, [1, 2, 3])
    made = make_batches(branches_phase(small.model(), settings), dataset, settings)
    for _, targets, weights in (made[i] for i in range(len(made))):
        np.testing.assert_array_equal(weights, targets["exit_1"] + 1)
    plain = batches.Batches(uneven.train, lambda part: part.labels, 7, "none", [1])
    assert len(plain[0]) == 2


@pytest.mark.parametrize("distillation", [None, (0.4, 2.0)])
def test_the_loss_is_the_mean_of_the_weighted_rows(uneven, distillation):
    model, settings = small.model(), training.Settings(distillation=distillation)
    phase = branches_phase(model, settings)
    trainer = phase.wrap(phase.model.input, phase.model.output)
    phase.compile(trainer, "sgd")
    weights = np.arange(30, dtype=np.float32) / 10
    targets = dict.fromkeys(model.output, uneven.train.labels)
    images = uneven.train.images

    def loss(rows, weights=None):
        x, y = images[rows], {name: value[rows] for name, value in targets.items()}
        return float(trainer.compute_loss(x, y, trainer(x), weights))

    each = [loss(slice(i, i + 1)) for i in range(30)]
    everything = loss(slice(0, 30), weights)
    assert everything == pytest.approx(np.mean(weights * each), rel=1e-5)


def test_an_ignored_class_is_not_learned(tmp_path):
    dataset, model = small.dataset(), small.model()
    settings = training.Settings(
        epochs=8, learning_rate=0.05, batch_size=10, class_weights=[1, 0, 1]
    )
    training.train(model, dataset, settings, training.RunFolder(tmp_path / "run"))
    answers = np.asarray(model(dataset.train.images)["exit_2"]).argmax(axis=1)
    right = answers == dataset.train.labels
    assert right[dataset.train.labels == 0].mean() > 0.8
    assert not right[dataset.train.labels == 1].any()


def test_metrics_and_validation_stay_without_weights(tmp_path):
    settings = training.Settings(epochs=1, class_weights="balanced")
    folder = training.RunFolder(tmp_path / "run")
    training.train(small.model(), small.dataset(), settings, folder)
    (row,) = training.read_history(folder.history)
    model = folder.load_model()
    losses.compile_joint(model, ["exit_1", "exit_2"], "sgd", [1, 1])
    split = small.dataset().validation
    found = model.evaluate(
        split.images, dict.fromkeys(model.output, split.labels), verbose=0,
        return_dict=True,
    )  # fmt: skip
    assert float(row["val_loss"]) == pytest.approx(found["loss"], rel=1e-4)


def test_augmentation_is_for_images():
    pixels = keras.Input((6,), name="table")
    heads = {f"exit_{k}": exits.logits_head(pixels, 2, f"exit_{k}") for k in (1, 2)}
    split = data.Split(np.zeros((10, 6), np.float32), np.arange(10) % 2)
    dataset = data.Dataset("tables", 2, split, split, split)
    settings = training.Settings(augmentation="shift")
    with pytest.raises(BranchyError, match=r"is for images .* has rows of shape \(6,\)"):
        settings.check(keras.Model(pixels, heads), dataset)
    training.Settings().check(keras.Model(pixels, heads), dataset)
