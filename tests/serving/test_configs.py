from __future__ import annotations

import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from branchy_tf.errors import BranchyError
from branchy_tf.serving import configs

MODELS = """
model_config_list {
  config {
    name: "lenet" base_path: "/models/lenet" model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 4 } }
    version_labels { key: "stable" value: 3 }
    version_labels { key: "canary" value: 4 }
    logging_config { sampling_config { sampling_rate: 0.5 } }
  }
  config {
    name: "resnet" base_path: "/models/resnet" model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 2 } }
  }
  config {
    name: "vgg" base_path: "/models/vgg" model_platform: "tensorflow"
    model_version_policy { all { } }
  }
}
"""


def read(tmp_path, text, kind):
    path = tmp_path / "a.config"
    path.write_text(text)
    return configs.read(path, kind)


def test_models_are_read_as_tf_servings_own_class_reads_them(tmp_path):
    ours = read(tmp_path, MODELS, "ModelServerConfig")
    theirs = text_format.Parse(MODELS, model_server_config_pb2.ModelServerConfig())
    again = type(theirs).FromString(ours.SerializeToString())
    assert again == theirs
    # Inside a request to reload they travel under another message.
    request = model_management_pb2.ReloadConfigRequest(config=theirs)
    assert type(ours).FromString(request.config.SerializeToString()) == ours


def test_reads_the_other_configs(tmp_path):
    batching = read(
        tmp_path,
        """
        max_batch_size { value: 64 } batch_timeout_micros { value: 500 }
        max_enqueued_batches { value: 7 } num_batch_threads { value: 2 }
        thread_pool_name { value: "pool" } allowed_batch_sizes: 8
        allowed_batch_sizes: 64 pad_variable_length_inputs: true
        """,
        "BatchingParameters",
    )
    assert batching.max_batch_size.value == 64
    assert list(batching.allowed_batch_sizes) == [8, 64]
    assert configs.whole(batching, "batch_timeout_micros", 0) == 500
    # By number, as it would lie in a binary config.
    expected = (
        b"\x0a\x02\x08\x40\x12\x03\x08\xf4\x03\x1a\x02\x08\x07\x22\x02\x08\x02"
        b"\x2a\x06\x0a\x04pool\x32\x02\x08\x40\x38\x01"
    )
    assert batching.SerializeToString() == expected

    monitoring = read(
        tmp_path, 'prometheus_config { enable: true path: "/m" }', "MonitoringConfig"
    )
    assert monitoring.SerializeToString() == b"\x0a\x06\x08\x01\x12\x02/m"

    ssl = read(
        tmp_path,
        'server_key: "-----BEGIN K" server_cert: "-----BEGIN C" custom_ca: "A" '
        "client_verify: true",
        "SSLConfig",
    )
    expected = b"\x0a\x0c-----BEGIN K\x12\x0c-----BEGIN C\x1a\x01A\x20\x01"
    assert ssl.SerializeToString() == expected


def test_unset_numbers_have_defaults(tmp_path):
    batching = read(tmp_path, "", "BatchingParameters")
    assert configs.whole(batching, "max_batch_size", 1000) == 1000


def config(text):
    return f'model_config_list {{ config {{ base_path: "/m" {text} }} }}'


TENSORFLOW = 'model_platform: "tensorflow"'


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("BatchingParameters", "max_batch_size: 64", "cannot be read as a BatchingParam"),
        ("BatchingParameters", "max_batchsize { value: 1 }", "max_batchsize"),
        ("BatchingParameters", "max_batch_size { value: 0 }", "at least 1. Received 0"),
        ("BatchingParameters", "batch_timeout_micros { value: -1 }", "at least 0"),
        ("BatchingParameters", "allowed_batch_sizes: 8", "max_batch_size, 1000"),
        (
            "BatchingParameters",
            "max_batch_size { value: 8 } allowed_batch_sizes: 9 allowed_batch_sizes: 8",
            r"must rise .*\[9, 8\]",
        ),
        ("SSLConfig", 'server_key: "/etc/key.pem"', "server_key must hold the PEM text"),
        (
            "SSLConfig",
            'server_key: "-----BEGIN A" server_cert: "-----BEGIN B" client_verify: true',
            "no custom_ca",
        ),
        ("MonitoringConfig", 'prometheus_config { path: "metrics" }', "with a slash"),
        ("ModelServerConfig", config(TENSORFLOW), "has no name"),
        ("ModelServerConfig", config('name: "a"'), "model_platform ''"),
        (
            "ModelServerConfig",
            config(f'name: "a" {TENSORFLOW} model_version_policy {{ specific {{ }} }}'),
            "names no version",
        ),
        (
            "ModelServerConfig",
            config(
                f'name: "a" {TENSORFLOW} '
                "model_version_policy { all { } latest { num_versions: 1 } }"
            ),
            "latest and all",
        ),
        (
            "ModelServerConfig",
            config(f'name: "a" {TENSORFLOW}').replace("/m", "m"),
            "absolute path; got base_path 'm'",
        ),
        ("ModelServerConfig", MODELS.replace("resnet", "lenet"), "multiple times"),
        ("ModelServerConfig", "custom_model_config { }", "custom_model_config is not"),
    ],
)
def test_refuses_in_one_line_that_names_the_file(tmp_path, kind, text, expected):
    with pytest.raises(BranchyError, match=expected) as caught:
        read(tmp_path, text, kind)
    assert str(tmp_path / "a.config") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rejects_missing_and_binary_files(tmp_path):
    with pytest.raises(BranchyError, match=r"no file .*expected a SSLConfig"):
        configs.read(tmp_path / "missing", "SSLConfig")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BranchyError, match="cannot be read"):
        configs.read(tmp_path / "binary", "SSLConfig")
