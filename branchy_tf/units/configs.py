"""cascade.yaml: which units there are, where they run, and what happens on failure.

```yaml
model: branchy_resnet            # the name that clients use
on_failure: answer               # the best answer so far, marked degraded; or: error
units:
  device:
    path: exports/device         # runs in this process
    next: cloud
  cloud:
    servers: [cloud-1:8500, cloud-2:8500]
    label: stable                # of a version; or version: 3
    timeout: 0.5                 # seconds to wait for this unit
    compression: gzip            # of requests; or zstd, for embedded servers
    tls: {ca: ca.pem, certificate: client.pem, key: client.key}
```

A unit that no other names as next is where requests enter. Several of them share the
units that come later; clients then use the name of the entry.

Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from branchy_tf import checks, files, policy
from branchy_tf.errors import BranchyError
from branchy_tf.serving import compression
from branchy_tf.serving.compression import NONE
from branchy_tf.serving.messages import Target
from branchy_tf.serving.tls import Tls

ANSWER, ERROR = "answer", "error"
# Rows that one call to a unit holds at most.
MAX_BATCH_ROWS = 64
# Concurrent calls to each server of a unit.
CONCURRENCY = 8

_TOP = ("model", "on_failure", "units")
_UNIT = (
    "path", "servers", "next", "model", "version", "label", "timeout", "tls",
    "max_batch_rows", "concurrency", "compression", "thresholds",
)  # fmt: skip
_TLS = tuple(field.name for field in dataclasses.fields(Tls))


@dataclasses.dataclass(frozen=True)
class UnitConfig:
    """Where a unit runs.

    Attributes:
        name: of the unit.
        targets: the servable on each server; empty if it runs in this process.
        path: the folder of its versions, if it runs in this process.
        next: the name of the next unit.
        timeout: seconds to wait for it; None: until the request's deadline.
        tls: for its servers.
        max_batch_rows: the most rows in one call.
        compression: of requests: none, gzip, which any server reads, or zstd, which the
            embedded server reads.
        concurrency: concurrent calls to each server, or in this process.
        thresholds: where requests enter: the default thresholds of all exits from here
            to the end; None: those that the units were exported with.
    """

    name: str
    targets: tuple[Target, ...] = ()
    path: pathlib.Path | None = None
    next: str | None = None
    timeout: float | None = None
    tls: Tls | None = None
    max_batch_rows: int = MAX_BATCH_ROWS
    concurrency: int = CONCURRENCY
    compression: str = NONE
    thresholds: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """A checked cascade.yaml.

    Attributes:
        units: by name.
        chains: the names of the units of each model that clients may use, in order.
        on_failure: `answer` or `error`.
    """

    units: Mapping[str, UnitConfig]
    chains: Mapping[str, tuple[str, ...]]
    on_failure: str = ANSWER


def load(path: files.Path) -> CascadeConfig:
    """Reads a cascade.yaml. Paths in it are relative to its folder.

    Raises:
        BranchyError: the file is missing, no YAML, or has an invalid key or value.
    """
    path = files.path(path)
    try:
        with files.reading(path, "a cascade.yaml"):
            value = parse(path.read_text(encoding="utf-8"))
        return _cascade(value, path.absolute().parent)
    except BranchyError as error:
        if str(path) in str(error):
            raise
        raise BranchyError(f"{path}: {error}") from None


def starting_text(
    units: Iterable[Any],
    model: str | None,
    thresholds: Mapping[str, Sequence[float]],
) -> str:
    """A cascade.yaml that runs exported units in one process.

    Args:
        units: with `name` and `next`.
        model: the name that clients use; None if there are several fronts.
        thresholds: of each front, where they differ from the units' own.
    """
    lines = [
        "# Which units there are, and where they run. A unit with `path` runs in the",
        "# gateway's process; to run it elsewhere, replace `path` by",
        "# `servers: [host:8500]`, the addresses of servers that serve its folder.",
        *([] if model is None else [f"model: {model}"]),
        "# On failure of a later unit: the best answer so far (answer), or error.",
        f"on_failure: {ANSWER}",
        "units:",
    ]
    for unit in units:
        lines += [f"  {unit.name}:", f"    path: {unit.name}"]
        if unit.next is not None:
            lines.append(f"    next: {unit.next}")
        if unit.name in thresholds:
            numbers = ", ".join(_number(limit) for limit in thresholds[unit.name])
            lines.append(f"    thresholds: [{numbers}]")
    return "\n".join(lines) + "\n"


def _number(limit: float) -> str:
    """A number as YAML reads it; repr() gives 1e-05, which YAML takes for text."""
    return ".inf" if math.isinf(limit) else f"{Decimal(repr(limit)):f}"


def parse(text: str) -> Any:
    """The value in a YAML text.

    Raises:
        BranchyError: PyYAML is missing, or a mapping has a key twice.
    """
    try:
        import yaml
    except ImportError:
        raise BranchyError(
            "Reading YAML needs the package PyYAML. Install it: pip install "
            "'branchy_tf[cascade]'."
        ) from None

    class Loader(yaml.SafeLoader):
        """Refuses keys that occur twice, of which YAML would take the last."""

    def mapping(loader: Any, node: Any) -> dict:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            line = node.start_mark.line + 1
            raise BranchyError(
                f"The key {twice!r} occurs twice in one mapping, from line {line} on. "
                "Two entries need two names."
            )
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return yaml.load(text, Loader)  # a SafeLoader


def _cascade(value: Any, folder: pathlib.Path) -> CascadeConfig:
    value = mapping("the file", value, _TOP)
    given = value.get("units")
    if not isinstance(given, dict) or not given:
        raise BranchyError(
            "`units` must be a mapping from the name of each unit to where it runs. "
            f"Received {checks.shown(given)}."
        )
    units = {
        checks.text("name of a unit", name): _unit(name, entry, folder)
        for name, entry in given.items()
    }
    on_failure = checks.one_of(
        "on_failure", value.get("on_failure", ANSWER), (ANSWER, ERROR)
    )
    chains = _chains(units)
    model = value.get("model")
    if model is not None:
        checks.text("model", model)
        if len(chains) > 1:
            raise BranchyError(
                f"`model` names one network, but requests enter at {len(chains)} units: "
                f"{', '.join(chains)}. Remove `model`; clients use the units' names."
            )
        (chain,) = chains.values()
        chains = {model: chain}
    return CascadeConfig(units, chains, on_failure)


def _unit(name: str, value: Any, folder: pathlib.Path) -> UnitConfig:
    where = f"unit {name!r}"
    value = mapping(where, value, _UNIT)
    if ("path" in value) == ("servers" in value):
        raise BranchyError(
            f"{where} needs either `path`, to run in this process, or `servers`, their "
            "addresses."
        )
    path, targets = None, []
    if "path" in value:
        path = folder / files.path(checks.path("path", value["path"]))
        for key in ("model", "version", "label", "tls", "compression"):
            if key in value:
                raise BranchyError(f"{where} has `{key}`, which only `servers` take.")
    else:
        servers = value["servers"]
        servers = [servers] if isinstance(servers, str) else servers
        if not isinstance(servers, list) or not servers:
            raise BranchyError(
                f"`servers` of {where} must be a list of addresses, such as "
                f"[localhost:8500]. Received {checks.shown(servers)}."
            )
        targets = [
            Target(
                server, value.get("model", name), value.get("version"), value.get("label")
            )
            for server in servers
        ]
    timeout = value.get("timeout")
    following = value.get("next")
    return UnitConfig(
        name=name,
        targets=tuple(targets),
        path=path,
        next=None if following is None else checks.text("next", following),
        timeout=None
        if timeout is None
        else checks.real_number("timeout", timeout, above=0, at_most=10**8),
        tls=_tls(where, value["tls"], folder) if "tls" in value else None,
        max_batch_rows=checks.whole_number(
            "max_batch_rows", value.get("max_batch_rows", MAX_BATCH_ROWS), at_least=1
        ),
        concurrency=checks.whole_number(
            "concurrency", value.get("concurrency", CONCURRENCY), at_least=1
        ),
        compression=_compression(value.get("compression", NONE)),
        thresholds=_thresholds(where, value.get("thresholds")),
    )


def _compression(value: Any) -> str:
    checks.one_of("compression", value, compression.COMPRESSIONS)
    compression.check(value)
    return value


def _thresholds(where: str, value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise BranchyError(
            f"`thresholds` of {where} must be a list of numbers. Received "
            f"{checks.shown(value)}."
        )
    limits = policy.check(value, len(value) + 1)[0]
    return tuple(limits.tolist())


def _tls(where: str, value: Any, folder: pathlib.Path) -> Tls:
    value = mapping(f"`tls` of {where}", value or {}, _TLS)
    paths: dict[str, Any] = {
        key: folder / files.path(entry)
        for key, entry in value.items()
        if key != "server_name"
    }
    return Tls(**paths, server_name=value.get("server_name"))


def mapping(where: str, value: Any, known: Iterable[str]) -> dict[str, Any]:
    """The value, a mapping with known keys only.

    Raises:
        BranchyError: it is none, or has another key; the message names the nearest.
    """
    if not isinstance(value, dict):
        raise BranchyError(
            f"Expected {where} to be a mapping with the keys {', '.join(known)}. "
            f"Received {checks.shown(value)}."
        )
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise BranchyError(
                f"Unknown key {key!r} in {where}.{hint} Known: {', '.join(known)}."
            )
    return value


def _chains(units: Mapping[str, UnitConfig]) -> dict[str, tuple[str, ...]]:
    """The units from each entry on, by the entry's name."""
    for unit in units.values():
        if unit.next is not None and unit.next not in units:
            near = difflib.get_close_matches(unit.next, units, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise BranchyError(
                f"Unit {unit.name!r} names {unit.next!r} as next, which is no unit."
                f"{hint} Known: {', '.join(units)}."
            )
    reached = {unit.next for unit in units.values()}
    entries = [name for name in units if name not in reached]
    for unit in units.values():
        if unit.thresholds is not None and unit.name in reached:
            raise BranchyError(
                f"Unit {unit.name!r} has `thresholds`, but requests do not enter there. "
                f"Write them at {', '.join(entries)}, for all exits."
            )
    chains = {name: tuple(_following(name, units)) for name in entries}
    missed = set(units) - {name for chain in chains.values() for name in chain}
    if missed:
        _following(min(missed), units)
    return chains


def _following(name: str, units: Mapping[str, UnitConfig]) -> list[str]:
    chain = [name]
    while (following := units[chain[-1]].next) is not None:
        if following in chain:
            circle = [*chain[chain.index(following) :], following]
            raise BranchyError(
                f"The units name each other in a circle: {' -> '.join(circle)}. The last "
                "unit has no `next`."
            )
        chain.append(following)
    return chain
