"""Swaps versions and changes thresholds under load: nothing may fail or be mixed up.

Every request brings three images, each with its own threshold, and every
answer is compared with what the version that gave it must say. Exact command:

  python tests/load/swap.py --requests=20000
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import lab
import servers

_ROWS = 3


def run(
    pair: lab.Pair,
    folder: pathlib.Path,
    requests: int,
    swaps: int = 10,
    callers: int = 8,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Sends at least `requests` requests while versions 2 ... swaps + 1 arrive."""
    base = folder / servers.MODEL
    pair.add(base, 1)
    versions: list[int | None] = []

    def expected(version: int | None):
        versions.append(version)
        return pair.expected(version)

    def answers(number: int, share: float) -> bool:
        return versions[-1:] == [number] and len(versions) >= requests * share

    limit = 60 + 30 * swaps + requests / 50
    with (
        lab.serving(base, folder / "log", flags) as server,
        lab.asking(server) as client,
    ):
        traffic = pair.traffic(client, _ROWS, expected)
        with lab.under_load(traffic, callers, 10, limit) as loaded:
            for number in range(1, swaps + 2):
                if number > 1:
                    pair.add(base, number)
                share = number / (swaps + 1)
                servers.until(lambda n=number, s=share: answers(n, s), limit)
    outcome = loaded.result()
    failed = sum(outcome.errors.values())
    found = lab.Findings(
        f"{len(outcome.samples)} requests of {_ROWS} images, {swaps} swaps: {failed} "
        f"failed {outcome.errors or ''}, {outcome.wrong} mixed up.",
        {"requests": len(outcome.samples), "failed": failed, "wrong": outcome.wrong},
    )
    found.require(not failed, f"{failed} requests failed: {outcome.errors}")
    found.require(not outcome.wrong, f"{outcome.wrong} answers are mixed up")
    found.require(
        set(versions) == set(range(1, swaps + 2)),
        f"only versions {sorted(set(versions))} have answered",
    )
    return found


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--callers", type=int, default=8)
    given = parser.parse_args()
    with lab.shipped_pair() as (pair, folder):
        found = run(
            pair, folder, given.requests, given.swaps, given.callers, given.server_flags
        )
    found.finish()


if __name__ == "__main__":
    main()
