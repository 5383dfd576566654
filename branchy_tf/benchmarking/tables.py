"""The comparison as text and rows."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

_GAINS = {
    "batch": "batch",
    "threads": "threads",
    "over": "over",
    "gain": "gain",
    "ideal_gain": "ideal gain",
    "share_of_ideal": "share of ideal",
}
_BFLOAT16_GAINS = {name: _GAINS[name] for name in ("batch", "threads", "over", "gain")}
_LITERT_GAINS = {"contender": "contender"} | _GAINS
_QUALITY = {
    "contender": "contender",
    "bytes": "bytes of early_exit.tflite",
    "accuracy": "accuracy",
    "float32_accuracy": "accuracy in float32",
    "labels": "same labels",
}
_ROUTING = {
    "batch": "batch",
    "threads": "threads",
    "last_over_unrouted": "last exit / unrouted",
    "first_over_stage": "first exit / stage 1",
    "first_extra_us": "first exit - stage 1 (us)",
}
_MEMORY = {
    "contender": "process",
    "threads": "threads",
    "imports_mb": "MB after imports",
    "peak_mb": "MB at peak",
}


def text(result: dict[str, Any]) -> str:
    """The comparison as printed text.

    Args:
        result: content of benchmark.json.
    """
    parts = []
    for threads in _unique(result["results"], "threads"):
        rows = [row for row in result["results"] if row["threads"] == threads]
        parts += [f"Milliseconds an image, {_count(threads)}:", _by_batch(rows)]
    parts += ["Gain of early exit:", _table(result["gains"], _GAINS)]
    if result["bfloat16_gains"]:
        table = _table(result["bfloat16_gains"], _BFLOAT16_GAINS)
        parts += ["Gain of early exit in bfloat16:", table]
    if result.get("litert_gains"):
        table = _table(result["litert_gains"], _LITERT_GAINS)
        parts += ["Gain of early exit in LiteRT:", table]
    if result.get("quality"):
        table = _table(result["quality"], _QUALITY, ".4f")
        parts += ["LiteRT versions on the test split:", table]
    parts += ["What routing costs:", _table(result["routing"], _ROUTING)]
    parts += ["Memory of each process:", _table(result["memory"], _MEMORY, ".0f")]
    parts += [
        f"Early exit does not pay at batch {gain['batch']}, {_count(gain['threads'])}: "
        f"it takes {1 / gain['gain']:.2f} times as long as {gain['over']}."
        for gain in result["gains"]
        if gain["gain"] < 1
    ]
    parts += [f"{name} is left out: {why}" for name, why in result["left_out"].items()]
    return "\n\n".join(parts)


def flat(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per timing, with the machine it was measured on."""
    machine = dict(result["machine"])
    processor = {name: machine.pop(name) for name in ("processor", "cores")}
    versions = " ".join(f"{name}={version}" for name, version in machine.items())
    return [row | processor | {"versions": versions} for row in result["results"]]


def _by_batch(rows: list[dict[str, Any]]) -> str:
    batches = _unique(rows, "batch")
    found = {(row["contender"], row["batch"]): row["ms_per_image"] for row in rows}
    lines = [
        [name, *(found.get((name, batch)) for batch in batches)]
        for name in _unique(rows, "contender")
    ]
    head = ["contender", *(f"batch {batch}" for batch in batches)]
    return tabulate(lines, head, floatfmt=".4f", missingval="-")


def _table(
    rows: list[dict[str, Any]], columns: dict[str, str], floats: str = ".3f"
) -> str:
    lines = [[row.get(key) for key in columns] for row in rows]
    return tabulate(lines, list(columns.values()), floatfmt=floats, missingval="-")


def _unique(rows: list[dict[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _count(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads != 1)
