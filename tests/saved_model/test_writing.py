from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time

import commands
import keras
import numpy as np
import odd_models
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

import branchy_tf
from branchy_tf import costs, saved_model
from branchy_tf.errors import BranchyError
from branchy_tf.files import version_folders
from branchy_tf.policy import ExitPolicy
from branchy_tf.saved_model import checking, freezing, routing, warmup
from branchy_tf.saved_model.session import SessionModel


def shift_scores(monkeypatch):
    """Makes the check of an export expect scores that are off by 0.01."""
    right = checking._answers

    def slightly_off(*arguments):
        probabilities, scores, largest = right(*arguments)
        return probabilities, scores + 0.01, largest

    monkeypatch.setattr(checking, "_answers", slightly_off)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_versions_continue_from_the_highest(lenet, tmp_path):
    assert saved_model.export(lenet, tmp_path, "m", [0.1]).name == "1"
    assert saved_model.export(lenet, tmp_path, "m", [0.1]).name == "2"
    (tmp_path / "m" / "10").mkdir()
    (tmp_path / "m" / "notes").mkdir()
    assert saved_model.export(lenet, tmp_path, "m", [0.1]).name == "11"
    assert names_in(tmp_path / "m") == ["1", "10", "11", "2", "notes"]


def test_signatures_match_the_contract(exported):
    session = SessionModel(exported / "1")

    def described(infos):
        return {
            name: (
                tf.as_dtype(info.dtype).name,
                [d.size for d in info.tensor_shape.dim],
            )
            for name, info in infos.items()
        }

    images = {"images": ("uint8", [-1, 28, 28, 1])}
    answer = {
        "probabilities": ("float32", [-1, 10]),
        "exit": ("int32", [-1]),
        "score": ("float32", [-1]),
    }
    early = session.signatures["early_exit"]
    assert described(early.inputs) == images | {"thresholds": ("float32", [-1, 1])}
    assert described(early.outputs) == answer
    assert described(session.signatures["serving_default"].inputs) == images
    assert described(session.signatures["serving_default"].outputs) == answer
    assert described(session.signatures["all_exits"].inputs) == images
    assert described(session.signatures["all_exits"].outputs) == {
        "probabilities": ("float32", [-1, 2, 10]),
        "scores": ("float32", [-1, 2]),
    }
    assert set(session.signatures) == {"early_exit", "serving_default", "all_exits"}


def test_calibrated_thresholds_are_the_default(exported, run_dir, digits):
    calibrated = json.loads((run_dir / "thresholds.json").read_text())["thresholds"]
    session = SessionModel(exported / "1")
    kept = tf.make_ndarray(session.signatures["early_exit"].defaults["thresholds"])
    assert kept.tolist() == np.float32([calibrated]).tolist()
    named = session.run(
        "early_exit", {"images": digits, "thresholds": np.float32([calibrated])}
    )
    left_out = session.run("early_exit", {"images": digits})
    other_signature = session.run("serving_default", {"images": digits})
    for name in named:
        np.testing.assert_array_equal(named[name], left_out[name])
        np.testing.assert_array_equal(named[name], other_signature[name])


def test_description_is_complete(exported, trained, run_dir):
    described = json.loads((exported / "1/assets.extra/branchy.json").read_text())
    assert described["exits"] == ["exit_1", "exit_2"]
    assert described["criterion"] == "entropy"
    assert described["classes"] == 10
    assert described["macs"] == costs.cumulative_macs(trained)
    assert described["versions"]["branchy_tf"] == branchy_tf.__version__
    calibrated = json.loads((run_dir / "thresholds.json").read_text())["thresholds"]
    assert described["thresholds"] == pytest.approx(calibrated)


def test_warm_up_reaches_every_signature_and_exit(exported):
    session = SessionModel(exported / "1")
    requests = warmup.read(exported / "1")
    assert 0 < len(requests) <= 1000
    reached = set()
    for request in requests:
        assert request.model_spec.name == "branchy_lenet"
        arrays = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        rows = {len(array) for array in arrays.values()}
        # Batching requires the same first dimension everywhere.
        assert len(rows) == 1
        name = request.model_spec.signature_name
        answer = session.run(name, arrays)
        if name == "early_exit":
            (where,) = set(answer["exit"])
            reached.add((where, rows.pop()))
        else:
            reached.add(name)
    assert reached >= {"serving_default", "all_exits", (0, 1), (1, 1), (0, 32), (1, 32)}


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_weights_are_constants_or_variables(lenet, tmp_path, freeze):
    version = saved_model.export(lenet, tmp_path, "m", [0.1], freeze=freeze)
    content = (version / "saved_model.pb").read_bytes()
    graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].graph_def
    kinds = {node.op for function in graph.library.function for node in function.node_def}
    assert ("ReadVariableOp" in kinds) == (freeze == "false")
    # All signatures share one copy of the filters.
    weights = 4 * sum(int(np.prod(w.shape)) for w in lenet.weights)
    constants = sum(
        len(node.attr["value"].tensor.tensor_content)
        for function in graph.library.function
        for node in function.node_def
    )
    expected = weights if freeze == "true" else 0
    assert expected <= constants < expected + 10_000


