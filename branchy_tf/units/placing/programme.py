"""The mixed-integer programme that picks a way for each demand.

Variables: x, whether a demand takes a way; l, the load of a station in erlangs; q, how
many wait there; y, whether a site holds a unit.

    minimise    sum c x + sum q                  rows in the system, which by Little's law
                                                 are rows per second times mean latency
    subject to  sum over ways of x = 1           for each demand
                l = sum a x                      for each station
                q >= slope l + intercept         for each tangent of the waiting
                sum over ways with unit and site of x <= y    for each demand
                limits of load, watts and memory
                sum alpha y <= 1                  for each cover, if there are any

Limits are written as shares of what is allowed, so that all rows have one scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import scipy.sparse as sparse
from scipy import optimize

from branchy_tf.units.placing import queueing
from branchy_tf.units.placing.covering import Cover
from branchy_tf.units.placing.ways import Network, Way


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a placement may use at most.

    Attributes:
        kind: `utilisation`, `bandwidth`, `watts`, `memory` or `total_watts`.
        where: the site or link; "" for all together.
        most: how much: erlangs, watts or megabytes.
        station: index of the station, or -1.
    """

    kind: str
    where: str
    most: float
    station: int = -1


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        value: of the objective; infinite if there is no solution.
        ways: x of each way.
        missing: how much of each demand is not served.
        excess: how much of each limit is lacking, as a share of it.
        optimal: whether the solver has proved it.
    """

    value: float
    ways: np.ndarray
    missing: np.ndarray
    excess: np.ndarray
    optimal: bool = True


@dataclasses.dataclass(frozen=True)
class Prices:
    """Dual values of the relaxation.

    Attributes:
        stations: of another erlang of load, [stations of the network].
        demands: of each demand's choice.
        hosting: of a unit at a site, by (demand, unit name, site).
        limits: what the objective gains from another 100 % of each limit.
    """

    stations: np.ndarray
    demands: np.ndarray
    hosting: dict[tuple[int, str, int], float]
    limits: np.ndarray


class Programme:
    """The programme over some ways.

    Args:
        network: what the ways lead through.
        ways: to choose from.
        covers: inequalities that tighten the relaxation and hold for every placement.
    """

    def __init__(
        self, network: Network, ways: list[Way], covers: Iterable[Cover] = ()
    ) -> None:
        self.network, self.ways, self.covers = network, ways, list(covers)
        self.used = sorted({station for way in ways for station in way.loads})
        self._place = {station: i for i, station in enumerate(self.used)}
        self.hosts = self._hosts()
        ways_n, stations, hosts = len(ways), len(self.used), len(self.hosts)
        demands = len(network.demands)
        self._loads, self._waits = ways_n, ways_n + stations
        self._held = ways_n + 2 * stations
        self._unserved = self._held + hosts
        self._size = self._unserved + demands
        self.limits: list[Limit] = []
        self._build()

    def _hosts(self) -> dict[tuple[str, int], int]:
        """Units at sites whose memory may be too small for all that could be there."""
        units = self.network.topology.units
        could: dict[int, set[str]] = {}
        for way in self.ways:
            for name, site in zip(self._names(way), way.sites, strict=True):
                could.setdefault(site, set()).add(name)
        tight = [
            (name, site)
            for site, names in sorted(could.items())
            if sum(units[n].memory_mb for n in names) > self.network.sites[site].memory_mb
            for name in sorted(names)
        ]
        return {pair: i for i, pair in enumerate(tight)}

    def _names(self, way: Way) -> tuple[str, ...]:
        cascade = self.network.demands[way.demand].cascade
        return self.network.topology.cascades[cascade].units

    def _build(self) -> None:
        network = self.network
        equal, above = _Rows(self._size), _Rows(self._size)
        for j in range(len(network.demands)):
            equal.add({self._unserved + j: 1.0}, 1.0)
        for i in range(len(self.used)):
            equal.add({self._loads + i: 1.0}, 0.0)
        self._linking: dict[tuple[int, str, int], int] = {}
        for p, way in enumerate(self.ways):
            equal.put(way.demand, p, 1.0)
            for station, load in way.loads.items():
                row = len(network.demands) + self._place[station]
                equal.put(row, p, -load)
            pairs = zip(self._names(way), way.sites, strict=True)
            # Not a set: its order, and so the solution, would differ by process.
            for name, site in dict.fromkeys(pairs):
                if (name, site) in self.hosts:
                    key = (way.demand, name, site)
                    if key not in self._linking:
                        host = self._held + self.hosts[name, site]
                        self._linking[key] = above.add({host: -1.0}, 0.0)
                    above.put(self._linking[key], p, 1.0)
        for i, station in enumerate(self.used):
            lines = queueing.tangents(
                network.servers(station), network.cv(station), network.largest(station)
            )
            for slope, intercept in lines:
                above.add({self._loads + i: slope, self._waits + i: -1.0}, -intercept)
        for cover in self.covers:
            weights = {
                self._held + self.hosts[name, cover.site]: weight
                for name, weight in cover.weights.items()
                if (name, cover.site) in self.hosts
            }
            above.add(weights, 1.0)
        self._first_limit = above.count
        self._limit_rows(above)
        self._equal, self._equal_to = equal.matrix(), np.array(equal.bounds)
        self._above, self._most = above.matrix(), np.array(above.bounds)
        self._cost = np.zeros(self._size)
        rates = [network.demands[way.demand].per_second for way in self.ways]
        seconds = [way.seconds for way in self.ways]
        self._cost[: len(self.ways)] = np.array(rates) * np.array(seconds)
        self._cost[self._waits : self._held] = 1.0

    def _limit_rows(self, above: _Rows) -> None:
        network = self.network
        sites, links = network.sites, network.topology.links
        power: dict[int, dict[int, float]] = {}
        for i, station in enumerate(self.used):
            most = network.largest(station)
            above.add({self._loads + i: 1 / most}, 1.0)
            if station < len(sites):
                limit = Limit("utilisation", sites[station].name, most, station)
            else:
                name = links[station - len(sites)].name
                limit = Limit("bandwidth", name, most, station)
            self.limits.append(limit)
            if watts := network.watts(station):
                site = network.site_of(station)
                power.setdefault(site, {})[self._loads + i] = watts
        for site, row in power.items():
            if math.isfinite(most := sites[site].watts):
                self._limit(above, row, Limit("watts", sites[site].name, most))
        if math.isfinite(most := network.topology.watts):
            everywhere = {i: w for row in power.values() for i, w in row.items()}
            self._limit(above, everywhere, Limit("total_watts", "", most))
        held: dict[int, dict[int, float]] = {}
        for (name, site), i in self.hosts.items():
            memory = network.topology.units[name].memory_mb
            held.setdefault(site, {})[self._held + i] = memory
        for site, row in held.items():
            most = sites[site].memory_mb
            self._limit(above, row, Limit("memory", sites[site].name, most))

    def _limit(self, above: _Rows, row: dict[int, float], limit: Limit) -> None:
        # A limit of nothing allows nothing, on any scale.
        scale = limit.most or 1.0
        above.add({i: x / scale for i, x in row.items()}, limit.most / scale)
        self.limits.append(limit)

    def relax(self, penalty: float) -> tuple[Solution, Prices]:
        """Solves the relaxation, in which x may be a fraction.

        Args:
            penalty: of a demand that is not served.
        """
        cost = self._cost.copy()
        cost[self._unserved :] = penalty
        found = optimize.linprog(
            cost, self._above, self._most, self._equal, self._equal_to,
            bounds=np.column_stack(self._bounds(penalty)), method="highs",
        )  # fmt: skip
        if found.x is None:
            nothing = np.zeros(0)
            return _nothing(optimal=True), Prices(nothing, nothing, {}, nothing)
        equal, above = found.eqlin.marginals, -found.ineqlin.marginals
        demands = len(self.network.demands)
        stations = np.zeros(self.network.stations)
        stations[self.used] = np.maximum(equal[demands:], 0)
        hosting = {key: float(above[row]) for key, row in self._linking.items()}
        prices = Prices(stations, equal[:demands], hosting, above[self._first_limit :])
        return self._solution(found.fun, found.x, True), prices

    def held(self, found: Solution) -> dict[int, dict[str, float]]:
        """The share of each unit at each site whose memory may be too small.

        Args:
            found: a solution of this programme.
        """
        shares: dict[tuple[int, str, int], float] = {}
        for share, way in zip(found.ways, self.ways, strict=True):
            if share > 0:
                for name, site in dict.fromkeys(
                    zip(self._names(way), way.sites, strict=True)
                ):
                    key = way.demand, name, site
                    shares[key] = shares.get(key, 0.0) + share
        most: dict[int, dict[str, float]] = {}
        for (_, name, site), share in shares.items():
            if (name, site) in self.hosts:
                units = most.setdefault(site, {})
                units[name] = max(units.get(name, 0.0), share)
        return most

    def choose(self, seconds: float, gap: float) -> Solution:
        """Picks one way for each demand.

        Args:
            seconds: to stop after.
            gap: relative to the bound, from which on a solution is good enough.
        """
        constraints = [
            optimize.LinearConstraint(self._equal, self._equal_to, self._equal_to),
            optimize.LinearConstraint(self._above, -np.inf, self._most),
        ]
        found = optimize.milp(
            self._cost, constraints=constraints, integrality=self._whole(),
            bounds=optimize.Bounds(*self._bounds(0.0)),
            options={"time_limit": seconds, "mip_rel_gap": gap},
        )  # fmt: skip
        if found.x is None:
            return _nothing(optimal=found.status == 2)
        return self._solution(found.fun, found.x, found.status == 0)

    def least_excess(self, seconds: float) -> Solution:
        """The choice that exceeds the limits least, to say which cannot be met."""
        number = len(self.limits)
        rows = self._above.shape[0]
        slack = sparse.csr_matrix(
            (
                -np.ones(number),
                (self._first_limit + np.arange(number), np.arange(number)),
            ),
            (rows, number),
        )
        lowest, highest = self._bounds(0.0)
        none = sparse.csr_matrix((len(self._equal_to), number))
        equal = sparse.hstack([self._equal, none])
        above = sparse.hstack([self._above, slack])
        constraints = [
            optimize.LinearConstraint(equal, self._equal_to, self._equal_to),
            optimize.LinearConstraint(above, -np.inf, self._most),
        ]
        found = optimize.milp(
            np.concatenate([np.zeros(self._size), np.ones(number)]),
            constraints=constraints,
            integrality=np.concatenate([self._whole(), np.zeros(number)]),
            bounds=optimize.Bounds(
                np.concatenate([lowest, np.zeros(number)]),
                np.concatenate([highest, np.full(number, np.inf)]),
            ),
            options={"time_limit": seconds},
        )
        if found.x is None:
            return _nothing(optimal=False)
        solution = self._solution(found.fun, found.x[: self._size], True)
        return dataclasses.replace(solution, excess=found.x[self._size :])

    def _bounds(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        highest = np.full(self._size, np.inf)
        if not penalty:
            highest[self._unserved :] = 0.0
        return np.zeros(self._size), highest

    def _whole(self) -> np.ndarray:
        # y follows x, so only x has to be whole.
        whole = np.zeros(self._size)
        whole[: len(self.ways)] = 1
        return whole

    def _solution(self, value: float, x: np.ndarray, optimal: bool) -> Solution:
        nothing = np.zeros(len(self.limits))
        ways, missing = x[: len(self.ways)], x[self._unserved :]
        return Solution(float(value), ways, missing, nothing, optimal)


def _nothing(optimal: bool) -> Solution:
    nothing = np.zeros(0)
    return Solution(math.inf, nothing, nothing, nothing, optimal)


class _Rows:
    """Rows of a sparse matrix and their right-hand sides."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._entries: list[tuple[int, int, float]] = []
        self.bounds: list[float] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.bounds)

    def add(self, row: dict[int, float], bound: float) -> int:
        """Adds a row; returns its index."""
        self.bounds.append(bound)
        for column, value in row.items():
            self.put(self.count - 1, column, value)
        return self.count - 1

    def put(self, row: int, column: int, value: float) -> None:
        """Adds a value to a row."""
        self._entries.append((row, column, value))

    def matrix(self) -> sparse.csr_matrix:
        """All rows."""
        if not self._entries:
            return sparse.csr_matrix((self.count, self._columns))
        rows, columns, values = zip(*self._entries, strict=True)
        shape = (self.count, self._columns)
        return sparse.csr_matrix((values, (rows, columns)), shape)
