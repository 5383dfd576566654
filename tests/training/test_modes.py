from __future__ import annotations

import os

import keras
import numpy as np
import pytest
import small
import tensorflow as tf
from keras import layers

from branchy_tf import exits, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import transfer
from branchy_tf.training.branches import ScaleGradient
from branchy_tf.training.callbacks import AtomicBackup


@pytest.fixture(autouse=True)
def _no_tracing():
    # Tracing a graph takes a second, longer than these few steps.
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def model() -> keras.Model:
    """Two early exits, batch norm in trunk and branches; the same every time."""
    keras.utils.set_random_seed(3)
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255)(pixels)
    for number in (1, 2):
        x = layers.Conv2D(3, 3, strides=2, name=f"conv_{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn_{number}")(x)
        x = layers.LeakyReLU(name=f"block_{number}")(x)
    logits = layers.Dense(3, name="logits")(layers.Flatten()(x))
    trunk = keras.Model(pixels, logits, name="normed")
    head = exits.conv_head([3])
    return exits.add_exits(trunk, {"block_1": head, "block_2": exits.linear_head})


def train(folder, built=None, **settings) -> keras.Model:
    built = model() if built is None else built
    settings = {"learning_rate": 0.01, "batch_size": 30, "epochs": 1} | settings
    training.train(
        built, small.dataset(), training.Settings(**settings), training.RunFolder(folder)
    )
    return built


def weights(of) -> dict[str, np.ndarray]:
    return {w.path: np.array(w) for w in of.weights}


def trunk_of(values: dict) -> dict:
    return {path: v for path, v in values.items() if not path.startswith("exit_")}


def branches_of(values: dict) -> dict:
    return {path: v for path, v in values.items() if path.startswith("exit_")}


