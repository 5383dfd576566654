from __future__ import annotations

import pathlib

import numpy as np
import odd_models
import pytest
import small
from tensorflow.core.framework.types_pb2 import DT_BFLOAT16
from tensorflow.core.protobuf import saved_model_pb2

from branchy_tf.benchmarking import contenders
from branchy_tf.benchmarking.litert_contenders import Splits
from branchy_tf.benchmarking.processes import Process
from branchy_tf.data import Split
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor

INPUTS = {"images": small.dataset().train.images}


def test_reports_a_failed_load_in_one_line(tmp_path):
    spec = {"engine": "no", "programs": {}, "inputs": {}, "threads": 1}
    process = Process("peer", spec, tmp_path)
    try:
        with pytest.raises(BranchyError, match=r"^peer failed: ModuleNotFoundError: .+"):
            process.wait()
    finally:
        process.close()


def test_notices_a_process_that_ends(tmp_path):
    process = Process("peer", {"engine": "no"}, tmp_path)
    process._process.kill()
    try:
        with pytest.raises(BranchyError, match="The process of peer has ended"):
            process.ask("memory")
    finally:
        process.close()


POLICY = ExitPolicy(thresholds=[1.0], temperatures=[1.0, 2.0])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contenders")
    programs, left_out, _ = contenders.write(
        small.model(), INPUTS, POLICY, folder, ["onnxruntime"]
    )
    assert left_out == {}
    return programs, folder


@pytest.fixture(scope="module")
def started(written):
    programs, folder = written
    with contenders.started(programs, list(INPUTS), 1, folder) as (processes, left_out):
        assert left_out == {}
        yield processes


def test_contenders_answer_as_the_predictor_does(started):
    predictor = EarlyExitPredictor(small.model(), POLICY)
    probabilities, _ = predictor.all_exits(INPUTS)
    labels = probabilities.argmax(axis=-1)
    routed = predictor.predict(INPUTS)
    assert 0 < routed.exits.mean() < 1
    expected = {
        "early_exit": (routed.labels, routed.exits),
        "half_exit_1": (
            np.where(np.arange(30) % 2, labels[:, 1], labels[:, 0]),
            np.arange(30) % 2,
        ),
        "forced_exit_1": (labels[:, 0], np.zeros(30)),
        "forced_exit_2": (labels[:, 1], np.ones(30)),
        "keras_export": (labels[:, 1], None),
        "frozen": (labels[:, 1], None),
        "onnxruntime": (labels[:, 1], None),
        "stage_1": (labels[:, 0], None),
        "stage_2": (labels[:, 1], None),
        "unrouted": (labels[:, 0], None),
    }
    assert set(started) == set(expected)
    for name, (their_labels, exits) in expected.items():
        found = started[name].ask("answer", contender=name, rows=30)
        assert found["labels"] == their_labels.tolist(), name
        assert found["exits"] == (None if exits is None else exits.tolist()), name


def test_contenders_take_several_inputs(tmp_path):
    model, arrays = odd_models.build(odd_models.several_inputs)
    inputs = dict(zip(("image", "extra"), arrays, strict=True))
    predictor = EarlyExitPredictor(model, POLICY)
    limit = float(np.median(predictor.all_exits(inputs)[1][:, 0]))
    policy = POLICY.replace(thresholds=[limit])
    splits = Splits(inputs, *[Split(inputs, np.arange(6) % 4)] * 2)
    programs, left_out, quality = contenders.write(
        model, inputs, policy, tmp_path, ["litert", "onnxruntime"], splits=splits
    )
    assert left_out == {}
    assert [row["num_examples"] for row in quality] == [6, 6]
    routed = predictor.predict(inputs, [limit])
    assert set(routed.exits) == {0, 1}
    probabilities, _ = predictor.all_exits(inputs)
    full = probabilities[:, -1].argmax(axis=-1).tolist()
    with contenders.started(programs, list(inputs), 1, tmp_path) as (processes, missing):
        assert missing == {}
        for name in ("early_exit", "early_exit_litert"):
            found = processes[name].ask("answer", contender=name, rows=6)
            assert found["labels"] == routed.labels.tolist(), name
            assert found["exits"] == routed.exits.tolist(), name
        for name in ("keras_export", "frozen", "stage_2", "onnxruntime", "litert"):
            found = processes[name].ask("answer", contender=name, rows=6)
            assert found["labels"] == full, name
        for name in ("onnxruntime_int8", "litert_int8", "early_exit_litert_int8"):
            assert len(processes[name].ask("answer", contender=name, rows=6)["labels"])


