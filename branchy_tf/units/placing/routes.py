"""The way between any two sites: the one of least latency."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sparse
from scipy.sparse import csgraph

from branchy_tf.units.placing.topology import Topology

# Seconds that a hop counts besides its latency, so that a way without latency is short.
_HOP = 1e-9


@dataclasses.dataclass(frozen=True)
class Routes:
    """Routes of least latency between all pairs of sites, independent of load.

    Attributes:
        latency: seconds [sites, sites]; infinite where there is no route.
        links: sparse [sites * sites, links], 1 where the route of a pair has the link.
    """

    latency: np.ndarray
    links: sparse.csr_matrix

    @property
    def sites(self) -> int:
        """How many there are."""
        return len(self.latency)

    def of(self, source: int, target: int) -> np.ndarray:
        """The indices of the links from one site to another; none within a site."""
        row = source * self.sites + target
        return self.links.indices[self.links.indptr[row] : self.links.indptr[row + 1]]

    def total(self, weights: np.ndarray) -> np.ndarray:
        """The sum of a weight of each link along every route, [sites, sites]."""
        return (self.links @ weights).reshape(self.sites, self.sites)


def find(topology: Topology) -> Routes:
    """The routes of a topology."""
    names = {name: i for i, name in enumerate(topology.sites)}
    number = len(names)
    source = np.array([names[x.source] for x in topology.links], int)
    target = np.array([names[x.target] for x in topology.links], int)
    seconds = np.array([x.latency_ms / 1000 for x in topology.links], float)
    # Zeros would be taken for missing links.
    graph = sparse.csr_matrix((seconds + _HOP, (source, target)), (number, number))
    _, before = csgraph.dijkstra(graph, return_predecessors=True)
    link_of = np.full((number, number), -1)
    link_of[source, target] = np.arange(len(source))
    # All routes at once, from their ends back to their starts.
    start, here = np.divmod(np.arange(number * number), number)
    pair = np.arange(number * number)
    pairs, used = [], []
    while len(pair):
        previous = before[start, here]
        going = previous >= 0
        start, here, pair = start[going], here[going], pair[going]
        previous = previous[going]
        pairs.append(pair)
        used.append(link_of[previous, here])
        here = previous
    rows = np.concatenate([*pairs, np.zeros(0, int)])
    columns = np.concatenate([*used, np.zeros(0, int)])
    links = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, columns)), (number * number, len(source))
    )
    latency = (links @ seconds).reshape(number, number)
    reached = (before >= 0) | np.eye(number, dtype=bool)
    return Routes(np.where(reached, latency, np.inf), links)
