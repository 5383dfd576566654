"""Writes a LiteRT version: converts, recalibrates, compares, and only then renames."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from branchy_tf import checks, exits, files, graphs, stages, versions
from branchy_tf.errors import BranchyError
from branchy_tf.litert import comparing, composing, converting
from branchy_tf.litert.checking import check_version
from branchy_tf.litert.engine import EARLY_EXIT, LiteRTEngine, stage_name
from branchy_tf.litert.interpreters import check_installed
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.saved_model import agreement, warmup
from branchy_tf.saved_model.early_exit import EarlyExitModule
from branchy_tf.saved_model.writing import MAX_ROWS, check_class_names, describe
from branchy_tf.zoo.policies import policy_for

# The number of rows that fix the ranges of int8; more change nothing measurable.
EXAMPLES = 200
MAX_ACCURACY_DROP = 0.005
# Rows that a network gets wrong often change from one wrong label to another.
MAX_DISAGREEMENT = 0.05
_CHECKED = 256


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model's stages, converted.

    Attributes:
        quantize: how they are quantised.
        single: N parts for one row.
        batched: N parts for any number of rows.
    """

    quantize: str
    single: Sequence[bytes]
    batched: Sequence[bytes]


def convert(
    model: keras.Model, module: EarlyExitModule, quantize: str, examples: Any = None
) -> Parts:
    """Converts each stage of a model.

    Args:
        model: the model.
        module: the same model.
        quantize: `none`, `dynamic` or `int8`.
        examples: for int8, about 200 rows of the training split.

    Raises:
        BranchyError: a layer cannot be expressed in LiteRT, or a tensor of the examples
            is infinite or NaN.
    """
    live = None if quantize != "int8" else _live(module, examples)
    parts = stages.split(model)
    logging.info("Converting %d stages to LiteRT (%s) ...", len(parts), quantize)
    single, batched = (
        [
            converting.convert_stage(
                part, module.stages[k], quantize, None if live is None else live[k], rows
            )
            for k, part in enumerate(parts)
        ]
        for rows in (1, None)
    )
    return Parts(quantize, single, batched)


def write(
    folder: pathlib.Path,
    model: keras.Model,
    module: EarlyExitModule,
    parts: Parts,
    images: Any = None,
    recalibrate: Callable[[np.ndarray], ExitPolicy] | None = None,
    class_names: Sequence[str] | None = None,
) -> LiteRTEngine:
    """Writes the files of a version, with its own policy if it is quantised.

    Args:
        folder: an empty folder.
        model: the model.
        module: the same model, with the float32 policy.
        parts: the converted stages.
        images: the rows of `recalibrate`.
        recalibrate: as for `export`.
        class_names: as for `export`.

    Returns:
        The loaded version.
    """
    description = describe(model, module, class_names) | {
        "format": versions.LITERT,
        "quantize": parts.quantize,
    }
    description["versions"]["ai-edge-litert"] = importlib.metadata.version(
        "ai-edge-litert"
    )
    engine = _write_files(folder, module, module.policy, parts, description)
    if parts.quantize == "none" or recalibrate is None:
        return engine
    batches = agreement.batches(module, images)
    policy = recalibrate(np.concatenate([engine.logits(batch) for batch in batches]))
    policy.check_exits(module.policy.num_exits)
    return _write_files(folder, module, policy, parts, description)


