"""A placement: which unit runs where, for whom, and what is to be expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.units.placing import queueing
from branchy_tf.units.placing.programme import Limit
from branchy_tf.units.placing.solving import Solved
from branchy_tf.units.placing.ways import Network, Way


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Where the rows of one demand go.

    Attributes:
        cascade: the name of the cascade.
        site: where the rows arrive.
        per_second: rows per second.
        units: the site of each unit, by the unit's name, in order.
        thresholds: the thresholds chosen, if the topology names them.
        exit_rates: what they lead to.
        accuracy: of these, if known.
        latency_ms: expected mean of a row, waiting included.
    """

    cascade: str
    site: str
    per_second: float
    units: Mapping[str, str]
    exit_rates: tuple[float, ...]
    thresholds: tuple[float, ...] | None = None
    accuracy: float | None = None
    latency_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Gain:
    """What more of a limit would bring.

    Attributes:
        kind: `watts`, `total_watts`, `memory` (MB), `cores` or `bandwidth` (Mbit/s).
        where: the site or link; "" for all sites together.
        most: the limit, in its unit.
        used: how much the placement uses.
        binding: whether the relaxation is at the limit.
        ms_per_unit: milliseconds of mean latency that one more unit saves, from the
            dual values of the relaxation; exact for a small change of it.
    """

    kind: str
    where: str
    most: float
    used: float
    binding: bool
    ms_per_unit: float


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which unit runs where.

    Attributes:
        assignments: one for each demand.
        sites: by name: `units`, `utilisation`, `watts`, `memory_mb`.
        links: by name: `utilisation`, `mbit_per_s`.
        latency_ms: expected mean latency of a row, waiting included.
        objective_ms: the same with the waiting bounded by tangents, as minimised.
        bound_ms: no placement has a lower objective.
        gap: how far the objective is above the bound, as a share of the bound.
        optimal: whether it is proved that none has a lower objective.
        watts: of all sites.
        gains: what more of each limit would bring, the largest first.
    """

    assignments: tuple[Assignment, ...]
    sites: Mapping[str, Mapping[str, Any]]
    links: Mapping[str, Mapping[str, Any]]
    latency_ms: float
    objective_ms: float
    bound_ms: float
    gap: float
    optimal: bool
    watts: float
    gains: tuple[Gain, ...] = ()

    def save(self, path: files.Path) -> None:
        """Writes a placement.json."""
        files.write_json(path, dataclasses.asdict(self))


def describe(network: Network, solved: Solved) -> Placement:
    """What is to be expected of the ways that were chosen."""
    topology = network.topology
    loads, seconds = expected(network, solved.ways)
    rates = np.array([demand.per_second for demand in topology.demands])
    total = float(rates.sum())
    watts = np.zeros(len(network.sites))
    for station, load in enumerate(loads):
        if load:
            watts[network.site_of(station)] += load * network.watts(station)
    assignments = []
    held: dict[str, set[str]] = {}
    for demand, way, latency in zip(topology.demands, solved.ways, seconds, strict=True):
        cascade = topology.cascades[demand.cascade]
        where = [network.sites[site].name for site in way.sites]
        units = dict(zip(cascade.units, where, strict=True))
        for name, site in units.items():
            held.setdefault(site, set()).add(name)
        point = cascade.points[way.point]
        assignments.append(
            Assignment(
                demand.cascade, demand.site, demand.per_second, units, point.exit_rates,
                point.thresholds, point.accuracy, 1000 * float(latency),
            )
        )  # fmt: skip
    sites = {
        site.name: {
            "units": sorted(held.get(site.name, ())),
            "utilisation": loads[i] / site.cores,
            "watts": watts[i],
            "memory_mb": sum(
                topology.units[name].memory_mb for name in held.get(site.name, ())
            ),
        }
        for i, site in enumerate(network.sites)
    }
    links = {}
    for i, link in enumerate(topology.links):
        load = loads[len(network.sites) + i]
        used = load * link.mbit_per_s if load else 0.0
        links[link.name] = {"utilisation": load, "mbit_per_s": used}
    per_row = 1000 / total
    return Placement(
        assignments=tuple(assignments),
        sites=sites,
        links=links,
        latency_ms=float((rates * seconds).sum()) * per_row,
        objective_ms=solved.value * per_row,
        bound_ms=solved.bound * per_row,
        gap=max(0.0, solved.value / solved.bound - 1) if solved.bound > 0 else 0.0,
        optimal=solved.optimal,
        watts=float(watts.sum()),
        gains=tuple(_gains(network, solved, loads, watts, sites, per_row)),
    )


def expected(network: Network, ways: list[Way]) -> tuple[np.ndarray, np.ndarray]:
    """The load of each station, and the mean seconds of each way, waiting included."""
    loads = np.zeros(network.stations)
    arrivals = np.zeros(network.stations)
    for way in ways:
        rate = network.demands[way.demand].per_second
        for station, load in way.loads.items():
            loads[station] += load
            arrivals[station] += rate * way.visits[station]
    waits = np.zeros(network.stations)
    for station in np.flatnonzero(arrivals).tolist():
        waits[station] = network.waiting(station, loads[station]) / arrivals[station]
    seconds = [
        way.seconds + sum(share * waits[s] for s, share in way.visits.items() if share)
        for way in ways
    ]
    return loads, np.array(seconds)


def _gains(
    network: Network,
    solved: Solved,
    loads: np.ndarray,
    watts: np.ndarray,
    sites: Mapping[str, Mapping[str, Any]],
    per_row: float,
) -> list[Gain]:
    found = []
    prices = solved.prices
    for limit, dual in zip(solved.programme.limits, prices.limits, strict=True):
        binding = bool(dual > 1e-9 * max(solved.bound, 1e-12))
        if limit.kind == "bandwidth":
            link = network.topology.links[limit.station - len(network.sites)]
            if not np.isfinite(link.mbit_per_s):
                continue
            # A wider link sends faster and is less busy; both are proportional to load.
            load = solved.relaxed[limit.station]
            saved = load * (1 + prices.stations[limit.station]) / link.mbit_per_s
            used = loads[limit.station] * link.mbit_per_s
            most = limit.most * link.mbit_per_s
            gain = Gain("bandwidth", limit.where, most, used, binding, saved * per_row)
        elif limit.kind == "utilisation":
            gain = _another_core(network, solved, limit, dual, loads, binding, per_row)
        else:
            used = _used(network, limit, watts, sites)
            saved = dual / (limit.most or 1.0)
            gain = Gain(
                limit.kind, limit.where, limit.most, used, binding, saved * per_row
            )
        if gain.ms_per_unit > 1e-9 or gain.binding:
            found.append(gain)
    return sorted(found, key=lambda gain: (not gain.binding, -gain.ms_per_unit))


def _another_core(
    network: Network,
    solved: Solved,
    limit: Limit,
    dual: float,
    loads: np.ndarray,
    binding: bool,
    per_row: float,
) -> Gain:
    """Cores are whole: the shorter waiting at the same load, and the higher limit."""
    cores, station = network.servers(limit.station), limit.station
    shorter = 0.0
    if (load := solved.relaxed[station]) > 0:
        cv = network.cv(station)
        most = network.largest(station)
        before = queueing.bounded_waiting(cores, cv, most, load)
        shorter = max(0.0, before - queueing.waiting(cores + 1, load, cv))
    higher = dual / limit.most * network.topology.max_utilisation
    saved = (shorter + higher) * per_row
    return Gain("cores", limit.where, limit.most, loads[station], binding, saved)


def _used(
    network: Network,
    limit: Limit,
    watts: np.ndarray,
    sites: Mapping[str, Mapping[str, Any]],
) -> float:
    if limit.kind == "memory":
        return sites[limit.where]["memory_mb"]
    return float(watts[network.index[limit.where]] if limit.where else watts.sum())


def load(path: files.Path) -> Placement:
    """Reads a placement.json.

    Raises:
        BranchyError: the file is missing, damaged, or no placement.
    """
    value = files.read_json(path)
    with files.reading(path, "a placement.json", "Write it with `cascade place`."):
        assignments = tuple(
            Assignment(
                **{
                    **entry,
                    "exit_rates": tuple(entry["exit_rates"]),
                    "thresholds": None
                    if entry["thresholds"] is None
                    else tuple(entry["thresholds"]),
                }
            )
            for entry in value.pop("assignments")
        )
        gains = tuple(Gain(**entry) for entry in value.pop("gains"))
        return Placement(assignments=assignments, gains=gains, **value)


def ways_of(network: Network, placement: Placement) -> list[Way]:
    """The ways of a placement in a network.

    Raises:
        BranchyError: the placement is of another topology.
    """
    found = []
    given = {(entry.cascade, entry.site): entry for entry in placement.assignments}
    for j, demand in enumerate(network.demands):
        entry = given.pop((demand.cascade, demand.site), None)
        where = f"the demand of cascade {demand.cascade!r} at {demand.site!r}"
        if entry is None:
            raise BranchyError(
                f"The placement lacks {where}, which the topology has. Place it anew."
            )
        cascade = network.topology.cascades[demand.cascade]
        rates = [point.exit_rates for point in cascade.points]
        if tuple(entry.units) != cascade.units or entry.exit_rates not in rates:
            raise BranchyError(
                f"The placement of {where} has other units or exit rates than the "
                "topology. Place it anew."
            )
        sites = []
        for k, (unit, site) in enumerate(entry.units.items()):
            checks.one_of(f"site of unit {unit!r}", site, network.index)
            index = network.index[site]
            if index not in network.candidates[j][k]:
                raise BranchyError(
                    f"Site {site!r} cannot run unit {unit!r} for {where}. Place it anew."
                )
            sites.append(index)
        found.append(network.way(j, rates.index(entry.exit_rates), tuple(sites)))
    if given:
        other = next(iter(given.values()))
        raise BranchyError(
            f"The placement has a demand of cascade {other.cascade!r} at {other.site!r}, "
            "which the topology lacks. Place it anew."
        )
    return found