def test_auto_freezes_small_models(lenet, monkeypatch):
    assert freezing.should_freeze(lenet, "auto")
    monkeypatch.setattr(freezing, "_MOST_FROZEN_BYTES", 1000)
    assert not freezing.should_freeze(lenet, "auto")
    with pytest.raises(BranchyError, match="auto, true, false"):
        freezing.should_freeze(lenet, "maybe")


def test_exports_other_criteria(lenet, digits, tmp_path):
    policy = ExitPolicy(criterion="max_prob", thresholds=[0.5])
    version = saved_model.export(lenet, tmp_path, "m", policy)
    answer = SessionModel(version).run("all_exits", {"images": digits})
    np.testing.assert_allclose(
        answer["scores"], 1 - answer["probabilities"].max(axis=-1), atol=1e-5
    )


def test_temperatures_are_applied_and_described(lenet, digits, tmp_path):
    policy = ExitPolicy(thresholds=[0.5], temperatures=[2.5, 0.7])
    version = saved_model.export(lenet, tmp_path, "m", policy)
    session = SessionModel(version)
    logits = lenet(digits)
    expected = np.stack(
        [
            tf.nn.softmax(logits["exit_1"] / 2.5),
            tf.nn.softmax(logits["exit_2"] / 0.7),
        ],
        axis=1,
    )
    every = session.run("all_exits", {"images": digits})
    np.testing.assert_allclose(every["probabilities"], expected, atol=1e-5)
    middle = np.median(every["scores"][:, 0])
    limits = np.float32([[middle]])
    answer = session.run("early_exit", {"images": digits, "thresholds": limits})
    clear = np.abs(every["scores"][:, 0] - middle) > 1e-4
    leaves = every["scores"][:, 0] < middle
    assert ((answer["exit"] == 0) == leaves)[clear].all()
    np.testing.assert_allclose(
        answer["probabilities"],
        expected[np.arange(len(digits)), answer["exit"]],
        atol=1e-5,
    )
    predictor = branchy_tf.EarlyExitPredictor(lenet, policy)
    np.testing.assert_allclose(predictor.all_exits(digits)[1], every["scores"], atol=1e-5)
    logits = np.stack([logits["exit_1"], logits["exit_2"]], axis=1)
    np.testing.assert_allclose(predictor.logits(digits), logits, atol=1e-4)
    assert predictor.logits(digits[:0]).shape == (0, 2, 10)
    told = json.loads((version / "assets.extra/branchy.json").read_text())
    assert told["temperatures"] == [2.5, 0.7]


def test_input_dtype_can_differ_from_the_models(lenet, digits, tmp_path):
    version = saved_model.export(lenet, tmp_path, "m", [0.5], input_dtype="float32")
    answer = SessionModel(version).run(
        "serving_default", {"images": digits.astype("float32")}
    )
    plain = np.asarray(lenet(digits)["exit_2"]).argmax(axis=1)
    last = answer["exit"] == 1
    assert (answer["probabilities"].argmax(axis=1) == plain)[last].all()


def test_several_inputs_keep_their_names(tmp_path):
    model, (image, extra) = odd_models.build(odd_models.several_inputs)
    version = saved_model.export(model, tmp_path, "m", [0.5])
    session = SessionModel(version)
    assert set(session.signatures["serving_default"].inputs) == {"image", "extra"}
    assert len(session.run("all_exits", {"image": image, "extra": extra})["scores"]) == 6


def test_masked_class_does_not_weaken_the_check(tmp_path, monkeypatch):
    values = keras.Input((5,))
    mask = np.float32([0, 0, -np.inf])
    model = keras.Model(
        values,
        {
            name: layers.Identity(name=name)(layers.Dense(3)(values) + mask)
            for name in ("exit_1", "exit_2")
        },
    )
    saved_model.export(model, tmp_path, "m", [0.1])
    shift_scores(monkeypatch)
    with pytest.raises(BranchyError, match=r"scores of all_exits differ by 0\.01"):
        saved_model.export(model, tmp_path, "m", [0.1])


