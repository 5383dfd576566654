"""Measures a cascade of units: agreement, what the gateway costs, and failures.

Exact commands:

  python tests/load/cascade.py --only=agreement --data_dir=DIR
  python tests/load/cascade.py --only=overhead
  python tests/load/cascade.py --only=failures --requests=10000

Agreement cuts B-ResNet-110 `cifar10` into three units and compares 10,000 test images
with the whole network. Overhead compares calls to a unit with the same calls through a
gateway. Failures kills, stops and restarts the last unit under load: no request may be
lost, no answer wrong, and each answer of an earlier unit must be marked.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import lab
import numpy as np
import servers
from absl import logging

from branchy_tf import EarlyExitPredictor, data, units, zoo
from branchy_tf.benchmarking import load
from branchy_tf.errors import ServerError
from branchy_tf.serving import EarlyExitClient, messages, wire
from branchy_tf.serving.answers import ExpectedAnswers
from branchy_tf.serving.messages import Target

_TIMEOUT = 5.0
_CALLERS = 8


class GatewayProcess(servers.ServeProcess):
    """`python -m branchy_tf.cascade serve` on any free port.

    Args:
        config: the cascade.yaml.
        log: where its output goes.
    """

    def __init__(self, config: pathlib.Path, log: pathlib.Path) -> None:
        self._log = log
        self._port = 0
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "branchy_tf.cascade", "serve",
                    f"--config={config}", "--port=0",
                ],
                stdout=output, stderr=output,
            )  # fmt: skip


# --- agreement


def agreement(
    model: Any, policy: Any, test: Any, folder: pathlib.Path, rows: int = 500
) -> lab.Findings:
    """Compares a network in three units with the whole, for two codecs."""
    images, labels = test.images, test.labels
    whole = EarlyExitPredictor(model, policy)
    expected = whole.predict(images, batch_size=rows)
    right = (expected.labels == labels).mean()
    parts = units.cut(model, ["exit_1", "exit_2"], ["device", "edge", "cloud"])
    lines = [
        f"{len(images)} test images, whole network: accuracy {right:.2%}, exits "
        f"{np.bincount(expected.exits).tolist()}."
    ]
    figures: dict[str, Any] = {"accuracy": float(right)}
    found = lab.Findings("", figures)
    for codec in ("none", "uint8"):
        units.export(parts, folder / codec, policy, codec=codec, model_name="network")
        with units.Cascade(folder / codec / "cascade.yaml", timeout=600) as cascade:
            answers = [
                cascade.predict(images[i : i + rows]) for i in range(0, len(images), rows)
            ]
        exits = np.concatenate([answer.exits for answer in answers])
        got = np.concatenate([answer.labels for answer in answers])
        elsewhere = int((exits != expected.exits).sum())
        other = int((got != expected.labels).sum())
        accuracy = float((got == labels).mean())
        lines.append(
            f"codec {codec}: {elsewhere} rows at another exit, {other} with another "
            f"label; accuracy {accuracy:.2%} ({100 * (accuracy - right):+.2f} points)."
        )
        figures[codec] = {"exits": elsewhere, "labels": other, "accuracy": accuracy}
        if codec == "none":
            found.require(not elsewhere, f"{elsewhere} rows took another exit")
            found.require(not other, f"{other} rows have another label")
        else:
            found.require(right - accuracy <= 0.003, "uint8 loses over 0.3 points")
    found.line = "\n".join(lines)
    return found


# --- overhead


@dataclasses.dataclass
class _Caller:
    """Sends one request again and again."""

    call: Callable
    request: bytes
    rows: int

    def __call__(self, number: int, timeout: float) -> int:
        try:
            self.call(self.request, timeout=timeout)
        except grpc.RpcError as error:
            raise ServerError(error.code().name, error.details() or "") from None
        return self.rows


def overhead(
    config_dir: pathlib.Path,
    first: str,
    images: np.ndarray,
    folder: pathlib.Path,
    seconds: float = 3.0,
    rounds: int = 5,
) -> lab.Findings:
    """Compares a unit alone with the same unit behind a gateway, in turns.

    Every row leaves at the unit's last exit, so both compute the same.

    Args:
        config_dir: with the exported units and their models.config.
        first: the name of the first unit.
        images: to send.
        folder: for logs.
        seconds: of each loop.
        rounds: of all loops; figures are medians.
    """
    flags = [f"--model_config_file={config_dir / 'models.config'}"]
    server = servers.ServeProcess(None, folder / "units.log", flags)
    gateway = None
    try:
        config = folder / "cascade.yaml"
        text = (config_dir / "cascade.yaml").read_text()
        for path in sorted(config_dir.glob("*/")):
            text = text.replace(f"path: {path.name}\n", f"servers: {server.address}\n")
        config.write_text(text)
        gateway = GatewayProcess(config, folder / "gateway.log")
        with (
            grpc.insecure_channel(server.address) as unit_channel,
            grpc.insecure_channel(gateway.address) as gateway_channel,
            EarlyExitClient(gateway.address, "network") as client,
        ):
            client.wait_until_ready()
            _, exits = client.describe()

            def callers(rows: int) -> dict[str, _Caller]:
                batch = images[:rows]
                made = {}
                for name, model, signature, channel, number in (
                    ("unit", first, "unit", unit_channel, 1),
                    ("gateway", "network", "early_exit", gateway_channel, exits - 1),
                ):
                    limits = np.full((rows, number), np.inf, np.float32)
                    request = messages.predict_request(
                        Target("localhost:1", model),
                        signature,
                        None,
                        {"images": batch, "thresholds": limits},
                    )
                    call = channel.unary_unary(wire.PREDICT)
                    made[name] = _Caller(call, request, rows)
                return made

            processes = {"gateway": gateway, "unit": server}
            alone = _in_turns(callers(1), 1, seconds, rounds, processes)
            many = {
                rows: _in_turns(callers(rows), _CALLERS, seconds, rounds, processes)
                for rows in (1, 32)
            }
    finally:
        for process in (gateway, server):
            if process is not None and process.alive:
                process.stop()
    added = statistics.median(
        b.latency - a.latency
        for a, b in zip(alone["unit"], alone["gateway"], strict=True)
    )
    figures = {"added_ms": added}
    lines = [
        f"One image, one caller: p50 {_median(alone['unit'], 'latency'):.2f} ms from the "
        f"unit, {_median(alone['gateway'], 'latency'):.2f} ms through the gateway "
        f"(+{added:.2f})."
    ]
    for rows, turns in many.items():
        share = statistics.median(
            b.rows_per_second / a.rows_per_second
            for a, b in zip(turns["unit"], turns["gateway"], strict=True)
        )
        cpu = statistics.median(turn.cpu["gateway"] for turn in turns["gateway"])
        figures |= {f"share_{rows}": share, f"cpu_ms_{rows}": cpu}
        before, behind = (
            statistics.median(turn.cpu["unit"] for turn in turns[name])
            for name in ("unit", "gateway")
        )
        lines.append(
            f"{_CALLERS} callers, {rows} rows a request: {share:.2f} of the "
            f"{_median(turns['unit'], 'rows_per_second'):,.0f} rows a second of the unit "
            f"alone. Processor time of a row: unit alone {before:.3f} ms; through the "
            f"gateway {cpu:.3f} of the gateway and {behind:.3f} of the unit."
        )
    lines.append(
        f"Medians of {rounds} rounds; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}."
    )
    found = lab.Findings("\n".join(lines), figures)
    found.require(added <= 1.0, f"the gateway adds {added:.2f} ms")
    share = figures["share_32"]
    found.require(share >= 0.8, f"{share:.2f} of the unit's throughput")
    return found


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One loop.

    Attributes:
        latency: median milliseconds of a request.
        rows_per_second: of all callers.
        cpu: milliseconds of a row in each process, which other load changes less.
    """

    latency: float
    rows_per_second: float
    cpu: dict[str, float]


