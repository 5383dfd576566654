"""Memory of the process that asks; imports nothing large, which would count."""

from __future__ import annotations

import resource
import sys


def resident_now() -> int:
    """Bytes in memory now, where the system tells, else the most so far."""
    return _from_proc("VmRSS")


def resident_most() -> int:
    """Bytes in memory at most so far."""
    return _from_proc("VmHWM")


def _from_proc(field: str) -> int:
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            for line in status:
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Not first: on Linux it starts from what the parent had when it started this one.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in 1024 of them elsewhere.
    return most * (1 if sys.platform == "darwin" else 1024)
