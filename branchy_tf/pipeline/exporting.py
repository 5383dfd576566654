"""Exports a model from Python."""

from __future__ import annotations

import pathlib
from typing import Any

import keras

from branchy_tf import calibration, checks, costs, exits, files, saved_model, versions
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.pipeline.rows import validation_rows
from branchy_tf.policy import PolicyLike
from branchy_tf.saved_model.writing import MAX_ROWS
from branchy_tf.thresholds import Calibration


def export(
    model: keras.Model,
    policy: PolicyLike,
    path: files.Path,
    *,
    format: str = versions.SAVED_MODEL,
    dataset: Any = None,
    quantize: str = "none",
    freeze: str = "auto",
    input_dtype: str | None = None,
    precision: str = "float32",
    max_accuracy_drop: float | None = None,
    max_disagreement: float | None = None,
    max_rows: int | None = MAX_ROWS,
) -> pathlib.Path:
    """Exports a model as the next version in a folder.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: the policy of requests without thresholds: an `ExitPolicy`, what
            `calibrate` returned, the path of a thresholds.json, or plain thresholds.
        path: the folder of the model's versions; its name is the model's name for
            clients.
        format: "saved_model", for TF Serving, or "litert", for devices and single rows.
        dataset: validation rows, as for `branchy_tf.calibrate`: the exported graph must
            route each of them as expected. A `data.Dataset` brings its class names
            along. Default: none are compared. A quantised model needs them; int8 needs a
            `data.Dataset`, because the range of each tensor comes from the training
            split.
        quantize: for "litert", see `litert.export`. What `calibrate` returned is
            calibrated again within its budget, because quantising moves the scores;
            other policies are kept.
        freeze, input_dtype, precision: for "saved_model", see `saved_model.export`.
        max_accuracy_drop: for "litert", see `litert.export`.
        max_disagreement: the largest share of rows that may get another label than in
            float32. Default: that of the format.
        max_rows: see `saved_model.export`.

    Returns:
        The folder of the version, `<path>/<version>`.

    Raises:
        BranchyError: an argument does not fit, the folder cannot be written, or a check
            failed. Nothing is left behind.

    Example:

    ```python
    branchy_tf.export(model, result.policy, "exports/my_model", dataset=(x_val, y_val))
    branchy_tf.export(
        model, result, "exports/small", format="litert", quantize="int8", dataset=digits
    )
    ```
    """
    folder = files.folder(path)
    checks.one_of("format", format, versions.FORMATS)
    misplaced = versions.misplaced(
        format,
        {
            "freeze": freeze,
            "input_dtype": input_dtype,
            "precision": precision,
            "quantize": quantize,
            "max_accuracy_drop": max_accuracy_drop,
        },
    )
    if misplaced is not None:
        name, other = misplaced
        raise BranchyError(f"`{name}` goes with format={other!r}, not {format!r}.")
    split = None
    if dataset is not None:
        split = validation_rows(dataset, exits.num_classes(model))
    limits = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_disagreement": max_disagreement,
    }
    common: dict[str, Any] = {
        "max_rows": max_rows,
        "class_names": dataset.class_names if isinstance(dataset, Dataset) else None,
        **{name: value for name, value in limits.items() if value is not None},
    }
    if format == versions.SAVED_MODEL:
        return saved_model.export(
            model,
            folder.parent,
            folder.name,
            policy,
            freeze=freeze,
            input_dtype=input_dtype,
            precision=precision,
            images=None if split is None else split.inputs,
            **common,
        )
    if quantize != "none":
        common |= _for_quantising(model, policy, dataset, split)
    from branchy_tf import litert

    return litert.export(
        model,
        folder.parent,
        folder.name,
        policy,
        quantize=quantize,
        images=None if split is None else split.inputs,
        labels=None if split is None else split.labels,
        **common,
    )


def _for_quantising(
    model: keras.Model, policy: PolicyLike, dataset: Any, split: Split | None
) -> dict[str, Any]:
    """Training rows, and how to calibrate again, for `litert.export`."""
    from branchy_tf.litert.writing import EXAMPLES

    found: dict[str, Any] = {}
    if isinstance(dataset, Dataset):
        found["examples"] = dataset.train.sample(EXAMPLES).read()
    if isinstance(policy, Calibration) and split is not None:
        macs = costs.cumulative_macs(model)
        found["recalibrate"] = lambda logits: calibration.repeat(
            policy, logits, split.labels, macs
        )
    return found
