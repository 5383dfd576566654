"""Data of one's own through every command."""

from __future__ import annotations

import re

import commands
import made_pictures
import numpy as np
import pytest

from branchy_tf import files
from branchy_tf.serving.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of two sizes, one of them damaged."""
    root = made_pictures.write(
        tmp_path_factory.mktemp("own") / "pets", {"train": 40, "test": 8}, sides=(30, 28)
    )
    made_pictures.write(root.parent / "wide", {"test": 3}, sides=(28, 40))
    for path in (root.parent / "wide").glob("test/*/*.png"):
        path.rename(root / "test" / path.parent.name / f"wide_{path.name}")
    damaged = root / "train" / "cat" / "7.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    return root


@pytest.fixture(scope="module")
def run(root):
    """A run on the pictures, trained and calibrated."""
    folder = root.parent / "run"
    done = commands.run(
        "train", "--model=branchy_lenet", f"--dataset={root.name}", "--epochs=6",
        "--learning_rate=0.003", "--image_size=28x28", "--skip_unreadable",
        "--class_weights=balanced", "--augmentation=shift", "--batch_size=16",
        f"--run_dir={folder}", cwd=root.parent,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert "Skipped 1 of 153 pictures that cannot be read" in done.stderr
    done = commands.run("calibrate", f"--run_dir={folder}", "--max_class_drop=0.05")
    assert done.status == 0, done.stderr
    assert "largest drop of a class: " in done.stdout
    assert "too few validation rows for max_class_drop 0.05" in done.stderr
    assert re.search(r"cat \d, dog \d, owl \d", done.stderr)
    return folder


def test_a_run_records_how_its_pictures_are_read(run, root):
    flags = (run / "train.flags").read_text()
    for line in (f"--dataset={root}", "--image_size=28x28", "--skip_unreadable=True",
                 "--class_weights=balanced"):  # fmt: skip
        assert line in flags.splitlines()


def test_calibration_records_the_bound(run):
    known = files.read_json(run / "thresholds.json")
    assert known["budget"]["max_class_drop"] == 0.05
    drops = known["validation"]["class_drops"]
    assert len(drops) == 3
    assert max(drop for drop in drops if drop is not None) <= 0.05


def test_evaluation_is_by_class(run):
    done = commands.run("evaluate", f"--run_dir={run}")
    assert done.status == 0, done.stderr
    result = files.read_json(run / "evaluation.json")
    each = result["classes"]
    assert [one["class"] for one in each] == ["cat", "dog", "owl"]
    assert [one["num_examples"] for one in each] == [11, 11, 11]
    assert np.mean([one["accuracy"] for one in each]) == pytest.approx(result["accuracy"])
    rates = np.mean([one["exit_rates"] for one in each], axis=0)
    np.testing.assert_allclose(rates, result["exit_rates"])
    table = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"cat", "dog", "owl"} <= table


def test_exports_and_predictions_name_the_classes(run, root, tmp_path):
    done = commands.run("export", f"--run_dir={run}", f"--export_dir={tmp_path}")
    assert done.status == 0, done.stderr
    version = tmp_path / "branchy_lenet" / "1"
    known = files.read_json(version / "assets.extra" / "branchy.json")
    assert known["class_names"] == ["cat", "dog", "owl"]
    picture = root / "test" / "owl" / "wide_0.png"
    with EmbeddedServer(version.parent, "branchy_lenet", port=0) as server:
        common = (f"--server=localhost:{server.port}", "--model_name=branchy_lenet")
        for place in (version.parent, version / "assets.extra/branchy.json"):
            done = commands.run(
                "predict", *common, f"--images={picture}", f"--class_names={place}"
            )
            assert done.status == 0, done.stderr
            lines = done.stdout.splitlines()
            (line,) = (x for x in lines if str(picture) in x and " exit_" in x)
            assert line.split()[1] in ("cat", "dog", "owl")
        done = commands.run(
            "predict", *common, f"--dataset={root}", "--num_images=9", "--skip_unreadable"
        )
        assert done.status == 0, done.stderr
        labels = [line.split()[-1] for line in done.stdout.splitlines()[2:11]]
        assert set(labels) <= {"cat", "dog", "owl"}
        done = commands.run(
            "predict", *common, f"--images={picture}", f"--class_names={tmp_path}"
        )
        assert "names no classes: expected a branchy.json or data.json" in done.error


def test_a_picture_that_breaks_in_training_is_named(tmp_path):
    root = made_pictures.write(tmp_path / "x", {"train": 20, "test": 2}, sides=(28, 28))
    path = root / "train" / "dog" / "5.png"
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(raw)
    done = commands.run(
        "train", "--model=branchy_lenet", f"--dataset={root}", "--epochs=1",
        "--batch_size=8", f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert "dog/5.png cannot be read as an image: " in done.error


def test_errors_come_before_anything_is_written(root, tmp_path):
    common = ("train", "--model=branchy_lenet", f"--run_dir={tmp_path / 'run'}")
    for flags, expected in (
        ([f"--dataset={root}"], "7.png cannot be read as an image"),
        ([f"--dataset={root}", "--skip_unreadable"], "The pictures differ in size: "),
        ([f"--dataset={root}", "--image_size=28"], "expected height and width"),
        (["--dataset=mnist_5k", "--image_size=9x9"], "is for folders of pictures"),
        (["--dataset=mnist_5k", "--class_weights=none.json"], "There is no file"),
        (["--dataset=no_such:function"], "There is no Python module no_such"),
        ([f"--dataset={tmp_path}"], "holds no folder train/; expected train/"),
    ):
        assert expected in commands.run(*common, *flags).error
    assert not (tmp_path / "run").exists()
