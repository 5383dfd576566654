"""Writes a version: beside, checked, then under the next number."""

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
from branchy_tf import checks, costs, files, graphs
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.files import next_version
from branchy_tf.policy import PolicyLike
from branchy_tf.saved_model import agreement, freezing, warmup
from branchy_tf.saved_model.agreement import Agreement
from branchy_tf.saved_model.bfloat16 import BFLOAT16, check_precision, in_bfloat16
from branchy_tf.saved_model.checking import (
    TOLERANCE,
    TOLERANCE_BFLOAT16,
    check_version,
)
from branchy_tf.saved_model.early_exit import EarlyExitModule
from branchy_tf.zoo.policies import policy_for

# Above what EarlyExitClient sends at once and TF Serving merges by default, 1000.
MAX_ROWS = 1024
# No number, so no server takes it for a version.
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
) -> pathlib.Path:
    """Exports a multi-exit model as the next version of `model_name`.

    The version is written under another name, loaded into a Session, compared
    with the Keras model and only then renamed; a server that polls the folder
    never meets half of one.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        export_dir: folder of all models.
        model_name: what clients ask for.
        policy: what requests get that bring no thresholds; an `ExitPolicy`, the path of
            a thresholds.json, what brings a policy, or plain thresholds for entropy.
        thresholds: plain thresholds by their own name, in place of `policy`.
        freeze: `true`: weights are constants, 1.4 to 1.8 times faster on a CPU;
            `false`: they stay variables; `auto`: constants while three times
            their bytes are at most 500 MB.
        input_dtype: dtype of the served inputs; default: the model's own, which
            is uint8 for the zoo's.
        precision: `float32`, or `bfloat16`: half the bytes, and faster on CPUs that
            know it; logits and all that follows stay float32.
        images: real ones, validation images for example: [n, ...] of the model's input
            shape and dtype; for several inputs a dict by name. On these the exported
            graph must let each row leave where the policy's rule on every exit's scores
            says. bfloat16 is compared with float32 on them and needs them; float32 is
            checked on noise alone without.
        max_disagreement: the largest share of them that may get another label in
            bfloat16, and that may leave at another exit.
        max_rows: the most rows of a request; more are refused with INVALID_ARGUMENT
            before anything is computed. None: any number. A server that merges
            requests counts the merged batch, so at least its `max_batch_size`. The
            graph cannot stop what the server does before: it decodes the request's
            tensors, and a message of a few bytes can declare a tensor of gigabytes.

    Returns:
        The folder of the version: `<export_dir>/<model_name>/<version>`, where
        version is the highest there is plus 1, or 1.

    Raises:
        BranchyError: arguments that do not fit, a folder that cannot be written,
            or a check that failed. Nothing is left behind then.

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
    check_precision(precision)
    graphs.check_functional(model)
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
        next(agreement.batches(module, images))
    for function in module.functions.values():
        # What cannot be traced is found before a file is touched.
        function.get_concrete_function()
    beside = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        beside = pathlib.Path(tempfile.mkdtemp(prefix=_BESIDE, dir=folder))
        # mkdtemp keeps others out; a server often runs as another user.
        os.chmod(beside, 0o755)
        logging.info("Writing the signatures ...")
        module.save(beside)
        (beside / "assets.extra").mkdir()
        files.write_json(
            beside / "assets.extra" / "branchy.json",
            _description(model, module, frozen, agreed),
        )
        warmup.write(module, beside, model_name)
        logging.info("Comparing it with the Keras model, in a Session ...")
        tolerance = TOLERANCE if agreed is None else TOLERANCE_BFLOAT16
        check_version(beside, model, module, policy, tolerance, images)
        return _rename_to_next(beside, folder)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BranchyError(
            f"{folder} cannot be written: {reason}. Nothing was exported; pass an "
            "--export_dir that is writable and has room."
        ) from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed exports left; none takes as long as a day."""
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
            # Another export has taken the number meanwhile.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def _macs(model: keras.Model) -> dict:
    try:
        return {
            "macs": costs.cumulative_macs(model),
            "full_macs": costs.full_macs(model),
        }
    except BranchyError as error:
        # A model for images of any size can be served all the same.
        logging.warning("%s", error)
        return {"macs": None, "full_macs": None}


def _description(
    model: keras.Model,
    module: EarlyExitModule,
    frozen: bool,
    agreed: Agreement | None,
) -> dict:
    return {
        "exits": module.exit_names,
        "criterion": module.policy.criterion,
        "thresholds": module.policy.limits[0],
        "temperatures": module.policy.temperatures,
        "classes": module.classes,
        **_macs(model),
        "inputs": {
            spec.name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for spec in module.specs
        },
        "max_rows": module.max_rows,
        "frozen": frozen,
        "precision": "float32" if agreed is None else BFLOAT16,
        # With float32, where it is not that itself.
        "agreement": None if agreed is None else dataclasses.asdict(agreed),
        "versions": {
            "branchy_tf": branchy_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }
