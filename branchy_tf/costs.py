"""The cost of a model by stage and by exit: multiply-adds and parameters."""

from __future__ import annotations

import itertools
import math

import keras

from branchy_tf import exits, stages
from branchy_tf.multiply_adds import macs

__all__ = ["by_stage", "cumulative_macs", "full_macs", "macs"]


def by_stage(model: keras.Model) -> list[dict[str, int | str]]:
    """The multiply-adds for one example and the parameters that each stage adds.

    Returns:
        `[{"exit": "exit_1", "macs": ..., "parameters": ...}, ...]`. The parameters of
        a layer that several stages share count once, at the first; its multiply-adds
        count each time.

    Raises:
        BranchyError: what `stages.split` and `macs` raise.
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
    """The multiply-adds for an example that leaves at each exit.

    Returns:
        N increasing whole numbers. Each includes all branches up to that exit.

    Raises:
        BranchyError: what `stages.split` and `macs` raise.

    Example:

    ```python
    cumulative_macs(branchy_lenet())     # [220150, 1247720]
    ```
    """
    return list(itertools.accumulate(macs(stage.model) for stage in stages.split(model)))


def full_macs(model: keras.Model) -> int:
    """The multiply-adds of the network without its branches, for one example."""
    return macs(exits.baseline(model))
