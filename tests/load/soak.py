"""Watches the server's memory under valid and malformed requests for a long time.

Half of the requests are valid and checked, half are those of malformed.py. Memory may
grow while caches fill, but not from the fifth minute on. Exact command:

  python tests/load/soak.py --minutes=30 --rate=20
"""

from __future__ import annotations

import pathlib
import statistics
import threading
import time
from collections.abc import Sequence

import lab
import malformed
import servers

from branchy_tf.benchmarking import load

_MOST_GROWTH = 0.05


def run(
    pair: lab.Pair,
    folder: pathlib.Path,
    minutes: float,
    settling: float = 5.0,
    rate: float = 20.0,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Runs for `minutes`; growth counts from `settling` minutes on."""
    base = folder / servers.MODEL
    pair.add(base, 1)
    taken: list[tuple[float, float]] = []
    over = threading.Event()

    def watch(server: servers.ServeProcess) -> None:
        begin = time.monotonic()
        while not over.wait(min(1.0, 0.6 * minutes)) and server.alive:
            taken.append(((time.monotonic() - begin) / 60, lab.memory(server)))

    with (
        lab.serving(base, folder / "log", flags) as server,
        lab.asking(server) as client,
        malformed.stranger(server, pair) as bad,
    ):
        good = pair.traffic(client)
        watcher = threading.Thread(target=watch, args=(server,))
        watcher.start()
        try:
            outcome = load.open_loop(
                lambda number, timeout: (bad, good)[number % 2](number // 2, timeout),
                rate,
                20,
                60 * minutes,
                callers=16,
            )
        finally:
            over.set()
            watcher.join()
        alive = server.alive
    # Medians over a minute, as single values fluctuate.
    window = min(1.0, (minutes - settling) / 4)
    start = statistics.median(
        mb for at, mb in taken if settling <= at <= settling + window
    )
    end = statistics.median(mb for at, mb in taken if at >= taken[-1][0] - window)
    growth = end / start - 1
    found = lab.Findings(
        f"{len(outcome.samples)} requests in {minutes:g} minutes, half of them bad, "
        f"{outcome.wrong} met wrongly: {start:.1f} MB after {settling:g} minutes, "
        f"{end:.1f} MB at the end, growth {growth:+.1%}.",
        {"growth": growth, "wrong": outcome.wrong, "errors": outcome.errors},
        list(bad.problems[:20]),
    )
    found.require(alive, "the server has died")
    found.require(not outcome.wrong, f"{outcome.wrong} requests were met wrongly")
    late = outcome.errors.get(load.LATE, 0)
    found.require(not late, f"{late} requests were not met in time")
    found.require(growth <= _MOST_GROWTH, f"memory has grown by {growth:.1%}")
    return found


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--settling", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=20.0)
    given = parser.parse_args()
    if given.settling >= given.minutes:
        parser.error("--settling must be less than --minutes")
    with lab.shipped_pair() as (pair, folder):
        found = run(
            pair, folder, given.minutes, given.settling, given.rate, given.server_flags
        )
    found.finish()


if __name__ == "__main__":
    main()
