"""Fronts that share a tail: trained, resumed, calibrated and exported."""

from __future__ import annotations

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
import unlike_fronts

from branchy_tf import EarlyExitPredictor, data, exits, files, load, training, units
from branchy_tf.command_line import fronts as spelling
from branchy_tf.data import augment
from branchy_tf.errors import BranchyError
from branchy_tf.pipeline import fronts
from branchy_tf.training import recording, shared
from branchy_tf.training.run_folder import parse_flags


@pytest.fixture
def _no_tracing():
    # Tracing a graph takes a second, longer than these few steps.
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, data.Dataset]:
    """The data of both cameras, of unequal size."""
    folder = tmp_path_factory.mktemp("cameras")
    road = unlike_fronts.write_camera(folder / "road.npz", 1, 8, 1)
    airport = unlike_fronts.write_camera(folder / "airport.npz", 2, 16, 3, rows=180)
    return {"road": data.load(str(road)), "airport": data.load(str(airport))}


def parts() -> tuple[dict[str, units.Unit], units.Unit]:
    """Untrained fronts with one and two exits, and a tail."""
    keras.utils.set_random_seed(7)
    road, tail = units.cut(unlike_fronts.road(), ["exit_1"], ["road", "tail"])
    airport, _ = units.cut(unlike_fronts.airport(), ["exit_2"], ["airport", "unused"])
    return {"road": road, "airport": airport}, tail


def train(path, sets, made=None, freeze_tail=False, **settings) -> fronts.FrontsRun:
    given = {"epochs": 1, "batch_size": 108, "learning_rate": 0.01} | settings
    checked = training.Settings(**given)
    found, tail = made or parts()
    fronts.train_fronts(
        {name: fronts.Front(unit, sets[name]) for name, unit in found.items()},
        tail,
        checked,
        training.RunFolder(path),
        recording.flags_text(checked),
        freeze_tail,
    )
    return fronts.read_fronts(path)


@pytest.mark.usefixtures("_no_tracing")
def test_joined_fronts_answer_as_each_alone(sets):
    found, tail = parts()
    model = units.join(found, tail)
    images = {name: sets[name].test.images[:9] for name in found}
    together = model(images, training=False)
    for name, unit in found.items():
        alone = units.as_network([unit, tail])(images[name], training=False)
        for key, logits in alone.items():
            np.testing.assert_allclose(together[f"{name}_{key}"], logits, atol=1e-6)


@pytest.mark.usefixtures("_no_tracing")
def test_a_tail_learns_the_statistics_of_all_its_rows(sets):
    found, tail = parts()
    images = {name: sets[name].test.images[:9] for name in found}
    sent = [
        unit.model(images[name], training=False)["features_1"]
        for name, unit in found.items()
    ]
    norm = next(x for x in tail.model.layers if x.name == "norm")
    conv = next(x for x in tail.model.layers if x.name == "later")
    units.join(found, tail)(images, training=True)
    mean = conv(np.concatenate(sent)).numpy().mean(axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, rtol=1e-3, atol=1e-7)


@pytest.mark.usefixtures("_no_tracing")
def test_a_copied_network_is_flat_with_layers_of_its_own():
    found, tail = parts()
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
    copy = units.copied_network([found["airport"], tail])
    wanted = units.as_network([found["airport"], tail])(images, training=False)
    for name, logits in copy(images, training=False).items():
        np.testing.assert_array_equal(logits, wanted[name])
    names = [layer.name for layer in copy.layers]
    assert {"later", "tail_later", "tail_norm"} <= set(names)
    assert exits.exit_names(copy) == ["exit_1", "exit_2", "exit_3"]
    shared_weights = {id(w) for w in tail.model.weights} & {id(w) for w in copy.weights}
    assert not shared_weights
    front, later = units.cut(copy, ["exit_2"], ["airport", "tail"])
    assert (front.exits, later.exits) == (["exit_1", "exit_2"], ["exit_3"])


