"""Figures of a compressed model: zeros, distinct values and bytes."""

from __future__ import annotations

import gzip
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf.compression.settings import Settings
from branchy_tf.errors import BranchyError


def of_layers(
    names: Sequence[str],
    weights: Mapping[str, np.ndarray],
    changed: Mapping[str, Sequence[int]],
) -> list[dict[str, Any]]:
    """What became of each compressed kernel.

    Args:
        names: of all layers, in the order of their numbers in `weights`.
        weights: `{"LAYER.WEIGHT": array}`, after compression.
        changed: `{layer: indices of its compressed weights}`.
    """
    rows = []
    for number, name in enumerate(names):
        for i in changed.get(name, ()):
            kernel = weights[f"{number}.{i}"]
            rows.append(
                {
                    "layer": name,
                    "weights": kernel.size,
                    "sparsity": float((kernel == 0).mean()),
                    "distinct_values": len(np.unique(kernel)),
                }
            )
    return rows


def check(rows: Sequence[Mapping[str, Any]], settings: Settings) -> None:
    """Raises `BranchyError` unless each kernel is compressed as the settings ask."""
    for row in rows:
        if settings.method == "prune":
            # Half a weight is rounding, and the kernel keeps at least one.
            least = min(settings.sparsity * row["weights"], row["weights"] - 1) - 0.5
            if row["sparsity"] * row["weights"] < least - 1e-6 * row["weights"]:
                raise BranchyError(
                    f"Layer {row['layer']!r} has {row['sparsity']:.2%} zeros after "
                    f"pruning; expected {settings.sparsity:.2%}. Train for more --epochs."
                )
        elif settings.method == "cluster" and row["distinct_values"] > settings.clusters:
            raise BranchyError(
                f"Layer {row['layer']!r} has {row['distinct_values']} distinct weights "
                f"after clustering; expected at most {settings.clusters}. Leave it as it "
                f"is with --skip_layers={row['layer']}."
            )


def sparsity(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of zeros in all kernels together."""
    total = sum(row["weights"] for row in rows)
    return sum(row["sparsity"] * row["weights"] for row in rows) / total


def gzipped(content: bytes) -> int:
    """The bytes of a file when compressed by gzip."""
    return len(gzip.compress(content, mtime=0))


def gzipped_weights(model: keras.Model) -> int:
    """The bytes of a model's `.weights.h5`, float32, when compressed by gzip."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.weights.h5")
        model.save_weights(path)
        return gzipped(path.read_bytes())
