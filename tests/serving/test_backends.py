from __future__ import annotations

import dataclasses

import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.serving import backends
from branchy_tf.serving.options import ServerOptions

TF_SERVING, DOCKER = backends.TF_SERVING, backends.DOCKER
MODELS = """
model_config_list {
  config { name: "a" base_path: "/srv/a" model_platform: "tensorflow" }
  config { name: "b" base_path: "/srv/b" model_platform: "tensorflow" }
}
"""


@pytest.fixture
def options(tmp_path):
    """Everything that can be said, at once."""
    config = tmp_path / "models.config"
    config.write_text(MODELS)
    return ServerOptions(
        port=8600,
        rest_api_port=8601,
        model_config_file=config,
        model_config_file_poll_wait_seconds=5.0,
        file_system_poll_wait_seconds=2.0,
        allow_version_labels_for_unavailable_models=True,
        monitoring_config_file=tmp_path / "monitoring.config",
        enable_batching=True,
        batching_parameters_file=tmp_path / "batching.config",
        ssl_config_file=tmp_path / "ssl.config",
        tensorflow_intra_op_parallelism=1,
        tensorflow_inter_op_parallelism=-1,
        grpc_max_threads=32,
    )


SAME = {
    "--model_config_file_poll_wait_seconds=5",
    "--file_system_poll_wait_seconds=2",
    "--allow_version_labels_for_unavailable_models=true",
    "--enable_batching=true",
    "--tensorflow_intra_op_parallelism=1",
    "--tensorflow_inter_op_parallelism=-1",
    "--grpc_max_threads=32",
}
FILES = ("model_config", "monitoring_config", "batching_parameters", "ssl_config")


def test_tf_serving_gets_every_option(options):
    name, *flags = backends.command(TF_SERVING, options)
    assert name == TF_SERVING
    assert set(flags) == SAME | {"--port=8600", "--rest_api_port=8601"} | {
        f"--{flag}_file={getattr(options, f'{flag}_file')}" for flag in FILES
    }
    assert len(flags) == len(set(flags))


def test_the_container_gets_every_option(options):
    command = backends.command(DOCKER, options, "image:1")
    before, after = command[: command.index("image:1")], command[-11:]
    assert set(after) == SAME | {f"--{x}_file=/config/{x}.config" for x in FILES}
    assert {
        "--publish=127.0.0.1:8600:8500",
        "--publish=127.0.0.1:8601:8501",
        # The folders that the config names mean the same inside.
        "--volume=/srv/a:/srv/a:ro",
        "--volume=/srv/b:/srv/b:ro",
    } | {
        f"--volume={getattr(options, f'{x}_file')}:/config/{x}.config:ro" for x in FILES
    } <= set(before)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_container_listens_on_ipv6(options, host):
    command = backends.command(DOCKER, dataclasses.replace(options, host=host), "image:1")
    assert {"--publish=[::1]:8600:8500", "--publish=[::1]:8601:8501"} < set(command)


def test_no_option_is_forgotten(options):
    """Each option changes both command lines, or is refused, or is docker's alone."""
    changed = {
        field.name for field in dataclasses.fields(options)
    } - {"model_base_path", "model_name", "host", "max_message_bytes"}  # fmt: skip
    for backend in (TF_SERVING, DOCKER):
        whole = backends.command(backend, options)
        for name in changed - {"model_config_file"}:
            default = ServerOptions.__dataclass_fields__[name].default
            less = dataclasses.replace(options, **{name: default})
            assert backends.command(backend, less) != whole, name


def test_defaults_are_left_to_the_server(tmp_path):
    assert backends.command(TF_SERVING, ServerOptions(tmp_path, "m"))[1:] == [
        "--port=8500",
        "--rest_api_port=0",
        "--model_name=m",
        f"--model_base_path={tmp_path}",
    ]


@pytest.mark.parametrize("backend", [TF_SERVING, DOCKER])
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"port": 0}, "only with --backend=embedded"),
        ({"max_message_bytes": 1000}, "no such limit"),
        ({"file_system_poll_wait_seconds": 0.5}, "takes whole seconds"),
    ],
)
def test_rejects_options_that_tf_serving_lacks(tmp_path, backend, option, expected):
    with pytest.raises(BranchyError, match=expected):
        backends.command(backend, ServerOptions(tmp_path, **option))


def test_tf_serving_gets_urls_unchanged():
    options = ServerOptions("s3://bucket/models/net", "other")
    options.check()
    assert "--model_base_path=s3://bucket/models/net" in backends.command(
        TF_SERVING, options
    )


def test_the_container_gets_urls_without_a_mount(tmp_path):
    command = backends.command(DOCKER, ServerOptions("gs://bucket/models/net"))
    assert "--env=MODEL_NAME=net" in command
    assert "--env=MODEL_BASE_PATH=gs://bucket/models" in command
    assert not [part for part in command if part.startswith("--volume")]
    with pytest.raises(BranchyError, match="Pass --model_name=net"):
        backends.command(DOCKER, ServerOptions("gs://bucket/models/net", "other"))
    config = tmp_path / "models.config"
    config.write_text(MODELS.replace("/srv/a", "s3://bucket/a"))
    volumes = [
        part
        for part in backends.command(DOCKER, ServerOptions(model_config_file=config))
        if part.startswith("--volume")
    ]
    assert len(volumes) == 2  # the file, and the folder of b
