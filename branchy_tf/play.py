r"""Opens a local page to try a model by hand.

Examples:

  python -m branchy_tf.play --run_dir=runs/lenet
  python -m branchy_tf.play --model=branchy_lenet --weights=mnist --dataset=mnist
  python -m branchy_tf.play --version_dir=exports/branchy_lenet/1
  python -m branchy_tf.play --server=localhost:8500 --model_name=branchy_lenet
  python -m branchy_tf.play --cascade=units/cascade.yaml

Draw a digit, drop, paste or choose an image, and move the thresholds: the page shows
what each exit answers, where the image left, and what that cost; of a cascade also which
unit answered, and whether one failed to. The page can be reached from this machine only,
unless --host says otherwise.
"""

import contextlib
import signal
import threading
from typing import Any

from absl import flags, logging

from branchy_tf import command_line, data, files, playing
from branchy_tf.errors import BranchyError
from branchy_tf.playing import Subject
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.serving import EarlyExitClient

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
command_line.define_path(
    "version_dir",
    None,
    "Plays with this version that `export` wrote, of either format, e.g. "
    "exports/branchy_lenet/1. With --server, the folder of the served version, which "
    "tells multiply-adds, criterion and class names, as a server does not.",
)
flags.DEFINE_string(
    "server",
    None,
    "Asks the model of this gRPC server, host:port, instead; or a cascade's gateway.",
)
command_line.define_path(
    "cascade", None, "Asks the units of this cascade.yaml from this process instead."
)
flags.DEFINE_string(
    "model_name",
    None,
    "The name of the served model, for --server; of a --cascade with several entries, "
    "the one to use.",
)
flags.DEFINE_float("timeout", 10.0, "Seconds to wait for an answer of --server.")
command_line.define_tls()
command_line.define_class_names("the data set, the version, or numbers.")
flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "The address to listen on. Nobody is asked for a password; 0.0.0.0 lets everyone in "
    "the network use the page.",
)
flags.DEFINE_integer(
    "port", 8080, "The port to listen on; 0 takes a free one.", 0, 2**16 - 1
)


def _of_server(stack: contextlib.ExitStack, names: list[str] | None) -> Subject:
    """The model of --server."""
    if not FLAGS.model_name:
        raise BranchyError("--model_name is missing: pass the name of the served model.")
    client = stack.enter_context(
        EarlyExitClient(
            FLAGS.server,
            FLAGS.model_name,
            timeout=FLAGS.timeout,
            tls=command_line.chosen_tls(),
        )
    )
    return playing.of_server(
        client,
        FLAGS.server,
        FLAGS.model_name,
        FLAGS.version_dir,
        names,
    )


def _of_cascade(stack: contextlib.ExitStack, names: list[str] | None) -> Subject:
    """The network of --cascade."""
    from branchy_tf import units

    cascade = stack.enter_context(units.Cascade(FLAGS.cascade, FLAGS.model_name))
    return playing.of_cascade(cascade, FLAGS.cascade, names)


def _of_version(names: list[str] | None) -> Subject:
    """The version of --version_dir."""
    predictor = EarlyExitPredictor(
        FLAGS.version_dir,
        criterion=FLAGS.criterion,
        temperatures=command_line.parse_numbers("temperatures", FLAGS.temperatures),
        thresholds=command_line.parse_numbers("thresholds", FLAGS.thresholds),
    )
    return playing.of_version(predictor, FLAGS.version_dir, names)


def _of_model(names: list[str] | None) -> tuple[Subject, Any]:
    """The model of --run_dir or --model, and the data set with its test images."""
    choice = command_line.chosen_model()
    policy = command_line.chosen_policy(choice)
    dataset = _dataset(choice)
    record = {}
    if choice.run is not None and (choice.run.path / "data.json").is_file():
        record = files.read_json(choice.run.path / "data.json")
    known = getattr(dataset, "class_names", None) or record.get("class_names")
    if known is None and choice.packaged is not None:
        known = data.CLASS_NAMES.get(choice.packaged.dataset)
    pixels = playing.pixel_range(record)
    return playing.of_model(choice.model, policy, names or known, pixels), dataset


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


def _check_flags() -> None:
    """Refuses flags that belong to another model than the one chosen.

    Raises:
        BranchyError: several models are chosen, or a flag has no effect.
    """
    here = bool(FLAGS.run_dir or FLAGS.model)
    version = bool(FLAGS.version_dir) and not FLAGS.server
    if sum([here, version, bool(FLAGS.server), bool(FLAGS.cascade)]) > 1:
        raise BranchyError(
            "Several models are chosen. Pass one of --run_dir or --model, --version_dir, "
            "--server and --cascade; only --version_dir also goes with --server."
        )
    elsewhere = FLAGS.server or FLAGS.cascade
    if FLAGS.thresholds and elsewhere:
        raise BranchyError(
            "--thresholds are moved on the page when a --server or --cascade is asked."
        )
    if FLAGS.model_name and not elsewhere:
        raise BranchyError("--model_name goes with --server or --cascade.")
    if command_line.chosen_tls() is not None and not FLAGS.server:
        raise BranchyError("--tls and --tls_... go with --server.")


def _chosen(stack: contextlib.ExitStack) -> tuple[Subject, Any]:
    """The model to play with, and the data set with test images, or None."""
    _check_flags()
    names = command_line.chosen_class_names()
    if FLAGS.server:
        subject = _of_server(stack, names)
    elif FLAGS.cascade:
        subject = _of_cascade(stack, names)
    elif FLAGS.version_dir:
        subject = _of_version(names)
    else:
        return _of_model(names)
    if not FLAGS.dataset:
        return subject, None
    dataset = command_line.chosen_dataset(None, input_shape=subject.facts.shape)
    return subject.naming(dataset.class_names), dataset


def main() -> None:
    with contextlib.ExitStack() as stack:
        subject, dataset = _chosen(stack)
        samples = None if dataset is None else dataset.test
        server = playing.PlayServer(subject, samples, FLAGS.host, FLAGS.port)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stack.enter_context(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        logging.info("Open %s in a browser. Press Ctrl-C to stop.", server.url)
        if not server.is_local:
            logging.warning("Everyone who reaches this address can use the page.")
        stop.wait()
        server.shutdown()
    logging.info("Stopped.")


if __name__ == "__main__":
    command_line.run(main)
