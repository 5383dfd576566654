from __future__ import annotations

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import commands
import h5py
import keras
import pytest
import small

from branchy_tf.training import read_history

FLAGS = (
    "--model=branchy_lenet", "--mode=baseline_first", "--baseline_epochs=1",
    "--epochs=2", "--batch_size=40", "--learning_rate=0.003", "--loss_weights=1.0,0.3",
    "--augmentation=shift", "--seed=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mnist_5k) -> pathlib.Path:
    """A working folder with digits.npz."""
    folder = tmp_path_factory.mktemp("train")
    small.write_npz(folder / "digits.npz", mnist_5k)
    return folder


@pytest.fixture(scope="module")
def first(folder) -> pathlib.Path:
    """A finished run; do not change it."""
    done = commands.run(
        "train", *FLAGS, "--dataset=digits.npz", "--data_dir=data", "--run_dir=first",
        cwd=folder,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    return folder / "first"


def content(folder: pathlib.Path) -> dict:
    """What a folder holds, and when it was written."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def epochs(run_dir: pathlib.Path, phase: str) -> list[int]:
    rows = read_history(run_dir / "history.csv")
    return [int(row["epoch"]) for row in rows if row["phase"] == phase]


def test_writes_what_the_contract_lists(first):
    assert sorted(path.name for path in first.iterdir()) == [
        "backup", "baseline.keras", "data.json", "history.csv", "logs", "model.keras",
        "train.flags", "training.png",
    ]  # fmt: skip
    assert {path.name for path in (first / "logs").iterdir()} == {"baseline", "joint"}


def test_history_has_both_phases_and_every_figure(first):
    rows = read_history(first / "history.csv")
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        ("baseline", "1"), ("joint", "1"), ("joint", "2"),
    ]  # fmt: skip
    columns = ["loss", "exit_1_loss", "exit_1_accuracy", "exit_2_loss", "exit_2_accuracy"]
    assert list(rows[0]) == ["phase", "epoch", *columns, *(f"val_{c}" for c in columns)]
    assert all(float(value) >= 0 for row in rows[1:] for value in list(row.values())[2:])
    assert 0 <= float(rows[0]["val_exit_2_accuracy"]) <= 1
    assert rows[0]["val_exit_1_accuracy"] == ""


def test_flags_name_everything_that_decides_the_result(first, folder):
    lines = (first / "train.flags").read_text().splitlines()
    # Absolute, so that they mean the same from any folder.
    assert f"--dataset={folder / 'digits.npz'}" in lines
    assert f"--data_dir={folder / 'data'}" in lines
    assert set(FLAGS) <= set(lines)
    assert not any(line.startswith("--run_dir") for line in lines)


def test_flagfile_reproduces_the_run(first, tmp_path):
    done = commands.run(
        "train", f"--flagfile={first / 'train.flags'}", "--run_dir=again", cwd=tmp_path
    )
    assert done.status == 0, done.stderr
    for name in ("history.csv", "train.flags"):
        assert (tmp_path / "again" / name).read_text() == (first / name).read_text()


def test_another_seed_gives_another_history(first, tmp_path):
    done = commands.run(
        "train", f"--flagfile={first / 'train.flags'}", f"--run_dir={tmp_path}",
        "--seed=4", "--mode=joint", "--epochs=1",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    (row,) = read_history(tmp_path / "history.csv")
    assert row["phase"] == "joint"
    assert not (tmp_path / "baseline.keras").exists()
    # The baseline's first epoch of the other run has the same columns.
    other = read_history(first / "history.csv")[0]
    assert row["val_exit_2_loss"] != other["val_loss"]


def test_model_loads_with_keras_alone(first):
    script = (
        # An import of branchy_tf would now fail.
        "import sys; sys.modules['branchy_tf'] = None; import keras, numpy;"
        f"model = keras.models.load_model({str(first / 'model.keras')!r});"
        "out = model.predict(numpy.zeros((3, 28, 28, 1), 'uint8'), verbose=0);"
        "print({name: value.shape for name, value in out.items()})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'exit_1': (3, 10), 'exit_2': (3, 10)}"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), "is missing or empty, so training.png cannot be"),
        (lambda path: path.write_bytes(b""), "is missing or empty, so training.png"),
        (lambda path: path.write_bytes(b"\0\xff"), "as the history of a training: "),
    ],
)
def test_reports_a_missing_or_damaged_history(first, tmp_path, damage, expected):
    copy = tmp_path / "run"
    shutil.copytree(first, copy)
    (copy / "training.png").unlink()
    damage(copy / "history.csv")
    flags = f"--flagfile={copy / 'train.flags'}", f"--run_dir={copy}"
    assert expected in commands.run("train", *flags).error


def test_an_unfinished_run_with_a_damaged_history_trains_nothing(first, tmp_path):
    (tmp_path / "train.flags").write_bytes((first / "train.flags").read_bytes())
    (tmp_path / "history.csv").write_text("phase,epoch,loss\njoint,one,1\n")
    flags = f"--flagfile={tmp_path / 'train.flags'}", f"--run_dir={tmp_path}"
    error = commands.run("train", *flags).error
    assert "history.csv cannot be read as the history of a training: " in error
    assert not list(tmp_path.glob("backup/*"))


def test_a_finished_run_stays_unchanged(first):
    before = content(first)
    done = commands.run(
        "train", f"--flagfile={first / 'train.flags'}", f"--run_dir={first}"
    )
    assert done.status == 0
    assert f"{first} is already trained; nothing to do." in done.stderr
    assert content(first) == before


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--learning_rate=0.1", "--learning_rate was 0.003 and is now 0.1."),
        ("--validation_size=30", "--validation_size was unset and is now 30."),
        ("--loss_weights=1,1", "--loss_weights was 1.0,0.3 and is now 1.0,1.0."),
    ],
)
def test_rejects_other_flags_for_the_same_folder(first, flag, expected):
    before = content(first)
    error = commands.run(
        "train", f"--flagfile={first / 'train.flags'}", f"--run_dir={first}", flag
    ).error
    assert expected in error
    assert "or another --run_dir" in error
    assert content(first) == before


def kill_after(flags: list[str], run_dir: pathlib.Path, phase: str, number: int) -> str:
    """Trains until SIGKILL, `number` epochs into `phase`; returns what it printed."""
    log, errors = run_dir.parent / f"{phase}.log", run_dir.parent / f"{phase}.errors"
    process = commands.start("train", *flags, out=log, err=errors)
    try:
        deadline = time.monotonic() + 120
        while len(epochs(run_dir, phase)) < number and time.monotonic() < deadline:
            assert process.is_alive(), errors.read_text()
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    return log.read_text()


def first_epoch(printed: str) -> int:
    return int(re.search(r"^Epoch (\d+)/", printed, flags=re.MULTILINE)[1])


def optimizer_steps(run_dir: pathlib.Path, phase: str) -> int:
    with h5py.File(run_dir / "backup" / phase / "latest.weights.h5") as file:
        return int(file["optimizer/vars/0"][()])


def test_killed_training_resumes(folder, tmp_path):
    run_dir = tmp_path / "run"
    flags = [
        "--model=branchy_lenet", "--mode=baseline_first", "--baseline_epochs=7",
        "--epochs=6", "--batch_size=20", f"--dataset={folder / 'digits.npz'}",
        f"--run_dir={run_dir}",
    ]  # fmt: skip
    steps = 360 // 20

    kill_after(flags, run_dir, "baseline", 2)
    rows = epochs(run_dir, "baseline")
    assert rows == list(range(1, len(rows) + 1))
    assert 2 <= len(rows) < 7
    changed = commands.run("train", *flags, "--epochs=9")
    assert "--epochs was 6 and is now 9." in changed.error
    unfinished = commands.run("evaluate", f"--run_dir={run_dir}", "--thresholds=0")
    assert "Its training is not finished: run train again" in unfinished.error

    printed = kill_after(flags, run_dir, "joint", 2)
    # Not from the start, but at most with the last row's epoch again.
    assert first_epoch(printed) in (len(rows), len(rows) + 1)
    assert epochs(run_dir, "baseline") == list(range(1, 8))
    assert optimizer_steps(run_dir, "baseline") == 7 * steps
    rows = epochs(run_dir, "joint")
    assert rows == list(range(1, len(rows) + 1))
    assert 2 <= len(rows) < 6
    assert optimizer_steps(run_dir, "joint") in (
        (len(rows) - 1) * steps,
        len(rows) * steps,
    )
    assert not (run_dir / "model.keras").exists()

    done = commands.run("train", *flags)
    assert done.status == 0, done.stderr
    assert first_epoch(done.stdout) in (len(rows), len(rows) + 1)
    assert epochs(run_dir, "baseline") == list(range(1, 8))
    assert epochs(run_dir, "joint") == list(range(1, 7))
    # It learned: the last epochs are better than the first.
    history = read_history(run_dir / "history.csv")
    assert float(history[-1]["loss"]) < 0.7 * float(history[7]["loss"])
    assert [path.name for path in (run_dir / "backup").iterdir()] == ["joint"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model="], "--model is missing."),
        (["--dataset="], "--dataset is missing."),
        (["--run_dir="], "--run_dir is missing."),
        (["--model=branchy_lennet"], "Did you mean branchy_lenet?"),
        (["--model_args=depth=20"], "branchy_lenet has no argument 'depth'."),
        (["--model_args=classes=5"], "branchy_lenet has 5 classes, but"),
        (["--model_args=input_shape=20x20x1"], "--model_args=input_shape=28x28x1."),
        (["--dataset=mnist5k"], "Did you mean mnist_5k?"),
        (["--dataset=none.npz"], "There is no data file "),
        (["--validation_size=400"], "`validation_size` must be between 1 and 399"),
        (["--weights=none.keras"], "There is no weights file "),
        (["--mode=baseline_first", "--baseline=none.keras"], "There is no file "),
        (["--loss_weights=1,0.3,0.3"], "`loss_weights` must have one entry for each"),
        (["--loss_weights=1,x"], "--loss_weights=1,x: expected comma-separated numbers"),
        (["--epochs=0"], "`epochs` must be a whole number of at least 1. Received 0."),
        (["--mode=both"], "joint|baseline_first"),
        (["--seed=-1"], "seed"),
    ],
)
def test_rejects_invalid_flags_and_writes_nothing(folder, tmp_path, flags, expected):
    good = [
        "--model=branchy_lenet", f"--dataset={folder / 'digits.npz'}", "--run_dir=run",
    ]  # fmt: skip
    assert expected in commands.run("train", *good, *flags, cwd=tmp_path).error
    assert list(tmp_path.iterdir()) == []


def test_weights_start_the_training(first, folder, tmp_path):
    done = commands.run(
        "train", "--model=branchy_lenet", "--dataset=digits.npz",
        f"--run_dir={tmp_path / 'run'}", "--weights=first/model.keras", "--epochs=1",
        "--learning_rate=1e-12", "--mode=joint", cwd=folder,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    trained, given = (
        keras.models.load_model(path / "model.keras", compile=False)
        for path in (tmp_path / "run", first)
    )
    for ours, theirs in zip(trained.weights, given.weights, strict=True):
        assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-6)
    flags = (tmp_path / "run" / "train.flags").read_text()
    assert f"--weights={first / 'model.keras'}\n" in flags


def test_draws_a_missing_picture_of_a_finished_run(first, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(first, copy)
    (copy / "training.png").unlink()
    # Equal values in another notation count as the same flags.
    done = commands.run(
        "train", f"--flagfile={copy / 'train.flags'}", "--loss_weights=1,0.30",
        f"--run_dir={copy}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert (copy / "training.png").stat().st_size > 10_000
