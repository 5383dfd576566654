from __future__ import annotations

import socket

import numpy as np
import pytest
import servers

from branchy_tf.errors import BranchyError
from branchy_tf.serving.options import ServerOptions

LABELLED = """
model_config_list {{
  config {{
    name: "lenet" base_path: "{folder}" model_platform: "tensorflow"
    version_labels {{ key: "stable" value: 1 }}
  }}
}}
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "lenet"
    (folder / "1").mkdir(parents=True)
    return folder


def test_one_model_becomes_a_config(folder):
    options = ServerOptions(folder, port=0)
    options.check()
    (model,) = options.models().model_config_list.config
    assert (model.name, model.base_path) == ("lenet", str(folder))
    assert ServerOptions(folder, "digits").models().model_config_list.config[0].name == (
        "digits"
    )


def test_batching_tls_and_metrics_are_off_unless_asked_for(folder, tmp_path):
    off = ServerOptions(folder)
    assert (off.batching(), off.ssl(), off.metrics_path()) == (None, None, None)
    on = ServerOptions(folder, enable_batching=True)
    assert not on.batching().HasField("max_batch_size")
    monitoring = tmp_path / "monitoring.config"
    for text, path in {
        "prometheus_config { enable: true }": "/monitoring/prometheus/metrics",
        'prometheus_config { enable: true path: "/m" }': "/m",
        'prometheus_config { path: "/m" }': None,
    }.items():
        monitoring.write_text(text)
        assert ServerOptions(monitoring_config_file=monitoring).metrics_path() == path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model_base_path": None}, "--model_base_path is missing"),
        ({"model_config_file": "a.config"}, "without --model_base_path"),
        ({"batching_parameters_file": "a"}, "without --enable_batching"),
        ({"monitoring_config_file": "a"}, "without --rest_api_port"),
        ({"model_config_file_poll_wait_seconds": 1}, "without --model_config_file"),
        ({"port": 8765, "rest_api_port": 8765}, "are both 8765"),
        ({"ssl_config_file": "missing"}, "no file missing; expected a SSLConfig"),
        (
            {"enable_batching": True, "batching_parameters_file": "missing"},
            "no file missing; expected a Batching",
        ),
    ],
)
def test_refuses_before_anything_starts(folder, options, expected):
    with pytest.raises(BranchyError, match=expected):
        ServerOptions(**{"model_base_path": folder, "port": 0} | options).check()


def test_labels_need_the_flag_at_the_start(folder, tmp_path):
    config = tmp_path / "models.config"
    config.write_text(LABELLED.format(folder=folder))
    with pytest.raises(BranchyError, match="--allow_version_labels_for_unavailable"):
        ServerOptions(model_config_file=config, port=0).check()
    ServerOptions(
        model_config_file=config,
        port=0,
        allow_version_labels_for_unavailable_models=True,
    ).check()


def test_every_folder_must_exist(tmp_path):
    config = tmp_path / "models.config"
    config.write_text(LABELLED.format(folder=tmp_path / "gone"))
    with pytest.raises(BranchyError, match=r"no folder .*gone for model lenet"):
        ServerOptions(
            model_config_file=config,
            port=0,
            allow_version_labels_for_unavailable_models=True,
        ).check()


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_a_port_in_use_is_refused(folder, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"port": servers.free_port(), flag: port}
        with pytest.raises(BranchyError, match=f"port {port}: .*another --{flag}"):
            ServerOptions(folder, **ports).check()


def test_rejects_a_version_as_base_path(folder):
    (folder / "1" / "saved_model.pb").touch()
    with pytest.raises(BranchyError, match="is a version") as caught:
        ServerOptions(folder / "1", "lenet", port=0).check()
    assert str(caught.value).endswith(f"Pass its parent: {folder}.")


def test_rejects_a_file_as_base_path(tmp_path):
    (tmp_path / "net").touch()
    with pytest.raises(BranchyError, match="net is a file; expected the folder"):
        ServerOptions(tmp_path / "net", port=0).check()


def test_the_embedded_server_rejects_urls():
    from branchy_tf.serving.embedded import EmbeddedServer

    with pytest.raises(BranchyError, match="s3://bucket/net is a URL"):
        EmbeddedServer("s3://bucket/net", port=0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "::1", "[::1]", "::", "0.0.0.0"]
)
def test_hosts_are_addresses(folder, host):
    assert ServerOptions(folder, host=host).host == host.strip("[]")


@pytest.mark.parametrize(
    "host", ["", "127.0.0.1:8500", "[::1]:8500", "http://a", "a b", "::1%x:1", None, 1]
)
def test_rejects_invalid_hosts(folder, host):
    with pytest.raises(BranchyError, match="`host` ") as caught:
        ServerOptions(folder, host=host)
    assert "\n" not in str(caught.value)


def test_converts_numpy_numbers(folder):
    options = ServerOptions(
        folder,
        port=np.int64(8500),
        enable_batching=np.bool_(True),
        file_system_poll_wait_seconds=np.float32(2),
    )
    assert (options.port, options.enable_batching) == (8500, True)
    assert {type(options.port), type(options.enable_batching)} == {int, bool}
    assert type(options.file_system_poll_wait_seconds) is float


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("port", [-1, 65536, 8500.0, "8500", None, True, np.nan]),
        ("rest_api_port", [-1, "8501", None]),
        ("grpc_max_threads", [-1, 0.5, True]),
        ("tensorflow_inter_op_parallelism", [-2, "all"]),
        ("max_message_bytes", [-1, 2**31, np.inf]),
        ("file_system_poll_wait_seconds", [-1, np.nan, np.inf, "1", None, True]),
        ("enable_batching", ["yes", 1, None]),
        ("model_name", ["", 3, b"lenet"]),
        ("model_base_path", [3, b"/models", True]),
        ("ssl_config_file", [1, ["ssl.config"]]),
    ],
)
def test_rejects_values_of_a_wrong_type(folder, name, values):
    for value in values:
        given = {"model_base_path": folder, name: value}
        with pytest.raises(BranchyError, match=f"`{name}` must be") as caught:
            ServerOptions(**given)
        assert "\n" not in str(caught.value)