def test_failed_check_leaves_nothing_and_says_why(lenet, tmp_path, monkeypatch):
    saved_model.export(lenet, tmp_path, "m", [0.1])
    shift_scores(monkeypatch)
    with pytest.raises(BranchyError, match=r"scores of all_exits differ by 0\.01"):
        saved_model.export(lenet, tmp_path, "m", [0.1])
    assert names_in(tmp_path / "m") == ["1"]


def test_rejects_misrouted_rows_on_real_images(lenet, digits, tmp_path, monkeypatch):
    _, scores = branchy_tf.EarlyExitPredictor(lenet, [0]).all_exits(digits)
    policy = ExitPolicy(thresholds=[float(np.median(scores[:, 0]))])
    version = saved_model.export(lenet, tmp_path, "m", policy, images=digits)
    exits = SessionModel(version).run("serving_default", {"images": digits})["exit"]
    assert np.bincount(exits).tolist() == [32, 32]

    # The check on noise would not notice.
    monkeypatch.setattr(checking, "_check_answers", lambda *_: None)
    monkeypatch.setattr(
        routing, "exits_early", lambda scores, limits: scores < 0.99 * limits
    )
    with pytest.raises(BranchyError, match="The exported graph sends") as caught:
        saved_model.export(lenet, tmp_path, "m", policy, images=digits)
    assert "expected 50.0%, 50.0%" in str(caught.value)
    assert names_in(tmp_path / "m") == ["1"]
    with pytest.raises(BranchyError, match="`images` has shape"):
        saved_model.export(lenet, tmp_path / "n", "n", policy, images=digits[:, 1:])
    assert not (tmp_path / "n").exists()


def test_export_without_data_says_what_is_not_checked(run_dir, tmp_path):
    flags = ["--model=branchy_lenet", f"--weights={run_dir / 'model.keras'}"]
    flags += ["--thresholds=0.1", f"--export_dir={tmp_path}"]
    done = commands.run("export", *flags)
    assert done.status == 0, done.stderr
    assert "The export was not compared with the calibration" in done.stderr
    assert "--dataset is missing" in done.stderr
    done = commands.run("export", *flags, "--dataset=mnist_5k")
    assert done.status == 0, done.stderr
    assert "was not compared" not in done.stderr


def test_detects_a_lost_default(lenet, tmp_path, monkeypatch):
    kept = saved_model.EarlyExitModule.__init__

    def losing(self, model, policy, *rest):
        kept(self, model, [9.0], *rest)

    monkeypatch.setattr(saved_model.EarlyExitModule, "__init__", losing)
    with pytest.raises(BranchyError, match="lost its default thresholds"):
        saved_model.export(lenet, tmp_path, "m", [0.1])
    assert names_in(tmp_path / "m") == []


