"""Places units on sites: least expected latency within power, memory and capacity.

```python
placement = units.place("exports", "topology.yaml")
placement.assignments[0].units    # {"device": "camera", "cloud": "hall"}
placement.gains[0]                # what another watt or Mbit/s would bring
```

Imports no TensorFlow, except for units that are not exported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from branchy_tf import checks, files
from branchy_tf.units.placing import measured, placement, reading, solving
from branchy_tf.units.placing.placement import Assignment, Gain, Placement
from branchy_tf.units.placing.placement import load as load_placement
from branchy_tf.units.placing.topology import Topology
from branchy_tf.units.placing.ways import Network

if TYPE_CHECKING:
    from branchy_tf.units.cutting import Unit

__all__ = ["Assignment", "Gain", "Placement", "Topology", "load_placement", "place"]

SECONDS = 60.0
GAP = 0.01


def place(
    units: Iterable[Unit] | files.Path | None,
    topology: Topology | files.Path,
    *,
    seconds: float = SECONDS,
    gap: float = GAP,
) -> Placement:
    """Decides at which site each unit runs, for each demand.

    Args:
        units: from `cut`, or the folder of an export; None if the topology describes
            them.
        topology: a topology.yaml, or the same as an object, which describes its units.
        seconds: how long to look for a better placement.
        gap: the relative distance to the bound from which on a large problem counts as
            solved. Small ones are solved exactly.

    Returns:
        The placement of least expected latency.

    Raises:
        BranchyError: the topology is invalid, or no placement meets its limits; the
            message says which.

    Example:

    ```python
    placement = units.place("exports", "topology.yaml")
    placement.save("placement.json")
    ```
    """
    seconds = checks.real_number("seconds", seconds, above=0)
    gap = checks.real_number("gap", gap, at_least=0, below=1)
    if not isinstance(topology, Topology):
        topology = reading.load(topology, measured.of(units))
    network = Network(topology)
    return placement.describe(network, solving.solve(network, seconds, gap))
