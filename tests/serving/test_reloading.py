from __future__ import annotations

import shutil
import threading

import grpc
import numpy as np
import pytest
import servers
import small
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from branchy_tf import saved_model
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import warmup
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.serving.options import ServerOptions

IMAGE = tf.make_tensor_proto(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def small_version(tmp_path_factory):
    """A version that loads quickly."""
    version = saved_model.export(small.model(), tmp_path_factory.mktemp("s"), "s", [0.5])
    (version / "assets.extra" / warmup.FILE_NAME).unlink()
    return version.parent


@pytest.fixture
def folders(small_version, tmp_path):
    """`one` and `two`, with versions 1 to 3 each, and `empty`."""
    for name in ("one", "two"):
        for number in (1, 2, 3):
            servers.add_version(small_version, tmp_path / name, number)
    (tmp_path / "empty").mkdir()
    return tmp_path


def config(folders, **models):
    """`name="policy and labels"`, as text."""
    listed = " ".join(
        f'config {{ name: "{name}" base_path: "{folders}/{name}" '
        f'model_platform: "tensorflow" {rest} }}'
        for name, rest in models.items()
    )
    return f"model_config_list {{ {listed} }}"


def specific(*numbers):
    versions = " ".join(f"versions: {number}" for number in numbers)
    return f"model_version_policy {{ specific {{ {versions} }} }}"


def label(name, number):
    return f'version_labels {{ key: "{name}" value: {number} }}'


class Running:
    """A server of a models.config, and what is asked of it."""

    def __init__(self, folders, text, **options):
        self.path = folders / "models.config"
        self.path.write_text(text)
        self._server = EmbeddedServer.of(
            ServerOptions(model_config_file=self.path, port=0, **options)
        )

    def __enter__(self):
        self._server.start()
        self._channel = grpc.insecure_channel(f"localhost:{self._server.port}")
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        return self

    def __exit__(self, *exception):
        self._channel.close()
        self._server.stop()

    def version(self, name, **spec):
        """Which version answers; the name of the status where none does."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        if "label" in spec:
            request.model_spec.version_label = spec["label"]
        if "number" in spec:
            request.model_spec.version.value = spec["number"]
        request.inputs["images"].CopyFrom(IMAGE)
        try:
            return self._predict.Predict(request, timeout=30).model_spec.version.value
        except grpc.RpcError as error:
            return error.code().name

    def reload(self, text):
        """The status and what is said of it, or OK."""
        wanted = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        request = model_management_pb2.ReloadConfigRequest(config=wanted)
        try:
            self._models.HandleReloadConfigRequest(request, timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    def available(self, name):
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        states = self._models.GetModelStatus(request, timeout=30).model_version_status
        return {state.version for state in states if state.state == 30}


def test_policies_choose_versions(folders):
    policies = {
        "": {3},
        "model_version_policy { latest { } }": {3},
        "model_version_policy { latest { num_versions: 2 } }": {2, 3},
        "model_version_policy { all { } }": {1, 2, 3},
        specific(1, 3): {1, 3},
        specific(1, 9): {1},
    }
    with Running(folders, config(folders, one="")) as server:
        for policy, expected in policies.items():
            assert server.reload(config(folders, one=policy)) == "OK"
            assert server.available("one") == expected
            assert server.version("one") == max(expected)
            assert server.version("one", number=min(expected)) == min(expected)


def test_models_come_and_go(folders):
    with Running(folders, config(folders, one=specific(1))) as server:
        assert (server.version("one"), server.version("two")) == (1, "NOT_FOUND")
        assert server.reload(config(folders, two=specific(2), one=specific(3))) == "OK"
        assert (server.version("one"), server.version("two")) == (3, 2)
        assert server.reload(config(folders, two=specific(2))) == "OK"
        assert (server.version("one"), server.version("two")) == ("NOT_FOUND", 2)
        # No config is no change, as in TF Serving.
        assert server.reload("") == "OK"
        assert server.version("two") == 2


def test_a_model_may_move_to_another_folder(folders):
    with Running(folders, config(folders, one=specific(1))) as server:
        moved = config(folders, one=specific(2)).replace("/one", "/two")
        assert server.reload(moved) == "OK"
        shutil.rmtree(folders / "one")
        assert server.version("one") == 2


def test_labels_name_available_versions(folders):
    both = specific(1, 2)
    with Running(folders, config(folders, one=both)) as server:
        assert server.version("one", label="stable") == "INVALID_ARGUMENT"
        assert server.reload(config(folders, one=both + label("stable", 1))) == "OK"
        assert server.version("one", label="stable") == 1
        assert server.version("one") == 2
        assert server.reload(config(folders, one=both + label("stable", 2))) == "OK"
        assert server.version("one", label="stable") == 2
        assert server.version("one", label="canary") == "INVALID_ARGUMENT"
        # It is not loaded, though this config would load it.
        three = config(folders, one=specific(2, 3) + label("stable", 3))
        refused = server.reload(three)
        assert refused.startswith("FAILED_PRECONDITION: Request to assign label stable ")
        assert server.version("one", label="stable") == 2
        assert server.available("one") == {1, 2}


def test_new_labels_may_go_ahead_of_their_version_where_allowed(folders):
    start = config(folders, one=specific(1) + label("stable", 1) + label("next", 9))
    with Running(
        folders, start, allow_version_labels_for_unavailable_models=True
    ) as server:
        assert server.version("one", label="stable") == 1
        assert server.version("one", label="next") == "NOT_FOUND"
        # One that is in use may not.
        refused = server.reload(config(folders, one=specific(1) + label("stable", 2)))
        assert refused.startswith("FAILED_PRECONDITION")
        assert server.version("one", label="stable") == 1


def test_an_invalid_config_changes_nothing(folders):
    start = config(folders, one=specific(1, 2) + label("stable", 1))
    wrong = {
        config(folders, one="").replace("tensorflow", "torch"): "INVALID_ARGUMENT",
        config(folders, one="").replace(f'"{folders}/', '"'): "INVALID_ARGUMENT",
        config(folders, one="", two="").replace("two", "one"): "INVALID_ARGUMENT",
        config(folders, one=specific()): "INVALID_ARGUMENT",
        config(folders, two="", empty=""): "FAILED_PRECONDITION: Some models did not",
        config(folders, two="", gone=""): "FAILED_PRECONDITION: Some models did not",
        "custom_model_config { }": "FAILED_PRECONDITION: Cannot transition",
    }
    with Running(
        folders, start, allow_version_labels_for_unavailable_models=True
    ) as server:
        for text, expected in wrong.items():
            assert server.reload(text).startswith(expected)
            assert server.available("one") == {1, 2}
            assert server.version("one", label="stable") == 1
            assert server.version("two") == "NOT_FOUND"


def test_no_request_fails_while_versions_and_labels_change(folders):
    problems, seen, stop = [], set(), threading.Event()

    def ask(server):
        while not stop.is_set():
            answers = {server.version("one"), server.version("one", label="live")}
            problems.extend(x for x in answers if isinstance(x, str))
            seen.update(answers)

    start = config(folders, one=specific(1) + label("live", 1))
    with Running(
        folders, start, allow_version_labels_for_unavailable_models=True
    ) as server:
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for old, new in ((1, 2), (2, 3), (3, 1)):
                both = specific(old, new) + label("live", old)
                moved = specific(new) + label("live", new)
                for text in (both, moved):
                    assert server.reload(config(folders, one=text, two="")) == "OK"
                servers.until(lambda n=new: server.available("one") == {n} and n in seen)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not problems
    assert seen == {1, 2, 3}


def test_the_config_file_is_read_again(folders):
    with Running(
        folders,
        config(folders, one=specific(1)),
        model_config_file_poll_wait_seconds=0.05,
    ) as server:
        assert server.version("one") == 1
        server.path.write_text("model_config_list { half")
        beside = folders / "beside"
        beside.write_text(config(folders, one=specific(2)))
        beside.rename(server.path)
        servers.until(lambda: server.version("one") == 2)


def test_labels_at_the_start_need_permission(folders):
    with pytest.raises(BranchyError, match="--allow_version_labels_for_unavailable"):
        Running(folders, config(folders, one=specific(1) + label("stable", 1)))