def assert_equal(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    assert ours
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def assert_all_moved(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    still = [path for path in ours if (ours[path] == theirs[path]).all()]
    assert not still


def saved(path) -> dict[str, np.ndarray]:
    return weights(keras.models.load_model(path))


def rows(folder):
    return training.read_history(training.RunFolder(folder).history)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The baseline.keras of a short run."""
    folder = tmp_path_factory.mktemp("baseline")
    tf.config.run_functions_eagerly(True)
    train(folder, mode="baseline_first", baseline_epochs=1)
    return folder / "baseline.keras"


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_scaling": "equilibrium", "distillation": (0.5, 3.0)}]
)
def test_joint_trains_everything(tmp_path, settings):
    trained = train(tmp_path, **settings)
    assert_all_moved(weights(trained), weights(model()))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(weights(loaded), weights(trained))
    assert type(loaded) is type(model())
    assert not any(isinstance(layer, ScaleGradient) for layer in loaded.layers)


@pytest.mark.parametrize(
    "settings",
    [{}, {"distillation": (0.5, 3.0), "augmentation": "flip_shift", "weight_decay": 0.1}],
)
def test_branches_only_keeps_the_trunk_bit_for_bit(tmp_path, settings):
    trained = train(tmp_path, mode="branches_only", baseline_epochs=1, **settings)
    now, start = weights(trained), weights(model())
    assert_equal(trunk_of(now), saved(tmp_path / "baseline.keras"))
    assert_all_moved(trunk_of(now), trunk_of(start))
    assert_all_moved(branches_of(now), branches_of(start))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(weights(loaded), now)
    # Frozen only during training.
    expected = {w.path for w in model().trainable_weights}
    assert {w.path for w in trained.trainable_weights} == expected
    assert {w.path for w in loaded.trainable_weights} == expected


def test_a_failed_training_leaves_nothing_frozen(tmp_path, monkeypatch, baseline):
    built = model()

    def failing(trainer, *args, **kwargs):
        assert len(trainer.trainable_weights) < len(model().trainable_weights)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(keras.Model, "fit", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, built, mode="branches_only", baseline=baseline)
    assert len(built.trainable_weights) == len(model().trainable_weights)


def test_detached_trains_the_trunk_as_if_it_had_no_branches(tmp_path):
    detached = train(tmp_path / "d", mode="detached", batch_size=15)
    alone = train(tmp_path / "a", loss_weights=[0, 0, 1], batch_size=15)
    now, start = weights(detached), weights(model())
    assert_all_moved(now, start)
    for path, value in trunk_of(weights(alone)).items():
        np.testing.assert_allclose(now[path], value, atol=1e-4, err_msg=path)
    assert [row["phase"] for row in rows(tmp_path / "d")] == ["detached"]


@pytest.mark.parametrize("mode", ["baseline_first", "branches_only"])
def test_starts_from_an_existing_baseline(tmp_path, mode, baseline):
    trained = train(tmp_path, mode=mode, baseline=baseline)
    written = tmp_path / "baseline.keras"
    assert written.read_bytes() == baseline.read_bytes()
    assert "baseline" not in {row["phase"] for row in rows(tmp_path)}
    now = trunk_of(weights(trained))
    if mode == "branches_only":
        assert_equal(now, saved(baseline))
    else:
        assert_all_moved(now, saved(baseline))
        assert_all_moved(now, trunk_of(weights(model())))
    assert sorted(os.listdir(tmp_path)) == [
        "backup", "baseline.keras", "data.json", "data.npz", "history.csv", "logs",
        "model.keras", "train.flags",
    ]  # fmt: skip


def test_a_baseline_is_read_once(tmp_path, monkeypatch, baseline):
    read, load = [], transfer.load_keras_file

    def counted(path):
        read.append(path)
        return load(path)

    monkeypatch.setattr(transfer, "load_keras_file", counted)
    train(tmp_path, mode="baseline_first", baseline=baseline)
    assert read == [baseline]


def test_the_first_step_starts_from_the_baseline_taken(tmp_path, monkeypatch, baseline):
    at_start = {}

    def noting(trainer, *args, **kwargs):
        at_start.update(weights(trainer))
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", noting)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, mode="baseline_first", baseline=baseline)
    assert_equal(trunk_of(at_start), saved(baseline))
    assert_equal(branches_of(at_start), branches_of(weights(model())))


def test_starts_from_the_trunk_of_a_multi_exit_model(tmp_path):
    path = tmp_path / "model.keras"
    shaped, built = model(), model()
    # Built from the same seed, so an equal trunk afterwards would prove nothing.
    shaped.set_weights([np.array(weight) + 0.125 for weight in shaped.weights])
    shaped.save(path)
    before = branches_of(weights(built))
    train(tmp_path / "run", built, mode="branches_only", baseline=path)
    assert_equal(trunk_of(weights(built)), trunk_of(saved(path)))
    assert_all_moved(branches_of(weights(built)), before)
    # No baseline was trained.
    assert not (tmp_path / "run" / "baseline.keras").exists()


def test_rejects_the_baseline_of_another_model(tmp_path):
    path = tmp_path / "other.keras"
    small.model().save(path)
    built = model()
    with pytest.raises(BranchyError) as caught:
        train(tmp_path / "run", built, mode="branches_only", baseline=path)
    text = str(caught.value)
    assert text.startswith(
        f"{path} does not match branchy_normed_baseline: layer 'conv_1' is missing in one"
    )
    assert text.endswith("Pass the baseline.keras of a run with the same model.")
    assert "\n" not in text
    assert_equal(weights(built), weights(model()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("branches", {"mode": "branches_only", "baseline_epochs": 1}),
        ("detached", {"mode": "detached"}),
        ("joint", {"distillation": (0.5, 3.0), "gradient_scaling": "equilibrium"}),
    ],
)  # fmt: skip
def test_a_killed_training_resumes(tmp_path, monkeypatch, mode, settings):
    class Killed(BaseException):
        pass

    on_epoch_end = AtomicBackup.on_epoch_end

    def killed(self, epoch, logs=None):
        if self._folder.name == mode and epoch == 1:
            raise Killed
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(AtomicBackup, "on_epoch_end", killed)
    with pytest.raises(Killed):
        train(tmp_path, epochs=2, **settings)
    at_kill = rows(tmp_path)
    monkeypatch.undo()
    trained = train(tmp_path, epochs=2, **settings)
    before = [("baseline", "1")] if "baseline_epochs" in settings else []
    assert [(row["phase"], row["epoch"]) for row in rows(tmp_path)] == [
        *before, (mode, "1"), (mode, "2"),
    ]  # fmt: skip
    assert rows(tmp_path)[:-1] == at_kill[:-1]
    now = weights(trained)
    assert_all_moved(now, weights(model()))
    if before:
        assert_equal(trunk_of(now), saved(tmp_path / "baseline.keras"))
    assert os.listdir(tmp_path / "backup") == [mode]


def test_a_single_early_exit_has_its_column(tmp_path):
    trained = train(tmp_path, small.model(), mode="branches_only", baseline_epochs=1)
    split = small.dataset().validation
    logits = np.asarray(trained(split.images)["exit_1"])
    share = (logits.argmax(axis=1) == split.labels).mean()
    row = rows(tmp_path)[-1]
    assert row["phase"] == "branches"
    assert float(row["val_exit_1_accuracy"]) == pytest.approx(share)


@pytest.mark.parametrize("distillation", [None, (0.4, 1.0)])
def test_loss_weights_follow_the_order_of_exits_not_outputs(tmp_path, distillation):
    built = small.model()
    turned = {name: built.output[name] for name in ("exit_2", "exit_1")}
    turned = keras.Model(built.input, turned, name="turned")
    settings = {"loss_weights": [1.0, 0.3], "distillation": distillation}
    train(tmp_path / "turned", turned, **settings)
    if distillation is None:
        (row,) = rows(tmp_path / "turned")
        expected = float(row["exit_1_loss"]) + 0.3 * float(row["exit_2_loss"])
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-4)
    else:
        train(tmp_path / "plain", small.model(), **settings)
        assert rows(tmp_path / "turned") == rows(tmp_path / "plain")


def without_branches() -> keras.Model:
    pixels = keras.Input((8, 8, 1), name="images")
    exit_1 = exits.linear_head(pixels, 3, "exit_1")
    return keras.Model(pixels, {"exit_1": exit_1}, name="single")


def a_tree() -> keras.Model:
    heads = {"block_1": exits.conv_head([3]), "exit_1_relu_1": exits.linear_head}
    return exits.add_exits(exits.baseline(model()), heads)


def a_branch_on_the_trunks_layer() -> keras.Model:
    pixels = keras.Input((8, 8, 1), dtype="uint8")
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    x = shared(layers.Rescaling(1 / 255)(pixels))
    logits = layers.Dense(3, name="logits")(layers.Flatten()(x))

    def head(features, classes, name):
        features = layers.Conv2D(1, 1, name=f"{name}_conv")(features)
        return exits.linear_head(shared(features), classes, name)

    return exits.add_exits(keras.Model(pixels, logits), {"shared": head})


DISTILLATION = "`distillation` must be two numbers gamma,tau, "


@pytest.mark.parametrize(
    ("build", "changes", "expected"),
    [
        (
            without_branches,
            {"mode": "detached"},
            "Mode detached trains branches, but single has none. Add exits with "
            "exits.add_exits.",
        ),
        (
            without_branches,
            {"mode": "branches_only"},
            "Mode branches_only trains branches, but single has none.",
        ),
        (
            model,
            {"mode": "branches_only", "loss_weights": [0, 0, 1]},
            "Mode branches_only trains the early exits, but their `loss_weights` are all "
            "0: [0.0, 0.0, 1.0]. Give one of them a weight.",
        ),
        (
            model,
            {"gradient_scaling": "half"},
            "Unknown gradient_scaling 'half'. Known: none, equilibrium.",
        ),
        (
            model,
            {"mode": "branches_only", "gradient_scaling": "equilibrium"},
            "In mode branches_only no gradient of a branch reaches the trunk. Use "
            "`gradient_scaling` equilibrium with mode joint or baseline_first.",
        ),
        (
            model,
            {"mode": "detached", "gradient_scaling": "equilibrium"},
            "In mode detached no gradient of a branch reaches the trunk.",
        ),
        (
            a_branch_on_the_trunks_layer,
            {"mode": "detached"},
            "A branch shares layer 'shared' with the trunk, so in mode detached its "
            "gradient would still reach the trunk. Give the branch a separate layer",
        ),
        (
            a_tree,
            {"gradient_scaling": "equilibrium"},
            "Gradient equilibrium needs every branch to start from the trunk, but exit_2 "
            "starts from the branch of an earlier exit.",
        ),
        (model, {"distillation": (0.5,)}, DISTILLATION + "e.g. 0.5,3. Received [0.5]."),
        (
            model,
            {"distillation": (1.5, 3)},
            DISTILLATION + "0 < gamma <= 1 and tau > 0. Received 1.5,3. Pass for example "
            "--distillation=0.5,3.",
        ),
        (model, {"distillation": (0.5, 0)}, DISTILLATION),
        (model, {"distillation": (0.0, 3)}, DISTILLATION),
        (model, {"distillation": (0.5, float("inf"))}, DISTILLATION),
        (
            model,
            {"baseline": "b.keras"},
            "Mode joint has no baseline phase, so `baseline` b.keras would not be used. "
            "Choose one of the modes baseline_first, branches_only, or pass "
            "--initial_weights.",
        ),
        (
            model,
            {"mode": "branches_only", "baseline": "none.keras"},
            "There is no file none.keras to copy weights from.",
        ),
        (model, {"optimizer": "adamax"}, "Unknown optimizer 'adamax'. Known: "),
        (
            model,
            {"weight_decay": -0.1},
            "`weight_decay` must be a finite number of at least 0. Received -0.1.",
        ),
    ],
)
def test_rejects_invalid_settings(tmp_path, build, changes, expected):
    with pytest.raises(BranchyError) as caught:
        train(tmp_path / "run", build(), **changes)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
