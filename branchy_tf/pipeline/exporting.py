"""Exports a model from Python."""

from __future__ import annotations

import pathlib
from typing import Any

import keras

from branchy_tf import exits, files, saved_model
from branchy_tf.data import Dataset
from branchy_tf.pipeline.rows import validation_rows
from branchy_tf.policy import PolicyLike
from branchy_tf.saved_model.writing import MAX_ROWS


def export(
    model: keras.Model,
    policy: PolicyLike,
    path: files.Path,
    *,
    dataset: Any = None,
    freeze: str = "auto",
    input_dtype: str | None = None,
    precision: str = "float32",
    max_disagreement: float = 0.01,
    max_rows: int | None = MAX_ROWS,
) -> pathlib.Path:
    """Exports a model as the next version in a folder, for TF Serving.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: the policy of requests without thresholds: an `ExitPolicy`, what
            `calibrate` returned, the path of a thresholds.json, or plain thresholds.
        path: the folder of the model's versions; its name is the model's name for
            clients.
        dataset: validation rows, as for `branchy_tf.calibrate`: the exported graph must
            route each of them as expected. A `data.Dataset` brings its class names
            along. Default: none are compared.
        freeze, input_dtype, precision, max_disagreement, max_rows: see
            `saved_model.export`.

    Returns:
        The folder of the version, `<path>/<version>`.

    Raises:
        BranchyError: an argument does not fit, the folder cannot be written, or a check
            failed. Nothing is left behind.

    Example:

    ```python
    branchy_tf.export(model, result.policy, "exports/my_model", dataset=(x_val, y_val))
    ```
    """
    folder = files.folder(path)
    rows = None
    if dataset is not None:
        rows = validation_rows(dataset, exits.num_classes(model)).read()
    return saved_model.export(
        model,
        folder.parent,
        folder.name,
        policy,
        freeze=freeze,
        input_dtype=input_dtype,
        precision=precision,
        images=rows,
        max_disagreement=max_disagreement,
        max_rows=max_rows,
        class_names=dataset.class_names if isinstance(dataset, Dataset) else None,
    )
