"""`python -m branchy_tf.compress`, and what other commands make of its folders.

A compression takes as long as importing TensorFlow and tensorflow-model-optimization, so
each method runs once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import time

import commands
import keras
import numpy as np
import pytest
import small

from branchy_tf.training import read_history

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None,
    reason="the extra compression is not installed",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory, mnist_5k) -> pathlib.Path:
    """A run on 400 digits, in mode baseline_first, with weights of the classes."""
    folder = tmp_path_factory.mktemp("compress")
    digits = small.write_npz(folder / "digits.npz", mnist_5k)
    done = commands.run(
        "train", "--model=branchy_lenet", f"--dataset={digits}", "--epochs=2",
        "--mode=baseline_first", "--baseline_epochs=2", "--loss_weights=1,0.5",
        "--augmentation=shift", "--batch_size=40", "--validation_size=80",
        "--learning_rate=0.003", "--class_weights=balanced", "--seed=3",
        f"--run_dir={folder / 'run'}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    return folder / "run"


def compress(source: pathlib.Path, method: str, *flags: str) -> pathlib.Path:
    output = source.parent / f"{source.name}_{method}"
    done = commands.run(
        "compress", f"--run_dir={source}", f"--method={method}", "--epochs=2",
        f"--output_dir={output}", *flags,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def pruned(source):
    return compress(source, "prune", "--sparsity=0.75", "--skip_layers=conv_1,exit_1")


@pytest.fixture(scope="module")
def clustered(pruned):
    return compress(pruned, "cluster", "--clusters=8")


@pytest.fixture(scope="module")
def quantized(pruned):
    return compress(pruned, "qat")


def kernels(run: pathlib.Path) -> dict[str, np.ndarray]:
    model = keras.models.load_model(run / "model.keras", compile=False)
    return {layer.name: layer.get_weights()[0] for layer in model.layers if layer.weights}


def record(run: pathlib.Path) -> dict:
    return json.loads((run / "compression.json").read_text())


@needs_extra
def test_prunes_every_kernel_but_the_skipped(source, pruned):
    before, after = kernels(source), kernels(pruned)
    for name, kernel in after.items():
        zeros = (kernel == 0).sum()
        if name in ("conv_1", "exit_1"):
            assert zeros == 0
            # Fine-tuned all the same.
            assert (kernel != before[name]).any()
        else:
            assert abs(zeros - 0.75 * kernel.size) <= 0.5
    rows = {row["layer"]: row for row in record(pruned)["layers"]}
    assert set(rows) == set(after) - {"conv_1", "exit_1"}
    assert rows["dense"]["sparsity"] == (after["dense"] == 0).mean()


@needs_extra
def test_a_compressed_run_keeps_what_its_source_says(source, pruned):
    for name in ("train.flags", "baseline.keras"):
        assert (pruned / name).read_bytes() == (source / name).read_bytes()
    rows = read_history(pruned / "history.csv")
    assert rows[:4] == read_history(source / "history.csv")
    assert [(row["phase"], row["epoch"]) for row in rows[4:]] == [
        ("prune", "1"), ("prune", "2"),
    ]  # fmt: skip
    for row in rows[4:]:
        # The run's loss weights.
        total = float(row["exit_1_loss"]) + 0.5 * float(row["exit_2_loss"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-3)
        assert 0 < float(row["val_exit_1_accuracy"]) < 1
    assert (pruned / "training.png").is_file()
    found = record(pruned)
    assert found["augmentation"] == "shift"
    assert (found["batch_size"], found["seed"]) == (40, 3)
    assert len(set(found["class_weights"])) > 1
    assert found["rebuilt_difference"] <= 1e-5
    last = [float(rows[-1][f"val_exit_{n}_accuracy"]) for n in (1, 2)]
    assert found["exit_accuracies"]["after"] == pytest.approx(last, abs=0.013)
    sizes = found["gzipped_bytes"]
    assert sizes["after"] < 0.6 * sizes["before"]


@needs_extra
def test_clustering_keeps_zeros(pruned, clustered):
    before, after = kernels(pruned), kernels(clustered)
    for name, kernel in after.items():
        assert len(np.unique(kernel)) <= 8, name
        assert (kernel[before[name] == 0] == 0).all(), name
    assert record(clustered)["source"] == str(pruned)
    phases = [row["phase"] for row in read_history(clustered / "history.csv")]
    assert phases == ["baseline"] * 2 + ["joint"] * 2 + ["prune"] * 2 + ["cluster"] * 2


@needs_extra
def test_other_commands_take_a_compressed_run(clustered, tmp_path):
    run = f"--run_dir={clustered}"
    for command, *flags in (
        ("calibrate",),
        ("evaluate",),
        ("export", f"--export_dir={tmp_path}"),
    ):
        done = commands.run(command, run, *flags)
        assert done.status == 0, done.stderr
    evaluation = json.loads((clustered / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 100
    assert evaluation["baseline_accuracy"] is not None
    assert (tmp_path / "branchy_lenet/1/saved_model.pb").is_file()


@needs_extra
def test_quantized_exits_are_measured_by_the_interpreter(quantized):
    from branchy_tf import data, zoo
    from branchy_tf.compression import tflite

    found = record(quantized)
    assert "conv_1" in found["quantized_layers"]
    flags = dict(
        line[2:].split("=", 1)
        for line in (quantized / "train.flags").read_text().splitlines()
        if line.startswith("--")
    )
    dataset = data.load(flags["dataset"], None, 80, 3)
    model = zoo.branchy_lenet()
    path = quantized / "all_exits.tflite"
    for key, split in (("after", dataset.validation), ("after_test", dataset.test)):
        logits = tflite.every_exit(path, model, split, batch_size=32)
        assert logits.shape == (len(split), 2, 10)
        accuracies = (logits.argmax(-1) == split.labels[:, None]).mean(axis=0)
        np.testing.assert_allclose(found["exit_accuracies"][key], accuracies)
    assert found["gzipped_bytes"]["after"] < 0.7 * found["gzipped_bytes"]["before"]
    error = commands.run("calibrate", f"--run_dir={quantized}").error
    assert "Training for int8 leaves only all_exits.tflite" in error


@needs_extra
def test_training_for_int8_keeps_zeros(pruned, quantized):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(
        str(quantized / "all_exits.tflite")
    )
    interpreter.allocate_tensors()
    dense = kernels(pruned)["dense"]
    (found,) = (
        interpreter.get_tensor(entry["index"])
        for entry in interpreter.get_tensor_details()
        if entry["dtype"] == np.int8 and tuple(entry["shape"]) == dense.T.shape
    )
    assert len(np.unique(found)) > 16
    assert (found[dense.T == 0] == 0).all()


@needs_extra
def test_the_same_command_again_does_nothing(source, pruned):
    before = (pruned / "model.keras").stat().st_mtime_ns
    again = ("--sparsity=0.75", "--skip_layers=conv_1,exit_1")
    compress(source, "prune", *again)
    assert (pruned / "model.keras").stat().st_mtime_ns == before
    done = commands.run(
        "compress", f"--run_dir={source}", "--method=prune", "--epochs=2",
        "--sparsity=0.5", *again[1:], f"--output_dir={pruned}",
    )  # fmt: skip
    assert "holds another compression: sparsity was 0.75 and is now 0.5" in done.error


def children(pid: int) -> list[int]:
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@needs_extra
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_the_worker_ends_with_the_command(source, tmp_path, kind):
    out, err = tmp_path / "out", tmp_path / "err"
    output = tmp_path / "never"
    process = commands.start(
        "compress", f"--run_dir={source}", "--method=prune", "--epochs=100000",
        f"--output_dir={output}", out=out, err=err,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        workers: list[int] = []
        while not workers and time.monotonic() < deadline and process.is_alive():
            workers = children(process.pid)
            time.sleep(0.1)
        assert workers, err.read_text()
        os.kill(process.pid, kind)
        process.join(60)
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, workers))
        assert not output.exists()
    finally:
        process.kill()
        process.join()


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
        # A zombie has ended.
        return not state.startswith("Z")
    return False


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--method is missing"),
        (["--method=prune"], "--output_dir is missing"),
        (["--method=shrink"], "flag --method=shrink"),
        (["--method=prune", "--output_dir=x"], "Pass --run_dir of a training, or"),
        (
            ["--method=prune", "--output_dir=x", "--run_dir=y", "--model=branchy_lenet"],
            "Pass --run_dir of the training to compress, or --model and --weights, not",
        ),
        (
            ["--method=prune", "--output_dir=x", "--run_dir=empty"],
            "holds no model.keras. Pass the --run_dir of a finished training.",
        ),
        (
            ["--method=prune", "--output_dir=x", "--run_dir=y", "--sparsity=80"],
            "Received 80.0. 80 % is 0.8.",
        ),
        (["--method=qat", "--output_dir=x", "--run_dir=y", "--epochs=0"], "`epochs`"),
        (
            ["--method=cluster", "--output_dir=x", "--run_dir=y", "--clusters=1"],
            "`clusters` must be a whole number from 2 to 256. Received 1.",
        ),
        (
            ["--method=prune", "--output_dir=x", "--run_dir=y", "--loss_weights=1,a"],
            "--loss_weights=1,a: expected comma-separated numbers",
        ),
    ],
)
def test_rejects_invalid_flags_in_one_line(tmp_path, flags, expected):
    (tmp_path / "empty").mkdir()
    assert expected in commands.run("compress", *flags, cwd=tmp_path).error
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


@needs_extra
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--skip_layers=conv1"], "no such layer. Did you mean conv_1?"),
        (["--loss_weights=1,1,1"], "`loss_weights` must have one entry for each exit."),
        (["--class_weights=even"], "`class_weights` must be balanced or the path of a"),
        (["--output_dir={full}"], "holds other files and no compression.json. Pass"),
        (["--dataset=cifar10"], "reads inputs of shape (28, 28, 1)"),
    ],
)
def test_rejects_what_does_not_fit_the_run(source, tmp_path, flags, expected):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    images = np.zeros((20, 32, 32, 3), np.uint8)
    labels = np.arange(20) % 10
    np.savez(
        tmp_path / "cifar10.npz", x_train=images, y_train=labels, x_test=images,
        y_test=labels,
    )  # fmt: skip
    done = commands.run(
        "compress", f"--run_dir={source}", "--method=prune", f"--data_dir={tmp_path}",
        "--validation_size=10", f"--output_dir={tmp_path / 'new'}",
        *(flag.format(full=full) for flag in flags),
    )  # fmt: skip
    assert expected in done.error
    assert not (tmp_path / "new").exists()
