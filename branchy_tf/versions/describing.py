"""Reads branchy.json, which describes an exported version of either format.

Needs NumPy only, so that a device without TensorFlow can read it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError, one_line
from branchy_tf.policy import ExitPolicy

SAVED_MODEL = "saved_model"
LITERT = "litert"
FORMATS = (SAVED_MODEL, LITERT)

# A file that every version of a format holds, and the place of its description.
_MARKS = {
    SAVED_MODEL: ("saved_model.pb", "assets.extra/branchy.json"),
    LITERT: ("early_exit.tflite", "branchy.json"),
}
_MEND = "Export the model again."


@dataclasses.dataclass(frozen=True)
class Description:
    """What branchy.json says of a version.

    Attributes:
        format: one of `FORMATS`.
        exits: the names of all N exits.
        policy: the policy that was exported: its criterion and temperatures are part of
            the graph, its thresholds are the default.
        classes: the number of classes.
        inputs: what the model takes, by input name, in order.
        max_rows: the largest number of rows in a request, or None.
        content: the whole content of the file.
    """

    format: str
    exits: Sequence[str]
    policy: ExitPolicy
    classes: int
    inputs: Mapping[str, checks.TensorSpec]
    max_rows: int | None
    content: Mapping[str, Any]


def find_format(path: pathlib.Path) -> str:
    """The format of a version folder.

    Raises:
        BranchyError: the folder is missing or holds no version of a known format.
    """
    for name, (mark, _) in _MARKS.items():
        if (path / mark).is_file():
            return name
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise BranchyError(
            f"{path} {what}; expected the folder of a version, as written by python -m "
            "branchy_tf.export."
        )
    inside = files.version_folders(path)
    hint = f" Pass one of its versions: {path / str(max(inside))}." if inside else ""
    marks = " nor ".join(mark for mark, _ in _MARKS.values())
    raise BranchyError(
        f"{path} holds neither {marks}; expected the folder of a version.{hint}"
    )


def describe(path: files.Path) -> Description:
    """Reads the description of a version folder.

    Args:
        path: the folder, such as exports/my_model/1.

    Raises:
        BranchyError: the folder holds no version of a known format, or its branchy.json
            is missing or damaged.
    """
    path = files.path(path)
    kind = find_format(path)
    source = path / _MARKS[kind][1]
    if not source.is_file():
        raise BranchyError(f"{path} lacks {_MARKS[kind][1]}. {_MEND}")
    content = files.read_json(source)
    policy = ExitPolicy.from_json(content, source)
    with files.reading(source, "the description of a version", _MEND):
        exits = [str(name) for name in content["exits"]]
        inputs = {
            name: checks.TensorSpec(
                tuple(spec["shape"]), _dtype(spec["dtype"], name, source)
            )
            for name, spec in content["inputs"].items()
        }
        classes, max_rows = int(content["classes"]), content.get("max_rows")
        if max_rows is not None:
            max_rows = int(max_rows)
        if not inputs or len(exits) != policy.num_exits:
            raise ValueError("its inputs, exits and thresholds do not fit together")
    return Description(kind, exits, policy, classes, inputs, max_rows, content)


def _dtype(name: str, of: str, source: pathlib.Path) -> Any:
    try:
        return np.dtype(name)
    except TypeError:
        raise BranchyError(
            f"{source}: the input {one_line(of)} has the dtype {one_line(str(name))}, "
            "which NumPy does not provide. Export with another --input_dtype."
        ) from None
