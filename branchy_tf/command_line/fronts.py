"""Reads --front and --tail, and builds what they name.

A front is NAME=KEY:VALUE,KEY:VALUE,... and a tail the same without the name. A comma ends
a value only before another KEY:, so values may hold commas:
road=model:branchy_resnet,model_args:depth=20,exits=light,dataset:cifar10.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from branchy_tf import files
from branchy_tf.command_line import startup
from branchy_tf.command_line.parsing import parse_arguments, parse_size
from branchy_tf.errors import BranchyError

if TYPE_CHECKING:
    # Needs Keras, which listing the commands does not.
    from branchy_tf.pipeline.fronts import Front
    from branchy_tf.units.cutting import Unit

_MODEL = ("model", "model_args", "weights", "exits", "at")
FRONT = (
    *_MODEL, "bottleneck", "dataset", "data_dir", "image_size", "skip_unreadable",
    "validation_size",
)  # fmt: skip
TAIL = ("run", *_MODEL)
_NEEDED = ("model", "dataset")
_EXAMPLE = "road=model:branchy_resnet,model_args:depth=20,dataset:cifar10"
_AT = "exit_1"
_TAIL_NAME = "tail"


def parse_fronts(texts: list[str]) -> dict[str, dict[str, str]]:
    """`{front: {key: value}}` of the values of --front, with absolute paths.

    Raises:
        BranchyError: a text has another form, an unknown key or none that is needed, or
            two fronts have one name.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not name.strip() or ":" in name:
            raise BranchyError(
                f"--front={text}: expected NAME=KEY:VALUE,KEY:VALUE, for example "
                f"--front={_EXAMPLE}."
            )
        name = name.strip()
        if name in found:
            raise BranchyError(
                f"Two fronts are named {name!r}; expected different names."
            )
        found[name] = _entries(f"--front={text}", rest, FRONT)
        for key in _NEEDED:
            if key not in found[name]:
                raise BranchyError(
                    f"--front={text} has no {key}. Add {key}:VALUE, for example "
                    f"--front={_EXAMPLE}."
                )
    return found


def parse_tail(text: str) -> dict[str, str]:
    """`{key: value}` of --tail, with absolute paths.

    Raises:
        BranchyError: the text has another form or an unknown key, or names not exactly
            one of a run and a model.
    """
    found = _entries(f"--tail={text}", text, TAIL)
    if ("run" in found) == ("model" in found):
        raise BranchyError(
            f"--tail={text}: expected either run:FOLDER or model:NAME, for example "
            "--tail=run:runs/shared."
        )
    return found


def spelled(entries: Mapping[str, str]) -> str:
    """The text that `parse_tail` reads."""
    return ",".join(f"{key}:{value}" for key, value in entries.items())


def built_fronts(
    given: Mapping[str, Mapping[str, str]], seed: int, imports: Sequence[str] = ()
) -> tuple[dict[str, Front], Unit]:
    """The fronts, and the rest of the first one's network, which can be their tail.

    Args:
        given: from `parse_fronts`.
        seed: cuts the validation splits.
        imports: the modules of --import, which each front's run is to name.

    Raises:
        BranchyError: a model or data set cannot be loaded, or the model not cut; the
            message names the front.
    """
    with startup.hushed():
        from branchy_tf import data
        from branchy_tf.pipeline.fronts import Front

    fronts: dict[str, Front] = {}
    tails = []
    for name, entries in given.items():
        try:
            size = entries.get("validation_size")
            if size is not None and not size.isdecimal():
                raise BranchyError(
                    f"validation_size:{size}: expected a whole number of rows."
                )
            arguments = parse_arguments(entries.get("model_args", ""))
            dataset = data.load(
                entries["dataset"],
                entries.get("data_dir"),
                None if size is None else int(size),
                seed,
                image_size=parse_size(entries.get("image_size")),
                skip_unreadable=entries.get("skip_unreadable", "").lower() == "true",
                input_shape=arguments.get("input_shape"),
            )
            offered: dict[str, Any] = {"classes": dataset.classes}
            if not isinstance(dataset.train.inputs, Mapping):
                offered["input_shape"] = tuple(dataset.train.inputs.shape[1:])
            unit, rest = _cut(entries, offered, name)
        except BranchyError as error:
            raise BranchyError(f"Front {name!r}: {error}") from None
        lines = [
            f"--{key}={entries[key]}" for key in ("model", "exits") if key in entries
        ]
        if imports:
            lines.append(f"--import={','.join(imports)}")
        fronts[name] = Front(unit, dataset, lines)
        tails.append(rest)
    return fronts, tails[0]


def built_tail(entries: Mapping[str, str], offered: Mapping[str, Any]) -> Unit:
    """The unit that --tail names.

    Args:
        entries: from `parse_tail`.
        offered: what the first front's data set says about the model to build.

    Raises:
        BranchyError: there is no such model or run, or it cannot be cut there.
    """
    with startup.hushed():
        from branchy_tf import training, units
        from branchy_tf.pipeline.fronts import read_fronts

    if "run" not in entries:
        return _cut(entries, offered, "front")[1]
    folder = training.RunFolder(entries["run"])
    if folder.fronts.is_file():
        known = read_fronts(folder.path)
        if "at" in entries:
            raise BranchyError(
                f"--tail={spelled(entries)}: {folder.path} knows where its tail begins. "
                "Leave at: out."
            )
        return known.parts(next(iter(known.ends)))[1]
    at = entries.get("at", _AT)
    return units.cut(folder.load_model(), [at], ["front", _TAIL_NAME])[1]


def _cut(
    entries: Mapping[str, str], offered: Mapping[str, Any], name: str
) -> tuple[Unit, Unit]:
    """The part of a model up to the exit to cut at, and the rest."""
    from branchy_tf import models, units

    model = models.build(
        entries["model"],
        parse_arguments(entries.get("model_args", "")),
        offered,
        entries.get("weights"),
        entries.get("exits"),
    )
    at = entries.get("at", _AT)
    channels = None
    if "bottleneck" in entries:
        if not entries["bottleneck"].isdecimal():
            raise BranchyError(
                f"bottleneck:{entries['bottleneck']}: expected a number of channels."
            )
        channels = int(entries["bottleneck"])
    front, rest = units.cut(model, [at], [name, _TAIL_NAME], bottleneck=channels)
    return front, rest


def _entries(where: str, text: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in re.split(r",(?=\s*\w+:)", text):
        key, colon, value = (part.strip() for part in entry.partition(":"))
        if not colon or not value:
            raise BranchyError(
                f"{where}: expected KEY:VALUE,KEY:VALUE. Received {entry!r}."
            )
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise BranchyError(
                f"{where}: unknown key {key!r}.{hint} Known: {', '.join(known)}."
            )
        if key in found:
            raise BranchyError(f"{where} has the key {key!r} twice.")
        found[key] = _absolute(key, value)
    return found


def _absolute(key: str, value: str) -> str:
    """The value with an absolute path, so that the training can be repeated anywhere."""
    is_file = value.endswith((".npz", ".keras", ".h5"))
    is_folder = key == "dataset" and files.path(value).is_dir()
    if key in ("data_dir", "run") or is_file or is_folder:
        return str(files.absolute(value))
    return value
