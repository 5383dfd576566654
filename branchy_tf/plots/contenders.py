"""Time per image of early exit and of the engines compared with it."""

from __future__ import annotations

from typing import Any

from branchy_tf import files
from branchy_tf.plots import style
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, SKY

# {contender: (label, marker, colour, line)}; bfloat16 is dashed.
_LINES = {
    "keras_export": ("Keras export", "o", BLACK, "-"),
    "frozen": ("frozen", "s", BLUE, "-"),
    "onnxruntime": ("ONNX Runtime", "D", SKY, "-"),
    "pytorch": ("PyTorch, early exit", "^", ORANGE, "-"),
    "early_exit": ("early exit, float32", "v", GREEN, "-"),
    "early_exit_bfloat16": ("early exit, bfloat16", "P", GREEN, "--"),
    "litert_int8": ("LiteRT, int8", "x", BLACK, ":"),
    "early_exit_litert_int8": ("early exit, LiteRT, int8", "*", ORANGE, ":"),
}


def contenders(path: files.Path, result: dict[str, Any]) -> None:
    """Plots the time per image by batch size, with a panel for each thread count.

    Args:
        path: the .png file to write.
        result: the content of benchmark.json.
    """
    counts = sorted({row["threads"] for row in result["results"]})
    figure, axes = style.panels(len(counts), height=3.4)
    for panel, count in zip(axes, counts, strict=True):
        for name, (label, marker, color, line) in _LINES.items():
            rows = _rows(result["results"], contender=name, threads=count)
            if rows:
                _line(panel, rows, label, marker, color, line)
        early = _rows(result["results"], contender="early_exit", threads=count)
        measured = {row["batch"]: row["ms_per_image"] for row in early}
        ideal = [
            gain | {"ms": gain["share_of_ideal"] * measured[gain["batch"]]}
            for gain in _rows(result["gains"], over="keras_export", threads=count)
        ]
        panel.plot(*_points(ideal, "ms"), ":", color=GREEN, label="ideal, float32")
        batches = sorted({row["batch"] for row in result["results"]})
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [f"{batch}" for batch in batches])
        panel.set(
            ylabel="ms per image",
            yscale="log",
            title=f"{count} thread" if count == 1 else f"{count} threads",
        )
        style.plain_ticks(panel.yaxis)
    axes[0].legend(fontsize=9, ncols=2)
    axes[-1].set_xlabel("batch size")
    style.save(figure, path)


def _line(panel: Any, rows: list, label: str, marker: str, color: str, line: str) -> None:
    at, values = _points(rows, "ms_per_image")
    panel.plot(at, values, line, marker=marker, color=color, label=label)
    panel.fill_between(
        at, _points(rows, "low")[1], _points(rows, "high")[1], color=color, alpha=0.2
    )


def _rows(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _points(rows: list[dict[str, Any]], key: str) -> tuple[list, list]:
    ordered = sorted(rows, key=lambda row: row["batch"])
    return [row["batch"] for row in ordered], [row[key] for row in ordered]