@pytest.mark.usefixtures("_no_tracing")
def test_more_epochs_equal_one_long_training(sets, tmp_path):
    train(tmp_path / "short", sets, epochs=1)
    longer = train(tmp_path / "short", sets, epochs=2)
    whole = train(tmp_path / "whole", sets, epochs=2)
    rows = training.read_history(longer.folder.history)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["val_airport_exit_3_accuracy"]) >= 0
    for name in ("road", "airport"):
        ours, theirs = (run.run(name).load_model() for run in (longer, whole))
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    # The tail is the same in both files, with the same names.
    assert len({longer.parts(name)[1].fingerprint for name in longer.ends}) == 1
    # A finished training stays as it is.
    with pytest.raises(BranchyError, match=r"pass the --run_dir of one, .*/road, "):
        longer.folder.load_model()
    with pytest.raises(BranchyError, match=r"calibrate --run_dir=.*/short"):
        fronts.exportable([tmp_path / "short"])
    before = longer.folder.fronts.stat().st_mtime_ns
    train(tmp_path / "short", sets, epochs=2)
    assert longer.folder.fronts.stat().st_mtime_ns == before
    run = load(longer.run("airport").path)
    assert run.class_names == ("left", "middle", "right")
    assert len(run.dataset.train) == 162


@pytest.mark.usefixtures("_no_tracing")
def test_a_new_front_joins_a_frozen_tail(sets, tmp_path):
    known = train(tmp_path / "road", sets, ({"road": parts()[0]["road"]}, parts()[1]))
    tail = spelling.built_tail({"run": str(tmp_path / "road")}, {})
    made = ({"airport": parts()[0]["airport"]}, tail)
    new = train(tmp_path / "airport", sets, made, freeze_tail=True)
    ours, theirs = known.parts("road")[1], new.parts("airport")[1]
    assert ours.fingerprint == theirs.fingerprint
    # It is not frozen for a later training.
    assert all(layer.trainable for layer in new.run("airport").load_model().layers)
    for run, name in ((known, "road"), (new, "airport")):
        limits = [0.5] * run.ends[name]
        _write_thresholds(run.run(name), limits)
    found = fronts.exportable([tmp_path / "road", tmp_path / "airport"])
    assert [unit.name for unit in found.units] == ["road", "airport", "tail"]
    assert {name: len(p.thresholds) for name, p in found.policies.items()} == {
        "road": 1, "airport": 2
    }  # fmt: skip
    other = {"gate": parts()[0]["road"]}, parts()[1]
    run = train(tmp_path / "gate", {"gate": sets["road"]}, other, seed=3)
    _write_thresholds(run.run("gate"), [0.5])
    with pytest.raises(BranchyError, match="tails of other weights"):
        fronts.exportable([tmp_path / "road", tmp_path / "gate"])


def _write_thresholds(folder: training.RunFolder, limits: list[float]) -> None:
    names = [exits.exit_name(k + 1) for k in range(len(limits) + 1)]
    files.write_json(
        folder.thresholds,
        {
            "criterion": "entropy", "exits": names, "thresholds": limits,
            "validation": {}, "frontier": [],
        },
    )  # fmt: skip


