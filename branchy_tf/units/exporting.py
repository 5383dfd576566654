"""Exports units, each as a servable of its own, and the cascade.yaml that joins them."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import branchy_tf
from branchy_tf import costs, files, versions
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.policy import ExitPolicy, PolicyLike, forcing
from branchy_tf.saved_model import checking, freezing, warmup, writing
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.units import configs
from branchy_tf.units.cutting import FEATURES, Unit
from branchy_tf.units.interfaces import SIGNATURE
from branchy_tf.units.module import UnitModule, policy_of

CASCADE_FILE = "cascade.yaml"
MODELS_FILE = "models.config"
_CHECKED_ROWS = 8


def export(
    units: Sequence[Unit],
    export_dir: files.Path,
    policy: PolicyLike,
    *,
    model_name: str | None = None,
    codec: str = "uint8",
    freeze: str = "auto",
    input_dtype: str | None = None,
    max_rows: int | None = writing.MAX_ROWS,
) -> list[pathlib.Path]:
    """Exports the units of a network, each as the next version of its own servable.

    Every version is loaded into a Session and compared with the unit's Keras model
    before any of them is visible to a server.

    Args:
        units: of one network, in order, from `cut`.
        export_dir: the folder to write to: a folder for each unit, a cascade.yaml that
            runs all of them in one process, and a models.config for servers. A
            cascade.yaml that is already there stays as it is.
        policy: of the whole network; see `saved_model.export`.
        model_name: the name of the cascade to its clients; default: cascade.
        codec: the form in which features travel: `uint8` (one byte per number),
            `float16`, or `none`.
        freeze: as for `saved_model.export`.
        input_dtype: as for `saved_model.export`.
        max_rows: as for `saved_model.export`.

    Returns:
        The version folders, in the order of the units.

    Raises:
        BranchyError: an argument does not fit, a folder cannot be written, or a check
            failed. No version is left behind.

    Example:

    ```python
    parts = units.cut(model, at=["exit_1"], names=["device", "cloud"])
    units.export(parts, "exports", "runs/lenet/thresholds.json")
    ```
    """
    units = list(units)
    names = [unit.name for unit in units]
    whole = ExitPolicy.of(policy).check_exits(sum(len(unit.exits) for unit in units))
    folders = [writing.model_folder(export_dir, name) for name in names]
    modules = []
    before = 0
    for unit, following in zip(units, [*units[1:], None], strict=True):
        if unit.next != (following.name if following else None):
            raise BranchyError(
                f"Unit {unit.name} names {unit.next} as next, but is followed by "
                f"{following.name if following else 'none'}. Pass all units in order."
            )
        frozen = freezing.should_freeze(unit.model, freeze)
        part = policy_of(unit, whole, before)
        module = UnitModule(unit, part, codec, following, frozen, input_dtype, max_rows)
        # Tracing errors surface before a file is touched.
        module.function.get_concrete_function()
        modules.append(module)
        before += len(unit.exits)

    written: list[versions.NewVersion] = []
    network = examples = _examples(modules[0])
    try:
        # All versions appear when all are written.
        with contextlib.ExitStack() as stack:
            for module, folder in zip(modules, folders, strict=True):
                written.append(stack.enter_context(versions.new_version(folder)))
                logging.info("Writing unit %s ...", module.unit.name)
                onward = _write(module, written[-1].beside, codec, examples)
                # A unit without features sends the image again.
                examples = onward or network
    except (OSError, tf.errors.OpError) as error:
        raise writing.unwritable(files.folder(export_dir), error) from None
    top = files.folder(export_dir)
    if not (top / CASCADE_FILE).exists():
        text = configs.starting_text(units, model_name or "cascade")
        files.write_text(top / CASCADE_FILE, text)
    files.write_text(top / MODELS_FILE, _models_config(folders))
    return [version.path for version in written]


def _examples(module: UnitModule) -> dict[str, np.ndarray]:
    dtypes = [tensor.dtype for tensor in module.unit.model.inputs]
    rows = min(_CHECKED_ROWS, module.max_rows or _CHECKED_ROWS)
    return warmup.examples(module.specs, dtypes, rows)


def _write(
    module: UnitModule,
    beside: pathlib.Path,
    codec: str,
    examples: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Writes and checks a version; returns the features of the example rows.

    Args:
        module: of the unit.
        beside: the folder to write to.
        codec: of the features.
        examples: inputs of the unit.
    """
    module.save(beside)
    (beside / "assets.extra").mkdir()
    files.write_json(beside / "assets.extra/branchy.json", _description(module, codec))
    warmup.write_requests(_warmup(module, examples), beside, module.unit.name)
    try:
        session = SessionModel(beside)
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        raise BranchyError(
            f"The exported unit {module.unit.name} does not load: {first_line(error)}"
        ) from None
    try:
        _check(session, module, examples)
        return _onward(session, module, examples)
    finally:
        session.close()


