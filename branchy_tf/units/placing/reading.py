"""topology.yaml: the sites, the links, and the demand of each cascade.

```yaml
relay: gateway              # or direct: units send to each other
max_utilisation: 0.8        # of a core or link
watts: 40                   # of all sites; sites have limits of their own
units:                      # not needed with --units, or only what differs
  device: {macs: 4e5, memory_mb: 2, input_bytes: 784, output_bytes: 4500}
  cloud: {macs: 3e6, memory_mb: 12, input_bytes: 4500}
cascades:
  digits:
    units: [device, cloud]
    exit_rates: [0.7, 0.3]  # or thresholds: runs/x/thresholds.json; or points: [...]
sites:
  camera:
    {cores: 1, ms: {device: 4.1}, memory_mb: 64, watts: 3, watts_per_core: 2.5}
  hall: {cores: 8, macs_per_s: 2e9, watts_per_core: 12}
links:
  - {between: [camera, hall], latency_ms: 3, mbit_per_s: 20, joules_per_mb: 0.4}
demand:
  - {cascade: digits, site: camera, per_second: 15}
```
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.units import configs
from branchy_tf.units.placing.measured import Measured
from branchy_tf.units.placing.topology import (
    ANSWER_BYTES,
    GATEWAY,
    MAX_UTILISATION,
    RELAYS,
    CascadeUnits,
    Demand,
    Link,
    Point,
    Site,
    Topology,
    UnitCosts,
)

_TOP = (
    "relay", "max_utilisation", "service_cv", "answer_bytes", "watts", "units",
    "cascades", "sites", "links", "demand",
)  # fmt: skip
_UNIT = ("macs", "memory_mb", "input_bytes", "output_bytes")
_CASCADE = ("units", "exit_rates", "thresholds", "points", "min_accuracy")
_POINT = ("exit_rates", "accuracy", "thresholds")
_SITE = tuple(field.name for field in dataclasses.fields(Site) if field.name != "name")
_LINK = ("between", "from", "to", "latency_ms", "mbit_per_s", "joules_per_mb")
_DEMAND = tuple(field.name for field in dataclasses.fields(Demand))
# Exit rates are measured shares, often rounded.
_ROUNDED = 0.005


def load(path: files.Path, measured: Measured | None = None) -> Topology:
    """Reads a topology.yaml.

    Args:
        path: of the file. Paths in it are relative to its folder.
        measured: costs of units, which the file may override.

    Raises:
        BranchyError: the file is missing, no YAML, or has an invalid key or value.
    """
    path = files.path(path)
    try:
        with files.reading(path, "a topology.yaml"):
            value = configs.parse(path.read_text(encoding="utf-8"))
        return parse(value, measured, path.absolute().parent)
    except BranchyError as error:
        if str(path) in str(error):
            raise
        raise BranchyError(f"{path}: {error}") from None


def parse(
    value: Any,
    measured: Measured | None = None,
    folder: pathlib.Path | None = None,
) -> Topology:
    """The topology in the value of a YAML file.

    Args:
        value: a mapping.
        measured: costs of units.
        folder: that paths are relative to.

    Raises:
        BranchyError: an invalid key or value.
    """
    measured = measured or Measured()
    value = configs.mapping("the file", value, _TOP)
    units = _units(value.get("units") or {}, measured)
    cascades = {
        name: _cascade(name, entry, units, measured, folder)
        for name, entry in _named("cascades", value.get("cascades")).items()
    }
    sites = {
        name: _site(name, entry, units)
        for name, entry in _named("sites", value.get("sites")).items()
    }
    return Topology(
        units,
        cascades,
        sites,
        _links(value.get("links") or [], sites),
        _demands(value.get("demand"), cascades, sites),
        relay=checks.one_of("relay", value.get("relay", GATEWAY), RELAYS),
        watts=_number("watts", value.get("watts", math.inf), infinite=True),
        max_utilisation=checks.real_number(
            "max_utilisation",
            _plain(value.get("max_utilisation", MAX_UTILISATION)),
            above=0,
            below=1,
        ),
        service_cv=_number("service_cv", value.get("service_cv", 0)),
        answer_bytes=_number("answer_bytes", value.get("answer_bytes", ANSWER_BYTES)),
    )


def _named(key: str, value: Any) -> dict[str, Any]:
    """A mapping from names to settings."""
    if not isinstance(value, dict) or not value:
        raise BranchyError(
            f"`{key}` must be a mapping from names to settings. Received "
            f"{checks.shown(value)}."
        )
    return {checks.text(f"name in `{key}`", name): x for name, x in value.items()}


def _plain(value: Any) -> Any:
    """A number that YAML takes for text, such as 2e9, as a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _number(name: str, value: Any, **limits: Any) -> float:
    return checks.real_number(name, _plain(value), **({"at_least": 0} | limits))


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BranchyError(
            f"{name} must be a list with an entry. Received {checks.shown(value)}."
        )
    return value


