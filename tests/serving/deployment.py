"""Reads the folder serving/, which operators copy."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

SERVING = pathlib.Path(__file__).resolve().parents[2] / "serving"
# Where containers find its files.
CONFIG_FOLDER = "/etc/serving"

# The flags in tensorflow_serving/model_servers/main.cc, without TPU, TF Lite and tests.
_FLAGS = """
allow_version_labels_for_unavailable_models batching_parameters_file enable_batching
enable_grpc_healthcheck_service enable_model_warmup
enable_per_model_batching_parameters enable_profiler
enable_serialization_as_tensor_content enable_signature_method_name_check
file_system_poll_wait_seconds flush_filesystem_caches grpc_channel_arguments
grpc_max_threads grpc_socket_path load_retry_interval_micros max_num_load_retries
model_base_path model_config_file model_config_file_poll_wait_seconds model_name
monitoring_config_file num_load_threads num_request_iterations_for_warmup
num_unload_threads per_process_gpu_memory_fraction platform_config_file port
remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support
rest_api_num_threads rest_api_port rest_api_timeout_in_ms saved_model_tags
ssl_config_file tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism
tensorflow_session_config_file tensorflow_session_parallelism
thread_pool_factory_config_file use_alts_credentials version
"""
KNOWN_FLAGS = frozenset(_FLAGS.split())


def load(name: str) -> list[Any]:
    """The documents in a YAML file of serving/."""
    return list(yaml.safe_load_all((SERVING / name).read_text(encoding="utf-8")))


def files() -> list[str]:
    """Every file, relative to serving/."""
    return sorted(
        str(path.relative_to(SERVING)) for path in SERVING.rglob("*") if path.is_file()
    )


def model() -> Any:
    """The one model in models.config."""
    text = (SERVING / "models.config").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (found,) = config.model_config_list.config
    return found


def kubernetes() -> dict[tuple[str, str], Any]:
    """`{(kind, name): object}` of the manifests in kubernetes/."""
    objects = [
        found
        for path in (SERVING / "kubernetes").glob("*.yaml")
        for found in load(str(path.relative_to(SERVING)))
    ]
    named = {(found["kind"], found["metadata"]["name"]): found for found in objects}
    assert len(named) == len(objects), "two objects of one kind and name"
    return named


def compose() -> Any:
    return load("docker-compose.yml")[0]


def deployment() -> Any:
    return kubernetes()["Deployment", "branchy-serving"]


def container() -> Any:
    """The Deployment's one container."""
    (found,) = deployment()["spec"]["template"]["spec"]["containers"]
    return found


def inference_service() -> Any:
    return load("kserve/inference_service.yaml")[0]


def dockerfile() -> dict[str, list[str]]:
    """`{instruction: its arguments, in order}`; a comment is no instruction."""
    text = (SERVING / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.setdefault(instruction, []).append(" ".join(rest.split()))
    return found


def build_arguments() -> dict[str, str]:
    """`{ARG: its default}` of the Dockerfile."""
    return dict(found.split("=", 1) for found in dockerfile()["ARG"])


def resolve(text: str, values: dict[str, str]) -> str:
    """Replaces `${NAME}` in a Dockerfile by its value."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def command_lines() -> dict[str, list[str]]:
    """`{deployment: its flags of tensorflow_model_server}`."""
    (baked,) = dockerfile()["CMD"]
    return {
        "docker-compose.yml": compose()["services"]["serving"]["command"],
        "kubernetes/deployment.yaml": container()["args"],
        "kserve/inference_service.yaml": (
            inference_service()["spec"]["predictor"]["model"]["args"]
        ),
        "Dockerfile": json.loads(baked),
    }


def flags(where: str) -> dict[str, str]:
    """`{flag: value}` of a command line; each flag once."""
    pairs = [flag.removeprefix("--").split("=", 1) for flag in command_lines()[where]]
    assert len({name for name, _ in pairs}) == len(pairs), where
    return dict(pairs)
