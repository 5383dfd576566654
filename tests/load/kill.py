"""Kills the server (kill -9) under load, restarts it, and continues.

Every request must be answered rightly or fail in time with a status that says why,
and the same client must work again soon after the server does. Exact command:

  python tests/load/kill.py --kills=5
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import lab
import servers

from branchy_tf.benchmarking import load
from branchy_tf.serving import EarlyExitClient

_TIMEOUT = 2.0
# Overrun of a call's timeout when threads share two cores.
_SLACK = 1.0
_CLEAR = {load.OK, "UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND"}
_SOON = 2.0


def run(
    pair: lab.Pair,
    folder: pathlib.Path,
    kills: int,
    callers: int = 8,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Kills and restarts the server `kills` times."""
    base = folder / servers.MODEL
    pair.add(base, 1)
    address = f"127.0.0.1:{servers.free_port()}"
    port = address.rpartition(":")[2]
    right: list[float] = []
    back: list[float] = []

    def start() -> servers.ServeProcess:
        return servers.ServeProcess(base, folder / "log", [*flags, f"--port={port}"])

    with EarlyExitClient(address, servers.MODEL) as client:
        traffic = pair.traffic(client)

        def ask(number: int, timeout: float) -> int:
            rows = traffic(number, timeout)
            right.append(time.monotonic())
            return rows

        server = start()
        try:
            assert server.address
            with lab.under_load(ask, callers, _TIMEOUT, 60 + 120 * kills) as loaded:
                for _ in range(kills):
                    already = len(right)
                    servers.until(lambda n=already: len(right) > n + 10 * callers)
                    server.process.kill()
                    server.process.wait()
                    # What had been answered is read by now, or never.
                    server = start()
                    already = len(right)
                    assert server.address
                    returned = time.monotonic()
                    first = servers.until(lambda n=already: right[n : n + 1])[0]
                    back.append(max(first - returned, 0.0))
        finally:
            if server.alive:
                server.stop()
    outcome = loaded.result()
    statuses = sorted({sample.status for sample in outcome.samples})
    slowest = max(sample.end - sample.start for sample in outcome.samples)
    found = lab.Findings(
        f"{len(outcome.samples)} requests, {kills} kills: {len(right)} answered rightly, "
        f"{outcome.wrong} wrongly, {outcome.errors} failed, the slowest after "
        f"{slowest:.2f} s of {_TIMEOUT:g}; the client worked again "
        f"{', '.join(f'{seconds:.2f}' for seconds in back)} s after the server did.",
        {"statuses": statuses, "wrong": outcome.wrong, "slowest": slowest, "back": back},
    )
    found.require(outcome.errors, "nothing failed: was the server killed at all?")
    found.require(set(statuses) <= _CLEAR, f"statuses that say little: {statuses}")
    found.require(slowest <= _TIMEOUT + _SLACK, f"a request took {slowest:.2f} s")
    found.require(max(back) <= _SOON, f"the client was back after {max(back):.2f} s")
    return found


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--callers", type=int, default=8)
    given = parser.parse_args()
    with lab.shipped_pair() as (pair, folder):
        found = run(pair, folder, given.kills, given.callers, given.server_flags)
    found.finish()


if __name__ == "__main__":
    main()
