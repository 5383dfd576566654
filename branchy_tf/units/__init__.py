"""Exit units: a network cut in parts that run on different machines.

A unit answers the rows that it is sure of and sends the others on, to the unit that it
names as next. Names are imported on first use: a gateway starts without TensorFlow.

```python
from branchy_tf import units

parts = units.cut(model, at=["exit_1"])
units.export(parts, "exports", policy)
with units.Cascade("exports/cascade.yaml") as cascade:
    answer = cascade.predict(images)
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from branchy_tf.units.bottlenecks import add_bottlenecks as add_bottlenecks
    from branchy_tf.units.bottlenecks import parse_bottlenecks as parse_bottlenecks
    from branchy_tf.units.cascade import Cascade as Cascade
    from branchy_tf.units.cutting import Unit as Unit
    from branchy_tf.units.cutting import cut as cut
    from branchy_tf.units.exporting import export as export
    from branchy_tf.units.joining import as_network as as_network
    from branchy_tf.units.joining import copied_network as copied_network
    from branchy_tf.units.joining import join as join
    from branchy_tf.units.joining import joined as joined
    from branchy_tf.units.placing import Placement as Placement
    from branchy_tf.units.placing import place as place

_NAMES = {
    "Cascade": "cascade",
    "Placement": "placing",
    "Unit": "cutting",
    "add_bottlenecks": "bottlenecks",
    "as_network": "joining",
    "copied_network": "joining",
    "cut": "cutting",
    "export": "exporting",
    "join": "joining",
    "joined": "joining",
    "parse_bottlenecks": "bottlenecks",
    "place": "placing",
}

__all__ = [
    "Cascade",
    "Placement",
    "Unit",
    "add_bottlenecks",
    "as_network",
    "copied_network",
    "cut",
    "export",
    "join",
    "joined",
    "parse_bottlenecks",
    "place",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        module = importlib.import_module(f"branchy_tf.units.{_NAMES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'branchy_tf.units' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
