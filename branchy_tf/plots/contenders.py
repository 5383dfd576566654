"""Time of early exit and of what it is compared with."""

from __future__ import annotations

from typing import Any

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, SKY, panels, save

_LINES = {
    "keras_export": ("keras_export", "o", BLACK),
    "frozen": ("frozen", "s", BLUE),
    "onnxruntime": ("onnxruntime", "D", SKY),
    "pytorch": ("pytorch, early exit", "^", ORANGE),
    "early_exit": ("early exit", "v", GREEN),
    "early_exit_bfloat16": ("early exit, bfloat16", "P", GREEN),
}


def contenders(path: files.Path, result: dict[str, Any]) -> None:
    """Draws time for an image against batch size, a panel for each number of threads.

    Args:
        path: .png to write.
        result: content of benchmark.json.
    """
    counts = sorted({row["threads"] for row in result["results"]})
    figure, axes = panels(len(counts), height=3.4)
    for panel, count in zip(axes, counts, strict=True):
        for name, (label, marker, color) in _LINES.items():
            rows = _rows(result["results"], contender=name, threads=count)
            if rows:
                _line(panel, rows, label, marker, color)
        early = _rows(result["results"], contender="early_exit", threads=count)
        measured = {row["batch"]: row["ms_per_image"] for row in early}
        ideal = [
            gain | {"ms": gain["share_of_ideal"] * measured[gain["batch"]]}
            for gain in _rows(result["gains"], over="keras_export", threads=count)
        ]
        panel.plot(*_points(ideal, "ms"), ":", color=GREEN, label="ideal")
        batches = sorted({row["batch"] for row in result["results"]})
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [f"{batch}" for batch in batches])
        panel.set(ylabel="ms an image", yscale="log", title=f"threads: {count}")
    axes[0].legend(fontsize=9, ncols=2)
    axes[-1].set_xlabel("batch size")
    save(figure, path)


def _line(panel: Any, rows: list, label: str, marker: str, color: str) -> None:
    at, values = _points(rows, "ms_per_image")
    panel.plot(at, values, marker=marker, color=color, label=label)
    panel.fill_between(
        at, _points(rows, "low")[1], _points(rows, "high")[1], color=color, alpha=0.2
    )


def _rows(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _points(rows: list[dict[str, Any]], key: str) -> tuple[list, list]:
    ordered = sorted(rows, key=lambda row: row["batch"])
    return [row["batch"] for row in ordered], [row[key] for row in ordered]
