"""Measures the server's overhead: one image over gRPC and in this process, in turn.

Exact command:

  python tests/load/latency.py --export=exports/branchy_lenet --dataset=mnist_5k
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence

import exported
import lab
import numpy as np

from branchy_tf.benchmarking import timing
from branchy_tf.saved_model.session import SessionModel

_MOST_ADDED = 1.5  # ms


def run(
    export: pathlib.Path,
    dataset: str | None,
    seconds: float,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Compares medians over `seconds`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        exported.serving(export, pathlib.Path(folder), flags) as (_, client),
    ):
        images = exported.images(client, dataset)
        model = SessionModel(exported.newest(export))
        turns = {"in process": iter(_rows(images)), "served": iter(_rows(images))}
        calls = {
            "in process": lambda: model.run(
                "serving_default", {"images": next(turns["in process"])}
            ),
            "served": lambda: client.predict(next(turns["served"])),
        }
        times = timing.time_calls(calls, seconds, warm_up=50)
        model.close()
    inside, outside = (1e3 * times[name][1] for name in ("in process", "served"))
    found = lab.Findings(
        f"One image, p50: {inside:.3f} ms in process, {outside:.3f} ms served, "
        f"{outside - inside:.3f} ms added (at most {_MOST_ADDED:g} wanted).",
        {"in_process": inside, "served": outside, "added": outside - inside},
    )
    found.require(
        outside - inside <= _MOST_ADDED, f"serving adds {outside - inside:.3f} ms"
    )
    return found


def _rows(images: np.ndarray):
    """Sends both the same images in the same order, one at a time."""
    while True:
        for i in range(len(images)):
            yield images[i : i + 1]


def main() -> None:
    parser = exported.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    run(given.export, given.dataset, given.seconds, given.server_flags).finish()


if __name__ == "__main__":
    main()
