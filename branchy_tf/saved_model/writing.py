"""Writes a version to a temporary folder, checks it and renames it to the next number."""

from __future__ import annotations

import dataclasses
import errno
import glob
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

import branchy_tf
from branchy_tf import checks, costs, exits, files, graphs
from branchy_tf.checks import ranges
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.files import next_version
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.saved_model import agreement, freezing, warmup
from branchy_tf.saved_model.agreement import Agreement
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
# Not a number, so that no server takes it for a version.
_BESIDE = ".writing-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


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
    folder = files.folder(export_dir)
    max_disagreement = checks.fraction("max_disagreement", max_disagreement)
    if not isinstance(model_name, str) or not _NAME.match(model_name):
        raise BranchyError(
            f"`model_name` must be letters, digits, '.', '_' and '-', and begin with a "
            f"letter or digit. Received {checks.shown(model_name)}."
        )
    folder /= model_name
    if glob.has_magic(str(folder)):
        raise BranchyError(
            f"{folder} contains *, ? or [, and TensorFlow finds no checkpoint in such a "
            "path. Pass another --export_dir."
        )
    checks.one_of("precision", precision, PRECISIONS)
    graphs.check_functional(model)
    _check_class_names(class_names, model)
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
    beside = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        beside = pathlib.Path(tempfile.mkdtemp(prefix=_BESIDE, dir=folder))
        # mkdtemp gives access to its user only; a server often runs as another user.
        os.chmod(beside, 0o755)
        logging.info("Writing the signatures ...")
        module.save(beside)
        (beside / "assets.extra").mkdir()
        files.write_json(
            beside / "assets.extra" / "branchy.json",
            _description(model, module, frozen, agreed, class_names),
        )
        warmup.write(module, beside, model_name)
        logging.info("Comparing the version with the Keras model, in a Session ...")
        tolerance = TOLERANCE if agreed is None else TOLERANCE_BFLOAT16
        check_version(beside, model, module, policy, tolerance, images)
        return _rename_to_next(beside, folder)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BranchyError(
            f"{folder} cannot be written: {reason}. Nothing was exported; pass an "
            "--export_dir that is writable and has enough space."
        ) from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _check_class_names(names: Sequence[str] | None, model: keras.Model) -> None:
    if names is None:
        return
    classes = exits.num_classes(model)
    if (
        isinstance(names, str)
        or len(names) > classes
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise BranchyError(
            f"`class_names` must be at most {classes} non-empty strings, one for each "
            f"class. Received {checks.shown(names)}."
        )


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes leftovers of killed exports, which are more than a day old."""
    for leftover in folder.glob(f"{_BESIDE}*"):
        if time.time() - leftover.stat().st_mtime > 24 * 3600:
            shutil.rmtree(leftover, ignore_errors=True)


def _rename_to_next(beside: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    while True:
        target = folder / str(next_version(folder))
        try:
            os.rename(beside, target)
            return target
        except OSError as error:
            # Another export has taken the number in the meantime.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


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


def _description(
    model: keras.Model,
    module: EarlyExitModule,
    frozen: bool,
    agreed: Agreement | None,
    class_names: Sequence[str] | None,
) -> dict:
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
        "frozen": frozen,
        "precision": "float32" if agreed is None else BFLOAT16,
        # The agreement of bfloat16 with float32.
        "agreement": None if agreed is None else dataclasses.asdict(agreed),
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
