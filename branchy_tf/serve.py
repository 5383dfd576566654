"""Serves an exported model over gRPC.

Example:

  python -m branchy_tf.serve --model_base_path=exports/branchy_lenet \
    --model_name=branchy_lenet --port=8500

--backend=auto takes tensorflow_model_server if it is on PATH, else docker if an
engine answers, else the embedded server, which is for development and tests. The
flags are tensorflow_model_server's, and mean the same to all three.
"""

import dataclasses
import os
import signal
import threading

from absl import flags, logging

from branchy_tf import command_line
from branchy_tf.command_line import startup
from branchy_tf.serving import addresses, backends
from branchy_tf.serving.options import ServerOptions

FLAGS = flags.FLAGS

command_line.define_path(
    "model_base_path",
    None,
    "Folder with the model's versions; for TF Serving also a URL that it reads itself, "
    "such as s3:// or gs://.",
    url=True,
)
flags.DEFINE_string(
    "model_name", None, "What clients ask for. Default: the folder's name."
)
command_line.define_path(
    "model_config_file",
    None,
    "Instead of both: a text ModelServerConfig, for several models, version policies "
    "and labels.",
)
flags.DEFINE_float(
    "model_config_file_poll_wait_seconds",
    0,
    "How often to read it again; 0: never.",
    lower_bound=0,
)
flags.DEFINE_float(
    "file_system_poll_wait_seconds",
    1,
    "How often to look for new versions; 0: at the start alone.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "allow_version_labels_for_unavailable_models",
    False,
    "Whether a new version label may name a version that is not loaded yet.",
)
flags.DEFINE_integer("port", 8500, "Of gRPC.", lower_bound=0, upper_bound=65535)
flags.DEFINE_integer(
    "rest_api_port",
    0,
    "Of metrics, and of REST, which the embedded server lacks; 0: none.",
    lower_bound=0,
    upper_bound=65535,
)
command_line.define_path(
    "monitoring_config_file", None, "A text MonitoringConfig: whether to export metrics."
)
flags.DEFINE_bool(
    "enable_batching", False, "Whether rows of several requests run as one batch."
)
command_line.define_path(
    "batching_parameters_file", None, "Text BatchingParameters, for --enable_batching."
)
command_line.define_path("ssl_config_file", None, "A text SSLConfig: gRPC goes over TLS.")
flags.DEFINE_integer(
    "tensorflow_intra_op_parallelism",
    0,
    "Threads inside one operation; 0: one for each core.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "tensorflow_inter_op_parallelism",
    0,
    "Operations at a time; -1: each request in its own thread; 0: one for each core, or "
    "with the embedded server -1.",
    lower_bound=-1,
)
flags.DEFINE_integer(
    "grpc_max_threads",
    0,
    "Requests at a time; 0: the server's own choice.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "max_message_bytes",
    0,
    "Size of the largest request, with --backend=embedded; 0: 2 GiB.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_enum("backend", "auto", backends.BACKENDS, "What serves.")
flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Address that the embedded server and the container listen on; IPv6 too, e.g. ::1.",
)
flags.DEFINE_string(
    "docker_image",
    None,
    "Default: tensorflow/serving of the release whose messages are installed here.",
)


def _serve_embedded(options: ServerOptions) -> None:
    # TensorFlow comes with it, so only now.
    with startup.hushed():
        from branchy_tf.serving.embedded import EmbeddedServer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    names = [model.name for model in options.models().model_config_list.config]
    with EmbeddedServer.of(options) as server:
        logging.info(
            "Serving %s on %s (embedded server: for development and tests, not for "
            "production). Stop with Ctrl-C.",
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
        logging.warning("It listens on every interface, and asks nobody who they are.")
    # It takes this process's place, and so its signals; it may say what it has to.
    loud = {k: v for k, v in os.environ.items() if k not in startup.QUIET}
    os.execvpe(command[0], command, loud)


if __name__ == "__main__":
    command_line.run(main)
