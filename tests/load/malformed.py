"""Sends malformed requests: each must be answered correctly or refused clearly.

Random bytes in every field, flipped and cut messages, wrong dtypes, shapes, lengths,
names, versions and thresholds, small messages that stand for gigabytes, over a channel
that checks nothing. The server's memory must not grow from one half to the next. Exact
command:

  python tests/load/malformed.py --requests=10000
"""

from __future__ import annotations

import collections
import contextlib
import math
import pathlib
from collections.abc import Iterator, Sequence

import grpc
import judging
import lab
import mangling
import servers

from branchy_tf.benchmarking import load
from branchy_tf.errors import ServerError

# Allowed growth of the server's memory in MB; one large request takes more than that.
GROWTH = 60


class Stranger:
    """Sends `mangling.make`'s requests and judges the responses.

    Args:
        channel: to the server.
        pair: whose version 1 is served.

    Attributes:
        answers: how many requests were met with each status.
        problems: what must not be, each with its request's number.
    """

    def __init__(self, channel: grpc.Channel, pair: lab.Pair) -> None:
        self._channel = channel
        self._pair = pair
        self.answers: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def __call__(self, number: int, timeout: float) -> int:
        """Sends request `number`.

        Raises:
            ServerError: it was refused, as it should.
            WrongAnswer: it was met with something that must not be.
        """
        mangled = mangling.make(self._pair.images, number)
        # Sends and receives raw bytes.
        call = self._channel.unary_unary(mangled.method)
        status = load.OK
        try:
            content = call(mangled.content, timeout=timeout)
            problem = judging.wrong_answer(mangled, content, self._pair)
        except grpc.RpcError as error:
            status, details = error.code().name, error.details() or ""
            problem = judging.wrong_refusal(mangled, status, details)
        self.answers[status] += 1
        if problem:
            self.problems.append(f"request {number} ({mangled.kind}): {problem}")
            raise load.WrongAnswer(self.problems[-1])
        if status != load.OK:
            raise ServerError(status, details)
        return 1


@contextlib.contextmanager
def stranger(server: servers.ServeProcess, pair: lab.Pair) -> Iterator[Stranger]:
    """A stranger with its own connection."""
    with grpc.insecure_channel(server.address) as channel:
        yield Stranger(channel, pair)


def run(
    pair: lab.Pair,
    folder: pathlib.Path,
    requests: int,
    callers: int = 4,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Sends that many, then checks that the server still answers correctly."""
    base = folder / servers.MODEL
    pair.add(base, 1)
    with (
        lab.serving(base, folder / "log", flags) as server,
        lab.asking(server) as client,
        stranger(server, pair) as ask,
    ):
        traffic = pair.traffic(client)
        load.closed_loop(traffic, callers, 10, requests=50)
        # The first half fills caches and the allocator's pools.
        half = requests // 2
        load.closed_loop(ask, callers, 20, requests=half)
        before = lab.memory(server) if server.alive else math.nan
        rest = load.closed_loop(
            lambda number, timeout: ask(half + number, timeout),
            callers,
            20,
            requests=requests - half,
        )
        alive = server.alive
        after = lab.memory(server) if alive else math.nan
        still = load.closed_loop(traffic, callers, 10, requests=50)
    answers = dict(sorted(ask.answers.items()))
    found = lab.Findings(
        f"{half + len(rest.samples)} malformed requests: {answers}, "
        f"{len(ask.problems)} met wrongly; {before:.0f} MB after half of them, "
        f"{after:.0f} MB after all.",
        {
            "requests": half + len(rest.samples),
            "answers": answers,
            "alive": alive,
            "grown": after - before,
        },
        list(ask.problems[:20]),
    )
    found.require(alive, "the server has died")
    found.require(
        not after - before > GROWTH, f"memory has grown by {after - before:.0f} MB"
    )
    found.require(
        not still.wrong and not still.errors,
        f"afterwards {still.wrong} right requests were answered wrongly, and failed: "
        f"{still.errors}",
    )
    return found


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=4)
    given = parser.parse_args()
    with lab.shipped_pair() as (pair, folder):
        found = run(pair, folder, given.requests, given.callers, given.server_flags)
    found.finish()


if __name__ == "__main__":
    main()
