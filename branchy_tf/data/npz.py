"""Reads data sets in .npz files."""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np

from branchy_tf import files
from branchy_tf.data.raw import Raw, RawSplit
from branchy_tf.errors import BranchyError, one_line

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def read(path: pathlib.Path, name: str) -> Raw:
    """The data set in an .npz file.

    Raises:
        BranchyError: the file is missing, damaged, or lacks an array.
    """
    return raw(_read(path), name, str(path))


def raw(
    arrays: Mapping[str, np.ndarray],
    name: str,
    source: str,
    classes: int | None = None,
) -> Raw:
    """The data set in arrays with the names of an .npz."""
    splits = {
        part: RawSplit(
            arrays[f"x_{part}"],
            arrays[f"y_{part}"],
            names=(f"x_{part}", f"y_{part}", f"w_{part}"),
        )
        for part in ("train", "test")
    }
    # The rows of published figures were cut without regard to classes.
    return Raw(name, source, splits, classes, stratified=False)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise BranchyError(f"There is no data file {path}.")
    mend = "Write it with numpy.savez, or copy it again."
    with files.reading(path, "an .npz of plain arrays", mend):
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array without a name")
        with file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise BranchyError(
                    f"{path} holds {one_line(', '.join(file)) or 'no arrays'}; expected "
                    f"{', '.join(ARRAYS)}. Missing: {', '.join(missing)}."
                )
            _check_sizes(file.zip)
            arrays = {name: file[name] for name in ARRAYS}
        for name, array in arrays.items():
            # numpy returns a member that is not an array as bytes.
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is not an array")
        return arrays


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raises `ValueError` for headers that claim more than the file or memory holds.

    numpy allocates the memory that a header claims before it reads the values.
    """
    total = 0
    for name in ARRAYS:
        # numpy accepts either name.
        found = {f"{name}.npy", name} & set(archive.namelist())
        for member in found:
            with archive.open(member) as file:
                claimed = _claimed_bytes(file)
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


def _claimed_bytes(file: IO[bytes]) -> int:
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
    # An object array holds pointers; numpy itself rejects it.
    return 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
