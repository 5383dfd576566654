"""Exports units, each as a servable of its own, and the cascade.yaml that joins them."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import branchy_tf
from branchy_tf import checks, files, versions
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.policy import ExitPolicy, PolicyLike, forcing
from branchy_tf.saved_model import checking, freezing, warmup, writing
from branchy_tf.saved_model.session import SessionModel, opened
from branchy_tf.units import configs
from branchy_tf.units.cutting import FEATURES, IMAGE, Unit
from branchy_tf.units.interfaces import SIGNATURE
from branchy_tf.units.module import UnitModule, policy_of

CASCADE_FILE = "cascade.yaml"
MODELS_FILE = "models.config"
_CHECKED_ROWS = 8


def export(
    units: Sequence[Unit],
    export_dir: files.Path,
    policy: PolicyLike | Mapping[str, PolicyLike],
    *,
    model_name: str | None = None,
    codec: str = "uint8",
    freeze: str = "auto",
    input_dtype: str | None = None,
    max_rows: int | None = writing.MAX_ROWS,
    class_names: Sequence[str] | Mapping[str, Sequence[str] | None] | None = None,
) -> list[pathlib.Path]:
    """Exports the units of a network, each as the next version of its own servable.

    Every version is loaded into a Session and compared with the unit's Keras model
    before any of them is visible to a server.

    Args:
        units: of one network, from `cut`, or of several fronts with a shared tail, from
            `joined`.
        export_dir: the folder to write to: a folder for each unit, a cascade.yaml that
            runs all of them in one process, and a models.config for servers. A
            cascade.yaml that is already there stays as it is.
        policy: of the whole network; see `saved_model.export`. For several fronts, a
            policy of each one's way to the end, by the front's name.
        model_name: the name of the cascade to its clients; default: cascade.
        codec: the form in which features travel: `uint8` (one byte per number),
            `float16`, or `none`.
        freeze: as for `saved_model.export`.
        input_dtype: as for `saved_model.export`.
        max_rows: as for `saved_model.export`.
        class_names: the names of the classes, for branchy.json. For several fronts, a
            dict by the front's name; a unit that they share has names if they agree.

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
    chains = _chains(units)
    policies = _policies(chains, policy)
    parts = _parts(chains, policies)
    called = _class_names(chains, class_names)
    folders = [writing.model_folder(export_dir, name) for name in names]
    modules = []
    for unit in units:
        frozen = freezing.should_freeze(unit.model, freeze)
        following = next((u for u in units if u.name == unit.next), None)
        module = UnitModule(
            unit, parts[unit.name], codec, following, frozen, input_dtype, max_rows
        )
        # Tracing errors surface before a file is touched.
        module.function.get_concrete_function()
        modules.append(module)

    written: list[versions.NewVersion] = []
    # Example inputs of each unit, from the unit before it.
    examples: dict[str, dict[str, np.ndarray]] = {}
    try:
        # All versions appear when all are written.
        with contextlib.ExitStack() as stack:
            for module, folder in zip(modules, folders, strict=True):
                unit = module.unit
                written.append(stack.enter_context(versions.new_version(folder)))
                logging.info("Writing unit %s ...", unit.name)
                if unit.takes == IMAGE:
                    examples[unit.name] = _examples(module)
                beside = written[-1].beside
                described = _description(module, codec, called[unit.name])
                onward = _write(module, beside, described, examples[unit.name])
                if unit.next is not None and onward:
                    examples[unit.next] = onward
    except (OSError, tf.errors.OpError) as error:
        raise writing.unwritable(files.folder(export_dir), error) from None
    top = files.folder(export_dir)
    if not (top / CASCADE_FILE).exists():
        limits = {name: list(policies[name].thresholds) for name in chains}
        if len(chains) == 1:
            limits = {}
        elif model_name is not None:
            raise BranchyError(
                f"`model_name` names one network, but there are the fronts "
                f"{', '.join(chains)}. Omit it; clients use the fronts' names."
            )
        name = (model_name or "cascade") if len(chains) == 1 else None
        text = configs.starting_text(units, name, limits)
        files.write_text(top / CASCADE_FILE, text)
    files.write_text(top / MODELS_FILE, _models_config(folders))
    return [version.path for version in written]


