"""Sends several times the server's capacity; its answers must stay prompt.

What is too much must be refused at once (RESOURCE_EXHAUSTED or UNAVAILABLE), so that
what is taken in is answered soon. Requests are large, so that the server is the narrow
place and not the asker. Exact command:

  python tests/load/overload.py --times=3 --seconds=20
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import lab
import numpy as np
import servers

from branchy_tf.benchmarking import load
from branchy_tf.serving.embedded.server import HELD, RUNNING_PER_CORE

_ROWS = 256
# Twice what the server admits; more would only slow the sender.
_CALLERS = 2 * (HELD + RUNNING_PER_CORE * (os.cpu_count() or 1))
_SHED = {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}


def run(
    pair: lab.Pair,
    folder: pathlib.Path,
    times: float,
    seconds: float,
    bound: float = 1.0,
    timeout: float = 5.0,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Measures the server's capacity, then sends `times` as much.

    Args:
        pair: its version 1 is served.
        folder: to work in.
        times: how much of what it can do is asked for.
        seconds: how long.
        bound: seconds that the 99th percentile of the answers may take.
        timeout: seconds of each request, far above.
        flags: of the server.
    """
    base = folder / servers.MODEL
    pair.add(base, 1)
    with (
        lab.serving(base, folder / "log", flags) as server,
        lab.asking(server) as client,
    ):
        traffic = pair.traffic(client, _ROWS)
        could = load.closed_loop(traffic, 4, timeout, min(seconds, 4))
        capacity = could.summary()["requests_per_second"]
        outcome = load.open_loop(traffic, times * capacity, timeout, seconds, _CALLERS)
        calm = load.closed_loop(traffic, 1, timeout, requests=10)
    answered = len(outcome.latencies)
    p99 = float(np.percentile(outcome.latencies, 99)) / 1e3 if answered else np.inf
    found = lab.Findings(
        f"The server can do {capacity:.0f} requests/s of {_ROWS} images. Asked for "
        f"{times:g} times that: {len(outcome.samples)} requests, {answered} answered "
        f"({answered / outcome.seconds:.0f}/s), p99 {p99:.2f} s; failed: "
        f"{outcome.errors}.",
        {"answered": answered, "p99": p99, "errors": outcome.errors},
    )
    found.require(answered, "nothing was answered")
    found.require(not outcome.wrong, f"{outcome.wrong} answers are wrong")
    found.require(
        outcome.errors, "nothing was refused: that was no overload; ask for more --times"
    )
    found.require(
        set(outcome.errors) <= _SHED, f"not shed but left to fail: {outcome.errors}"
    )
    found.require(p99 <= bound, f"p99 is {p99:.2f} s, above {bound:g} s")
    found.require(
        not calm.errors and not calm.wrong, f"afterwards it fails: {calm.errors}"
    )
    return found


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--bound", type=float, default=1.0, help="of p99, in seconds")
    given = parser.parse_args()
    with lab.shipped_pair() as (pair, folder):
        found = run(
            pair,
            folder,
            given.times,
            given.seconds,
            given.bound,
            flags=given.server_flags,
        )
    found.finish()


if __name__ == "__main__":
    main()