def test_fronts_by_commands(sets, tmp_path):
    run = tmp_path / "run"
    done = commands.run(
        "train", "--epochs=10", "--learning_rate=0.02", "--batch_size=24",
        f"--front=road=model:unlike_fronts:road,dataset:{sets['road'].name}",
        "--front=airport=model:unlike_fronts:airport,at:exit_2,"
        f"dataset:{sets['airport'].name}",
        f"--run_dir={run}", seconds=900,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    calibrated = commands.run("calibrate", f"--run_dir={run}", seconds=900)
    assert calibrated.status == 0, calibrated.stderr
    policies = {name: load(run / name).policy for name in sets}
    # One temperature for the exit that both share.
    road, airport = (policies[name].temperatures for name in ("road", "airport"))
    assert road[1] == airport[2]
    assert road[0] != airport[0]

    found = fronts.exportable([run])
    units.export(
        found.units,
        tmp_path / "units",
        found.policies,
        codec="none",
        class_names=found.class_names,
    )
    described = files.read_json(tmp_path / "units/tail/1/assets.extra/branchy.json")
    assert described["class_names"] == ["left", "middle", "right"]
    for name, dataset in sets.items():
        images = dataset.test.images
        wanted = EarlyExitPredictor(load(run / name).model, policies[name])
        expected = wanted.predict(images)
        with units.Cascade(tmp_path / "units/cascade.yaml", model=name) as cascade:
            answer = cascade.predict(images)
        np.testing.assert_array_equal(answer.exits, expected.exits)
        np.testing.assert_allclose(
            answer.probabilities, expected.probabilities, atol=1e-5
        )
        assert (answer.labels == dataset.test.labels).mean() > 0.8


def test_rows_of_unequal_data_are_paired(sets):
    found = shared.paired(sets, seed=1)
    assert len(found.train) == len(sets["road"].train)
    images, labels = next(found.train.batches(len(found.train)))
    for column, (name, dataset) in enumerate(sets.items()):
        counts = np.bincount(
            [_row(dataset.train.images, image) for image in images[name]]
        )
        assert set(counts) <= {len(found.train) // len(dataset.train) + i for i in (0, 1)}
        first = _row(dataset.train.images, images[name][0])
        assert labels[0, column] == dataset.train.labels[first]


def _row(images: np.ndarray, image: np.ndarray) -> int:
    return int((images == image).all(axis=(1, 2, 3)).argmax())


def test_augments_every_input(sets):
    images = {name: dataset.train.images[:4] for name, dataset in sets.items()}
    varied = augment("shift", images, np.random.default_rng(0))
    assert {k: v.shape for k, v in varied.items()} == {
        k: v.shape for k, v in images.items()
    }
    assert all((varied[name] != images[name]).any() for name in images)


def test_reads_fronts_as_flags_spell_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "a=model:m:f,model_args:depth=20,input_shape=8x8x1,dataset:x.npz"
    text += ",exits:b=conv(4,8)"
    (name, entries), *_ = spelling.parse_fronts([text]).items()
    assert name == "a"
    assert entries == {
        "model": "m:f", "model_args": "depth=20,input_shape=8x8x1",
        "dataset": str(tmp_path / "x.npz"), "exits": "b=conv(4,8)",
    }  # fmt: skip
    assert spelling.parse_fronts([f"a={spelling.spelled(entries)}"]) == {"a": entries}
    lines = "--front=a=model:x\n--front=b=model:y\n--seed=1"
    assert parse_flags(lines)["front"] == "a=model:x and b=model:y"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:x,dataset:y", "expected NAME=KEY:VALUE"),
        ("a=model:x,datset:y", "unknown key 'datset'. Did you mean dataset?"),
        ("a=model:x", "has no dataset"),
        ("a=model:x,dataset", "no dataset"),
        ("a=model:x,model:y,dataset:z", "the key 'model' twice"),
        ("a=model", "Received 'model'"),
    ],
)
def test_rejects_fronts_spelled_otherwise(text, said):
    with pytest.raises(BranchyError) as caught:
        spelling.parse_fronts([text])
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["at:exit_1", "run:x,model:y"])
def test_a_tail_is_of_a_run_or_a_model(text):
    with pytest.raises(BranchyError, match="either run:FOLDER or model:NAME"):
        spelling.parse_tail(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "detached"}, "`mode` detached is for a single network"),
        ({"distillation": [0.5, 3]}, "`distillation`"),
        ({"loss_weights": [1, 1]}, "Front 'airport'"),
        ({"class_weights": "balanced"}, "`class_weights`"),
    ],
)
def test_rejects_settings_of_single_networks(sets, tmp_path, change, said):
    with pytest.raises(BranchyError) as caught:
        train(tmp_path / "run", sets, **change)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_rejects_fronts_that_do_not_fit(sets, tmp_path):
    found, tail = parts()
    seven, _ = units.cut(unlike_fronts.road(classes=7), ["exit_1"])
    with pytest.raises(BranchyError, match=r"'gate' has 7 classes, but 'tail' has 3"):
        train(tmp_path / "run", {"gate": sets["road"]}, ({"gate": seven}, tail))
    wide, _ = units.cut(unlike_fronts.airport(), ["exit_1"])
    with pytest.raises(BranchyError, match=r"'gate' sends .*8, 8, 4.*'tail' takes .*6"):
        train(tmp_path / "run", {"gate": sets["airport"]}, ({"gate": wide}, tail))
    with pytest.raises(BranchyError, match="reads inputs of shape"):
        train(
            tmp_path / "run", {"road": sets["airport"]}, ({"road": found["road"]}, tail)
        )
    with pytest.raises(BranchyError, match="cannot be named 'logs'"):
        train(tmp_path / "run", {"logs": sets["road"]}, ({"logs": found["road"]}, tail))
    assert not list(tmp_path.iterdir())


def test_rejects_flags_that_do_not_go_with_fronts(tmp_path):
    front = "--front=a=model:branchy_lenet,dataset:mnist_5k"
    done = commands.run("train", front, f"--run_dir={tmp_path}/run", "--dataset=mnist_5k")
    assert "--front=NAME=dataset:mnist_5k" in done.error
    assert not list(tmp_path.iterdir())
