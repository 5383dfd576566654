"""The predictor and the embedded server run version folders of either format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent import futures

import grpc
import numpy as np
import pytest
import small
import tensorflow as tf

from branchy_tf import EarlyExitPredictor, ExitPolicy, litert, saved_model
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.serving.embedded.litert import LiteRTModel
from branchy_tf.serving.embedded.statuses import Refusal

POLICY = ExitPolicy(thresholds=[0.6], temperatures=[1.0, 2.0])
IMAGES = small.dataset().train.images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model in both formats."""
    folder = tmp_path_factory.mktemp("versions")
    model = small.model()
    return {
        "litert": litert.export(model, folder, "litert", POLICY, max_rows=64),
        "saved_model": saved_model.export(model, folder, "tf", POLICY, max_rows=64),
    }


@pytest.fixture(scope="module")
def expected():
    return EarlyExitPredictor(small.model(), POLICY)


@pytest.fixture(params=["litert", "saved_model"])
def version(folders, request):
    return folders[request.param]


def test_either_format_answers_as_the_keras_model(version, expected):
    predictor = EarlyExitPredictor(str(version))
    # The file holds the thresholds as the graph does, in float32.
    assert predictor.policy.limits.tolist() == POLICY.limits.tolist()
    assert predictor.policy.temperatures == POLICY.temperatures
    limits = float(np.median(expected.all_exits(IMAGES)[1][:, 0]))
    for size in (1, 7, 256):
        wanted = expected.predict(IMAGES, thresholds=[limits])
        found = predictor.predict(IMAGES, thresholds=[limits], batch_size=size)
        assert found.exits.tolist() == wanted.exits.tolist()
        assert set(found.exits) == {0, 1}
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    each = np.where(np.arange(30) % 2, 0, np.inf)[:, None]
    rows = predictor.predict(IMAGES, thresholds=each, batch_size=7)
    assert rows.exits.tolist() == (np.arange(30) % 2).tolist()
    for one, other in zip(
        predictor.all_exits(IMAGES), expected.all_exits(IMAGES), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len(predictor.predict(IMAGES[:0])) == 0


def test_requests_above_the_servers_limit_are_split(version):
    many = np.repeat(IMAGES, 5, axis=0)
    assert len(EarlyExitPredictor(version).predict(many)) == 150


@pytest.mark.parametrize(
    "images",
    [IMAGES.astype("float32"), IMAGES[0], IMAGES[..., 0], IMAGES[:, :4], {"x": IMAGES}],
)
def test_wrong_inputs_are_refused(version, images):
    with pytest.raises(BranchyError, match=r"images"):
        EarlyExitPredictor(version).predict(images)


def test_only_the_thresholds_of_a_version_can_be_changed(version):
    assert EarlyExitPredictor(version, [0.2]).policy == POLICY.replace(thresholds=[0.2])
    same = POLICY.replace(thresholds=[np.inf])
    assert set(EarlyExitPredictor(version, same).predict(IMAGES).exits) == {0}
    for arguments in (
        {"criterion": "margin"},
        {"temperatures": [2.0, 2.0]},
        {"policy": ExitPolicy(thresholds=[0.1])},
    ):
        with pytest.raises(BranchyError, match="are part of its graph"):
            EarlyExitPredictor(version, **arguments)
    with pytest.raises(BranchyError, match="expected 1, for exit_1"):
        EarlyExitPredictor(version, [0.1, 0.2])
    with pytest.raises(BranchyError, match="either a policy or plain"):
        EarlyExitPredictor(version, POLICY, thresholds=[0.1])


def test_threads(version, folders):
    assert len(EarlyExitPredictor(version, threads=2).predict(IMAGES)) == 30
    with pytest.raises(BranchyError, match="`threads`"):
        EarlyExitPredictor(version, threads=0)
    with pytest.raises(BranchyError, match="folder of a version"):
        EarlyExitPredictor(small.model(), POLICY, threads=1)


def test_many_threads_may_predict_at_once(version):
    predictor = EarlyExitPredictor(version)
    wanted = predictor.predict(IMAGES)

    def ask(i: int) -> bool:
        # Rows alone, and batches of changing sizes.
        size = i % 4 or 30
        found = predictor.predict(IMAGES[i % 20 :], batch_size=size)
        return (
            found.exits.tolist() == wanted.exits[i % 20 :].tolist()
            and np.abs(found.scores - wanted.scores[i % 20 :]).max() < 1e-5
        )

    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(120)))


def test_logits_are_litert_s_alone(folders, expected):
    logits = EarlyExitPredictor(folders["litert"]).logits(IMAGES)
    np.testing.assert_allclose(logits, expected.logits(IMAGES), atol=1e-4)
    with pytest.raises(BranchyError, match="no signature for logits"):
        EarlyExitPredictor(folders["saved_model"]).logits(IMAGES)


