"""Solves a placement: all ways at once if they are few, else by column generation.

With many ways, a restricted programme holds only some. Its relaxation has a price for
every erlang, watt and megabyte; at these prices the cheapest way of each demand is a
shortest path over its units (Dantzig and Wolfe, Decomposition principle for linear
programs, Operations Research 8, 1960). Ways that are cheaper than those at hand join,
until there are none. What the cheapest ways would save bounds the relaxation over all
ways (Lasdon, Optimization theory for large systems, 1970), and so every placement. Covers
bring that bound closer to the placements, which hold no fractions of a unit.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from absl import logging

from branchy_tf.errors import BranchyError
from branchy_tf.units.placing import covering
from branchy_tf.units.placing.covering import Cover
from branchy_tf.units.placing.programme import Limit, Prices, Programme, Solution
from branchy_tf.units.placing.ways import Network, Way

# Up to that many, all ways go into the programme.
_FEW = 4000
_ROUNDS = 200
# Factors on the prices of loads and of units at sites, to find ways that are nearly as
# cheap, and how much dearer than the bound such a way may be, as a share of the bound.
_VARIED = ((1, 0), (1, 0.5), (1, 3), (0.5, 1), (2, 1), (0, 0))
_NEAR = 0.03
_MISSING = 1e-6
_EXCESS = 1e-7


@dataclasses.dataclass(frozen=True)
class Solved:
    """The best placement found.

    Attributes:
        ways: one for each demand.
        value: of the objective: rows in the system.
        bound: no placement has a lower value.
        optimal: whether it is proved that no placement is better.
        programme: the last one.
        prices: of its relaxation.
        relaxed: load of each station of the network in the relaxation.
    """

    ways: list[Way]
    value: float
    bound: float
    optimal: bool
    programme: Programme
    prices: Prices
    relaxed: np.ndarray


def solve(network: Network, seconds: float, gap: float) -> Solved:
    """Finds the placement of least latency.

    Args:
        network: of the topology.
        seconds: for the search among whole placements.
        gap: the relative distance to the bound that is good enough.

    Raises:
        BranchyError: no placement meets the limits, or none was found in time.
    """
    every = sum(network.count(j) for j in range(len(network.demands))) <= _FEW
    if every:
        ways = [way for j in range(len(network.demands)) for way in network.every(j)]
        programme = cut = Programme(network, ways)
        relaxed, prices = programme.relax(0.0)
        if math.isinf(relaxed.value):
            raise _unmet(programme, seconds)
        bound = relaxed.value
    else:
        cut, prices, bound = _generate(network, seconds, gap)
        cut = _more(cut, prices, bound)
        # The price of memory is that of the limit: covers would take a part of it.
        programme = Programme(network, cut.ways)
        relaxed, prices = programme.relax(0.0)
        if math.isinf(relaxed.value):
            raise _unmet(programme, seconds)
    chosen = cut.choose(seconds, 1e-9 if every else gap / 4)
    if math.isinf(chosen.value):
        if chosen.optimal:
            raise _unmet(programme, seconds)
        raise BranchyError(
            f"No placement was found in {seconds:g} seconds. Allow more time."
        )
    best: dict[int, int] = {}
    for p in np.argsort(-chosen.ways, kind="stable"):
        best.setdefault(programme.ways[p].demand, int(p))
    ways = [programme.ways[best[j]] for j in range(len(network.demands))]
    bound = min(bound, chosen.value)  # above it only by rounding
    tight = chosen.value - bound <= 1e-9 * bound
    loads = np.zeros(network.stations)
    for share, way in zip(relaxed.ways, programme.ways, strict=True):
        for station, load in way.loads.items():
            loads[station] += share * load
    optimal = chosen.optimal and (every or tight)
    return Solved(ways, chosen.value, bound, optimal, programme, prices, loads)


def _generate(
    network: Network, seconds: float, gap: float
) -> tuple[Programme, Prices, float]:
    """The programme over the ways that the relaxation over all ways may want."""
    free = np.zeros(network.stations)
    ways: dict[Way, None] = {}
    for way, _ in _cheapest(network, Prices(free, free, {}, free)):
        ways.setdefault(way)
    total = sum(network.demands[way.demand].per_second * way.seconds for way in ways)
    penalty = 100 * total / len(network.demands) + 1e-6
    covers: list[Cover] = []
    bound = before = 0.0
    for round_ in range(_ROUNDS):
        programme = Programme(network, list(ways), covers)
        relaxed, prices = programme.relax(penalty)
        found = list(_cheapest(network, prices))
        savings = np.zeros(len(network.demands))
        for way, price in found:
            reduced = price - prices.demands[way.demand]
            savings[way.demand] = min(savings[way.demand], reduced)
        bound = max(bound, relaxed.value + savings.sum())
        fresh = [
            way
            for way, price in found
            if way not in ways
            and price - prices.demands[way.demand] < -1e-9 * max(1.0, abs(price))
        ]
        logging.info(
            "Round %d: %d ways, %d covers, relaxation %.6g, bound %.6g.",
            round_ + 1, len(ways), len(covers), relaxed.value, bound,
        )  # fmt: skip
        if fresh and relaxed.value - bound > gap / 20 * relaxed.value:
            ways.update(dict.fromkeys(fresh))
            continue
        if relaxed.missing.max(initial=0) <= _MISSING:
            more = _violated(programme, relaxed)
            if not more or bound - before < gap / 50 * bound:
                break
            before = bound
            covers += more
            continue
        if not fresh and penalty > 1e6 * total:
            raise _unmet(programme, seconds)
        # The penalty may have been worth paying.
        penalty *= 100
        ways.update(dict.fromkeys(fresh))
    return programme, prices, bound


def _violated(programme: Programme, relaxed: Solution) -> list[Cover]:
    """Covers that cut the relaxation's fractions of units off."""
    network = programme.network
    sizes = {name: unit.memory_mb for name, unit in network.topology.units.items()}
    covers = (
        covering.separate(site, held, sizes, network.sites[site].memory_mb)
        for site, held in sorted(programme.held(relaxed).items())
    )
    return [cover for cover in covers if cover is not None]


