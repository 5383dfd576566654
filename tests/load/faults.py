"""Tests faults around a server: damaged versions, a full disk, slow clients, clocks.

Each fault is brought about for real, beside requests whose answers are checked. Exact
commands:

  python tests/load/faults.py
  python tests/load/faults.py --only=clock
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc
import lab
import numpy as np
import servers
from slow import SlowLine
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
)

from branchy_tf.benchmarking import load
from branchy_tf.serving import EarlyExitClient

_DAY = 24 * 3600
_LIBFAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def _half(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _emptied(version: pathlib.Path) -> None:
    shutil.rmtree(version)
    version.mkdir()


_DAMAGES: dict[str, Callable[[pathlib.Path], object]] = {
    "half a saved_model.pb": lambda version: _half(version / "saved_model.pb"),
    "no variables": lambda version: shutil.rmtree(version / "variables"),
    "an empty folder": _emptied,
}


def damaged(
    pair: lab.Pair, folder: pathlib.Path, flags: Sequence[str] = ()
) -> lab.Findings:
    """Damaged new versions: the old one keeps serving until an intact one takes over."""
    base = folder / servers.MODEL
    pair.add(base, 1)
    # With variables, unlike a frozen export.
    whole = pair.export(folder / "whole", 2, freeze="false")
    with (
        lab.serving(base, folder / "log", flags) as server,
        lab.asking(server) as client,
    ):
        versions: list[int | None] = []

        def expected(version: int | None):
            versions.append(version)
            return pair.expected(version)

        traffic = pair.traffic(client, expected=expected)
        with lab.under_load(traffic, 4, 10, 300) as loaded:
            for i, damage in enumerate(_DAMAGES.values()):
                number = 2 + 2 * i
                shutil.copytree(whole, base / ".coming")
                damage(base / ".coming")
                (base / ".coming").rename(base / str(number))
                servers.until(lambda n=number: _refused(server.address, n), 60)
            told = list(versions)
            number += 2
            pair.add(base, number)
            servers.until(lambda n=number: versions[-1:] == [n], 60)
    outcome = loaded.result()
    found = lab.Findings(
        f"{len(outcome.samples)} requests beside {len(_DAMAGES)} damaged versions: "
        f"{outcome.errors} failed, {outcome.wrong} wrong.",
        {"requests": len(outcome.samples)},
    )
    found.require_all_right(outcome)
    found.require(set(told) == {1}, f"versions {set(told)} answered; expected 1 alone")
    return found


def _refused(address: str, number: int) -> bool:
    """Whether the server reports why a version cannot be loaded."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = servers.MODEL
    with grpc.insecure_channel(address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        answer = stub.GetModelStatus(request, timeout=10)
    return any(
        status.version == number
        and status.state == get_model_status_pb2.ModelVersionStatus.END
        and status.status.error_message
        for status in answer.model_version_status
    )


def full_disk(
    folder: pathlib.Path, kilobytes: Sequence[int] = (50, 150, 300)
) -> lab.Findings:
    """Exports to disks that are too small: one clear line, and nothing half-written.

    Args:
        folder: to work in.
        kilobytes: sizes of the disks; the largest file of the export has some 390.
    """
    found = lab.Findings("", {})
    said = []
    for size in kilobytes:
        with _small_disk(folder / f"{size}", size) as (disk, how, limit):
            done = subprocess.run(
                [
                    sys.executable, "-m", "branchy_tf.export", "--model=branchy_lenet",
                    "--weights=mnist", f"--export_dir={disk}",
                ],
                capture_output=True, text=True, timeout=300, preexec_fn=limit,
            )  # fmt: skip
            left = sorted(
                str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file()
            )
        lines = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        said += lines
        what = f"{how} of {size} KB"
        found.require(done.returncode == 1, f"{what}: status {done.returncode}")
        found.require(
            len(lines) == 1 and "Traceback" not in done.stderr,
            f"{what}: not one line but {done.stderr!r}",
        )
        found.require(not left, f"{what}: left behind: {left}")
    found.line = f"Exports to {len(kilobytes)} disks too small ({how}): {said}"
    return found


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path, kilobytes: int) -> Iterator[tuple]:
    """A tmpfs if this user may mount one, else a limit on file sizes."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield folder, "tmpfs", None
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = 1024 * kilobytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    yield folder, "a limit on file size", limit


def slow_clients(
    pair: lab.Pair,
    folder: pathlib.Path,
    clients: int = 32,
    requests: int = 300,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Clients that send and read slowly, more than the server has threads."""
    base = folder / servers.MODEL
    pair.add(base, 1)
    images = np.resize(pair.images, (2000, *pair.images.shape[1:]))
    found = lab.Findings("", {})
    lines = []
    with (
        lab.serving(base, folder / "log", flags) as server,
        lab.asking(server) as client,
    ):
        traffic = pair.traffic(client)
        alone = load.closed_loop(traffic, 4, 10, requests=requests)
        for way in ("requests", "answers"):
            with (
                SlowLine(server.address, way, 2000) as line,
                futures.ThreadPoolExecutor(clients) as pool,
            ):
                slow = [
                    pool.submit(_ask_once, line.address, images) for _ in range(clients)
                ]
                beside = load.closed_loop(traffic, 4, 10, requests=requests)
                still = sum(not one.done() for one in slow)
                line.close()
            usual = alone.summary()["p99_ms"]
            p99 = beside.summary()["p99_ms"] or np.inf
            lines.append(
                f"slow {way}: {still} of {clients} still at it while "
                f"{requests} requests took p99 {p99:.0f} ms ({usual:.0f} alone)"
            )
            found.require(
                not beside.errors and not beside.wrong,
                f"beside slow {way}: {beside.errors} failed, {beside.wrong} wrong",
            )
            found.require(still == clients, f"slow {way}: only {still} were still at it")
            # A request behind a slow one would wait for its whole deadline of 10 s.
            found.require(p99 < 5000, f"beside slow {way}: p99 is {p99:.0f} ms")
    found.line = "; ".join(lines) + "."
    return found


