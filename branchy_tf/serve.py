r"""Serves an exported model over gRPC.

Example:

  python -m branchy_tf.serve --model_base_path=exports/branchy_lenet \
    --model_name=branchy_lenet --port=8500

--backend=auto uses tensorflow_model_server if it is on PATH, else docker if an engine
answers, else the embedded server, which is for development and tests. The flags are
tensorflow_model_server's and mean the same to all three.
"""

import dataclasses
import os
import signal
import threading
from typing import Any

from absl import flags, logging

from branchy_tf import command_line
from branchy_tf.command_line import startup
from branchy_tf.serving import addresses, backends
from branchy_tf.serving.options import WHOLE_NUMBERS, ServerOptions

FLAGS = flags.FLAGS

_HELP = {
    "model_base_path": "Folder with the model's versions; TF Serving also reads URLs, "
    "such as s3:// or gs://.",
    "model_name": "Name that clients use. Default: the folder's name.",
    "port": "Port of gRPC; 0 picks a free one, with --backend=embedded.",
    "host": "Address that the embedded server and the container listen on, IPv4 or IPv6.",
    "model_config_file": "A text ModelServerConfig for several models, version policies "
    "and labels; replaces --model_base_path and --model_name.",
    "model_config_file_poll_wait_seconds": "Seconds between reads of "
    "--model_config_file; 0 reads it once.",
    "file_system_poll_wait_seconds": "Seconds between looks for new versions; 0 looks "
    "only at the start.",
    "allow_version_labels_for_unavailable_models": "Allows new version labels for "
    "versions that are not loaded yet.",
    "rest_api_port": "Port of metrics, and of REST except with --backend=embedded; 0: "
    "none.",
    "monitoring_config_file": "A text MonitoringConfig, which turns on metrics.",
    "enable_batching": "Merges the rows of several requests into one batch.",
    "batching_parameters_file": "Text BatchingParameters for --enable_batching.",
    "ssl_config_file": "A text SSLConfig, which turns on TLS for gRPC.",
    "tensorflow_intra_op_parallelism": "Threads per operation; 0: one per core.",
    "tensorflow_inter_op_parallelism": "Parallel operations; -1 runs each request in its "
    "own thread; 0: one per core, or -1 with --backend=embedded.",
    "grpc_max_threads": "Concurrent requests; 0: the server's default.",
    "max_message_bytes": "Bytes of the largest request, with --backend=embedded; 0: 2 "
    "GiB.",
}


def _define(field: dataclasses.Field) -> None:
    """The flag of one option, with its default and bounds."""
    name, text = field.name, _HELP[field.name]
    default: Any = field.default
    if name in WHOLE_NUMBERS:
        flags.DEFINE_integer(name, default, text, *WHOLE_NUMBERS[name])
    elif isinstance(default, bool):
        flags.DEFINE_bool(name, default, text)
    elif name.endswith("_seconds"):
        flags.DEFINE_float(name, default, text, lower_bound=0)
    elif name.endswith(("_file", "_path")):
        command_line.define_path(name, default, text, url=name == "model_base_path")
    else:
        flags.DEFINE_string(name, default, text)


for option in dataclasses.fields(ServerOptions):
    _define(option)
flags.DEFINE_enum("backend", "auto", backends.BACKENDS, "Server to run.")
flags.DEFINE_string(
    "docker_image",
    None,
    "Image for --backend=docker. Default: tensorflow/serving, in the release of the "
    "installed tensorflow-serving-api.",
)


def _serve_embedded(options: ServerOptions) -> None:
    # Imports TensorFlow.
    with startup.hushed():
        from branchy_tf.serving.embedded import EmbeddedServer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    names = [model.name for model in options.models().model_config_list.config]
    with EmbeddedServer.of(options) as server:
        logging.info(
            "Serving %s on %s (embedded server: for development and tests, not for "
            "production). Press Ctrl-C to stop.",
            ", ".join(names) or "no model yet",
            addresses.join(options.host, server.port),
        )
        stop.wait()
        logging.info("Stopping ...")
    logging.info("Stopped.")


def main() -> None:
    options = ServerOptions(
        **{
            field.name: FLAGS[field.name].value
            for field in dataclasses.fields(ServerOptions)
        }
    )
    options.check()
    backend = backends.choose(FLAGS.backend)
    if backend == backends.EMBEDDED:
        _serve_embedded(options)
        return
    command = backends.command(backend, options, FLAGS.docker_image)
    logging.info("%s", " ".join(command))
    if backend == backends.TF_SERVING:
        logging.warning("TF Serving listens on every interface, without authentication.")
    # Replaces this process, so it receives its signals. It logs as usual.
    loud = {k: v for k, v in os.environ.items() if startup.QUIET.get(k) != v}
    os.execvpe(command[0], command, loud)


if __name__ == "__main__":
    command_line.run(main)