def _more(programme: Programme, prices: Prices, bound: float) -> Programme:
    """Adds ways that are nearly as cheap: whole placements need some of them.

    A way that costs more than the bound by more than a placement may is in none.
    """
    network = programme.network
    ways = dict.fromkeys(programme.ways)
    for loads, hosts in _VARIED:
        varied = dataclasses.replace(
            prices,
            stations=loads * prices.stations,
            hosting={key: hosts * price for key, price in prices.hosting.items()},
        )
        for way, _ in _cheapest(network, varied):
            if way not in ways and _reduced(network, way, prices) < _NEAR * bound:
                ways[way] = None
    return Programme(network, list(ways), programme.covers)


def _reduced(network: Network, way: Way, prices: Prices) -> float:
    """How much more a way costs at the prices than what its demand pays."""
    wanted = network.demands[way.demand]
    units = network.topology.cascades[wanted.cascade].units
    return (
        wanted.per_second * way.seconds
        + sum(load * prices.stations[station] for station, load in way.loads.items())
        + sum(
            prices.hosting.get((way.demand, name, site), 0.0)
            for name, site in dict.fromkeys(zip(units, way.sites, strict=True))
        )
        - prices.demands[way.demand]
    )


def _cheapest(network: Network, prices: Prices) -> list[tuple[Way, float]]:
    """The cheapest way of each demand under each of its thresholds, with its price."""
    sites = len(network.sites)
    per_byte = network.routes.total((1 + prices.stations[sites:]) / network.bytes_per_s)
    hosting: dict[int, dict[tuple[int, int], float]] = {}
    for (demand, name, site), price in prices.hosting.items():
        units = network.topology.cascades[network.demands[demand].cascade].units
        if price > 0:
            hosting.setdefault(demand, {})[units.index(name), site] = price
    found = []
    for j, wanted in enumerate(network.demands):
        for point in range(len(network.flows[wanted.cascade])):
            price, way = network.cheapest(
                j, point, prices.stations, per_byte, hosting.get(j, {})
            )
            found.append((network.way(j, point, way), price * wanted.per_second))
    return found


def _unmet(programme: Programme, seconds: float) -> BranchyError:
    """Says which limits cannot be met."""
    found = programme.least_excess(seconds)
    lacking = [
        (limit, float(share))
        for limit, share in zip(programme.limits, found.excess, strict=False)
        if share > _EXCESS
    ]
    if not lacking:
        return BranchyError(
            "No placement meets all limits. Allow more watts, memory, cores or bandwidth."
        )
    parts = [lack(limit, share) for limit, share in lacking[:4]]
    more = f", and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    return BranchyError(
        f"No placement meets all limits. Lacking at least: {'; '.join(parts)}{more}. "
        "Allow more there, or lower the demand."
    )


def lack(limit: Limit, share: float) -> str:
    """How much of a limit is lacking, in words."""
    amount = share * (limit.most or 1.0)
    if limit.kind == "utilisation":
        return f"{amount:.3g} busy cores at site {limit.where!r} (most {limit.most:.3g})"
    if limit.kind == "bandwidth":
        return f"{share:.1%} of the bandwidth of link {limit.where!r}"
    if limit.kind == "memory":
        return f"{amount:.3g} MB of memory at site {limit.where!r} (has {limit.most:g})"
    where = f"at site {limit.where!r}" if limit.where else "for all sites together"
    return f"{amount:.3g} W {where} (most {limit.most:g})"