def _ask_once(address: str, images: np.ndarray) -> object:
    """Accepts any outcome: the connection may be cut."""
    with EarlyExitClient(address, servers.MODEL, timeout=60) as client:
        try:
            return client.predict(images)
        except RuntimeError as error:
            return error


def clock(
    pair: lab.Pair, folder: pathlib.Path, flags: Sequence[str] = ()
) -> lab.Findings:
    """The server's clock jumps back and forth by days during requests and polls."""
    if not _LIBFAKETIME.exists():
        return lab.Findings("No libfaketime here (apt install faketime): left out.", {})
    base = folder / servers.MODEL
    pair.add(base, 1)
    told = folder / "clock"
    pretended = {
        "LD_PRELOAD": str(_LIBFAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(told),
        "FAKETIME_NO_CACHE": "1",
        # What only goes on is not a clock that people set.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    versions: list[int | None] = []

    def expected(version: int | None):
        versions.append(version)
        return pair.expected(version)

    told.write_text(f"{400 * _DAY:+d}")
    with _environment(pretended):
        script = "import time; print(time.time())"
        seen = subprocess.check_output([sys.executable, "-c", script])
        assert float(seen) - time.time() > 399 * _DAY, "the clock cannot be pretended"
        server = servers.ServeProcess(base, folder / "log", flags, forked=False)
    try:
        with lab.asking(server) as client:
            traffic = pair.traffic(client, expected=expected)
            with lab.under_load(traffic, 4, 10, 300) as loaded:
                for i, days in enumerate((1, -1, 400, -400, 0)):
                    told.write_text(f"{days * _DAY:+d}")
                    pair.add(base, 2 + i)
                    begin = time.monotonic()
                    servers.until(lambda n=2 + i: versions[-1:] == [n], 60)
                    waited = time.monotonic() - begin
    finally:
        if server.alive:
            server.stop()
    outcome = loaded.result()
    found = lab.Findings(
        f"{len(outcome.samples)} requests beside 5 jumps of the clock: {outcome.errors} "
        f"failed, {outcome.wrong} wrong; the last new version came after {waited:.1f} s.",
        {"requests": len(outcome.samples)},
    )
    found.require_all_right(outcome)
    return found


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables for processes started inside."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--only", choices=["damaged", "full_disk", "slow", "clock"])
    given = parser.parse_args()
    with lab.shipped_pair() as (pair, folder):
        runs: dict[str, Callable[[pathlib.Path], Any]] = {
            "damaged": lambda place: damaged(pair, place, given.server_flags),
            "full_disk": full_disk,
            "slow": lambda place: slow_clients(pair, place, flags=given.server_flags),
            "clock": lambda place: clock(pair, place, given.server_flags),
        }
        every = lab.Findings("", {})
        for name, run in runs.items():
            if given.only in (None, name):
                (folder / name).mkdir()
                found = run(folder / name)
                every.line += f"{name}: {found.line}\n"
                every.problems += [f"{name}: {text}" for text in found.problems]
    every.finish()


if __name__ == "__main__":
    main()