def test_reports_a_full_disk_and_leaves_nothing(lenet, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(BranchyError, match="No space left on device"):
        saved_model.export(lenet, tmp_path, "m", [0.1])
    assert names_in(tmp_path / "m") == []


def limit_files() -> None:
    """Makes write() fail, as a full disk does, by a limit on the size of files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_reports_a_real_full_disk_and_leaves_nothing(run_dir, tmp_path):
    folder = tmp_path / "full"
    flags = [f"--run_dir={run_dir}", f"--export_dir={folder}"]
    done = commands.run("export", *flags, prepare=limit_files)
    assert done.status == 1, done.stderr
    assert "cannot be written" in done.error
    assert names_in(folder / "branchy_lenet") == []


def start_writing(run_dir, folder) -> commands.Forked:
    """An export in another process that has just begun to write."""
    flags = [f"--run_dir={run_dir}", f"--export_dir={folder}"]
    process = commands.Forked("export", flags, folder / "log")
    deadline = time.monotonic() + 120
    while not names_in(folder / "branchy_lenet"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_killed_export_leaves_no_version(run_dir, tmp_path):
    process = start_writing(run_dir, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert version_folders(tmp_path / "branchy_lenet") == {}
    # Leftovers of the killed export do not hinder the next one.
    done = commands.run("export", f"--run_dir={run_dir}", f"--export_dir={tmp_path}")
    assert done.status == 0, done.stderr
    assert list(version_folders(tmp_path / "branchy_lenet")) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": [0.1, 0.2]}, "expected 1"),
        ({"policy": [-1]}, "at least 0"),
        ({"policy": ExitPolicy(thresholds=[0.1, 0.2])}, "expected 1"),
        ({"policy": ExitPolicy(thresholds=[0.1], weights="ab")}, "for other weights"),
        ({"policy": "no_such.json"}, "There are no thresholds"),
        ({"freeze": "maybe"}, "auto, true, false"),
        ({"input_dtype": "uint9"}, "dtype such as"),
        ({"input_dtype": "string"}, "dtype such as"),
        ({"model_name": "../up"}, "letters, digits"),
        ({"model_name": ""}, "letters, digits"),
        ({"export_dir": "/proc/nothing"}, "cannot be written"),
    ],
)
def test_rejects_invalid_arguments_before_touching_files(
    lenet, tmp_path, change, message
):
    arguments = {
        "model": lenet,
        "export_dir": tmp_path / "exports",
        "model_name": "m",
        "policy": [0.1],
    }
    with pytest.raises(BranchyError, match=message):
        saved_model.export(**(arguments | change))
    assert not (tmp_path / "exports").exists()


def test_rejects_a_fixed_batch_size(tmp_path):
    x = keras.Input(batch_shape=(4, 3))
    head = keras.layers.Dense(2, name="exit_1")(x)
    last = keras.layers.Dense(2, name="exit_2")(x)
    model = keras.Model(x, {"exit_1": head, "exit_2": last})
    with pytest.raises(BranchyError, match="fixes its batch size"):
        saved_model.export(model, tmp_path, "m", [0.1])


def test_command_errors_are_one_line(run_dir, tmp_path):
    refused = commands.run("export", f"--run_dir={run_dir}", "--export_dir=/proc/no")
    assert "cannot be written" in refused.error
    refused = commands.run("export", f"--run_dir={run_dir}")
    assert "--export_dir is missing" in refused.error
    refused = commands.run("export", f"--run_dir={tmp_path}", f"--export_dir={tmp_path}")
    assert "holds no model.keras" in refused.error


def test_file_named_like_a_version_takes_its_number(lenet, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "1").write_text("not a folder")
    (tmp_path / "m" / str(2**63)).mkdir()
    assert saved_model.export(lenet, tmp_path, "m", [0.1]).name == "2"
    assert list(version_folders(tmp_path / "m")) == [2]


def test_removes_leftovers_of_killed_exports_after_a_day(lenet, tmp_path):
    old, young = tmp_path / "m/.writing-old", tmp_path / "m/.writing-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    saved_model.export(lenet, tmp_path, "m", [0.1])
    assert not old.exists()
    assert young.exists()


def test_model_for_any_image_size_is_exported_without_macs(tmp_path):
    x = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()
    early = pooled(keras.layers.Conv2D(4, 3)(x))
    late = pooled(keras.layers.Conv2D(8, 5)(x))
    outputs = {
        "exit_1": keras.layers.Dense(2, name="exit_1")(early),
        "exit_2": keras.layers.Dense(2, name="exit_2")(late),
    }
    version = saved_model.export(keras.Model(x, outputs), tmp_path, "m", [0.5])
    described = json.loads((version / "assets.extra/branchy.json").read_text())
    assert described["macs"] is None
    session = SessionModel(version)
    for height, width in ((8, 8), (20, 11)):
        images = np.zeros((2, height, width, 3), "float32")
        assert len(session.run("serving_default", {"images": images})["exit"]) == 2


def test_floats_are_rounded_to_pixels_without_wrapping(lenet, digits, tmp_path):
    version = saved_model.export(lenet, tmp_path, "m", [0.5], input_dtype="float32")
    session = SessionModel(version)
    pixels = digits.astype("float32")
    exact = session.run("all_exits", {"images": pixels})["probabilities"]
    beyond = np.where(pixels == 255, 300, pixels - 0.4)
    beyond = np.where(pixels == 0, -7, beyond)
    near = session.run("all_exits", {"images": beyond})["probabilities"]
    np.testing.assert_array_equal(exact, near)


def test_serves_an_input_named_like_a_python_keyword(tmp_path):
    x = keras.Input((3,), name="class")
    outputs = {n: keras.layers.Dense(2, name=n)(x) for n in ("exit_1", "exit_2")}
    version = saved_model.export(keras.Model(x, outputs), tmp_path, "m", [0.5])
    signature = SessionModel(version).signatures["serving_default"]
    assert list(signature.inputs) == ["input_class"]


def test_does_not_freeze_weights_beyond_the_graph_limit(lenet, monkeypatch):
    monkeypatch.setattr(freezing, "LARGEST_GRAPH", 1000)
    with pytest.raises(BranchyError, match="--freeze=false"):
        freezing.should_freeze(lenet, "true")


def test_reports_another_keras_backend(lenet, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(BranchyError, match="KERAS_BACKEND=tensorflow"):
        freezing.stage_functions(lenet, frozen=True)


def test_sigterm_leaves_no_partial_version(run_dir, tmp_path):
    process = start_writing(run_dir, tmp_path)
    process.terminate()
    assert process.wait(60) in (143, 0)
    # Either the partial version was removed, or the export had just finished.
    assert names_in(tmp_path / "branchy_lenet") in ([], ["1"])
