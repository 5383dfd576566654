"""The machine: its processor, the installed versions, memory of this process.

Imports nothing large, which would count towards the memory it measures.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import resource
import sys
from typing import Any

_PACKAGES = (
    "tensorflow",
    "keras",
    "jax",
    "numpy",
    "onnxruntime",
    "torch",
    "ai-edge-litert",
)


def machine() -> dict[str, Any]:
    """The processor, its cores, and the versions of Python and the libraries."""
    found = {
        "processor": _proc_field("cpuinfo", "model name")
        or platform.processor()
        or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional peer
    return found


def resident_now() -> int:
    """Bytes in memory now; the most so far where the system does not say."""
    return _resident("VmRSS")


def resident_most() -> int:
    """The most bytes in memory so far."""
    return _resident("VmHWM")


def _resident(field: str) -> int:
    found = _proc_field("self/status", field)
    if found is not None:
        return int(found.split()[0]) * 1024
    # Second choice: on Linux it starts from the parent's size at the fork.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return most * (1 if sys.platform == "darwin" else 1024)


def _proc_field(name: str, field: str) -> str | None:
    """The first value of a field in a file of /proc; None without either."""
    try:
        for line in pathlib.Path("/proc", name).read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return None