def _known(what: str, name: Any, known: Iterable[str]) -> str:
    """A name that exists; the message names the nearest."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        some = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        raise BranchyError(f"Unknown {what} {name!r}.{hint} Known: {some}.")
    return name


def _units(value: Any, measured: Measured) -> dict[str, UnitCosts]:
    found = dict(measured.units)
    if value:
        value = _named("units", value)
    for name, entry in value.items():
        where = f"unit {name!r}"
        entry = configs.mapping(where, entry, _UNIT)
        changes: dict[str, Any] = {
            key: _number(f"{key} of {where}", entry[key])
            for key in _UNIT[1:]
            if key in entry
        }
        if "macs" in entry:
            macs = entry["macs"] if isinstance(entry["macs"], list) else [entry["macs"]]
            changes["macs"] = tuple(_number(f"macs of {where}", x) for x in macs)
        found[name] = dataclasses.replace(found.get(name, UnitCosts(name)), **changes)
    if not found:
        raise BranchyError(
            "There are no units. List them under `units`, or name the folder that "
            "`cascade export` wrote with --units."
        )
    return found


def _cascade(
    name: str,
    value: Any,
    units: Mapping[str, UnitCosts],
    measured: Measured,
    folder: pathlib.Path | None,
) -> CascadeUnits:
    where = f"cascade {name!r}"
    value = configs.mapping(where, value, _CASCADE)
    given = value.get("units")
    if given is None:
        chains = measured.chains
        only = next(iter(chains.values())) if len(chains) == 1 else None
        given = list(chains.get(name, only or ()))
        if not given:
            raise BranchyError(f"{where} needs `units`, the names of its units in order.")
    chain = tuple(
        _known(f"unit of {where}", unit, units)
        for unit in _list(f"`units` of {where}", given)
    )
    if len(set(chain)) < len(chain):
        raise BranchyError(f"{where} names a unit twice: {', '.join(chain)}.")
    points = _points(where, value, folder)
    exits = sum(len(units[unit].macs) for unit in chain)
    for point in points:
        if len(point.exit_rates) not in (len(chain), exits):
            counts = " or ".join(map(str, sorted({len(chain), exits})))
            raise BranchyError(
                f"{where} has {len(point.exit_rates)} exit rates; expected {counts}, one "
                "for each unit or exit."
            )
    if "min_accuracy" in value:
        least = checks.fraction(f"min_accuracy of {where}", _plain(value["min_accuracy"]))
        if any(point.accuracy is None for point in points):
            raise BranchyError(f"{where} has min_accuracy, so each point needs accuracy.")
        best = max(point.accuracy or 0.0 for point in points)
        points = [x for x in points if (x.accuracy or 0.0) >= least]
        if not points:
            raise BranchyError(
                f"{where} has no point of min_accuracy {least:g}; the best has {best:g}."
            )
    return CascadeUnits(name, chain, tuple(points))


def _points(
    where: str, value: Mapping[str, Any], folder: pathlib.Path | None
) -> list[Point]:
    ways = [key for key in ("exit_rates", "thresholds", "points") if key in value]
    if len(ways) != 1:
        raise BranchyError(
            f"{where} needs one of `exit_rates`, `thresholds` (a thresholds.json) and "
            f"`points`. Received {', '.join(ways) or 'none'}."
        )
    if "exit_rates" in value:
        return [_point(where, {"exit_rates": value["exit_rates"]})]
    if "points" in value:
        entries = _list(f"`points` of {where}", value["points"])
        return [
            _point(f"point {i + 1} of {where}", configs.mapping("a point", x, _POINT))
            for i, x in enumerate(entries)
        ]
    path = files.path(checks.path(f"thresholds of {where}", value["thresholds"]))
    path = (folder or pathlib.Path()) / path
    found = files.read_json(path)
    with files.reading(path, "a thresholds.json", "Write it with `calibrate`."):
        validation = found["validation"]
        entry = {
            "exit_rates": list(validation["exit_rates"]),
            "accuracy": validation["accuracy"],
            "thresholds": list(found["thresholds"]),
        }
    return [_point(where, entry)]


def _point(where: str, value: Mapping[str, Any]) -> Point:
    rates = [
        checks.fraction(f"exit_rates of {where}", _plain(x))
        for x in _list(f"`exit_rates` of {where}", value.get("exit_rates"))
    ]
    if abs(sum(rates) - 1) > _ROUNDED:
        raise BranchyError(
            f"`exit_rates` of {where} must sum to 1: the share of rows that leave at "
            f"each exit. Received a sum of {sum(rates):g}."
        )
    accuracy, limits = value.get("accuracy"), value.get("thresholds")
    return Point(
        tuple(rate / sum(rates) for rate in rates),
        None
        if accuracy is None
        else checks.fraction(f"accuracy of {where}", _plain(accuracy)),
        None
        if limits is None
        else tuple(
            _number(f"thresholds of {where}", x, infinite=True)
            for x in _list(f"`thresholds` of {where}", limits)
        ),
    )


def _site(name: str, value: Any, units: Mapping[str, UnitCosts]) -> Site:
    where = f"site {name!r}"
    value = configs.mapping(where, value, _SITE)
    speeds = value.get("ms", {})
    if not isinstance(speeds, dict):
        raise BranchyError(
            f"`ms` of {where} must be a mapping from units to milliseconds. Received "
            f"{checks.shown(speeds)}."
        )
    found: dict[str, Any] = {
        key: _number(f"{key} of {where}", value[key], infinite=key != "watts_per_core")
        for key in ("memory_mb", "watts", "watts_per_core")
        if key in value
    }
    found["ms"] = {
        _known(f"unit in `ms` of {where}", unit, units): _number(
            f"ms of {unit!r} of {where}", x, at_least=None, above=0
        )
        for unit, x in speeds.items()
    }
    if "cores" in value:
        found["cores"] = checks.whole_number(
            f"cores of {where}", value["cores"], at_least=1, at_most=100_000
        )
    if "macs_per_s" in value:
        found["macs_per_s"] = _number(
            f"macs_per_s of {where}", value["macs_per_s"], at_least=None, above=0
        )
    if "shared" in value:
        found["shared"] = checks.switch(f"shared of {where}", value["shared"])
    if "units" in value:
        allowed = value["units"]
        if not isinstance(allowed, list):
            raise BranchyError(
                f"`units` of {where} must be a list of the units that it may run. "
                f"Received {checks.shown(allowed)}."
            )
        found["units"] = tuple(_known(f"unit of {where}", x, units) for x in allowed)
    return Site(name, **found)


def _links(value: Any, sites: Mapping[str, Site]) -> tuple[Link, ...]:
    if not isinstance(value, list):
        raise BranchyError(f"`links` must be a list. Received {checks.shown(value)}.")
    found: dict[tuple[str, str], Link] = {}
    for i, entry in enumerate(value):
        where = f"link {i + 1}"
        entry = configs.mapping(where, entry, _LINK)
        ends = entry.get("between", [entry.get("from"), entry.get("to")])
        if ("between" in entry) == bool({"from", "to"} & set(entry)) or (
            not isinstance(ends, list) or len(ends) != 2
        ):
            raise BranchyError(
                f"{where} needs `between: [a, b]` for both directions, or `from` and "
                f"`to` for one. Received {checks.shown(entry)}."
            )
        one, other = (_known(f"site of {where}", end, sites) for end in ends)
        if one == other:
            raise BranchyError(f"{where} leads from {one!r} to itself.")
        costs: dict[str, float] = {
            key: _number(f"{key} of {where}", entry[key])
            for key in ("latency_ms", "joules_per_mb")
            if key in entry
        }
        if "mbit_per_s" in entry:
            costs["mbit_per_s"] = _number(
                f"mbit_per_s of {where}", entry["mbit_per_s"],
                at_least=None, above=0, infinite=True,
            )  # fmt: skip
        if costs.get("joules_per_mb") and "mbit_per_s" not in costs:
            raise BranchyError(f"{where} has joules_per_mb, so it needs mbit_per_s.")
        ways = [(one, other), (other, one)] if "between" in entry else [(one, other)]
        for source, target in ways:
            if (source, target) in found:
                raise BranchyError(
                    f"Two links lead from {source!r} to {target!r}; expected one. Add "
                    "their bandwidths."
                )
            found[source, target] = Link(source, target, **costs)
    return tuple(found.values())


def _demands(
    value: Any, cascades: Mapping[str, CascadeUnits], sites: Mapping[str, Site]
) -> tuple[Demand, ...]:
    found: dict[tuple[str, str], Demand] = {}
    for i, entry in enumerate(_list("`demand`", value)):
        where = f"demand {i + 1}"
        entry = configs.mapping(where, entry, _DEMAND)
        demand = Demand(
            _known(f"cascade of {where}", entry.get("cascade"), cascades),
            _known(f"site of {where}", entry.get("site"), sites),
            _number(
                f"per_second of {where}", entry.get("per_second"), at_least=None, above=0
            ),
        )
        key = demand.cascade, demand.site
        if key in found:
            raise BranchyError(
                f"Two demands are of cascade {key[0]!r} at {key[1]!r}; expected one."
            )
        found[key] = demand
    return tuple(found.values())
