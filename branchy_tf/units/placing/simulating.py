"""Runs the demand of a topology through a placement, row by row, with simpy.

Rows arrive one by one at random (Poisson). A site serves as many rows at once as it has
cores, first come, first served; a link sends one message after the other, each way. Times
in units are constant or vary as `service_cv` says (gamma distributed). The simulation
knows nothing of the formulas that a placement is chosen by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.units.placing import placement
from branchy_tf.units.placing.placement import Placement
from branchy_tf.units.placing.topology import DIRECT, Topology
from branchy_tf.units.placing.ways import Flow, Network, Way

# The first share of the rows meets empty queues and does not count.
_WARM_UP = 0.1


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What happened.

    Attributes:
        rows: how many count; those of the warm-up do not.
        seconds: of simulated time.
        mean_ms: mean latency of a row.
        p50_ms: median latency.
        p99_ms: latency that 99 % stay below.
        demands: `cascade`, `site`, `rows`, `mean_ms`, `p50_ms`, `p99_ms` of each demand.
        sites: by name: `utilisation`, `watts`, and `units`, the utilisation by unit.
        links: by name: `utilisation`, `bytes`.
        watts: of all sites.
        bytes: of all links.
    """

    rows: int
    seconds: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    demands: tuple[Mapping[str, Any], ...]
    sites: Mapping[str, Mapping[str, Any]]
    links: Mapping[str, Mapping[str, float]]
    watts: float
    bytes: float

    def save(self, path: files.Path) -> None:
        """Writes a simulation.json."""
        files.write_json(path, dataclasses.asdict(self))


def simulate(
    placed: Placement, topology: Topology, *, rows: int = 20_000, seed: int = 0
) -> Simulated:
    """Runs rows through a placement.

    Args:
        placed: of the topology.
        topology: the same that was placed.
        rows: how many arrive, warm-up included.
        seed: of everything random; the same seed gives the same result.

    Raises:
        BranchyError: the placement is of another topology, or simpy is missing.

    Example:

    ```python
    simulate(placement, topology, rows=10_000).p99_ms
    ```
    """
    rows = checks.whole_number("rows", rows, at_least=100, at_most=10**8)
    seed = checks.whole_number("seed", seed, at_least=0, at_most=2**32 - 1)
    try:
        import simpy
    except ImportError:
        raise BranchyError(
            "The simulation needs the package simpy. Install it: pip install "
            "'branchy_tf[cascade]'."
        ) from None
    network = Network(topology)
    ways = placement.ways_of(network, placed)
    return _Simulation(simpy, network, ways, rows, seed).run()


