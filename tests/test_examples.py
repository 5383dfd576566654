"""The examples of text and tables run from training to a served, routed batch."""

from __future__ import annotations

import pathlib

import commands
import keras
import numpy as np
import pytest

from branchy_tf import EarlyExitPredictor
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer
from examples import table, text

ROWS = 600
# A module of the user's, in the working directory.
SMALL = "from examples import table\n\ndef data():\n    return table.data(3000)\n"


def run(command: str, *flags: str, cwd: pathlib.Path) -> commands.Done:
    done = commands.run(command, *flags, cwd=cwd)
    assert done.status == 0, done.stderr
    return done


def exported(folder: pathlib.Path, name: str, *flags: str) -> pathlib.Path:
    """The folder of the versions of a model that is trained, calibrated and exported."""
    run("train", "--batch_size=32", "--run_dir=run", *flags, cwd=folder)
    run("calibrate", "--run_dir=run", cwd=folder)
    assert "gain" in run("evaluate", "--run_dir=run", cwd=folder).stdout
    run("export", "--run_dir=run", "--export_dir=.", f"--model_name={name}", cwd=folder)
    return folder / name


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> pathlib.Path:
    """Texts come from a file."""
    folder = tmp_path_factory.mktemp("text")
    text.write(str(folder / "reviews.npz"), ROWS)
    return exported(
        folder, "text", "--model=examples.text:model", "--dataset=reviews.npz",
        "--model_args=width=16,blocks=2", "--exits=block_1=linear", "--epochs=2",
        "--learning_rate=0.01",
    )  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> pathlib.Path:
    """Tables come from a function."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "small.py").write_text(SMALL)
    return exported(
        folder, "table", "--model=examples.table:model", "--dataset=small:data",
        "--exits=layer_1=linear;layer_2=linear", "--epochs=6",
        "--learning_rate=0.01",
    )  # fmt: skip


def routed_alike(server: EmbeddedServer, name: str, folder: pathlib.Path, inputs) -> None:
    """Checks a batch whose rows leave at different exits, against the predictor."""
    model = keras.models.load_model(folder / "run/model.keras", compile=False)
    predictor = EarlyExitPredictor(model, folder / "run/thresholds.json")
    early = predictor.num_exits - 1
    rows = len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
    # Every exit in turn: infinity lets a row leave, 0 none.
    limits = np.zeros((rows, early), np.float32)
    for row in range(rows):
        if row % (early + 1) < early:
            limits[row, row % (early + 1)] = np.inf
    with EarlyExitClient(f"localhost:{server.port}", name) as client:
        answers = [client.predict(inputs, limits), predictor.predict(inputs, limits)]
        calibrated = client.predict(inputs), predictor.predict(inputs)
    for answer in answers:
        assert answer.exits.tolist() == [row % (early + 1) for row in range(rows)]
    for one, other in (answers, calibrated):
        np.testing.assert_array_equal(one.exits, other.exits)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)


def test_tokens_are_served_and_routed(texts):
    reviews = ["the soup was great", "the wine was not good", "it was an aubergine"]
    inputs = text.tokens([*reviews, *reviews])
    assert inputs.shape == (6, text.LENGTH)
    assert inputs.dtype == np.int32
    with EmbeddedServer(texts, "text", port=0) as server:
        routed_alike(server, "text", texts.parent, inputs)
        flags = [f"--server=localhost:{server.port}", "--model_name=text"]
        flags += ["--dataset=reviews.npz", "--num_images=5"]
        said = run("predict", *flags, cwd=texts.parent).stdout
    assert "Images: 5." in said or "Rows: 5." in said


def test_tables_are_served_and_routed(tables):
    inputs, _ = table.data(60)["test"]
    with EmbeddedServer(tables, "table", port=0) as server:
        routed_alike(server, "table", tables.parent, inputs)


def test_reviews_are_the_same_for_a_seed_and_hard_ones_are_among_them():
    random = np.random.default_rng(0)
    reviews = [text.review("positive", random) for _ in range(200)]
    again = np.random.default_rng(0)
    assert reviews == [text.review("positive", again) for _ in range(200)]
    hard = [x for x in reviews if "but in the end" in x or "not" in x or "nobody" in x]
    assert 30 < len(hard) < 100
    # No word of a review is unknown.
    assert not (text.tokens(reviews) == 1).any()


def test_the_tables_rows_and_columns():
    made = table.data(60)
    inputs, labels = made["train"]
    assert {name: x.shape for name, x in inputs.items()} == {
        "numbers": (40, 5),
        "codes": (40, 2),
    }
    assert len(labels) == 40
    assert set(np.unique(table.data(600)["train"][1])) == set(range(len(table.CLASSES)))
