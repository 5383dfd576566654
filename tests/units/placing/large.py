"""A placement of 1,000 sites: 20 cascades of 3 units, each with demand at 45 cameras.

python tests/units/placing/large.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from absl import logging

from branchy_tf.units import placing
from branchy_tf.units.placing.topology import (
    CascadeUnits,
    Demand,
    Link,
    Point,
    Site,
    Topology,
    UnitCosts,
)


def topology(
    clouds: int, edges: int, cameras: int, cascades: int = 20, memory: float = 1
) -> Topology:
    """Cameras that serve only themselves, edges and clouds for all, limits that bind.

    Args:
        clouds: how many, each connected to all others.
        edges: how many, each connected to one cloud.
        cameras: how many, each connected to one edge, with the demand of one cascade.
        cascades: how many, of three units each.
        memory: a factor on that of edges.
    """
    random = np.random.default_rng(1)
    units, chains = {}, {}
    for c in range(cascades):
        names = tuple(f"{part}_{c}" for part in ("front", "middle", "tail"))
        scale = random.uniform(0.5, 2)
        costs = zip(
            names, (4e6, 2e7, 1e8), (2, 6, 25), (3072, 16_384, 8_192), strict=True
        )
        for name, macs, held, into in costs:
            units[name] = UnitCosts(name, (macs * scale,), held * scale, into * scale)
        rates = random.dirichlet([6, 3, 2])
        chains[f"cascade_{c}"] = CascadeUnits(
            f"cascade_{c}", names, (Point(tuple(rates)),)
        )
    sites: dict[str, Site] = {}
    links: list[Link] = []

    def connect(a: str, b: str, latency: float, speed: float, joules: float) -> None:
        links.append(Link(a, b, latency, speed, joules))
        links.append(Link(b, a, latency, speed, joules))

    for i in range(clouds):
        name = f"cloud_{i}"
        sites[name] = Site(name, 32, 2e10, watts_per_core=15)
        for j in range(i):
            connect(name, f"cloud_{j}", 20, 1000, 0.01)
    for i in range(edges):
        name = f"edge_{i}"
        sites[name] = Site(
            name,
            4,
            6e9,
            memory_mb=memory * random.uniform(40, 120),
            watts=25,
            watts_per_core=8,
        )
        connect(name, f"cloud_{i % clouds}", random.uniform(5, 25), 100, 0.05)
    demands = []
    for i in range(cameras):
        name = f"camera_{i}"
        sites[name] = Site(
            name, 1, 5e8, memory_mb=random.uniform(2, 20), watts=random.uniform(0.3, 2),
            watts_per_core=2.5, shared=False,
        )  # fmt: skip
        speed = random.uniform(5, 50)
        connect(name, f"edge_{i % edges}", random.uniform(1, 5), speed, 0.5)
        cascade = f"cascade_{i % cascades}"
        demands.append(Demand(cascade, name, random.uniform(2, 15)))
    return Topology(units, chains, sites, tuple(links), tuple(demands))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clouds", type=int, default=10)
    parser.add_argument("--edges", type=int, default=90)
    parser.add_argument("--cameras", type=int, default=900)
    # From memory that binds at many edges to memory that binds nowhere.
    parser.add_argument("--memory", type=float, nargs="+", default=[1, 1.25, 1.5, 2])
    parser.add_argument("--seconds", type=float, default=40)
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    print(
        "memory  ms per row  above the bound  binding limits  seconds  processor seconds"
    )
    for memory in given.memory:
        problem = topology(given.clouds, given.edges, given.cameras, memory=memory)
        start, busy = time.perf_counter(), time.process_time()
        found = placing.place(None, problem, seconds=given.seconds)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        binding = sum(gain.binding for gain in found.gains)
        print(
            f"{memory:6g}  {found.latency_ms:10.3f}  {found.gap:15.3%}  {binding:14d}  "
            f"{seconds:7.1f}  {busy:17.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