def _chains(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The units from each front to the end, by the front's name.

    Raises:
        BranchyError: a name occurs twice, is missing, or comes before what sends to it.
    """
    known: dict[str, Unit] = {}
    for unit in units:
        if unit.name in known:
            raise BranchyError(
                f"Two units are named {unit.name!r}; expected different names."
            )
        known[unit.name] = unit
    order = list(known)
    for unit in units:
        if unit.next is None:
            continue
        if unit.next not in known or order.index(unit.next) < order.index(unit.name):
            raise BranchyError(
                f"Unit {unit.name!r} names {unit.next!r} as next, which does not come "
                f"after it among {', '.join(order)}. Pass all units, in order."
            )
    reached = {unit.next for unit in units}
    chains = {}
    for unit in units:
        if unit.name not in reached:
            chain = [unit]
            while chain[-1].next is not None:
                chain.append(known[chain[-1].next])
            chains[unit.name] = chain
    return chains


def _policies(
    chains: Mapping[str, list[Unit]], given: PolicyLike | Mapping[str, PolicyLike]
) -> dict[str, ExitPolicy]:
    """The policy of each front's way to the end."""
    if not isinstance(given, Mapping):
        if len(chains) > 1:
            raise BranchyError(
                f"There are the fronts {', '.join(chains)}; pass a dict with the policy "
                f"of each. Received {checks.shown(given)}."
            )
        given = dict.fromkeys(chains, given)
    if set(given) != set(chains):
        raise BranchyError(
            f"`policy` has policies for {', '.join(map(str, given)) or 'none'}; expected "
            f"{', '.join(chains)}."
        )
    return {
        name: ExitPolicy.of(given[name]).check_exits(
            sum(len(unit.exits) for unit in chain)
        )
        for name, chain in chains.items()
    }


def _parts(
    chains: Mapping[str, list[Unit]], policies: Mapping[str, ExitPolicy]
) -> dict[str, ExitPolicy]:
    """The policy of each unit's exits, by the unit's name.

    Thresholds travel with the rows, but criterion and temperatures are in the graph.

    Raises:
        BranchyError: two fronts need a shared unit with different ones.
    """
    parts: dict[str, ExitPolicy] = {}
    for name, chain in chains.items():
        before = 0
        for unit in chain:
            part = policy_of(unit, policies[name], before)
            before += len(unit.exits)
            known = parts.setdefault(unit.name, part)
            number = len(unit.exits)
            scores, others = (
                (p.criterion, [p.temperature(k) for k in range(number)])
                for p in (part, known)
            )
            if scores != others:
                raise BranchyError(
                    f"The policy of {name!r} scores the exits of {unit.name!r} with "
                    f"criterion and temperatures {scores}, another front with {others}. "
                    "Calibrate all fronts with the same criterion and temperatures for "
                    "the exits that they share."
                )
    return parts


def _examples(module: UnitModule) -> dict[str, np.ndarray]:
    dtypes = [tensor.dtype for tensor in module.unit.model.inputs]
    rows = min(_CHECKED_ROWS, module.max_rows or _CHECKED_ROWS)
    return warmup.examples(module.specs, dtypes, rows)


def _write(
    module: UnitModule,
    beside: pathlib.Path,
    description: dict[str, Any],
    examples: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Writes and checks a version; returns the features of the example rows.

    Args:
        module: of the unit.
        beside: the folder to write to.
        description: the content of its branchy.json.
        examples: inputs of the unit.
    """
    module.save(beside)
    (beside / "assets.extra").mkdir()
    files.write_json(beside / "assets.extra/branchy.json", description)
    warmup.write_requests(_warmup(module, examples), beside, module.unit.name)
    session = opened(beside, f"unit {module.unit.name}")
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


def _class_names(
    chains: Mapping[str, list[Unit]],
    given: Sequence[str] | Mapping[str, Sequence[str] | None] | None,
) -> dict[str, list[str] | None]:
    """The names of the classes by unit; None where they are unknown or differ."""
    by_front = given if isinstance(given, Mapping) else dict.fromkeys(chains, given)
    found: dict[str, list[str] | None] = {}
    for front, chain in chains.items():
        names = by_front.get(front)
        writing.check_class_names(names, chain[0].classes)
        for unit in chain:
            known = None if names is None else list(names)
            agrees = found.get(unit.name, known) == known
            found[unit.name] = known if agrees else None
    return found


def _description(
    module: UnitModule, codec: str, class_names: Sequence[str] | None
) -> dict[str, Any]:
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
        "class_names": class_names,
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
    """Multiply-adds of each stage of a unit, for one row; None if they are unknown."""
    try:
        return unit.macs
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
