r"""Opens a local page to try a model by hand.

Examples:

  python -m branchy_tf.play --run_dir=runs/lenet
  python -m branchy_tf.play --model=branchy_lenet --weights=mnist --dataset=mnist
  python -m branchy_tf.play --server=localhost:8500 --model_name=branchy_lenet \
    --version_dir=exports/branchy_lenet/1

Draw a digit, drop, paste or choose an image, and move the thresholds: the page shows
what each exit answers, where the image left, and what that cost. The page can be reached
from this machine only, unless --host says otherwise.
"""

import signal
import threading
from typing import Any

from absl import flags, logging

from branchy_tf import command_line, files, playing
from branchy_tf.errors import BranchyError
from branchy_tf.playing import Subject
from branchy_tf.serving import EarlyExitClient

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
flags.DEFINE_string(
    "server", None, "Asks the model of this gRPC server, host:port, instead."
)
flags.DEFINE_string("model_name", None, "The name of the served model, for --server.")
command_line.define_path(
    "version_dir",
    None,
    "The folder of the served version, e.g. exports/branchy_lenet/1, for --server: its "
    "branchy.json tells multiply-adds, criterion and thresholds, which a server does "
    "not. Default: the page leaves them out.",
)
flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "The address to listen on. Nobody is asked for a password; 0.0.0.0 lets everyone in "
    "the network use the page.",
)
flags.DEFINE_integer(
    "port", 8080, "The port to listen on; 0 takes a free one.", 0, 2**16 - 1
)


def _of_server() -> Subject:
    """The model of --server."""
    if FLAGS.run_dir or FLAGS.model:
        raise BranchyError("Pass --server, or --run_dir or --model, not both.")
    if FLAGS.thresholds:
        raise BranchyError("--thresholds are moved on the page when a --server is asked.")
    if not FLAGS.model_name:
        raise BranchyError("--model_name is missing: pass the name of the served model.")
    description = None
    if FLAGS.version_dir:
        path = files.path(FLAGS.version_dir) / "assets.extra" / "branchy.json"
        description = files.read_json(path)
    client = EarlyExitClient(FLAGS.server, FLAGS.model_name)
    inputs, num_exits = client.describe()
    return playing.of_export(client, FLAGS.model_name, inputs, num_exits, description)


def _of_model() -> tuple[Subject, Any]:
    """The model of --run_dir or --model, and the data set with its test images."""
    if FLAGS.version_dir or FLAGS.model_name:
        raise BranchyError("--version_dir and --model_name go with --server.")
    choice = command_line.chosen_model()
    policy = command_line.chosen_policy(choice)
    dataset = _dataset(choice)
    names = getattr(dataset, "class_names", None)
    pixels = (0.0, 255.0)
    if choice.run is not None:
        pixels = playing.pixel_range(choice.run.path / "data.json")
    return playing.of_model(choice.model, policy, names, pixels), dataset


def _dataset(choice: command_line.Choice) -> Any:
    """The data set to show test images of; None without one."""
    if not FLAGS.dataset and choice.run is None:
        return None
    try:
        return choice.dataset()
    except BranchyError as error:
        if FLAGS.dataset:
            raise
        # Drawings and files need no data set.
        logging.warning("The page offers no test images. %s", error)
        return None


def main() -> None:
    if FLAGS.server:
        subject = _of_server()
        dataset = command_line.chosen_dataset(None) if FLAGS.dataset else None
    else:
        subject, dataset = _of_model()
    samples = None if dataset is None else dataset.test
    server = playing.PlayServer(subject, samples, FLAGS.host, FLAGS.port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        logging.info("Open %s in a browser. Press Ctrl-C to stop.", server.url)
        if not server.is_local:
            logging.warning("Everyone who reaches this address can use the page.")
        stop.wait()
        server.shutdown()
    logging.info("Stopped.")


if __name__ == "__main__":
    command_line.run(main)
