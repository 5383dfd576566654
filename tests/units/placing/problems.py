"""Random placement problems, and their best placement by trying all.

python tests/units/placing/problems.py --problems=500
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time

import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.units import placing
from branchy_tf.units.placing import queueing
from branchy_tf.units.placing.topology import (
    CascadeUnits,
    Demand,
    Link,
    Point,
    Site,
    Topology,
    UnitCosts,
)
from branchy_tf.units.placing.ways import Network


def random_topology(seed: int) -> Topology:
    """2 to 5 units on 2 to 4 sites, with limits that bind now and then."""
    random = np.random.default_rng(seed)
    number, places = int(random.integers(2, 6)), int(random.integers(2, 5))
    names = [f"unit_{i + 1}" for i in range(number)]
    units = {
        name: UnitCosts(
            name,
            (float(random.uniform(1e6, 3e7)),),
            float(random.uniform(1, 10)),
            float(random.uniform(500, 60_000)),
        )
        for name in names
    }
    sites = {
        f"site_{i}": Site(
            f"site_{i}",
            cores=int(random.integers(1, 5)),
            macs_per_s=float(10 ** random.uniform(8.7, 10)),
            memory_mb=float(random.choice([random.uniform(8, 30), math.inf])),
            watts=float(random.choice([random.uniform(0.5, 6), math.inf])),
            watts_per_core=float(random.uniform(1, 12)),
        )
        for i in range(places)
    }
    links = [
        Link(a, b, float(random.uniform(0.2, 20)), float(random.uniform(5, 100)), 0.5)
        for a, b in itertools.permutations(sites, 2)
        if random.random() < 0.8 or abs(int(a[-1]) - int(b[-1])) == 1
    ]
    # Two demands multiply the number of placements, so only where there are few.
    demands = 2 if places**number <= 64 else 1
    rates = random.dirichlet(np.ones(number))
    others = random.dirichlet(np.ones(number))
    points = (Point(tuple(rates)), Point(tuple(others)))[: int(random.integers(1, 3))]
    return Topology(
        units,
        {"c": CascadeUnits("c", tuple(names), points)},
        sites,
        tuple(links),
        tuple(
            Demand("c", f"site_{i}", float(random.uniform(1, 60))) for i in range(demands)
        ),
        relay=str(random.choice(["gateway", "direct"])),
        watts=float(random.choice([random.uniform(2, 12), math.inf])),
        service_cv=float(random.choice([0, 1])),
    )


def by_trying_all(topology: Topology) -> float:
    """The least objective in ms per row of all placements; infinite if none fits.

    Shares no code with the programme except for a way's latency and loads.
    """
    network = Network(topology)
    choices = [list(network.every(j)) for j in range(len(topology.demands))]
    units = topology.cascades["c"].units
    best = math.inf
    for ways in itertools.product(*choices):
        loads: dict[int, float] = {}
        held: dict[int, set[str]] = {}
        value = 0.0
        for way in ways:
            value += way.seconds * topology.demands[way.demand].per_second
            for station, load in way.loads.items():
                loads[station] = loads.get(station, 0.0) + load
            for name, site in zip(units, way.sites, strict=True):
                held.setdefault(site, set()).add(name)
        if value >= best:
            continue
        watts = dict.fromkeys(range(len(network.sites)), 0.0)
        for station, load in loads.items():
            watts[network.site_of(station)] += load * network.watts(station)
        fits = (
            all(load <= network.largest(s) * (1 + 1e-9) for s, load in loads.items())
            and all(w <= network.sites[i].watts * (1 + 1e-9) for i, w in watts.items())
            and sum(watts.values()) <= topology.watts * (1 + 1e-9)
            and all(
                sum(topology.units[n].memory_mb for n in names)
                <= network.sites[i].memory_mb * (1 + 1e-9)
                for i, names in held.items()
            )
        )
        if fits:
            for station, load in loads.items():
                value += queueing.bounded_waiting(
                    network.servers(station), network.cv(station),
                    network.largest(station), load,
                )  # fmt: skip
            best = min(best, value)
    return 1000 * best / sum(demand.per_second for demand in topology.demands)


def compare(seed: int) -> tuple[float, float, float]:
    """The programme's objective and the best one, infinite if none, and seconds."""
    topology = random_topology(seed)
    start = time.perf_counter()
    try:
        found = placing.place(None, topology).objective_ms
    except BranchyError as error:
        if "No placement meets all limits" not in str(error):
            raise
        found = math.inf
    seconds = time.perf_counter() - start
    return found, by_trying_all(topology), seconds


def agree(found: float, best: float) -> bool:
    """Whether they are the same, up to the solver's tolerances."""
    return found == best or abs(found - best) <= 1e-5 * max(1.0, best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=500)
    number = parser.parse_args().problems
    wrong, impossible, times = [], 0, []
    for seed in range(number):
        found, best, seconds = compare(seed)
        times.append(seconds)
        impossible += math.isinf(best)
        if not agree(found, best):
            wrong.append((seed, found, best))
            print(f"problem {seed}: {found} ms, by trying all {best} ms")
    print(
        f"{number} problems, {impossible} without a placement: {number - len(wrong)} "
        f"agree with trying all; median {1000 * statistics.median(times):.0f} ms"
    )


if __name__ == "__main__":
    main()
