"""Writes a version to a temporary folder, checks it and renames it to the next number."""

from __future__ import annotations

import dataclasses
import glob
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

import branchy_tf
from branchy_tf import checks, costs, exits, files, graphs, versions
from branchy_tf.checks import ranges
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.saved_model import agreement, freezing, warmup
from branchy_tf.saved_model.bfloat16 import BFLOAT16, PRECISIONS, in_bfloat16
from branchy_tf.saved_model.checking import (
    TOLERANCE,
    TOLERANCE_BFLOAT16,
    check_version,
)
from branchy_tf.saved_model.early_exit import EarlyExitModule
from branchy_tf.zoo.policies import policy_for

# Above 1000, the most rows that EarlyExitClient sends and TF Serving merges by default.
MAX_ROWS = 1024


def export(
    model: keras.Model,
    export_dir: files.Path,
    model_name: str,
    policy: PolicyLike | None = None,
    *,
    thresholds: Sequence[float] | None = None,
    freeze: str = "auto",
    input_dtype: str | None = None,
    precision: str = "float32",
    images: Any = None,
    max_disagreement: float = 0.01,
    max_rows: int | None = MAX_ROWS,
    class_names: Sequence[str] | None = None,
) -> pathlib.Path:
    """Exports a multi-exit model as the next version of `model_name`.

    The version is written under another name, loaded into a Session, compared with the
    Keras model and only then renamed. A server that polls the folder never sees a
    partial version.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        export_dir: the folder of all models.
        model_name: the name under which clients request the model.
        policy: the policy of requests without thresholds: an `ExitPolicy`, the path of
            a thresholds.json, an object with a policy, or plain thresholds for entropy.
        thresholds: plain thresholds, instead of `policy`.
        freeze: `true` stores weights as constants, 1.4 to 1.8 times faster on a CPU;
            `false` as variables; `auto` as constants if three times their bytes are at
            most 500 MB.
        input_dtype: the dtype of the served inputs; default: the model's own, uint8 for
            the zoo's.
        precision: `float32`, or `bfloat16`: half the bytes, and faster on CPUs that
            support it. Logits and what follows stay in float32.
        images: real images, such as the validation split: [n, ...] of the model's input
            shape and dtype; a dict by name for several inputs. The exported graph must
            route each row as every exit's scores imply. Required for bfloat16, which is
            compared with float32 on them; without them, float32 is checked on noise.
        max_disagreement: the largest share of the images that may get another label in
            bfloat16, and that may take another exit. A fraction of 1.
        max_rows: the largest number of rows in a request; larger requests fail with
            INVALID_ARGUMENT before anything is computed. None sets no limit. If a
            server merges requests, the limit applies to the merged batch, so it must be
            at least `max_batch_size`. It does not protect the server from decoding a
            request: a message of a few bytes can declare a tensor of gigabytes.
        class_names: the names of the classes, for branchy.json.

    Returns:
        The folder of the version, `<export_dir>/<model_name>/<version>`. The version is
        one more than the highest existing one, or 1.

    Raises:
        BranchyError: an argument does not fit, the folder cannot be written, or a check
            failed. Nothing is left behind.

    Example:

    ```python
    export(model, "exports", "branchy_lenet", ExitPolicy(thresholds=[0.025]))
    ```
    """
    folder = model_folder(export_dir, model_name)
    max_disagreement = checks.fraction("max_disagreement", max_disagreement)
    checks.one_of("precision", precision, PRECISIONS)
    graphs.check_functional(model)
    check_class_names(class_names, exits.num_classes(model))
    frozen = freezing.should_freeze(model, freeze)
    policy = policy_for(model, policy, thresholds=thresholds)
    settings = (policy, frozen, input_dtype, max_rows)
    module = EarlyExitModule(model, *settings)
    agreed = None
    if precision == BFLOAT16:
        model = in_bfloat16(model)
        exact, module = module, EarlyExitModule(model, *settings)
        agreed = agreement.compare(exact, module, images)
        logging.info("In bfloat16, %s.", agreed)
        agreement.check(agreed, max_disagreement)
    if images is not None:
        batch = next(agreement.batches(module, images))
        warning = ranges.check(policy.inputs, batch)
        if warning is not None:
            logging.warning("%s", warning)
    for function in module.functions.values():
        # Tracing errors surface before a file is touched.
        function.get_concrete_function()
    try:
        with versions.new_version(folder) as version:
            beside = version.beside
            logging.info("Writing the signatures ...")
            module.save(beside)
            (beside / "assets.extra").mkdir()
            files.write_json(
                beside / "assets.extra" / "branchy.json",
                describe(model, module, class_names)
                | {
                    "format": versions.SAVED_MODEL,
                    "frozen": frozen,
                    "precision": "float32" if agreed is None else BFLOAT16,
                    # The agreement of bfloat16 with float32.
                    "agreement": None if agreed is None else dataclasses.asdict(agreed),
                },
            )
            warmup.write(module, beside, model_name)
            logging.info("Comparing the version with the Keras model, in a Session ...")
            tolerance = TOLERANCE if agreed is None else TOLERANCE_BFLOAT16
            check_version(beside, model, module, policy, tolerance, images)
        return version.path
    except (OSError, tf.errors.OpError) as error:
        raise unwritable(folder, error) from None


def unwritable(folder: pathlib.Path, error: Exception) -> BranchyError:
    """The error for a version that cannot be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return BranchyError(
        f"{folder} cannot be written: {reason}. Nothing was exported; pass an "
        "--export_dir that is writable and has enough space."
    )


def model_folder(export_dir: files.Path, model_name: str) -> pathlib.Path:
    """The folder of a model's versions.

    Raises:
        BranchyError: the name, or the path, cannot be served.
    """
    folder = files.folder(export_dir) / versions.check_model_name(model_name)
    if glob.has_magic(str(folder)):
        raise BranchyError(
            f"{folder} contains *, ? or [, and TensorFlow finds no checkpoint in such a "
            "path. Pass another --export_dir."
        )
    return folder


def check_class_names(names: Sequence[str] | None, classes: int) -> None:
    """Raises `BranchyError` unless there is one name for each class, or None."""
    if names is None:
        return
    if (
        isinstance(names, str)
        or len(names) > classes
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise BranchyError(
            f"`class_names` must be at most {classes} non-empty strings, one for each "
            f"class. Received {checks.shown(names)}."
        )


def _macs(model: keras.Model) -> dict:
    try:
        return {
            "macs": costs.cumulative_macs(model),
            "full_macs": costs.full_macs(model),
        }
    except BranchyError as error:
        # A model for images of any size can still be served.
        logging.warning("%s", error)
        return {"macs": None, "full_macs": None}


def describe(
    model: keras.Model,
    module: EarlyExitModule,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The content of branchy.json that all formats share."""
    return {
        "exits": module.exit_names,
        "criterion": module.policy.criterion,
        "thresholds": module.policy.limits[0],
        "temperatures": module.policy.temperatures,
        "classes": module.classes,
        "class_names": None if class_names is None else list(class_names),
        **_macs(model),
        "inputs": {spec.name: _input(spec, module.policy) for spec in module.specs},
        "max_rows": module.max_rows,
        "versions": {
            "branchy_tf": branchy_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }


def _input(spec: tf.TensorSpec, policy: ExitPolicy) -> dict:
    """One input as it is served, with the range of its values in training if known."""
    served = {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
    known = (policy.inputs or {}).get(spec.name)
    return served if known is None else known.to_json() | served
