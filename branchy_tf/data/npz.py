"""Reads data sets in .npz files.

Each split has inputs and labels: x_train, y_train, x_test and y_test, maybe x_validation
and y_validation. Several inputs are stored by their names, as x_train/left and
x_train/right. w_train holds the weights of the training rows, and class_names the names
of the classes.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO

import numpy as np

from branchy_tf import files
from branchy_tf.data.raw import Raw, RawSplit
from branchy_tf.errors import BranchyError, one_line

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_CLASS_NAMES = "class_names"
_NAME = re.compile(r"(x|y|w)_(train|validation|test)(?:/(.+))?")


def read(path: pathlib.Path, name: str) -> Raw:
    """The data set in an .npz file.

    Raises:
        BranchyError: the file is missing, damaged, or lacks an array.
    """
    return raw(_read(path), name, str(path))


def raw(arrays: Mapping[str, np.ndarray], name: str, source: str) -> Raw:
    """The data set in arrays with the names of an .npz.

    Raises:
        BranchyError: an array is missing.
    """
    _check_members(arrays, source)
    splits = {}
    for part in ("train", "validation", "test"):
        single = arrays.get(f"x_{part}")
        named = {
            found[3]: array
            for key, array in arrays.items()
            if (found := _NAME.fullmatch(key)) and found[3] and found[2] == part
        }
        if single is None and not named:
            continue
        splits[part] = RawSplit(
            # A single input needs no name.
            named if single is None else single,
            arrays[f"y_{part}"],
            arrays.get(f"w_{part}"),
            (f"x_{part}", f"y_{part}", f"w_{part}"),
        )
    names = arrays.get(_CLASS_NAMES)
    # The rows of published figures were cut without regard to classes.
    return Raw(
        name,
        source,
        splits,
        class_names=None if names is None else [str(name) for name in names.ravel()],
        stratified=False,
    )


def _check_members(names: Iterable[str], source: str) -> None:
    """Checks that every split has inputs, of one kind, and labels."""
    found = sorted(names)
    kinds = {
        f"{match[1]}_{match[2]}" for name in found if (match := _NAME.fullmatch(name))
    }
    needed = set(ARRAYS)
    if kinds & {"x_validation", "y_validation"}:
        needed |= {"x_validation", "y_validation"}
    missing = [name for name in (*ARRAYS, "x_validation", "y_validation")
               if name in needed - kinds]  # fmt: skip
    if missing:
        raise BranchyError(
            f"{source} holds {one_line(', '.join(names)) or 'no arrays'}; expected "
            f"{', '.join(ARRAYS)}. Missing: {', '.join(missing)}."
        )
    for name in found:
        if name.startswith("x_") and "/" in name and name.partition("/")[0] in found:
            raise BranchyError(
                f"{source} holds {name.partition('/')[0]} and {name}; expected one array "
                "for a single input, or a name for each of several inputs."
            )


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise BranchyError(f"There is no data file {path}.")
    mend = "Write it with numpy.savez, or copy it again."
    with files.reading(path, "an .npz of plain arrays", mend):
        try:
            file = np.load(path, allow_pickle=False)
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            # numpy advises to run whatever code the file holds.
            raise ValueError("it is neither a zip archive nor an array") from None
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array without a name")
        with file:
            names = [name for name in file if _NAME.fullmatch(name)]
            names += [name for name in (_CLASS_NAMES,) if name in file]
            _check_members(file, str(path))
            _check_sizes(file.zip, names)
            arrays = {name: file[name] for name in names}
        for name, array in arrays.items():
            # numpy returns a member that is not an array as bytes.
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is not an array")
        return arrays


def _check_sizes(archive: zipfile.ZipFile, names: Iterable[str]) -> None:
    """Raises `ValueError` for headers that claim more than the file or memory holds.

    numpy allocates the memory that a header claims before it reads the values.
    """
    total = 0
    for name in names:
        # numpy accepts either name.
        found = {f"{name}.npy", name} & set(archive.namelist())
        for member in found:
            with archive.open(member) as file:
                claimed = _claimed_bytes(file, name)
            there = archive.getinfo(member).file_size
            if claimed > there:
                raise ValueError(
                    f"the header of {name} claims {claimed:,} bytes, but the file holds "
                    f"{there:,}"
                )
            total += claimed
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > memory:
        raise ValueError(
            f"its arrays take {total / 2**30:,.1f} GiB, but this machine has "
            f"{memory / 2**30:,.1f}"
        )


def _claimed_bytes(file: IO[bytes], name: str) -> int:
    """The size of the values in bytes by an .npy header; 0 without such a header."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        return 0
    if version not in read_header:
        # Version 3 is for structured arrays with names beyond Latin-1.
        raise ValueError(f"an array is in version {version[0]}.{version[1]} of .npy")
    shape, _, dtype = read_header[version](file)
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds Python objects, whose reading can run any code; convert it "
            "to numbers or, for names, with .astype(str)"
        )
    return math.prod(shape) * dtype.itemsize