class _Simulation:
    def __init__(
        self, simpy: Any, network: Network, ways: list[Way], rows: int, seed: int
    ) -> None:
        self._network, self._ways, self._rows = network, ways, rows
        self._random = np.random.default_rng(seed)
        self._environment = simpy.Environment()
        used = sorted({station for way in ways for station in way.loads})
        self._queues = {
            station: simpy.Resource(self._environment, network.servers(station))
            for station in used
        }
        self._latencies: list[list[float]] = [[] for _ in ways]
        self._busy: dict[tuple[int, str], float] = {}
        self._sent: dict[int, float] = {}
        self._started = self._ended = 0.0
        self._counting = False

    def run(self) -> Simulated:
        environment = self._environment
        environment.process(self._arrivals())
        environment.run()
        seconds = self._ended - self._started
        return self._result(seconds)

    def _arrivals(self) -> Generator:
        environment, random = self._environment, self._random
        rates = np.array([demand.per_second for demand in self._network.demands])
        gaps = random.exponential(1 / rates.sum(), self._rows)
        which = random.choice(len(rates), self._rows, p=rates / rates.sum())
        first = int(_WARM_UP * self._rows)
        for i in range(self._rows):
            yield environment.timeout(gaps[i])
            if i == first:
                self._started, self._counting = environment.now, True
            environment.process(self._row(int(which[i]), i >= first))
        # What happens while the last rows leave is not the demand.
        self._ended, self._counting = environment.now, False

    def _row(self, demand: int, counts: bool) -> Generator:
        network, way = self._network, self._ways[demand]
        topology = network.topology
        wanted = network.demands[demand]
        cascade = topology.cascades[wanted.cascade]
        flow = network.flows[wanted.cascade][way.point]
        home = network.index[wanted.site]
        leaves = int(self._random.choice(len(flow.leave), p=flow.leave))
        begin = self._environment.now
        here = home
        for k in range(leaves + 1):
            site = way.sites[k]
            yield from self._send(here, site, flow.into[k])
            seconds = flow.service[k, site] * self._variation()
            yield from self._serve(site, cascade.units[k], seconds)
            here = site
            if topology.relay != DIRECT:
                size = topology.answer_bytes + self._features(flow, k, leaves)
                yield from self._send(site, home, size)
                here = home
        if topology.relay == DIRECT:
            yield from self._send(here, home, topology.answer_bytes)
        if counts:
            self._latencies[demand].append(self._environment.now - begin)

    def _features(self, flow: Flow, unit: int, leaves: int) -> float:
        return float(flow.back[unit]) if unit < leaves else 0.0

    def _variation(self) -> float:
        cv = self._network.topology.service_cv
        return 1.0 if not cv else float(self._random.gamma(cv**-2, cv**2))

    def _send(self, source: int, target: int, size: float) -> Generator:
        network = self._network
        links = network.topology.links
        # A route holds its links in no particular order.
        left = {links[i].source: int(i) for i in network.routes.of(source, target)}
        here = network.sites[source].name
        while left:
            i = left.pop(here)
            here = links[i].target
            if self._counting:
                self._sent[i] = self._sent.get(i, 0.0) + size
            if seconds := size / network.bytes_per_s[i]:
                yield from self._serve(len(network.sites) + i, "", seconds)
            yield self._environment.timeout(links[i].latency_ms / 1000)

    def _serve(self, station: int, unit: str, seconds: float) -> Generator:
        with self._queues[station].request() as turn:
            yield turn
            yield self._environment.timeout(seconds)
        if self._counting:
            key = station, unit
            self._busy[key] = self._busy.get(key, 0.0) + seconds

    def _result(self, seconds: float) -> Simulated:
        network = self._network
        every = np.concatenate([np.array(x) for x in self._latencies])
        demands = tuple(
            {"cascade": demand.cascade, "site": demand.site} | _summary(np.array(found))
            for demand, found in zip(network.demands, self._latencies, strict=True)
        )
        watts = np.zeros(len(network.sites))
        shares: dict[int, dict[str, float]] = {}
        for (station, unit), busy in self._busy.items():
            watts[network.site_of(station)] += busy / seconds * network.watts(station)
            shares.setdefault(station, {})[unit] = (
                busy / seconds / network.servers(station)
            )
        sites = {
            site.name: {
                "utilisation": sum(shares.get(i, {}).values()),
                "watts": watts[i],
                "units": shares.get(i, {}),
            }
            for i, site in enumerate(network.sites)
        }
        links = {
            link.name: {
                "utilisation": sum(shares.get(len(network.sites) + i, {}).values()),
                "bytes": self._sent.get(i, 0.0),
            }
            for i, link in enumerate(network.topology.links)
        }
        summary = _summary(every)
        return Simulated(
            rows=summary["rows"],
            seconds=seconds,
            mean_ms=summary["mean_ms"],
            p50_ms=summary["p50_ms"],
            p99_ms=summary["p99_ms"],
            demands=demands,
            sites=sites,
            links=links,
            watts=float(watts.sum()),
            bytes=float(sum(self._sent.values())),
        )


def _summary(seconds: np.ndarray) -> dict[str, Any]:
    if not len(seconds):
        return {"rows": 0, "mean_ms": None, "p50_ms": None, "p99_ms": None}
    return {
        "rows": len(seconds),
        "mean_ms": 1000 * float(seconds.mean()),
        "p50_ms": 1000 * float(np.median(seconds)),
        "p99_ms": 1000 * float(np.percentile(seconds, 99)),
    }