def test_litert_starts_without_tensorflow_and_keras(folders):
    script = (
        "import sys, time, numpy as np; began = time.perf_counter();"
        "import branchy_tf.litert; from branchy_tf import EarlyExitPredictor;"
        f"predictor = EarlyExitPredictor({str(folders['litert'])!r});"
        "took = time.perf_counter() - began;"
        "exits = predictor.predict(np.zeros((3, 8, 8, 1), 'uint8')).exits.tolist();"
        "heavy = [m for m in ('tensorflow', 'keras', 'scipy') if m in sys.modules];"
        "print(heavy, len(exits), took)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "", "LiteRT is silent"
    heavy, rows, took = done.stdout.split()
    assert (heavy, rows) == ("[]", "3")
    # About 0.1 s where nothing else runs; importing TensorFlow takes several.
    assert float(took) < 3


def flip(path):
    content = bytearray((path / "early_exit.tflite").read_bytes())
    content[len(content) // 2] ^= 255
    (path / "early_exit.tflite").write_bytes(content)


def cut(path):
    content = (path / "stage_2.tflite").read_bytes()
    (path / "stage_2.tflite").write_bytes(content[: len(content) // 2])


DAMAGES = {
    "a flipped byte": (flip, r"early_exit.tflite is damaged"),
    "a file cut short": (cut, r"stage_2.tflite is damaged"),
    "a missing stage": (
        lambda path: (path / "stage_1.tflite").unlink(),
        r"There is no file .*stage_1.tflite",
    ),
    "no description": (
        lambda path: (path / "branchy.json").unlink(),
        "lacks branchy.jso",
    ),
    "a broken description": (
        lambda path: (path / "branchy.json").write_text("{"),
        "cannot be read as JSON",
    ),
    "a description of something else": (
        lambda path: (path / "branchy.json").write_text(
            json.dumps({"criterion": "entropy", "thresholds": [0.5]})
        ),
        "description of a version",
    ),
    "no graph": (
        lambda path: (path / "early_exit.tflite").unlink(),
        "holds neither saved_model.pb nor early_exit.tflite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_versions_are_explained_in_one_line(damage, folders, tmp_path):
    spoil, message = DAMAGES[damage]
    copy = shutil.copytree(folders["litert"], tmp_path / "1")
    spoil(copy)
    with pytest.raises(BranchyError, match=message) as caught:
        EarlyExitPredictor(copy)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_version(folders, tmp_path):
    with pytest.raises(BranchyError, match="does not exist"):
        EarlyExitPredictor(tmp_path / "nothing")
    with pytest.raises(BranchyError, match=r"Pass one of its versions: .*litert/1"):
        EarlyExitPredictor(folders["litert"].parent)
    with pytest.raises(BranchyError, match="in the format saved_model"):
        litert.LiteRTEngine(folders["saved_model"])
    copy = shutil.copytree(folders["saved_model"], tmp_path / "1")
    (copy / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(BranchyError, match="cannot be read as a SavedModel"):
        EarlyExitPredictor(copy)


def test_without_litert_a_version_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(BranchyError, match="pip install ai-edge-litert"):
        EarlyExitPredictor(folders["litert"])


def test_the_embedded_server_serves_litert(folders, expected):
    with (
        EmbeddedServer(folders["litert"].parent, "net", port=0) as server,
        EarlyExitClient(f"localhost:{server.port}", "net", timeout=60) as client,
    ):
        found, wanted = client.predict(IMAGES), expected.predict(IMAGES)
        assert found.model_version == 1
        assert found.exits.tolist() == wanted.exits.tolist()
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)
        assert set(client.predict(IMAGES, thresholds=[np.inf]).exits) == {0}
        every = client.all_exits(IMAGES)
        np.testing.assert_allclose(every.scores, expected.all_exits(IMAGES)[1], atol=1e-5)


def test_both_formats_declare_the_same_signatures(folders):
    ours, theirs = LiteRTModel(folders["litert"]), SessionModel(folders["saved_model"])
    assert set(ours.signatures) == set(theirs.signatures)
    for name, signature in theirs.signatures.items():
        for side in ("inputs", "outputs"):
            declared = [
                {
                    key: (info.dtype, tf.TensorShape(info.tensor_shape).as_list())
                    for key, info in getattr(model.signatures[name], side).items()
                }
                for model in (ours, theirs)
            ]
            assert declared[0] == declared[1], (name, side)
        assert set(ours.signatures[name].defaults) == set(signature.defaults)
    theirs.close()


BAD = {
    "a wrong height": {"images": IMAGES[:, :4]},
    "a missing axis": {"images": IMAGES[0]},
    "too many rows": {"images": np.repeat(IMAGES, 3, axis=0)},
    "thresholds for other rows": {"images": IMAGES, "thresholds": np.ones((2, 1), "f4")},
    "too many thresholds": {"images": IMAGES, "thresholds": np.ones((1, 2), "f4")},
}


@pytest.mark.parametrize("request_", BAD)
def test_bad_requests_have_the_status_that_tensorflow_gives_them(request_, folders):
    inputs = BAD[request_]
    with pytest.raises(Refusal) as caught:
        LiteRTModel(folders["litert"]).run("early_exit", inputs)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    session = SessionModel(folders["saved_model"])
    with pytest.raises(tf.errors.InvalidArgumentError):
        session.run("early_exit", inputs)
    session.close()


def test_a_damaged_litert_version_is_not_served(folders, tmp_path):
    copy = shutil.copytree(folders["litert"].parent, tmp_path / "net")
    shutil.copytree(copy / "1", copy / "2")
    flip(copy / "2")
    with (
        EmbeddedServer(copy, "net", port=0) as server,
        EarlyExitClient(f"localhost:{server.port}", "net", timeout=60) as client,
    ):
        assert client.predict(IMAGES).model_version == 1
        with pytest.raises(ServerError, match="NOT_FOUND"):
            EarlyExitClient(
                f"localhost:{server.port}", "net", version=2, timeout=5
            ).predict(IMAGES)
