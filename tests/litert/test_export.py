"""Exports that are refused leave nothing behind; the others are described."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import sys

import commands
import keras
import numpy as np
import pytest
import small
from keras import layers

from branchy_tf import ExitPolicy, exits, files, litert, versions
from branchy_tf.errors import BranchyError
from branchy_tf.litert import comparing, converting, writing
from branchy_tf.saved_model import freezing

POLICY = ExitPolicy(thresholds=[0.6])
SPLIT = small.dataset().validation
DATA = {"images": SPLIT.images, "labels": SPLIT.labels, "examples": SPLIT.images}


def run(run_dir, folder, *flags):
    return commands.run(
        "export", f"--run_dir={run_dir}", f"--export_dir={folder}", "--format=litert",
        "--model_name=net", *flags,
    )  # fmt: skip


def nothing_in(folder) -> bool:
    return not list(folder.glob("net/*"))


@pytest.fixture(scope="module")
def int8(run_dir, tmp_path_factory):
    """`run_dir`, exported in int8 by the command."""
    folder = tmp_path_factory.mktemp("int8")
    done = run(run_dir, folder, "--quantize=int8")
    assert done.status == 0, done.stderr
    return folder / "net" / "1", done


def test_int8_is_small_recalibrated_and_compared(int8, run_dir, tmp_path):
    version, done = int8
    assert "INFO:" not in done.stderr
    assert "In LiteRT, " in done.stderr
    found = versions.describe(version)
    assert found.format == versions.LITERT
    assert found.content["quantize"] == "int8"
    compared = found.content["comparison"]
    assert compared["num_examples"] == 500
    assert compared["float32_accuracy"] - compared["accuracy"] <= 0.005
    assert 0.9 < min(compared["exit_labels"]) <= 1
    before = ExitPolicy.load(run_dir / "thresholds.json")
    assert found.policy.criterion == before.criterion
    assert found.policy.thresholds != before.thresholds, "the scores have moved"
    plain = run(run_dir, tmp_path)
    assert plain.status == 0, plain.stderr
    sizes = [
        (folder / "early_exit.tflite").stat().st_size
        for folder in (version, tmp_path / "net" / "1")
    ]
    assert sizes[0] <= 0.3 * sizes[1]
    exact = versions.describe(tmp_path / "net" / "1")
    assert exact.policy.limits.tolist() == before.limits.tolist()
    assert exact.policy.temperatures == before.temperatures


def test_files_and_their_hashes_are_listed(int8):
    version, _ = int8
    listed = versions.describe(version).content["files"]
    assert set(listed) == {"early_exit.tflite", "stage_1.tflite", "stage_2.tflite"}
    assert {path.name for path in version.iterdir()} == {*listed, "branchy.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((version / name).read_bytes()).hexdigest() == digest


def test_recalibrating_on_other_rows_is_refused(run_dir, tmp_path):
    """Another seed gives rows that the model was trained on."""
    text = files.read_json(run_dir / "thresholds.json")
    text["validation"]["accuracy"] -= 0.05
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("model.keras", "train.flags"):
        (copy / name).write_bytes((run_dir / name).read_bytes())
    files.write_json(copy / "thresholds.json", text)
    done = run(copy, tmp_path, "--quantize=int8")
    assert "validation split is not the one of the calibration" in done.error
    assert "--seed" in done.error
    assert nothing_in(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision=bfloat16"], "--precision goes with --format=saved_model"),
        (["--freeze=true"], "--freeze goes with --format=saved_model"),
        (["--format=saved_model", "--quantize=int8"], "--quantize goes with --format=li"),
        (["--quantize=int4"], "should be one of"),
        (["--quantize=int8", "--dataset=no"], "Unknown data set 'no'"),
    ],
)
def test_invalid_flags(run_dir, tmp_path, flags, message):
    done = run(run_dir, tmp_path, *flags)
    assert message in (done.error if "error: " in done.stderr else done.stderr)
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("limit", ["max_accuracy_drop", "max_disagreement"])
def test_too_far_from_float32_is_refused(limit, tmp_path, monkeypatch):
    found = comparing.Comparison(10, 0.8, 0.9, [1, 0], [1, 0], 0.6, [0.9, 0.8])
    monkeypatch.setattr(comparing, "compare", lambda *_: found)
    most = {"max_accuracy_drop": 0.2, "max_disagreement": 0.3} | {limit: 0.05}
    with pytest.raises(BranchyError, match=rf"--quantize=none.*--{limit}"):
        litert.export(
            small.model(), tmp_path, "net", POLICY, quantize="dynamic", **DATA, **most
        )
    assert nothing_in(tmp_path)
    version = litert.export(
        small.model(), tmp_path, "net", POLICY, quantize="dynamic", **DATA,
        max_accuracy_drop=0.2, max_disagreement=0.3,
    )  # fmt: skip
    assert version.name == "1"


@pytest.mark.parametrize("missing", ["images", "labels", "examples"])
def test_int8_needs_data(missing, tmp_path):
    with pytest.raises(BranchyError, match=f"`{missing}`"):
        litert.export(
            small.model(), tmp_path, "net", POLICY,
            quantize="int8", **DATA | {missing: None},
        )  # fmt: skip
    assert nothing_in(tmp_path)


@keras.saving.register_keras_serializable("test_litert")
class Inverse(layers.Layer):
    def call(self, values):
        square = keras.ops.reshape(values, (-1, 2, 2))
        return keras.ops.reshape(keras.ops.inv(square), (-1, 4))


def test_names_a_layer_that_litert_cannot_express(tmp_path, capfd):
    values = keras.Input((4,), name="values")
    x = Inverse(name="turned")(layers.Dense(4)(values))
    outputs = {"exit_1": exits.logits_head(values, 3, "exit_1")}
    outputs["exit_2"] = exits.logits_head(x, 3, "exit_2")
    model = keras.Model(values, outputs)
    with pytest.raises(BranchyError) as caught:
        litert.export(model, tmp_path, "net", POLICY)
    message = str(caught.value)
    assert message.startswith("Layer 'turned' (Inverse) of exit_2 cannot be expressed")
    assert "MatrixInverse" in message
    assert "--format=saved_model" in message
    assert "\n" not in message
    assert nothing_in(tmp_path)
    assert "error:" not in capfd.readouterr().err, "the converter is silent"


def test_too_many_weights_are_refused_before_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(freezing, "LARGEST_GRAPH", 100)
    monkeypatch.setattr(converting, "_convert", None)
    with pytest.raises(BranchyError, match=r"bytes of weights.*--format=saved_model"):
        litert.export(small.model(), tmp_path, "net", POLICY)
    assert nothing_in(tmp_path)


def test_without_litert_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(BranchyError, match=r"pip install ai-edge-litert"):
        litert.export(small.model(), tmp_path, "net", POLICY)
    assert nothing_in(tmp_path)


def export_and_die(folder: pathlib.Path) -> None:
    """Exports, and is killed where the version would be checked."""
    writing.check_version = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    litert.export(small.model(), folder, "net", [0.6])


def test_killed_half_way_it_leaves_no_version(tmp_path):
    process = commands.CONTEXT.Process(target=export_and_die, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert files.version_folders(tmp_path / "net") == {}
    version = litert.export(small.model(), tmp_path, "net", POLICY)
    assert version == tmp_path / "net" / "1"


def test_a_batch_of_examples_fixes_the_ranges(tmp_path):
    """Dynamic and int8 answer within a few percent of float32."""
    model = small.model()
    found = {}
    for quantize in ("none", "dynamic", "int8"):
        version = litert.export(
            model, tmp_path, "net", POLICY, quantize=quantize, **DATA,
            max_accuracy_drop=0.2, max_disagreement=0.2,
        )  # fmt: skip
        engine = litert.LiteRTEngine(version)
        found[quantize] = engine.logits({"images": SPLIT.images})
    largest = np.abs(found["none"]).max()
    difference = {k: np.abs(v - found["none"]).max() for k, v in found.items()}
    # LiteRT leaves small kernels, such as all of these, in float32 when dynamic.
    assert 0 <= difference["dynamic"] < 0.05 * largest
    assert 0 < difference["int8"] < 0.05 * largest
