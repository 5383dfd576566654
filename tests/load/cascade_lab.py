"""Compares device, edge, cloud and cascades over lines of limited speed.

Exact commands:

  python tests/load/cascade_lab.py
  python tests/load/cascade_lab.py --data_dir=DIR --images=500

One caller at the device sends one image at a time. The edge is 5 ms away at 20 Mbit/s,
the cloud 25 ms at 8 Mbit/s, each way. All units run on this machine, so they compute
equally fast; only the lines differ. Without --data_dir it takes B-LeNet and 1,000
digits, with it B-ResNet-20 and CIFAR-10.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from typing import Any

import lab
import numpy as np
import servers
from absl import logging
from lines import Line
from tabulate import tabulate

from branchy_tf import data, units, zoo

_MBIT = 1e6 / 8
# One way: seconds, bytes a second.
_EDGE = (0.005, 20 * _MBIT)
_CLOUD = (0.025, 8 * _MBIT)


def run(
    model: Any, policy: Any, test: Any, cuts: list[str], folder: pathlib.Path
) -> lab.Findings:
    """Sends every image of `test` to each contender.

    Args:
        model: a multi-exit model.
        policy: of the model.
        test: the images and labels.
        cuts: one exit, device | cloud, or two, device | edge | cloud.
        folder: an empty one.
    """
    names = ["device", "edge", "cloud"] if len(cuts) == 2 else ["device", "cloud"]
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
    number = len(policy.thresholds)
    results: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        server = servers.ServeProcess(
            None, folder / "log", [f"--model_config_file={config}"]
        )
        stack.callback(server.stop)
        at = {
            "edge": stack.enter_context(Line(server.address, *_EDGE)).address,
            "cloud": stack.enter_context(Line(server.address, *_CLOUD)).address,
        }

        def cascade(sends: str) -> str:
            text = f"  device: {{path: {sends}/device, next: {names[1]}}}\n"
            for name, following in zip(names[1:], [*names[2:], None], strict=True):
                onward = f", next: {following}" if following else ""
                place = f"servers: '{at[name]}', model: {sends}_{name}"
                text += f"  {name}: {{{place}{onward}}}\n"
            return text

        whole = "  whole: {{servers: '{}'}}\n"
        contenders = {
            "device only": (cascade("features"), [np.inf] * number),
            "edge only": (whole.format(at["edge"]), None),
            "cloud only": (whole.format(at["cloud"]), None),
            "cascade, features": (cascade("features"), None),
            "cascade, image": (cascade("image"), None),
        }
        for i, (name, (text, limits)) in enumerate(contenders.items()):
            path = folder / f"cascade_{i}.yaml"
            path.write_text("units:\n" + text)
            results[name] = _measure(path, test, limits)
    rows = [
        [
            name,
            f"{figures['mean']:.1f}",
            f"{figures['p99']:.1f}",
            f"{figures['bytes']:,.0f}",
            f"{figures['accuracy']:.2f}",
        ]
        for name, figures in results.items()
    ]
    table = tabulate(
        rows,
        ["", "mean ms", "p99 ms", "bytes an image", "accuracy %"],
        disable_numparse=True,
    )
    found = lab.Findings(
        f"{len(test)} images, load {os.getloadavg()[0]:.1f}\n{table}", results
    )
    same = {results[name]["accuracy"] for name in ("edge only", "cloud only")}
    found.require(len(same) == 1, f"edge and cloud disagree: {same}")
    found.require(
        results["cascade, image"]["accuracy"] in same,
        "the cascade that sends images is not as accurate as the whole network",
    )
    found.require(not results["device only"]["bytes"], "the device sent bytes")
    found.require(
        results["edge only"]["mean"] > 2e3 * _EDGE[0]
        and results["cloud only"]["mean"] > 2e3 * _CLOUD[0],
        "answers came faster than the lines are",
    )
    return found


def _measure(path: pathlib.Path, test: Any, limits: Any) -> dict[str, float]:
    with units.Cascade(path, timeout=60) as cascade:
        cascade.predict(test.images[:1], limits)  # connects
        sent = _bytes(cascade)
        seconds, right = [], 0
        for image, label in zip(test.images, test.labels, strict=True):
            start = time.perf_counter()
            answer = cascade.predict(image[None], limits)
            seconds.append(time.perf_counter() - start)
            assert not answer.degraded.any()
            right += int(answer.labels[0] == label)
        total = _bytes(cascade) - sent
    milliseconds = 1e3 * np.array(seconds)
    return {
        "mean": float(milliseconds.mean()),
        "p99": float(np.percentile(milliseconds, 99)),
        "bytes": total / len(test),
        "accuracy": 100 * right / len(test),
    }


def _bytes(cascade: units.Cascade) -> float:
    return sum(
        sample.value
        for metric in cascade.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "branchy_cascade_bytes_total"
    )


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
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
        found = run(model, policy, test, cuts, pathlib.Path(name))
    found.finish()


if __name__ == "__main__":
    main()
