"""The rows behind the sliders of a report, packed small and without loss.

A row exits where its score, a float32, is below a threshold, which is compared as a
float32 too. So the scores travel as float32 and the page decides exactly as the package.
"""

from __future__ import annotations

import base64
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from branchy_tf import files
from branchy_tf.data import Split
from branchy_tf.plots.gallery import can_show
from branchy_tf.policy import flushed
from branchy_tf.scoring import Answers
from branchy_tf.thresholds import Calibration

# The most bytes of scores and answers; beyond them rows are sampled. Base64 adds a third.
_MOST_BYTES = 3_000_000
# How many pictures to keep, and their largest side in pixels.
_MOST_PICTURES = 500
_LARGEST_SIDE = 48
# Sides are multiples of JPEG's blocks, so that no picture bleeds into its neighbours.
_BLOCK = 8
_COLUMNS = 25


def pack(
    path: files.Path,
    calibration: Calibration,
    answers: Answers,
    split: Split,
    macs: Sequence[int],
    class_names: Sequence[str] | None = None,
    most_bytes: int = _MOST_BYTES,
) -> dict[str, Any]:
    """Everything that the sliders need to count rows again; writes a sheet of pictures.

    Args:
        path: the .jpg file for the pictures; not written for rows that are no images.
        calibration: the content of thresholds.json.
        answers: every exit's answers to the rows, scored by the calibrated policy.
        split: the rows.
        macs: [N], cumulative multiply-adds.
        class_names: the names of the classes, or None.
        most_bytes: the limit of scores and answers; rows beyond it are left out at
            random.

    Returns:
        A JSON object. `scores` holds the N-1 early exits' scores as float32 and `answers`
        every exit's answers as `class_bytes` wide numbers, both little-endian and in
        base64.
    """
    scores, given = flushed(answers.scores), answers.given
    number = scores.shape[1]
    classes = answers.probabilities.shape[-1]
    width = 1 if classes <= 2**8 else 2 if classes <= 2**16 else 4
    rows = _sample(len(scores), 4 * (number - 1) + width * (number + 1), most_bytes)
    policy = calibration.policy
    return {
        "rows": len(rows),
        "of": len(scores),
        "exits": calibration.exits,
        "classes": classes,
        "class_names": None if class_names is None else [str(n) for n in class_names],
        "class_bytes": width,
        "criterion": policy.criterion,
        "thresholds": policy.thresholds,
        "temperatures": policy.temperatures,
        "weights": policy.weights,
        "macs": macs,
        "full_macs": calibration.validation["full_macs"],
        "scores": [_in_base64(scores[rows, k], "<f4") for k in range(number - 1)],
        "answers": [_in_base64(given[rows, k], f"<u{width}") for k in range(number)],
        "labels": _in_base64(answers.labels[rows], f"<u{width}"),
        "frontier": calibration.frontier,
        "guaranteed": calibration.guarantee is not None,
        "times": _budgeted_times(calibration.budget),
        "pictures": _pictures(path, split, rows, given),
    }


def measured_times(costs: dict[str, Any], macs: Sequence[float]) -> list[dict[str, Any]]:
    """The milliseconds per image of each stage, from the content of costs.json.

    Args:
        costs: what the command measure wrote.
        macs: [N], the cumulative multiply-adds of the page's model.

    Returns:
        `[{"batch", "stages": [N]}]`; empty if the times are of another model.
    """
    counted = itertools.accumulate(stage["macs"] for stage in costs["stages"])
    if list(counted) != list(macs):
        return []
    found: dict[int, list[float]] = {}
    for row in costs["milliseconds"]:
        found.setdefault(row["batch"], []).append(row["ms_per_image"])
    return [
        {"batch": batch, "stages": stages}
        for batch, stages in found.items()
        if len(stages) == len(macs)
    ]


def _budgeted_times(budget: dict[str, Any]) -> list[dict[str, Any]]:
    """The same from a calibration to a latency, whose times are cumulative."""
    if "exit_ms" not in budget:
        return []
    stages = np.diff(budget["exit_ms"], prepend=0.0)
    return [{"batch": budget["latency_batch_size"], "stages": stages}]


def _sample(rows: int, bytes_per_row: int, most_bytes: int) -> np.ndarray:
    """As many rows as fit, in order."""
    fit = max(1, most_bytes // bytes_per_row)
    if rows <= fit:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).permutation(rows)[:fit])


def _in_base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")


def _pictures(
    path: files.Path, split: Split, rows: np.ndarray, given: np.ndarray
) -> dict[str, Any] | None:
    """Writes pictures of some rows, first of those on which the exits disagree."""
    images: Any = split.inputs
    if not can_show(images):
        return None
    order = np.random.default_rng(0).permutation(len(rows))
    agree = (given[rows] == given[rows][:, -1:]).all(axis=1)
    chosen = np.sort(order[np.argsort(agree[order], kind="stable")][:_MOST_PICTURES])
    height, width = images.shape[1:3]
    scale = min(1.0, _LARGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    side = -(-max(size) // _BLOCK) * _BLOCK
    columns = min(_COLUMNS, len(chosen))
    lines = -(-len(chosen) // columns)
    mode = "L" if images.shape[-1] == 1 else "RGB"
    sheet = Image.new(mode, (side * columns, side * lines))
    for place, image in enumerate(images[rows[chosen]]):
        picture = Image.fromarray(image.squeeze(-1) if mode == "L" else image)
        top, left = divmod(place, columns)
        sheet.paste(
            picture.resize(size, Image.Resampling.BILINEAR), (side * left, side * top)
        )
    with files.replacing(pathlib.Path(path)) as beside:
        sheet.save(beside, quality=85, subsampling=0)
    return {
        "file": pathlib.Path(path).name,
        "columns": columns,
        "number": len(chosen),
        "rows": _in_base64(chosen, "<u4"),
    }
