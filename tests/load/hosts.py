"""Three hosts in a row on this machine: device, edge and cloud.

Each is a network namespace of its own, joined by lines with latency and bandwidth:
`netem` where the kernel has that queueing discipline, else `tun`, tunnel devices whose
packets a process delays. Without the right to make namespaces all run in one, and
`proxy` delays the bytes of each connection.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import lines

NETEM, TUN, PROXY = "netem", "tun", "proxy"
KINDS = (NETEM, TUN, PROXY)
NAMES = ("device", "edge", "cloud")
MBIT = 1e6 / 8
# Set in the process that is the device.
_INSIDE = "BRANCHY_LAB_INSIDE"
# What netem holds while it is on the way.
_PACKETS = 10_000


class Wire(NamedTuple):
    """What a line is like, each way.

    Attributes:
        seconds: that a byte takes, one way.
        bytes_per_second: its rate.
    """

    seconds: float
    bytes_per_second: float


# From the device to the edge, and from there to the cloud.
EDGE = Wire(0.005, 50 * MBIT)
CLOUD = Wire(0.040, 20 * MBIT)


def best() -> tuple[str, str]:
    """The most faithful kind that this machine allows, and why no better one."""
    if not _works([*_unshare(), "true"]):
        return PROXY, "it does not allow network namespaces"
    if _works([*_unshare(), "tc", "qdisc", "add", "dev", "lo", "root", "netem"]):
        return NETEM, ""
    if _works([*_unshare(), "ip", "tuntap", "add", "dev", "probe", "mode", "tun"]):
        return TUN, "its kernel has no netem"
    return PROXY, "it has neither netem nor /dev/net/tun"


def enter(kind: str) -> None:
    """Starts this program again in a namespace of its own, which is the device."""
    if kind != PROXY and not os.environ.get(_INSIDE):
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", [*_unshare(), sys.executable, *sys.argv])


class Hosts(contextlib.ExitStack):
    """The hosts. This process is the device: call `enter` before.

    Args:
        kind: of `KINDS`.
        wires: of the two lines.
    """

    def __init__(self, kind: str, wires: Sequence[Wire] = (EDGE, CLOUD)) -> None:
        super().__init__()
        self.kind = kind
        self._wires = wires
        self._far = True
        self._proxies: list[tuple[int, lines.Proxy]] = []
        self._carriers: list[subprocess.Popen] = []
        self._processes = [os.getpid()]

    def __enter__(self) -> Hosts:
        if self.kind == PROXY:
            return self
        try:
            for _ in NAMES[1:]:
                holder = self._start([*_unshare(), "sleep", "infinity"])
                self._processes.append(holder.pid)
                _until_unshared(holder.pid)
            for i in range(3):
                self._do(i, "ip", "link", "set", "lo", "up")
            for i in range(2):
                self._join(i)
            self._do(1, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            self._do(0, "ip", "route", "add", "10.77.1.0/24", "via", "10.77.0.2")
            self._do(2, "ip", "route", "add", "10.77.0.0/24", "via", "10.77.1.1")
            self.far(True)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, command: Sequence[str], **options) -> subprocess.Popen:
        process = subprocess.Popen(command, **options)
        self.callback(process.wait)
        self.callback(process.kill)
        return process

    def _do(self, host: int, *command: str) -> None:
        subprocess.run([*self.at(NAMES[host]), *command], check=True)

    def _join(self, i: int) -> None:
        """Connects a host with the next one."""
        ends = [f"line{i}", str(self._processes[i])]
        others = [f"enil{i}", str(self._processes[i + 1])]
        if self.kind == TUN:
            carrier = self._start(
                [*_unshare(), sys.executable, lines.__file__, *ends, *others],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert carrier.stdout is not None
            assert carrier.stdout.readline() == "carrying\n"
            self._carriers.append(carrier)
        else:
            pair = [ends[0], "netns", ends[1], "type", "veth"]
            pair += ["peer", "name", others[0], "netns", others[1]]
            subprocess.run(["ip", "link", "add", *pair], check=True)
        for host, name in ((i, ends[0]), (i + 1, others[0])):
            self._do(host, "ip", "addr", "add", _address(host, i) + "/24", "dev", name)
            self._do(host, "ip", "link", "set", name, "up")

    def at(self, host: str) -> list[str]:
        """What begins a command line that runs at a host."""
        if self.kind == PROXY or host == NAMES[0]:
            return []
        process = self._processes[NAMES.index(host)]
        return ["nsenter", f"--target={process}", "--net", "--"]

    def listening(self, host: str) -> str:
        """The address that a server at a host listens on."""
        i = NAMES.index(host)
        return "127.0.0.1" if self.kind == PROXY else _address(i, i - 1)

    def reach(self, host: str, server: str) -> str:
        """What the device calls to reach a server at a host.

        Args:
            host: where it runs.
            server: what it listens on, host:port.
        """
        if self.kind == PROXY:
            for i in reversed(range(NAMES.index(host))):
                proxy = self.enter_context(lines.Proxy(server, *self._wire(i)))
                self._proxies.append((i, proxy))
                server = proxy.address
        return server

    def far(self, far: bool) -> None:
        """Makes the lines as slow as they are, or as fast as this machine is."""
        self._far = far
        for i, proxy in self._proxies:
            proxy.seconds, proxy.bytes_per_second = self._wire(i)
        for i in range(2):
            seconds, rate = self._wire(i)
            if self.kind == TUN:
                carrier = self._carriers[i]
                assert carrier.stdin is not None
                assert carrier.stdout is not None
                carrier.stdin.write(f"{seconds} {rate}\n")
                carrier.stdin.flush()
                assert carrier.stdout.readline() == "changed\n"
            elif self.kind == NETEM:
                for host, name in ((i, f"line{i}"), (i + 1, f"enil{i}")):
                    what = ["delay", f"{1e6 * seconds:.0f}us", "limit", str(_PACKETS)]
                    if far:
                        what += ["rate", f"{8 * rate:.0f}bit"]
                    place = ["dev", name, "root", "netem"]
                    self._do(host, "tc", "qdisc", "replace", *place, *what)

    def _wire(self, i: int) -> Wire:
        return self._wires[i] if self._far else Wire(0.0, float("inf"))


def _address(host: int, line: int) -> str:
    return f"10.77.{line}.{1 + host - line}"


def _unshare() -> list[str]:
    """What begins a command line that runs in a new network namespace."""
    needs = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *needs, "--net", "--"]


def _works(command: Sequence[str]) -> bool:
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip", "tc")):
        return False
    return not subprocess.run(command, capture_output=True, check=False).returncode


def _until_unshared(process: int) -> None:
    """Waits until a process is in a namespace of its own."""
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{process}/ns/net") == own:
        time.sleep(0.005)
