"""Latency and throughput of a server under load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, panels, save

_PERCENTILES = (("p50", "o", GREEN), ("p95", "s", BLUE), ("p99", "^", ORANGE))


def load(path: files.Path, results: Sequence[dict[str, Any]]) -> None:
    """Plots latency and throughput over callers and over arrivals.

    Args:
        path: the .png file to write.
        results: the results in load.json, of closed loops, open loops or both.
    """
    kinds = [
        ("closed", "callers", "callers, each with one request at a time"),
        ("open", "rate", "arrivals (requests/s)"),
    ]
    kinds = [kind for kind in kinds if any(row["loop"] == kind[0] for row in results)]
    figure, axes = panels(2 * len(kinds))
    for i, (loop, key, label) in enumerate(kinds):
        latency, throughput = axes[2 * i : 2 * i + 2]
        rows = [row for row in results if row["loop"] == loop]
        at = _column(rows, key)
        for name, marker, color in _PERCENTILES:
            values = _column(rows, f"{name}_ms")
            latency.plot(at, values, marker=marker, color=color, label=name)
        latency.set(ylabel="latency (ms)", yscale="log")
        latency.legend(ncols=3, fontsize=9)
        asked = _column(rows, "requests") / _column(rows, "seconds")
        answered = _column(rows, "requests_per_second")
        throughput.plot(at, answered, marker="o", color=BLUE, label="answered")
        if (answered < asked).any():
            throughput.plot(
                at, asked, "--", marker="x", color=BLACK, label="sent, with rejected"
            )
            throughput.legend(fontsize=9)
        throughput.set(ylabel="requests/s", ylim=(0, None), xlabel=label)
        if loop == "closed":
            for panel in (latency, throughput):
                panel.set_xscale("log", base=2)
                panel.set_xticks(at, [f"{n:g}" for n in at])
    save(figure, path)


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    # A latency is None, hence NaN, if no request was answered.
    return np.array([row[key] for row in rows], float)
