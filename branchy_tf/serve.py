"""Serves an exported model over gRPC.

Example:

  python -m branchy_tf.serve --model_base_path=exports/branchy_lenet \
    --model_name=branchy_lenet --port=8500

--backend=auto takes tensorflow_model_server if it is on PATH, else docker if an
engine answers, else the embedded server, which is for development and tests.
"""

import os
import signal
import threading

from absl import flags, logging

from branchy_tf import command_line
from branchy_tf.errors import BranchyError
from branchy_tf.serving import backends

FLAGS = flags.FLAGS

flags.DEFINE_string("model_base_path", None, "Folder with the model's versions.")
flags.DEFINE_string(
    "model_name", None, "What clients ask for. Default: the folder's name."
)
flags.DEFINE_integer("port", 8500, "Of gRPC.", lower_bound=0, upper_bound=65535)
flags.DEFINE_enum("backend", "auto", backends.BACKENDS, "What serves.")
flags.DEFINE_string(
    "host", "127.0.0.1", "Address that the embedded server and the container listen on."
)
flags.DEFINE_string(
    "docker_image",
    None,
    "Default: tensorflow/serving of the release whose messages are installed here.",
)


def _serve_embedded(name: str) -> None:
    # TensorFlow comes with it, so only now.
    from branchy_tf.serving.embedded import EmbeddedServer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with EmbeddedServer(FLAGS.model_base_path, name, FLAGS.port, FLAGS.host) as server:
        logging.info(
            "Serving %s on %s:%d (embedded server: for development and tests, not for "
            "production). Stop with Ctrl-C.",
            name,
            FLAGS.host,
            server.port,
        )
        stop.wait()
        logging.info("Stopping ...")
    logging.info("Stopped.")


def main() -> None:
    if not FLAGS.model_base_path:
        raise BranchyError(
            "--model_base_path is missing: the folder that holds a model's versions."
        )
    backends.check(FLAGS.model_base_path, FLAGS.port)
    folder = os.path.basename(os.path.abspath(FLAGS.model_base_path))
    name = FLAGS.model_name or folder
    backend = backends.choose(FLAGS.backend)
    if not FLAGS.port and backend != backends.EMBEDDED:
        raise BranchyError(
            f"--port=0, any free port, works with --backend=embedded alone; this is "
            f"{backend}. Pass the port to listen on."
        )
    if backend == backends.EMBEDDED:
        _serve_embedded(name)
        return
    command = backends.command(
        backend,
        FLAGS.model_base_path,
        name,
        f"{FLAGS.host}:{FLAGS.port}",
        FLAGS.docker_image,
    )
    logging.info("%s", " ".join(command))
    if backend == backends.TF_SERVING:
        logging.warning("It listens on every interface, and asks nobody who they are.")
    # It takes this process's place, and so its signals; it may say what it has to.
    loud = {k: v for k, v in os.environ.items() if k not in command_line.QUIET}
    os.execvpe(command[0], command, loud)


if __name__ == "__main__":
    command_line.run(main)