def export(
    model: keras.Model,
    export_dir: files.Path,
    model_name: str,
    policy: PolicyLike | None = None,
    *,
    thresholds: Sequence[float] | None = None,
    quantize: str = "none",
    images: Any = None,
    labels: np.ndarray | None = None,
    examples: Any = None,
    recalibrate: Callable[[np.ndarray], ExitPolicy] | None = None,
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    max_disagreement: float = MAX_DISAGREEMENT,
    max_rows: int | None = MAX_ROWS,
    class_names: Sequence[str] | None = None,
) -> pathlib.Path:
    """Exports a multi-exit model as the next LiteRT version of `model_name`.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        export_dir: the folder of all models.
        model_name: the name under which clients request the model.
        policy: the policy of the float32 model, as for `saved_model.export`.
        thresholds: plain thresholds, instead of `policy`.
        quantize: `none`; `dynamic`, weights in int8; or `int8`, activations too.
        images: real rows, such as the validation split: [n, ...] of the model's input
            shape and dtype; a dict by name for several inputs. Required unless `quantize`
            is `none`.
        labels: int [n], the labels of `images`; required with them if quantised.
        examples: for int8, about 200 rows of the training split, which fix the range of
            each tensor.
        recalibrate: gives the policy for the quantised model from its logits
            [n, N, classes] for `images`, because quantising moves the scores. None keeps
            the policy.
        max_accuracy_drop: how far the accuracy may drop below the float32 model's, each
            at its own thresholds. A fraction of 1.
        max_disagreement: the largest share of rows that may get another label from an
            exit than in float32, see `comparing.check`. A fraction of 1.
        max_rows: the largest number of rows in a request to a server; None: no limit.
        class_names: the names of the classes, for branchy.json.

    Returns:
        The folder of the version, `<export_dir>/<model_name>/<version>`.

    Raises:
        BranchyError: an argument does not fit, a layer cannot be expressed in LiteRT, the
            folder cannot be written, or a check failed. Nothing is left behind.

    Example:

    ```python
    export(model, "exports", "branchy_lenet", ExitPolicy(thresholds=[0.025]))
    ```
    """
    folder = files.folder(export_dir) / versions.check_model_name(model_name)
    converting.check_quantize(quantize)
    max_accuracy_drop = checks.fraction("max_accuracy_drop", max_accuracy_drop)
    max_disagreement = checks.fraction("max_disagreement", max_disagreement)
    graphs.check_functional(model)
    check_class_names(class_names, exits.num_classes(model))
    converting.check_size(model)
    check_installed()
    policy = policy_for(model, policy, thresholds=thresholds)
    module = EarlyExitModule(model, policy, max_rows=max_rows)
    _check_data(module, quantize, images, labels, examples)
    parts = convert(model, module, quantize, examples)
    try:
        with versions.new_version(folder) as version:
            beside = version.beside
            engine = write(beside, model, module, parts, images, recalibrate, class_names)
            if images is None:
                rows = warmup.example_inputs(module, min(_CHECKED, max_rows or _CHECKED))
            else:
                rows = _first(agreement.batches(module, images))
            check_version(beside, engine, module, rows, quantize)
            if images is not None:
                found = comparing.compare(engine, module, images, labels)
                if quantize != "none":
                    comparing.check(found, quantize, max_accuracy_drop, max_disagreement)
                compared = {"comparison": dataclasses.asdict(found)}
                content = engine.description.content
                files.write_json(beside / "branchy.json", {**content, **compared})
        if images is not None:
            logging.info("In LiteRT, %s.", found)
        return version.path
    except OSError as error:
        raise BranchyError(
            f"{folder} cannot be written: {error.strerror}. Nothing was exported; pass "
            "an --export_dir that is writable and has enough space."
        ) from None


def _check_data(
    module: EarlyExitModule, quantize: str, images: Any, labels: Any, examples: Any
) -> None:
    if images is not None:
        _first(agreement.batches(module, images))
    if quantize == "none":
        return
    if images is None or labels is None:
        raise BranchyError(
            "`images` and `labels` are missing: a quantised model is compared with "
            "float32 before it is exported. Pass the validation split."
        )
    if quantize == "int8":
        if examples is None:
            raise BranchyError(
                "`examples` are missing: int8 needs rows of the training split, which "
                f"fix the range of each tensor. Pass about {EXAMPLES}."
            )
        _first(agreement.batches(module, examples))


def _first(batches: Any) -> dict[str, np.ndarray]:
    return next(iter(batches))


def _live(module: EarlyExitModule, examples: Any) -> list[list[np.ndarray]]:
    """What each stage reads for the examples, in float32.

    Raises:
        BranchyError: a tensor is infinite or NaN, for which int8 has no value.
    """
    found: list[list[list[np.ndarray]]] = [[] for _ in module.stages]
    for batch in agreement.batches(module, examples):
        live = [tf.constant(batch[name]) for name in module.input_names]
        for k, stage in enumerate(module.stages):
            found[k].append([tensor.numpy() for tensor in live])
            logits, live = stage(live)
            for tensor in (logits, *live):
                if tensor.dtype.is_floating and not np.isfinite(tensor.numpy()).all():
                    raise BranchyError(
                        f"{module.exit_names[k]} computes infinite values or NaN, such "
                        "as masked classes, for which int8 has no value. Export with "
                        "--quantize=dynamic."
                    )
    return [
        [np.concatenate(tensors) for tensors in zip(*batches, strict=True)]
        for batches in found
    ]


def _write_files(
    folder: pathlib.Path,
    module: EarlyExitModule,
    policy: ExitPolicy,
    parts: Parts,
    description: dict[str, Any],
) -> LiteRTEngine:
    """Writes all files of a version with this policy, and loads them."""
    number = policy.num_exits

    def answers(rows: int | None) -> list[bytes]:
        return [
            converting.answer_part(
                policy.criterion, policy.temperature(k), module.classes, rows
            )
            for k in range(number)
        ]

    floats = [i for i, spec in enumerate(module.specs) if spec.dtype.is_floating]
    limits = None
    if number > 1:
        read = [module.specs[i] for i in floats]
        limits = converting.thresholds_part(number - 1, read)
    contents = {
        EARLY_EXIT: composing.early_exit_file(
            parts.single,
            answers(1),
            converting.leaving_part(),
            limits,
            module.input_names,
            floats,
        )
    }
    for k, (part, answer) in enumerate(zip(parts.batched, answers(None), strict=True)):
        count = len(composing.part_inputs(part))
        names = [f"carried_{i}" for i in range(count)] if k else module.input_names
        name = stage_name(k + 1)
        contents[name] = composing.stage_file(part, answer, names, f"stage_{k + 1}")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    description |= {
        "thresholds": policy.limits[0],
        "criterion": policy.criterion,
        "temperatures": policy.temperatures,
        "files": {
            name: hashlib.sha256(content).hexdigest()
            for name, content in contents.items()
        },
    }
    files.write_json(folder / "branchy.json", description)
    return LiteRTEngine(folder)