def _check(
    session: SessionModel, module: UnitModule, examples: dict[str, np.ndarray]
) -> None:
    """Compares every exit of a written unit with its Keras model.

    Raises:
        BranchyError: they differ by more than rounding.
    """
    unit, policy = module.unit, module.policy
    outputs = unit.model(module.prepare(examples), training=False)
    rows = len(next(iter(examples.values())))
    for k, name in enumerate(unit.exits):
        logits = np.asarray(outputs[name], np.float32)
        expected, scores = (np.asarray(x) for x in exit_answer(logits, policy, k))
        limits = np.tile(forcing(k, policy.num_exits), (rows, 1))
        answer = session.run(SIGNATURE, examples | {"thresholds": limits})
        where = f"unit {unit.name}, {name}"
        scaled = logits[np.isfinite(logits)] / policy.temperature(k)
        tolerance = checking.TOLERANCE * max(1.0, float(np.abs(scaled).max(initial=0)))
        if (answer["exit"] != k).any():
            raise BranchyError(
                f"The exported {where} answers rows at exits {answer['exit'].tolist()}; "
                f"expected {k}."
            )
        for what, found, wanted in (
            ("probabilities", answer["probabilities"], expected),
            ("scores", answer["score"], scores),
        ):
            checking.check_same(f"{what} of {where}", found, wanted, tolerance)


def _onward(
    session: SessionModel, module: UnitModule, examples: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The features of the example rows, if all of them go on."""
    stay = np.zeros_like(module.policy.limits)
    answer = session.run(SIGNATURE, examples | {"thresholds": stay})
    return {spec.name: answer[spec.name] for spec in module.sends}


def _warmup(
    module: UnitModule, examples: dict[str, np.ndarray]
) -> Iterable[tuple[str, dict[str, np.ndarray]]]:
    """Requests that reach every exit of a unit, and its end."""
    number = module.policy.num_exits
    last = number if module.unit.next is not None else number - 1
    for rows in warmup.BATCH_SIZES:
        if module.max_rows is not None and rows > module.max_rows:
            break
        index = np.arange(rows) % len(next(iter(examples.values())))
        inputs = {name: values[index] for name, values in examples.items()}
        for k in range(min(last + 1, number)):
            limits = np.tile(forcing(k, number), (rows, 1))
            yield SIGNATURE, inputs | {"thresholds": limits}


def _description(module: UnitModule, codec: str) -> dict[str, Any]:
    unit = module.unit
    return {
        "unit": {
            "name": unit.name,
            "next": unit.next,
            "takes": unit.takes,
            "sends": unit.sends if unit.next is not None else None,
            "codec": codec if FEATURES in (unit.takes, unit.sends) else None,
            "fingerprint": module.fingerprint,
        },
        "exits": unit.exits,
        "criterion": module.policy.criterion,
        "thresholds": module.policy.limits[0],
        "temperatures": module.policy.temperatures,
        "classes": module.classes,
        "inputs": _described(module.specs),
        "features": _described(module.sends),
        "macs": _macs(unit),
        "max_rows": module.max_rows,
        "versions": {
            "branchy_tf": branchy_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }


def _described(specs: Sequence[tf.TensorSpec]) -> dict[str, Any]:
    return {
        spec.name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for spec in specs
    }


def _macs(unit: Unit) -> list[int] | None:
    """Multiply-adds of each stage of a unit, for one row."""
    try:
        return [costs.macs(stage.model) for stage in unit.stages]
    except BranchyError as error:
        logging.warning("%s", error)
        return None


def _models_config(folders: Sequence[pathlib.Path]) -> str:
    """A ModelServerConfig that serves all units from one server."""
    entries = "".join(
        "  config {\n"
        f'    name: "{folder.name}"\n'
        f'    base_path: "{folder}"\n'
        '    model_platform: "tensorflow"\n'
        "  }\n"
        for folder in folders
    )
    return f"model_config_list {{\n{entries}}}\n"
