"""The hosts of the lab are as far from each other as their lines say."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import hosts
import lines

HERE = pathlib.Path(__file__).resolve().parent
# A closed port answers after one round trip.
SCRIPT = """
import contextlib, socket, sys, time
sys.path.append(HERE)
import hosts

def milliseconds(address):
    found = []
    for _ in range(5):
        start = time.perf_counter()
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((address, 9), 5)
        found.append(1000 * (time.perf_counter() - start))
    return min(found)

hosts.enter(KIND)
with hosts.Hosts(KIND) as three:
    for far in (True, False):
        three.far(far)
        print(*(milliseconds(three.listening(name)) for name in hosts.NAMES[1:]))
"""


@pytest.fixture(scope="module")
def kind():
    kind, why = hosts.best()
    if kind == hosts.PROXY:
        pytest.skip(f"This machine has no network namespaces to test: {why}.")
    return kind


def test_namespaces_are_as_far_as_their_lines(kind, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("HERE", repr(str(HERE))).replace("KIND", repr(kind)))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    far, near = ([float(x) for x in line.split()] for line in done.stdout.splitlines())
    assert far[0] >= 2e3 * hosts.EDGE.seconds
    assert far[1] >= 2e3 * (hosts.EDGE.seconds + hosts.CLOUD.seconds)
    assert near[1] < far[0]


def test_a_line_is_late_and_keeps_to_its_rate():
    import queue
    import time

    line = lines.Line(seconds=0.02, bytes_per_second=10_000)
    pieces, arrived = queue.Queue(), queue.Queue()
    line.carry(pieces.get, lambda content: arrived.put((time.monotonic(), content)))
    start = time.monotonic()
    for content in (b"a" * 500, b"b" * 500, b""):
        pieces.put(content)
    (first, one), (second, two), (_, end) = (arrived.get(timeout=10) for _ in range(3))
    assert (one, two, end) == (b"a" * 500, b"b" * 500, b"")
    assert first - start >= 0.02 + 0.05
    assert second - start >= 0.02 + 0.1