def _median(turns: list[_Turn], figure: str) -> float:
    return statistics.median(getattr(turn, figure) for turn in turns)


def _in_turns(
    callers: dict[str, _Caller],
    threads: int,
    seconds: float,
    rounds: int,
    processes: dict[str, servers.ServeProcess],
) -> dict[str, list[_Turn]]:
    """The loops of each caller, the callers in turns."""
    found: dict[str, list[_Turn]] = {name: [] for name in callers}
    for caller in callers.values():
        load.closed_loop(caller, threads, 60, seconds / 3)  # warm-up
    for _ in range(rounds):
        for name, caller in callers.items():
            before = {who: _cpu_seconds(one) for who, one in processes.items()}
            outcome = load.closed_loop(caller, threads, 60, seconds)
            if outcome.errors:
                raise AssertionError(f"requests to the {name} failed: {outcome.errors}")
            rows = sum(sample.rows for sample in outcome.samples)
            cpu = {
                who: 1e3 * (_cpu_seconds(one) - before[who]) / rows
                for who, one in processes.items()
            }
            latency = float(np.median(outcome.latencies))
            found[name].append(_Turn(latency, rows / outcome.seconds, cpu))
    return found


def _cpu_seconds(server: servers.ServeProcess) -> float:
    """The processor time that a process has used."""
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


