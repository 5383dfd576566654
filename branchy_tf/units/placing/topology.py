"""What there is to place, where, and for whom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

# How rows travel from unit to unit.
GATEWAY, DIRECT = "gateway", "direct"
RELAYS = (GATEWAY, DIRECT)
MAX_UTILISATION = 0.8
ANSWER_BYTES = 100.0


@dataclasses.dataclass(frozen=True)
class UnitCosts:
    """What one row costs in a unit.

    Attributes:
        name: of the unit.
        macs: multiply-adds of each of its stages; one number for each exit.
        memory_mb: megabytes that it takes wherever it runs.
        input_bytes: of one row that enters.
        output_bytes: of the features of one row that goes on; None: what the next unit
            takes.
    """

    name: str
    macs: tuple[float, ...] = (0.0,)
    memory_mb: float = 0.0
    input_bytes: float = 0.0
    output_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """Thresholds of a cascade, and what they lead to.

    Attributes:
        exit_rates: the share of the rows that leave at each exit, or at each unit.
        accuracy: fraction of 1, if known.
        thresholds: the thresholds, if known.
    """

    exit_rates: tuple[float, ...]
    accuracy: float | None = None
    thresholds: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class CascadeUnits:
    """A cascade: its units in order, and the thresholds to choose from.

    Attributes:
        name: of the cascade.
        units: the names of its units.
        points: at least one; those below a required accuracy are not here.
    """

    name: str
    units: tuple[str, ...]
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Site:
    """A place that runs units.

    Attributes:
        name: of the site.
        cores: rows that it computes at the same time.
        macs_per_s: multiply-adds per second on one core; None: only what `ms` lists.
        ms: measured milliseconds per row, by unit; comes before `macs_per_s`.
        memory_mb: for units.
        watts: the most that its busy cores and its sending may take on average.
        watts_per_core: what a busy core takes beyond an idle one.
        shared: whether it serves demand of other sites too.
        units: the units that it may run; None: any.
    """

    name: str
    cores: int = 1
    macs_per_s: float | None = None
    ms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory_mb: float = math.inf
    watts: float = math.inf
    watts_per_core: float = 0.0
    shared: bool = True
    units: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Link:
    """A link in one direction.

    Attributes:
        source: the site that sends.
        target: the site that receives.
        latency_ms: milliseconds on the way.
        mbit_per_s: its bandwidth.
        joules_per_mb: what the sender spends on a megabyte.
    """

    source: str
    target: str
    latency_ms: float = 0.0
    mbit_per_s: float = math.inf
    joules_per_mb: float = 0.0

    @property
    def name(self) -> str:
        """E.g. `camera -> edge`."""
        return f"{self.source} -> {self.target}"


@dataclasses.dataclass(frozen=True)
class Demand:
    """Rows that arrive at a site for a cascade.

    Attributes:
        cascade: the name of the cascade.
        site: where they arrive, and where the answers go.
        per_second: rows per second.
    """

    cascade: str
    site: str
    per_second: float


@dataclasses.dataclass(frozen=True)
class Topology:
    """Everything that a placement depends on.

    Attributes:
        units: by name.
        cascades: by name.
        sites: by name.
        links: each in one direction.
        demands: rows per second, by cascade and site.
        relay: `gateway`: every unit answers to a gateway at the site of the demand, as
            `cascade serve` does; `direct`: a unit sends rows to the next unit itself.
        watts: the most that all sites together may take.
        max_utilisation: the highest share of time that a core or link may be busy.
        service_cv: coefficient of variation of the time in a unit: 0 constant, 1
            exponential.
        answer_bytes: of an answer.
    """

    units: Mapping[str, UnitCosts]
    cascades: Mapping[str, CascadeUnits]
    sites: Mapping[str, Site]
    links: tuple[Link, ...]
    demands: tuple[Demand, ...]
    relay: str = GATEWAY
    watts: float = math.inf
    max_utilisation: float = MAX_UTILISATION
    service_cv: float = 0.0
    answer_bytes: float = ANSWER_BYTES
