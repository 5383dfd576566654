"""Compares device, edge, cloud and cascades on three hosts, and with a simulation.

Exact commands:

  python tests/load/cascade_lab.py
  python tests/load/cascade_lab.py --data_dir=DIR --images=300

Device, edge and cloud are network namespaces, see `hosts`. The edge is 5 ms from the
device at 50 Mbit/s, the cloud 40 ms from the edge at 20 Mbit/s, each way. The first line
of the output says how the lines are made. Images come one by one at random times, --rate
a second, to a gateway at the device. All hosts share this machine's cores, so they
compute equally fast.

Each contender takes turns with the lines as slow as they are and without delay. The
latter gives what a row takes in each unit, from which `cascade simulate` predicts the
former. Without --data_dir it takes B-LeNet and digits, with it B-ResNet-20 and CIFAR-10.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
from typing import Any

import hosts

if __name__ == "__main__" and not {"-h", "--help"} & {*sys.argv}:
    # Before anything is imported that starts threads: they would stay outside.
    _parser = argparse.ArgumentParser(add_help=False)
    _parser.add_argument("--lines", default="auto")
    _asked = _parser.parse_known_args()[0].lines
    hosts.enter(hosts.best()[0] if _asked == "auto" else _asked)

import lab
import numpy as np
import servers
from absl import logging
from tabulate import tabulate

from branchy_tf import data, units, zoo
from branchy_tf.benchmarking import load
from branchy_tf.units.placing import reading, simulating

_TIMEOUT = 60.0
_PREFIX = "branchy_cascade_"  # of the names of metrics


@dataclasses.dataclass
class Asked:
    """Rows that were sent.

    Attributes:
        latencies: milliseconds of each row.
        right: how many labels were right.
        counted: totals of the cascade's metrics over them, by name and labels.
    """

    latencies: list[float] = dataclasses.field(default_factory=list)
    right: int = 0
    counted: dict[tuple[str, ...], float] = dataclasses.field(default_factory=dict)

    def count(self, *key: str) -> float:
        """The total of a metric."""
        return self.counted.get(key, 0.0)


@dataclasses.dataclass
class Contender:
    """One way to answer.

    Attributes:
        cascade: answers.
        limits: thresholds; None: the calibrated ones.
        sites: the host of each unit, by name, in order.
        far: rows that were sent with the lines as slow as they are.
        near: rows that were sent without delay.
    """

    cascade: units.Cascade
    limits: Any
    sites: dict[str, str]
    far: Asked = dataclasses.field(default_factory=Asked)
    near: Asked = dataclasses.field(default_factory=Asked)

    def ask(self, asked: Asked, test: Any, rate: float, seed: int) -> None:
        """Sends about as many rows as there are images, at random times."""
        before = self._metrics()
        right: list[bool] = []

        def ask(number: int, timeout: float) -> int:
            row = number % len(test)
            answer = self.cascade.predict(test.images[row][None], self.limits, timeout)
            assert not answer.degraded.any()
            right.append(answer.labels[0] == test.labels[row])
            return 1

        outcome = load.open_loop(ask, rate, _TIMEOUT, len(test) / rate, 32, seed)
        assert not outcome.errors, outcome.errors
        asked.latencies += outcome.latencies.tolist()
        asked.right += sum(right)
        for key, value in self._metrics().items():
            asked.counted[key] = asked.count(*key) + value - before.get(key, 0.0)

    def _metrics(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name.removeprefix(_PREFIX), *sample.labels.values()): sample.value
            for metric in self.cascade.metrics.registry.collect()
            for sample in metric.samples
            if "le" not in sample.labels
        }

    @property
    def bytes(self) -> float:
        """Bytes between the hosts for an image, both ways."""
        counted = self.far.counted.items()
        sent = sum(value for key, value in counted if key[0] == "bytes_total")
        return sent / len(self.far.latencies)

    def simulated(self, rate: float) -> simulating.Simulated:
        """The same demand, simulated with what rows took without delay."""
        near = self.near
        reached = {name: near.count("rows_total", name) for name in self.sites}
        names = [name for name, count in reached.items() if count]
        rows = [reached[name] for name in names]
        inside = [1e3 * near.count("call_seconds_sum", name) for name in names]
        # What the gateway adds counts where it runs, for every row.
        inside[0] += sum(near.latencies) - sum(inside)
        received = [near.count("bytes_total", name, "received") for name in names]
        answer = received[-1] / rows[-1]
        costs: dict[str, Any] = {}
        sites: dict[str, Any] = {
            name: {"cores": os.cpu_count(), "ms": {}, "units": []} for name in hosts.NAMES
        }
        for k, name in enumerate(names):
            onward = rows[k + 1] if k + 1 < len(rows) else 0.0
            features = max(0.0, received[k] - answer * rows[k])
            costs[name] = {
                "input_bytes": near.count("bytes_total", name, "sent") / rows[k],
                "output_bytes": features / onward if onward else 0.0,
            }
            site = sites[self.sites[name]]
            site["units"].append(name)
            site["ms"][name] = inside[k] / rows[k]
        leave = -np.diff([*rows, 0.0]) / rows[0]
        lines = [
            {
                "between": list(hosts.NAMES[i : i + 2]),
                "latency_ms": 1e3 * wire.seconds,
                "mbit_per_s": wire.bytes_per_second / hosts.MBIT,
            }
            for i, wire in enumerate((hosts.EDGE, hosts.CLOUD))
        ]
        # Only the units' own hosts may run them.
        for name in hosts.NAMES:
            sites[name]["units"] = sites[name]["units"] or ["none"]
        costs["none"] = {}
        topology = reading.parse(
            {
                "units": costs,
                "cascades": {"all": {"units": names, "exit_rates": leave.tolist()}},
                "sites": sites,
                "links": lines,
                "demand": [
                    {"cascade": "all", "site": hosts.NAMES[0], "per_second": rate}
                ],
                "answer_bytes": answer,
            }
        )
        return simulating.simulate(units.place(None, topology), topology)


def run(
    model: Any,
    policy: Any,
    test: Any,
    cuts: list[str],
    folder: pathlib.Path,
    kind: str = hosts.PROXY,
    rate: float = 10.0,
    rounds: int = 10,
) -> lab.Findings:
    """Sends every image of `test` to each contender.

    Args:
        model: a multi-exit model.
        policy: of the model.
        test: the images and labels.
        cuts: one exit, device | cloud, or two, device | edge | cloud.
        folder: an empty one.
        kind: how the lines are made.
        rate: images a second.
        rounds: in which the contenders take turns, each with its part of the images.
    """
    names = ["device", "edge", "cloud"] if len(cuts) == 2 else ["device", "cloud"]
    served = _export(model, policy, cuts, names, folder)
    far = [np.inf] * len(policy.thresholds)
    with hosts.Hosts(kind) as three:
        at = {}
        running: dict[tuple[str, ...], servers.ServeProcess] = {}
        for host in hosts.NAMES[1:]:
            # One server does where all hosts are this one.
            place = tuple(three.at(host))
            if place not in running:
                flags = [f"--model_config_file={served}"]
                flags.append(f"--host={three.listening(host)}")
                log = folder / f"{host}.log"
                running[place] = servers.ServeProcess(None, log, flags, at=place)
                three.callback(running[place].stop)
            at[host] = three.reach(host, running[place].address)

        def contender(text: str, sites: dict[str, str], limits: Any = None) -> Contender:
            path = folder / f"cascade_{len(contenders)}.yaml"
            path.write_text("units:\n" + text)
            cascade = three.enter_context(units.Cascade(path, timeout=_TIMEOUT))
            cascade.predict(test.images[:1], [0.0] * len(far))  # warms every unit
            return Contender(cascade, limits, sites)

        def whole(host: str) -> Contender:
            return contender(f"  whole: {{servers: '{at[host]}'}}\n", {"whole": host})

        def cascade(sends: str, limits: Any = None) -> Contender:
            text = f"  device: {{path: {sends}/device, next: {names[1]}}}\n"
            for name, following in zip(names[1:], [*names[2:], None], strict=True):
                onward = f", next: {following}" if following else ""
                place = f"servers: '{at[name]}', model: {sends}_{name}"
                text += f"  {name}: {{{place}{onward}}}\n"
            return contender(text, {name: name for name in names}, limits)

        contenders: dict[str, Contender] = {}
        contenders["device only"] = cascade("features", far)
        contenders["edge only"] = whole("edge")
        contenders["cloud only"] = whole("cloud")
        contenders["cascade, features"] = cascade("features")
        contenders["cascade, image"] = cascade("image")
        for i in range(rounds):
            part = test.take(np.arange(i, len(test), rounds))
            for one in contenders.values():
                for far, asked in ((False, one.near), (True, one.far)):
                    three.far(far)
                    one.ask(asked, part, rate, seed=i)
    return _findings(contenders, rate)


def _export(
    model: Any, policy: Any, cuts: list[str], names: list[str], folder: pathlib.Path
) -> pathlib.Path:
    """Writes the whole network and the cascades; returns a models.config of them."""
    units.export(units.cut(model, [], ["whole"]), folder / "whole", policy)
    for sends in ("features", "image"):
        parts = units.cut(model, cuts, names, sends=sends)
        units.export(parts, folder / sends, policy)
    entries = [("whole", folder / "whole/whole")]
    entries += [
        (f"{sends}_{name}", folder / sends / name)
        for sends in ("features", "image")
        for name in names[1:]
    ]
    config = folder / "models.config"
    config.write_text(
        "model_config_list {\n"
        + "".join(
            f'  config {{ name: "{name}" base_path: "{path}" '
            'model_platform: "tensorflow" }\n'
            for name, path in entries
        )
        + "}\n"
    )
    return config


def _findings(contenders: dict[str, Contender], rate: float) -> lab.Findings:
    results = {}
    for name, one in contenders.items():
        simulated = one.simulated(rate).mean_ms
        mean = float(np.mean(one.far.latencies))
        results[name] = {
            "mean": mean,
            "p99": float(np.percentile(one.far.latencies, 99)),
            "bytes": one.bytes,
            "accuracy": 100 * one.far.right / len(one.far.latencies),
            "simulated": simulated,
            "off": simulated / mean - 1,
        }
    rows = [
        [
            name,
            f"{figures['mean']:.1f}",
            f"{figures['p99']:.1f}",
            f"{figures['bytes']:,.0f}",
            f"{figures['accuracy']:.2f}",
            f"{figures['simulated']:.1f}",
            f"{figures['off']:+.1%}",
        ]
        for name, figures in results.items()
    ]
    head = ["", "mean ms", "p99 ms", "bytes an image", "accuracy %"]
    table = tabulate(rows, [*head, "simulated mean", "off"], disable_numparse=True)
    number = len(next(iter(contenders.values())).far.latencies)
    found = lab.Findings(
        f"{number} images, {rate:g} a second, load {os.getloadavg()[0]:.1f}\n{table}",
        results,
    )
    same = {results[name]["accuracy"] for name in ("edge only", "cloud only")}
    found.require(len(same) == 1, f"edge and cloud disagree: {same}")
    found.require(
        results["cascade, image"]["accuracy"] in same,
        "the cascade that sends images is not as accurate as the whole network",
    )
    found.require(not results["device only"]["bytes"], "the device sent bytes")
    edge = 2e3 * hosts.EDGE.seconds
    found.require(
        results["edge only"]["mean"] > edge
        and results["cloud only"]["mean"] > edge + 2e3 * hosts.CLOUD.seconds,
        "answers came faster than the lines are",
    )
    return found


def judge(found: lab.Findings) -> None:
    """Adds problems where the figures miss what they are meant to reach."""
    results = found.figures
    cloud = results["cloud only"]
    best = min(
        (results[name] for name in results if name.startswith("cascade")),
        key=lambda figures: figures["mean"],
    )
    found.line += (
        f"\nThe faster cascade: {cloud['mean'] / best['mean']:.2f} times sooner than the "
        f"cloud, {best['accuracy'] - cloud['accuracy']:+.2f} points of accuracy."
    )
    found.require(2 * best["mean"] <= cloud["mean"], "not twice as soon as the cloud")
    found.require(
        best["accuracy"] >= cloud["accuracy"] - 0.5, "more than 0.5 points less accurate"
    )
    for name, figures in results.items():
        found.require(abs(figures["off"]) <= 0.15, f"{name}: the simulation is off")


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--lines", choices=["auto", *hosts.KINDS], default="auto",
        help="how the lines are made; default: the best that this machine allows",
    )  # fmt: skip
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    kind, why = hosts.best()
    if given.lines != "auto":
        kind, why = given.lines, "it was asked for"
    print(f"Lines: {kind}{f' ({why})' if why else ''}.", flush=True)
    if given.data_dir:
        model = zoo.branchy_resnet(weights="cifar10_depth20")
        policy = zoo.calibration("branchy_resnet", "cifar10_depth20").policy
        test, cuts = data.load("cifar10", given.data_dir).test, ["exit_1", "exit_2"]
    else:
        model = zoo.branchy_lenet(weights="mnist")
        policy = zoo.calibration("branchy_lenet", "mnist").policy
        test, cuts = data.load("mnist_5k").test, ["exit_1"]
    test = test.take(np.arange(min(given.images, len(test))))
    with tempfile.TemporaryDirectory() as name:
        found = run(
            model, policy, test, cuts, pathlib.Path(name), kind, given.rate, given.rounds
        )
    judge(found)
    found.finish()


if __name__ == "__main__":
    main()