# --- failures


class Checked:
    """Requests whose answers are checked, degraded ones too.

    Args:
        client: of the gateway.
        images: uint8 [n, ...].
        expected: every exit's answers to them.
        last: the exit before the last unit, 0-based, which answers if that unit fails.
        thresholds: float32 [K, N-1].
        rows: of a request.

    Attributes:
        degraded: the number of marked rows so far.
        problems: descriptions of wrong answers.
    """

    def __init__(
        self,
        client: Any,
        images: np.ndarray,
        expected: ExpectedAnswers,
        last: int,
        thresholds: np.ndarray,
        rows: int = 4,
    ) -> None:
        self._client = client
        self._images = images
        self._expected = expected
        self._last = last
        self._thresholds = thresholds
        self._rows = rows
        self._lock = threading.Lock()
        self.degraded = 0
        self.answered = 0
        self.problems: list[str] = []

    def __call__(self, number: int, timeout: float) -> int:
        place = number * self._rows + np.arange(self._rows)
        rows = place % len(self._images)
        turn = rows + place // len(self._images)
        limits = self._thresholds[turn % len(self._thresholds)]
        answer = self._client.predict(self._images[rows], limits, timeout=timeout)
        marked = answer.degraded
        # A marked row has the answer of the last unit that worked: as if every row
        # left there.
        bounded = limits.copy()
        bounded[marked, self._last] = np.inf
        right = self._expected.right(answer, rows, bounded)
        # Only a row that would have gone on may be marked.
        right &= ~marked | (answer.exits == self._last)
        sure = self._expected.scores[rows, self._last] < limits[:, self._last] - 1e-4
        right &= ~(marked & sure)
        with self._lock:
            self.degraded += int(marked.sum())
            self.answered += self._rows
            if not right.all():
                first = int(np.argmin(right))
                self.problems.append(
                    f"image {rows[first]}: exit {answer.exits[first]}, degraded "
                    f"{marked[first]}, thresholds {limits[first].tolist()}"
                )
        if not right.all():
            raise load.WrongAnswer(self.problems[-1])
        return self._rows


