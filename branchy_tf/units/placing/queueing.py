"""Waiting in front of cores and links, in closed form and as straight lines.

A site with c cores is a queue with c servers, a link one with a single server. With
offered load a (arrivals per second times mean service in seconds, in erlangs), the mean
number that wait is

    Lq(a) = C(c, a) * a / (c - a) * (1 + cv**2) / 2

C is Erlang's probability to wait, cv the coefficient of variation of the service time.
It is exact for cv = 1 (M/M/c), and for one server whatever cv is (Pollaczek and
Khinchine); in between it is Allen and Cunneen's approximation (A. O. Allen, Probability,
Statistics, and Queueing Theory, 2nd ed. 1990, section 5.3). Lq is convex in a (W.
Grassmann, The convexity of the mean queue size of the M/M/c queue with respect to the
traffic intensity, J. Appl. Prob. 20, 1983), so the largest of some tangents bounds it
from below and fits into a linear programme.
"""

from __future__ import annotations

import functools

import numpy as np

# Loads of the tangents, as shares of the largest allowed load.
_TOUCHES = (0.03, 0.1, 0.2, 0.27, 0.35, 0.42, 0.5, 0.62, 0.73, 0.82, 0.9, 0.96, 1.0)


def waiting_probability(servers: int, load: float) -> float:
    """Erlang's C formula.

    Args:
        servers: how many, at least 1.
        load: offered, in erlangs, below `servers`.

    Example:

    ```python
    waiting_probability(1, 0.5)    # 0.5
    ```
    """
    blocked = 1.0  # Erlang's B, by its recursion, which never overflows
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def waiting(servers: int, load: float, cv: float) -> float:
    """The mean number that wait, Lq; infinite from `load` = `servers` on.

    Args:
        servers: how many, at least 1.
        load: offered, in erlangs.
        cv: coefficient of variation of the service time: 0 constant, 1 exponential.
    """
    if load <= 0:
        return 0.0
    if load >= servers:
        return float("inf")
    chance = waiting_probability(servers, load)
    return chance * load / (servers - load) * (1 + cv**2) / 2


@functools.lru_cache(maxsize=1024)
def tangents(servers: int, cv: float, largest: float) -> tuple[tuple[float, float], ...]:
    """Tangents of `waiting`, as (slope, intercept).

    Args:
        servers: how many, at least 1.
        cv: coefficient of variation of the service time.
        largest: the largest allowed load, below `servers`.
    """
    found = []
    step = 1e-5 * servers
    for share in _TOUCHES:
        load = min(share * largest, servers - 2 * step)
        before, after = (waiting(servers, load + x, cv) for x in (-step, step))
        slope = (after - before) / (2 * step)
        found.append((slope, waiting(servers, load, cv) - slope * load))
    return tuple(found)


def bounded_waiting(servers: int, cv: float, largest: float, load: float) -> float:
    """The largest of the tangents at a load: what the programme takes for Lq."""
    lines = tangents(servers, cv, largest)
    return max(0.0, *(float(np.dot(line, (load, 1.0))) for line in lines))
