"""Writes the contenders that LiteRT runs, in float32 and in int8."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from branchy_tf import graphs
from branchy_tf.data import Split
from branchy_tf.errors import BranchyError
from branchy_tf.litert import comparing, composing, converting, writing
from branchy_tf.litert.engine import EARLY_EXIT
from branchy_tf.policy import ExitPolicy
from branchy_tf.saved_model import EarlyExitModule, freezing
from branchy_tf.stages import Stage

# {suffix of the contenders: how they are quantised}.
KINDS = {"": "none", "_int8": "int8"}


@dataclasses.dataclass(frozen=True)
class Splits:
    """The rows that quantised contenders need.

    Attributes:
        examples: about 200 rows of the training split, which fix the ranges of int8: an
            array, or a dict by name for several inputs.
        validation: the rows of `recalibrate`.
        test: the rows on which float32 and int8 are compared.
        recalibrate: as for `litert.export`.
    """

    examples: Any
    validation: Split
    test: Split
    recalibrate: Callable[[np.ndarray], ExitPolicy] | None = None


def write(
    model: keras.Model,
    baseline: keras.Model,
    module: EarlyExitModule,
    folder: pathlib.Path,
    splits: Splits | None,
) -> tuple[dict[str, Any], dict[str, str], list[dict[str, Any]]]:
    """Writes early exit, the full network and the stages.

    Args:
        model: the multi-exit model.
        baseline: the same network without exits.
        module: the model with its policy.
        folder: where to write.
        splits: what int8 needs; None leaves it out.

    Returns:
        `(programs, {left out: why}, quality)`, where quality has a row for each version:
        `{"contender", "bytes", ...}` and the fields of `litert.comparing.Comparison`.
    """
    programs: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    quality = []
    for suffix, quantize in KINDS.items():
        early, full = f"early_exit_litert{suffix}", f"litert{suffix}"
        if quantize != "none" and splits is None:
            left_out |= dict.fromkeys(
                (early, full), "int8 needs rows of a training split"
            )
            continue
        try:
            found = _kind(model, baseline, module, folder, splits, early, full, quantize)
        except BranchyError as error:
            left_out |= dict.fromkeys((early, full), str(error))
            continue
        held, row = found
        programs |= held
        quality.append(row)
    return programs, left_out, quality


def _kind(
    model: keras.Model,
    baseline: keras.Model,
    module: EarlyExitModule,
    folder: pathlib.Path,
    splits: Splits | None,
    early: str,
    full: str,
    quantize: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    examples = None if splits is None else graphs.cast_inputs(model, splits.examples)
    parts = writing.convert(model, module, quantize, examples)
    version = folder / early
    version.mkdir()
    if splits is None:
        engine = writing.write(version, model, module, parts)
        row: dict[str, Any] = {}
    else:
        validation, test = (
            graphs.named_inputs(model, split.inputs)
            for split in (splits.validation, splits.test)
        )
        engine = writing.write(
            version, model, module, parts, validation, splits.recalibrate
        )
        row = dataclasses.asdict(
            comparing.compare(engine, module, test, splits.test.labels)
        )
    size = (version / EARLY_EXIT).stat().st_size
    whole = Stage("whole", baseline)
    function = freezing.freeze(whole)
    given = None if examples is None else list(examples.values())
    # Batch 1 gets its own file: with a batch of any size, flattening costs operations.
    plain = _files(
        folder / full,
        *(
            converting.convert_stage(whole, function, quantize, given, n)
            for n in (1, None)
        ),
    )
    stages = {}
    behind: list[dict[str, str]] = []
    for k, both in enumerate(zip(parts.single, parts.batched, strict=True)):
        name = f"{full}_stage_{k + 1}"
        files = _files(folder / name, *both)
        stages[name] = {"files": files, "behind": list(behind)}
        behind.append(files)
    programs = {
        full: ("litert", {full: {"files": plain, "behind": []}}),
        early: ("litert", {early: {"version": str(version)}}),
        f"{full}_parts": ("litert", stages),
    }
    return programs, {"contender": early, "bytes": size} | row


def _files(path: pathlib.Path, single: bytes, batched: bytes) -> dict[str, str]:
    found = {}
    for name, content in (("one", single), ("any", batched)):
        file = path.with_name(f"{path.name}_{name}.tflite")
        file.write_bytes(composing.part_file(content))
        found[name] = str(file)
    return found
