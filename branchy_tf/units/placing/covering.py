"""Cuts fractions of units off the relaxation: memory holds whole units only.

Where two units of 30 MB share 40 MB, the relaxation holds one and a third. The sets of
units that fit into a site span its knapsack polytope; a point outside is cut off by an
inequality that holds for all these sets. The one that the point violates most solves a
linear programme with a row for each set, found as they are needed (E. A. Boyd, Generating
Fenchel cutting planes for knapsack polyhedra, SIAM Journal on Optimization 3, 1993).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import optimize

# A smaller share of a unit counts as none; a cut must be violated by that much.
_NONE = 1e-6
_VIOLATED = 1e-3
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Cover:
    """An inequality for the units at a site: their weighted number is at most 1.

    Attributes:
        site: index of the site.
        weights: by name of the unit.
    """

    site: int
    weights: Mapping[str, float]


def separate(
    site: int, held: Mapping[str, float], sizes: Mapping[str, float], most: float
) -> Cover | None:
    """The cover that cuts off fractions of units, or None if sets of units span them.

    Args:
        site: index of the site.
        held: the share of each unit that is at the site, by name.
        sizes: of the units, by name, none larger than `most`.
        most: what the site holds.

    Example:

    ```python
    separate(0, {"a": 1.0, "b": 0.5}, {"a": 30.0, "b": 20.0}, 40.0).weights
    # {"a": 1.0, "b": 1.0}: one of them at most
    ```
    """
    names = [name for name, share in held.items() if share > _NONE]
    size = np.array([sizes[name] for name in names])
    most *= 1 + _ROUNDING
    if size.sum() <= most:
        return None
    shares = np.minimum([held[name] for name in names], 1.0)
    # Each unit fits alone, which the bounds of the weights say.
    fitting: list[np.ndarray] = [_fullest(shares, size, most)]
    while True:
        rows = np.array(fitting)
        weights = optimize.linprog(
            -shares, rows, np.ones(len(rows)), bounds=(0, 1), method="highs"
        ).x
        if weights @ shares <= 1 + _VIOLATED:
            return None
        found = _fullest(weights, size, most)
        if weights @ found <= 1 + _ROUNDING:
            weights = weights / max(1.0, weights @ found)
            return Cover(site, dict(zip(names, weights.tolist(), strict=True)))
        fitting.append(found)


def _fullest(values: np.ndarray, sizes: np.ndarray, most: float) -> np.ndarray:
    """The set of the largest total value that fits, as zeros and ones."""
    found = optimize.milp(
        -values,
        constraints=optimize.LinearConstraint(sizes / most, -np.inf, 1.0),
        integrality=np.ones(len(values)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return np.round(found.x)