def failures(
    model: Any,
    policy: Any,
    images: np.ndarray,
    folder: pathlib.Path,
    requests: int,
    outage: float = 1.0,
    pause: float = 1.0,
) -> lab.Findings:
    """Kills, stops and restarts the last unit while requests run.

    Args:
        model: two exits.
        policy: of the model.
        images: to send.
        folder: an empty one.
        requests: in all.
        outage: seconds of each outage.
        pause: seconds between two.
    """
    parts = units.cut(model, ["exit_1"], ["device", "cloud"])
    units.export(parts, folder / "units", policy, codec="none")
    expected = ExpectedAnswers(*EarlyExitPredictor(model, policy).all_exits(images))
    scores = np.quantile(expected.scores[:, 0], [0.25, 0.5, 0.75])
    thresholds = np.float32([0, *scores, np.inf])[:, None]
    port = servers.free_port()

    def start_cloud() -> servers.ServeProcess:
        return servers.ServeProcess(
            folder / "units/cloud", folder / "cloud.log", [f"--port={port}"]
        )

    config = folder / "cascade.yaml"
    config.write_text(
        "model: network\n"
        "on_failure: answer\n"
        "units:\n"
        "  device: {path: units/device, next: cloud}\n"
        f"  cloud: {{servers: 'localhost:{port}', timeout: 0.5}}\n"
    )
    cloud = start_cloud()
    assert cloud.address
    gateway = GatewayProcess(config, folder / "gateway.log")
    events: list[str] = []
    done = threading.Event()
    try:
        with EarlyExitClient(gateway.address, "network", timeout=60) as client:
            client.wait_until_ready()
            ask = Checked(client, images, expected, 0, thresholds)
            outcome: list[load.Outcome] = []

            def run() -> None:
                try:
                    outcome.append(
                        load.closed_loop(ask, _CALLERS, _TIMEOUT, requests=requests)
                    )
                finally:
                    done.set()

            thread = threading.Thread(target=run)
            thread.start()
            for fault in _faults():
                if done.wait(pause):
                    break
                if fault == "killed":
                    cloud.process.kill()
                    cloud.process.wait()
                    done.wait(outage)
                    cloud = start_cloud()
                    assert cloud.address
                elif fault == "stopped":
                    cloud.process.send_signal(signal.SIGSTOP)
                    done.wait(outage)
                    cloud.process.send_signal(signal.SIGCONT)
                else:
                    cloud.stop()
                    cloud = start_cloud()
                    assert cloud.address
                events.append(fault)
            thread.join()
            # All is well again: nothing is degraded.
            servers.until(lambda: not client.predict(images[:8], [0.0]).degraded.any())
    finally:
        cloud.process.send_signal(signal.SIGCONT)
        for process in (gateway, cloud):
            if process.alive:
                process.stop()
    (result,) = outcome
    lost = sum(result.errors.values())
    slowest = float(result.latencies.max()) / 1e3
    counts = {name: events.count(name) for name in ("killed", "stopped", "restarted")}
    found = lab.Findings(
        f"{len(result.samples)} requests of {ask.answered // len(result.samples)} rows; "
        f"the last unit was killed {counts['killed']}, stopped {counts['stopped']} and "
        f"restarted {counts['restarted']} times: {lost} lost, {result.wrong} wrong, "
        f"{ask.degraded} of {ask.answered} rows degraded, all marked; slowest answer "
        f"{slowest:.2f} s.",
        {
            "lost": lost, "wrong": result.wrong, "degraded": ask.degraded,
            "slowest": slowest, **counts,
        },
    )  # fmt: skip
    found.require(not lost, f"requests failed: {result.errors}")
    found.require(not result.wrong, f"wrong: {ask.problems[:3]}")
    found.require(ask.degraded, "nothing was degraded: was there an outage at all?")
    return found


def _faults() -> Iterator[str]:
    while True:
        yield from ("killed", "stopped", "restarted")


def main() -> None:
    parser = lab.parser(__doc__)
    kinds = ("agreement", "overhead", "failures")
    parser.add_argument("--only", choices=kinds, required=True)
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if given.only == "failures":
            model = zoo.branchy_lenet(weights="mnist")
            policy = zoo.calibration("branchy_lenet", "mnist").policy
            images = data.load("mnist_5k").test.images
            found = failures(model, policy, images, folder, given.requests)
        else:
            model = zoo.branchy_resnet(weights="cifar10")
            policy = zoo.calibration("branchy_resnet", "cifar10").policy
            if given.only == "agreement":
                test = data.load("cifar10", given.data_dir).test
                test = test.take(np.arange(min(given.images, len(test))))
                found = agreement(model, policy, test, folder)
            else:
                parts = units.cut(
                    model, ["exit_1", "exit_2"], ["device", "edge", "cloud"]
                )
                units.export(parts, folder / "units", policy, model_name="network")
                images = np.random.default_rng(0).integers(
                    0, 256, (32, 32, 32, 3), np.uint8
                )
                found = overhead(
                    folder / "units", "device", images, folder, given.seconds,
                    given.rounds,
                )  # fmt: skip
    print(f"({time.perf_counter() - start:.0f} s)")
    found.finish()


if __name__ == "__main__":
    main()
