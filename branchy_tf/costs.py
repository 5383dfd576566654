"""What a model costs: multiply-adds and parameters, stage by stage and exit by exit."""

from __future__ import annotations

import math

import keras
import numpy as np

from branchy_tf import exits, stages
from branchy_tf.graphs import macs

__all__ = ["by_stage", "cumulative_macs", "full_macs", "macs"]


def by_stage(model: keras.Model) -> list[dict[str, int | str]]:
    """What each stage adds: multiply-adds of an example, and parameters.

    Returns:
        `[{"exit": "exit_1", "macs": ..., "parameters": ...}, ...]`. A layer that
        several stages share counts at the first; macs count each time.
    """
    rows: list[dict[str, int | str]] = []
    seen: set[int] = set()
    for stage in stages.split(model):
        own = {id(w): math.prod(w.shape) for w in stage.model.weights}
        parameters = sum(size for key, size in own.items() if key not in seen)
        seen |= own.keys()
        rows.append(
            {"exit": stage.name, "macs": macs(stage.model), "parameters": parameters}
        )
    return rows


def cumulative_macs(model: keras.Model) -> list[int]:
    """Multiply-adds spent on an example that leaves at each exit.

    Returns:
        N whole numbers, increasing: entry n is what exit n costs, all branches
        on the way to it included.
    """
    by_stage = [macs(stage.model) for stage in stages.split(model)]
    return [int(total) for total in np.cumsum(by_stage)]


def full_macs(model: keras.Model) -> int:
    """Multiply-adds of the network without its branches."""
    return macs(exits.baseline(model))