def test_pytorch_leaves_out_a_model_whose_layers_it_does_not_know(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install .[peers]")
    model, arrays = odd_models.build(odd_models.several_inputs)
    inputs = dict(zip(("image", "extra"), arrays, strict=True))
    programs, left_out, _ = contenders.write(model, inputs, POLICY, tmp_path, ["pytorch"])
    assert left_out == {}
    with contenders.started(programs, list(inputs), 1, tmp_path) as (_, missing):
        assert set(missing) == {"pytorch"}
        assert "NotImplementedError" in missing["pytorch"]


def test_times_passes_and_reports_memory(started):
    for name in ("early_exit", "stage_2", "onnxruntime"):
        for batch in (8, 3):
            answer = started[name].ask("time", contender=name, batch=batch)
            assert 0 < answer["seconds"] < 10
        memory = started[name].ask("memory")
        assert 10 < memory["imports_mb"] <= memory["peak_mb"] < 10_000
    with pytest.raises(BranchyError, match="early_exit failed: KeyError"):
        started["early_exit"].ask("time", contender="no", batch=8)


def test_leaves_out_a_peer_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(contenders.PEERS, "pytorch", ("no_such_package",))
    programs, left_out, _ = contenders.write(
        small.model(), INPUTS, POLICY, tmp_path, ["pytorch"]
    )
    assert left_out == {
        "pytorch": "no_such_package not installed: pip install -e '.[peers]'"
    }
    assert "pytorch" not in programs


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_the_number_of_threads_is_that_of_the_process(written):
    """Once TensorFlow has threads it keeps them, whatever a later session asks for."""
    programs, folder = written
    alone = {"early_exit": programs["early_exit"]}
    counts = {}
    for threads in (1, 5):
        with contenders.started(alone, list(INPUTS), threads, folder) as (processes, _):
            process = processes["early_exit"]
            process.ask("answer", contender="early_exit", rows=8)
            tasks = pathlib.Path(f"/proc/{process._process.pid}/task")
            counts[threads] = len(list(tasks.iterdir()))
    assert counts[5] >= counts[1] + 4


def test_bfloat16_takes_part_or_is_explained(tmp_path, monkeypatch):
    def write(folder):
        folder.mkdir()
        return contenders.write(
            small.model(), INPUTS, ExitPolicy(thresholds=[1.0]), folder, [], bfloat16=True
        )[:2]

    def refuse(model):
        raise BranchyError("not this layer")

    programs, left_out = write(tmp_path / "one")
    assert left_out == {}
    alone = {contenders.BFLOAT16: programs[contenders.BFLOAT16]}
    with contenders.started(alone, list(INPUTS), 1, tmp_path / "one") as (processes, _):
        process = processes[contenders.BFLOAT16]
        found = process.ask("answer", contender=contenders.BFLOAT16, rows=30)
    routed = EarlyExitPredictor(small.model(), [1.0]).predict(INPUTS)
    assert np.mean(found["labels"] == routed.labels) > 0.8
    content = (tmp_path / "one" / contenders.BFLOAT16 / "saved_model.pb").read_bytes()
    written = saved_model_pb2.SavedModel.FromString(content)
    functions = written.meta_graphs[0].graph_def.library.function
    constants = [node for f in functions for node in f.node_def if node.op == "Const"]
    assert DT_BFLOAT16 in {node.attr["dtype"].type for node in constants}
    monkeypatch.setattr(contenders, "in_bfloat16", refuse)
    programs, left_out = write(tmp_path / "two")
    assert left_out == {contenders.BFLOAT16: "not this layer"}
    assert contenders.BFLOAT16 not in programs
