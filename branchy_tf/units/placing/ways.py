"""Ways of the rows of a demand through the sites, their latency and their load."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.units.placing import queueing, routes
from branchy_tf.units.placing.topology import DIRECT, Point, Topology, UnitCosts

MEGA = 1e6
# Choices of the units at a demand's own site that are looked at one by one.
_MOST_PARTS = 64
_ROUNDING = 1 + 1e-9


@dataclasses.dataclass(frozen=True)
class Flow:
    """How the rows of a cascade move under one choice of thresholds.

    Attributes:
        reach: the share of rows that enter each unit, [units].
        leave: the share that leaves at each unit, [units].
        service: mean seconds of a row in each unit at each site, [units, sites]; infinite
            where the unit cannot run.
        into: bytes of a row that enters each unit, [units].
        back: bytes of the features of a row that goes on, [units].
    """

    reach: np.ndarray
    leave: np.ndarray
    service: np.ndarray
    into: np.ndarray
    back: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trip:
    """A transfer between two sites: a share of the rows, and mean bytes of all rows."""

    share: float
    source: int
    target: int
    size: float


@dataclasses.dataclass(frozen=True)
class Way:
    """A demand's choice: thresholds and a site for each unit.

    Attributes:
        demand: index of the demand.
        point: index of the thresholds.
        sites: index of the site of each unit.
        seconds: mean latency of a row without waiting.
        loads: erlangs, by station.
        visits: mean visits of a row, by station.
    """

    demand: int
    point: int
    sites: tuple[int, ...]
    seconds: float = dataclasses.field(compare=False)
    loads: dict[int, float] = dataclasses.field(compare=False)
    visits: dict[int, float] = dataclasses.field(compare=False)


class Network:
    """A topology as arrays. Stations, where rows wait, are the sites, then the links.

    Args:
        topology: checked.

    Raises:
        BranchyError: a unit of a demand has no site that can run it.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.sites = list(topology.sites.values())
        self.index = {site.name: i for i, site in enumerate(self.sites)}
        self.routes = routes.find(topology)
        self.demands = topology.demands
        self.bytes_per_s = np.array(
            [link.mbit_per_s * MEGA / 8 for link in topology.links], float
        )
        self.flows = {
            name: [self._flow(cascade.units, point) for point in cascade.points]
            for name, cascade in topology.cascades.items()
        }
        self.candidates = [self._candidates(j) for j in range(len(self.demands))]
        self._layers = [
            [self._fitting(j, flow) for flow in self.flows[wanted.cascade]]
            for j, wanted in enumerate(self.demands)
        ]

    @property
    def stations(self) -> int:
        """How many there are: sites and links."""
        return len(self.sites) + len(self.topology.links)

    def servers(self, station: int) -> int:
        """Cores of a site, or 1 for a link."""
        return self.sites[station].cores if station < len(self.sites) else 1

    def cv(self, station: int) -> float:
        """The coefficient of variation of the service time at a station."""
        return self.topology.service_cv if station < len(self.sites) else 0.0

    def largest(self, station: int) -> float:
        """The largest load of a station, in erlangs."""
        return self.servers(station) * self.topology.max_utilisation

    def watts(self, station: int) -> float:
        """Watts at full load: of one core, or of sending."""
        if station < len(self.sites):
            return self.sites[station].watts_per_core
        link = self.topology.links[station - len(self.sites)]
        # An unlimited link is never busy.
        if math.isinf(link.mbit_per_s):
            return 0.0
        return link.joules_per_mb * link.mbit_per_s / 8

    def site_of(self, station: int) -> int:
        """The site that pays for the power of a station."""
        if station < len(self.sites):
            return station
        return self.index[self.topology.links[station - len(self.sites)].source]

    def waiting(self, station: int, load: float) -> float:
        """The mean number that wait at a station."""
        return queueing.waiting(self.servers(station), load, self.cv(station))

    def way(self, demand: int, point: int, sites: tuple[int, ...]) -> Way:
        """A demand's rows on the way over these sites, one for each unit."""
        wanted = self.demands[demand]
        flow = self.flows[wanted.cascade][point]
        seconds = 0.0
        loads: dict[int, float] = {}
        visits: dict[int, float] = {}

        def visit(station: int, share: float, busy: float) -> None:
            nonlocal seconds
            seconds += busy
            loads[station] = loads.get(station, 0.0) + busy * wanted.per_second
            visits[station] = visits.get(station, 0.0) + share

        for k, site in enumerate(sites):
            visit(site, flow.reach[k], flow.reach[k] * flow.service[k, site])
        for trip in self.trips(demand, flow, sites):
            if trip.share:
                seconds += trip.share * self.routes.latency[trip.source, trip.target]
                for link in self.routes.of(trip.source, trip.target):
                    busy = trip.size / self.bytes_per_s[link]
                    visit(len(self.sites) + int(link), trip.share, busy)
        return Way(demand, point, sites, seconds, loads, visits)

    def trips(self, demand: int, flow: Flow, sites: tuple[int, ...]) -> list[Trip]:
        """The transfers of a demand's rows."""
        home = self.index[self.demands[demand].site]
        last = len(sites) - 1
        onward = [*flow.reach[1:], 0.0]
        answer = self.topology.answer_bytes
        found = []
        if self.topology.relay == DIRECT:
            found.append(Trip(1.0, home, sites[0], flow.into[0]))
            for k, site in enumerate(sites):
                size = flow.leave[k] * answer
                found.append(Trip(flow.leave[k], site, home, size))
                if k < last:
                    size = onward[k] * flow.into[k + 1]
                    found.append(Trip(onward[k], site, sites[k + 1], size))
        else:
            for k, site in enumerate(sites):
                found.append(
                    Trip(flow.reach[k], home, site, flow.reach[k] * flow.into[k])
                )
                size = flow.reach[k] * answer + onward[k] * flow.back[k]
                found.append(Trip(flow.reach[k], site, home, size))
        return [trip for trip in found if trip.source != trip.target]

    def count(self, demand: int) -> int:
        """How many ways a demand has."""
        points = len(self.flows[self.demands[demand].cascade])
        return points * math.prod(len(sites) for sites in self.candidates[demand])

    def every(self, demand: int) -> Iterator[Way]:
        """All ways of a demand."""
        for point in range(len(self.flows[self.demands[demand].cascade])):
            for sites in itertools.product(*self.candidates[demand]):
                yield self.way(demand, point, tuple(int(s) for s in sites))

    def cheapest(
        self,
        demand: int,
        point: int,
        prices: np.ndarray,
        per_byte: np.ndarray,
        hosting: dict[tuple[int, int], float],
    ) -> tuple[float, tuple[int, ...]]:
        """The way of least latency and load at the given prices, by dynamic programming.

        Args:
            demand: index of the demand.
            point: index of the thresholds.
            prices: of an erlang, by station.
            per_byte: seconds and prices of a byte on every route, [sites, sites].
            hosting: the price of a unit at a site, for this demand.

        Returns:
            The price per second of demand, and the sites.
        """
        return min(
            self._cheapest(demand, point, layers, prices, per_byte, hosting)
            for layers in self._layers[demand][point]
        )

    def _cheapest(
        self,
        demand: int,
        point: int,
        layers: list[np.ndarray],
        prices: np.ndarray,
        per_byte: np.ndarray,
        hosting: dict[tuple[int, int], float],
    ) -> tuple[float, tuple[int, ...]]:
        """The cheapest way over certain sites for each unit."""
        wanted = self.demands[demand]
        flow = self.flows[wanted.cascade][point]
        home = self.index[wanted.site]
        direct = self.topology.relay == DIRECT
        answer = self.topology.answer_bytes
        latency = self.routes.latency
        best = np.zeros(0)
        came: list[np.ndarray] = []
        for k, here in enumerate(layers):
            node = flow.reach[k] * flow.service[k, here] * (1 + prices[here])
            onward = flow.reach[k + 1] if k + 1 < len(layers) else 0.0
            out, back = per_byte[home, here], per_byte[here, home]
            if direct:
                node = node + flow.leave[k] * (latency[here, home] + answer * back)
            else:
                node = node + flow.reach[k] * (
                    latency[home, here] + latency[here, home]
                    + flow.into[k] * out + answer * back
                )  # fmt: skip
                node = node + onward * flow.back[k] * back
            for i, site in enumerate(here):
                if (k, int(site)) in hosting:
                    node[i] += hosting[k, int(site)] / wanted.per_second
            if not k:
                arc = latency[home, here] + flow.into[0] * out if direct else 0.0
                best = node + arc
                continue
            before = layers[k - 1]
            if direct:
                grid = np.ix_(before, here)
                arcs = flow.reach[k] * (latency[grid] + flow.into[k] * per_byte[grid])
                sums = best[:, None] + arcs
                came.append(sums.argmin(axis=0))
                best = sums.min(axis=0) + node
            else:
                came.append(np.full(len(here), best.argmin()))
                best = best.min() + node
        i = int(best.argmin())
        price = float(best[i])
        chosen = [i]
        for steps in reversed(came):
            chosen.append(int(steps[chosen[-1]]))
        sites = tuple(int(layers[k][i]) for k, i in enumerate(reversed(chosen)))
        return price, sites

    def _fitting(self, demand: int, flow: Flow) -> list[list[np.ndarray]]:
        """The sites of each unit, by which units run at the demand's own site.

        A choice of these that exceeds the limits of the own site with this demand alone
        is in no placement. Without it, the relaxation is closer to the placements.
        """
        layers = self.candidates[demand]
        home = self.index[self.demands[demand].site]
        both = [
            [part for part in (sites[sites == home], sites[sites != home]) if len(part)]
            for sites in layers
        ]
        if self._fits_home(demand, flow, [home if home in x else -1 for x in layers]) or (
            math.prod(map(len, both)) > _MOST_PARTS
        ):
            return [layers]
        found = [
            list(parts)
            for parts in itertools.product(*both)
            if self._fits_home(demand, flow, [home if home in x else -1 for x in parts])
        ]
        return found or [layers]

    def _fits_home(self, demand: int, flow: Flow, sites: list[int]) -> bool:
        """Whether a demand alone keeps to the limits of its site; -1 is elsewhere."""
        wanted = self.demands[demand]
        home = self.index[wanted.site]
        site = self.sites[home]
        names = self.topology.cascades[wanted.cascade].units
        here = [k for k, place in enumerate(sites) if place == home]
        memory = sum(self.topology.units[names[k]].memory_mb for k in here)
        load = sum(flow.reach[k] * flow.service[k, home] for k in here)
        sent = sum(
            trip.size
            for trip in self.trips(demand, flow, tuple(sites))
            if trip.source == home
        )
        joules = [x.joules_per_mb for x in self.topology.links if x.source == site.name]
        watts = load * site.watts_per_core + sent * min(joules, default=0.0) / MEGA
        return (
            memory <= site.memory_mb * _ROUNDING
            and load * wanted.per_second <= self.largest(home) * _ROUNDING
            and watts * wanted.per_second <= site.watts * _ROUNDING
        )

    def _flow(self, units: tuple[str, ...], point: Point) -> Flow:
        costs = [self.topology.units[name] for name in units]
        by_unit, macs = _by_unit(costs, point.exit_rates)
        reach = np.clip(1 - np.concatenate([[0.0], np.cumsum(by_unit)[:-1]]), 0, 1)
        reach[reach < 1e-12] = 0.0  # rounding of the sum
        service = np.full((len(units), len(self.sites)), np.inf)
        for k, unit in enumerate(costs):
            for i, site in enumerate(self.sites):
                if unit.name in site.ms:
                    service[k, i] = site.ms[unit.name] / 1000
                elif site.macs_per_s is not None:
                    service[k, i] = macs[k] / site.macs_per_s
        into = np.array([unit.input_bytes for unit in costs], float)
        back = [
            following.input_bytes if unit.output_bytes is None else unit.output_bytes
            for unit, following in itertools.pairwise(costs)
        ]
        return Flow(reach, np.array(by_unit), service, into, np.array([*back, 0.0]))

    def _candidates(self, demand: int) -> list[np.ndarray]:
        """The sites that can run each unit for a demand."""
        wanted = self.demands[demand]
        home = self.index[wanted.site]
        latency = self.routes.latency
        to_and_from = np.isfinite(latency[home]) & np.isfinite(latency[:, home])
        shared = np.array([site.shared for site in self.sites])
        shared[home] = True
        found = []
        for k, name in enumerate(self.topology.cascades[wanted.cascade].units):
            unit = self.topology.units[name]
            runs = np.isfinite(self.flows[wanted.cascade][0].service[k])
            allowed = np.array([s.units is None or name in s.units for s in self.sites])
            fits = np.array([s.memory_mb >= unit.memory_mb for s in self.sites])
            reasons = {
                "has a speed for it (`ms` or `macs_per_s`)": runs,
                "may run it (`units`)": allowed,
                f"has its {unit.memory_mb:g} MB of memory": fits,
                "is shared or the demand's own": shared,
                "has a way to and from there (`links`)": to_and_from,
            }
            left = np.ones(len(self.sites), bool)
            for reason, holds in reasons.items():
                left &= holds
                if not left.any():
                    raise BranchyError(
                        f"Unit {name!r} has no site for the demand of cascade "
                        f"{wanted.cascade!r} at {wanted.site!r}: no site that is left "
                        f"{reason}."
                    )
            found.append(np.flatnonzero(left))
        return found


def _by_unit(
    units: list[UnitCosts], rates: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """The share of rows that leave at each unit, and mean multiply-adds of its rows."""
    if len(rates) == len(units):
        return list(rates), [sum(unit.macs) for unit in units]
    leaves, macs = [], []
    reach, first = 1.0, 0
    for unit in units:
        part = rates[first : first + len(unit.macs)]
        inside = np.clip(reach - np.concatenate([[0.0], np.cumsum(part)[:-1]]), 0, None)
        macs.append(float(np.dot(inside, unit.macs)) / reach if reach > 0 else 0.0)
        leaves.append(float(sum(part)))
        reach = max(0.0, reach - leaves[-1])
        first += len(unit.macs)
    return leaves, macs
