"""Damages the files that the package reads: each must load or give one clear line.

Valid images, data sets, models and flagfiles are cut, spliced and overwritten, at
their bytes and, checksums mended, in what lies inside. Exact command:

  python tests/load/fuzz_files.py --images=2000 --npz=2000 --keras=500 --flagfiles=500
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import pathlib
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import lab
import numpy as np
from PIL import Image
from tqdm import tqdm

from branchy_tf import data, images
from branchy_tf.errors import BranchyError
from branchy_tf.files.keras_files import load_keras_file
from branchy_tf.zoo import branchy_lenet

Random = np.random.Generator
Damage = Callable[[bytes, Random], bytes]

KINDS = ("images", "npz", "keras", "flagfiles")
# Bad values for lengths, sizes and counts.
_SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_VALUES = (None, True, -1, 0, 1.5, 2**40, "", "x", [], [[]], {}, [None], {"a": 1})
_DTYPES = ("?", "u1", "i8", "u8", "f2", "f8", "c8", "U3", "S2", "m8[s]", "M8[s]", "O")
# Beyond what the process has at the start: the rest is left to others.
_MEMORY = 4 * 2**30


# Damage to bytes


def flipped(content: bytes, random: Random) -> bytes:
    """Flips up to 8 bits."""
    raw = bytearray(content)
    for at in random.integers(0, len(raw), random.integers(1, 9)):
        raw[at] ^= 1 << random.integers(8)
    return bytes(raw)


def cut(content: bytes, random: Random) -> bytes:
    """Removes the end."""
    return content[: random.integers(0, len(content))]


def spliced(content: bytes, random: Random) -> bytes:
    """Removes or moves a piece."""
    start, end, to = np.sort(random.integers(0, len(content), 3))
    piece, rest = content[start:end], content[:start] + content[end:]
    return rest[:to] + piece * int(random.integers(0, 3)) + rest[to:]


def overwritten(content: bytes, random: Random) -> bytes:
    """Overwrites a piece with zeros, ones or noise."""
    start, length = random.integers(0, len(content)), random.integers(1, 64)
    fill = (b"\0" * length, b"\xff" * length, random.bytes(length))[random.integers(3)]
    return content[:start] + fill + content[start + length :]


def resized(content: bytes, random: Random) -> bytes:
    """Writes a bad number near the beginning or anywhere."""
    near = min(len(content), 100 if random.random() < 0.7 else len(content))
    start, form = random.integers(0, near), random.choice(["B", "<H", ">H", "<I", ">I"])
    form = str(form) if random.random() < 0.8 else "<Q"
    size = struct.calcsize(form)
    value = int(random.choice(np.uint64(_SIZES))) % 2 ** (8 * size)
    return content[:start] + struct.pack(form, value) + content[start + size :]


_BYTES: tuple[Damage, ...] = (flipped, cut, spliced, overwritten, resized)


def damaged(content: bytes, random: Random) -> bytes:
    """Applies one or two of the above."""
    for _ in range(random.integers(1, 3)):
        # An empty file stays empty.
        if content:
            content = _BYTES[random.integers(len(_BYTES))](content, random)
    return content


def in_utf_8(content: bytes, random: Random) -> bytes:
    """Damages a text, which stays a text."""
    return damaged(content, random).decode("utf-8", "replace").encode()


# Damage inside, where checksums would hide it


def png_inside(content: bytes, random: Random) -> bytes:
    """Damages a chunk and corrects its checksum."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append(content[at + 4 : at + 8 + length])
        at += 12 + length
    chosen = random.integers(len(chunks))
    name, value = chunks[chosen][:4], chunks[chosen][4:]
    if name == b"IDAT":
        value = zlib.compress(damaged(zlib.decompress(value), random))
    elif value:
        value = damaged(value, random)
    chunks[chosen] = name + value
    return content[:8] + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def zip_inside(content: bytes, random: Random) -> bytes:
    """Damages a member of a zip file and corrects its checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[random.integers(len(members))]
    inside = json_inside if name.endswith(".json") and random.random() < 0.7 else damaged
    members[name] = inside(members[name], random)
    return _zipped(members, random)


def _zipped(members: dict[str, bytes], random: Random) -> bytes:
    file = io.BytesIO()
    method = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", int(method)) as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return file.getvalue()


def json_inside(content: bytes, random: Random) -> bytes:
    """Changes or removes up to 3 values."""
    value = json.loads(content)
    for _ in range(random.integers(1, 4)):
        # Possibly the last one.
        if not (places := list(_places(value))):
            break
        part, key = places[random.integers(len(places))]
        if random.random() < 0.3:
            del part[key]
        else:
            part[key] = copy.deepcopy(_VALUES[random.integers(len(_VALUES))])
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(value)) if isinstance(value, list) else list(value)
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def other_arrays(content: bytes, random: Random) -> bytes:
    """Changes an array's shape, dtype, order or content."""
    with np.load(io.BytesIO(content)) as arrays:
        members = dict(arrays)
    name = list(members)[random.integers(len(members))]
    array = members[name]
    if random.random() < 0.5:
        shape = tuple(random.integers(0, 5, random.integers(0, 6)))
        array = random.integers(0, 300, shape)
    with np.errstate(all="ignore"):
        array = array.astype(_DTYPES[random.integers(len(_DTYPES))])
    if array.dtype.kind in "fc" and array.size:
        array.flat[random.integers(array.size)] = random.choice([np.nan, np.inf, -1, 0.5])
    members[name] = np.asfortranarray(array) if random.random() < 0.3 else array
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


# Valid files


def image_files() -> list[bytes]:
    """One of each common format and mode."""
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (20, 30, 4), np.uint8))
    deep = Image.fromarray(random.integers(0, 2**16, (20, 30)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    plain = colour.convert("RGB")
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((colour.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "RGB", "RGBA")),
        (plain.convert("P"), "PNG", {"transparency": 3}),
        (deep, "PNG", {}),
        (plain, "PNG", {"exif": exif, "interlace": 1}),
        (colour, "PNG", frames),
        *((plain.convert(mode), "JPEG", {}) for mode in ("L", "RGB", "CMYK")),
        (plain, "JPEG", {"exif": exif, "progressive": True}),
        (colour, "WEBP", {"lossless": True}),
        (plain, "WEBP", {"exif": exif}),
        (colour, "WEBP", frames),
        (plain.convert("P"), "GIF", {"transparency": 3}),
        (plain.convert("P"), "GIF", frames),
        *((plain.convert(mode), "BMP", {}) for mode in ("1", "P", "RGB")),
        *((plain, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", None)),
        (plain.convert("1"), "TIFF", {"compression": "group4"}),
        *((colour.convert(mode), "TIFF", {}) for mode in ("LA", "F", "CMYK")),
        (deep, "TIFF", {"exif": exif, "compression": "tiff_adobe_deflate"}),
        (colour, "TIFF", frames),
    ]
    found = []
    for picture, form, options in wanted:
        file = io.BytesIO()
        picture.save(file, form, **options)
        found.append(file.getvalue())
    return found


def npz_files() -> list[bytes]:
    """Compressed and plain."""
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 256, (40, 8, 8), np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": random.integers(0, 256, (12, 8, 8), np.uint8),
        "y_test": np.arange(12) % 4.0,
    }
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        found.append(file.getvalue())
    return found


def keras_files() -> list[bytes]:
    """A small multi-exit model."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        branchy_lenet((12, 12, 1), classes=3).save(path)
        return [path.read_bytes()]


def flag_files() -> list[bytes]:
    """The recipes of the zoo."""
    return [path.read_bytes() for path in sorted(lab.ROOT.glob("zoo/**/*.flags"))]


# Readers


def read_image(path: pathlib.Path, number: int) -> None:
    """Reads it for models of several shapes."""
    shape = ((28, 28, 1), (32, 32, 3), (None, None, 3))[number % 3]
    array, _ = images.read([str(path)], shape)
    assert array.dtype == np.uint8, array.dtype
    assert array.ndim == 4, array.shape
    assert array.shape[3] == shape[2], array.shape


def read_npz(path: pathlib.Path, number: int) -> None:
    """Reads it and checks the result."""
    found = data.load(str(path))
    for part in (found.train, found.validation, found.test):
        assert part.images.dtype == np.uint8, part.images.dtype
        assert len(part.images) == len(part.labels) > 0
        assert 0 <= part.labels.min() <= part.labels.max() < found.classes


def read_keras(path: pathlib.Path, number: int) -> None:
    """Loads it."""
    try:
        assert isinstance(load_keras_file(path), keras.Model)
    finally:
        keras.backend.clear_session()


# Judging


class Fuzz:
    """Reads damaged files of one kind and records the outcomes.

    Args:
        kind: the file's suffix.
        valid: files to damage, in turn.
        damages: ways to do so, each as likely as the others.
        read: raises `BranchyError`, of one line, or gives an answer.

    Attributes:
        outcomes: how many were answered and refused.
        problems: what must not be, with the number that makes it again.
        slowest: seconds.
    """

    def __init__(
        self,
        kind: str,
        valid: Sequence[bytes],
        damages: Sequence[Damage],
        read: Callable[[pathlib.Path, int], None],
    ) -> None:
        self.kind = kind
        self._valid = valid
        self._damages = damages
        self._read = read
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.slowest = 0.0

    def make(self, number: int) -> bytes:
        """Damaged file `number`, the same each time."""
        random = np.random.default_rng(number)
        valid = self._valid[number % len(self._valid)]
        damage = self._damages[random.integers(len(self._damages))]
        if damage is png_inside and not valid.startswith(b"\x89PNG"):
            damage = damaged
        return damage(valid, random)

    def __call__(self, folder: pathlib.Path, number: int) -> None:
        """Makes, reads and judges file `number`."""
        path = folder / f"{number}.{self.kind}"
        path.write_bytes(self.make(number))
        start = time.monotonic()
        try:
            self._read(path, number)
            outcome = "answered"
        except BranchyError as error:
            outcome = "refused"
            if not str(error).isprintable():
                self.problems.append(f"{path.name}: more than a line: {error!s:.300}")
        except Exception as error:
            outcome = type(error).__name__
            self.problems.append(f"{path.name}: {outcome}: {error!s:.300}")
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, time.monotonic() - start)
        path.unlink()


def images_fuzz() -> Fuzz:
    """Of image files."""
    return Fuzz("image", image_files(), (damaged, damaged, png_inside), read_image)


def npz_fuzz() -> Fuzz:
    """Of data sets."""
    return Fuzz("npz", npz_files(), (damaged, zip_inside, other_arrays), read_npz)


def keras_fuzz() -> Fuzz:
    """Of models."""
    return Fuzz("keras", keras_files(), (damaged, zip_inside, zip_inside), read_keras)


def read_flagfiles(folder: pathlib.Path) -> list[tuple[str, object, str, str | None]]:
    """For each flagfile of a folder, how `train` ends with it.

    Its name, the status, what was written to stderr, and an exception that escaped. Runs
    in its own process, with that command's flags.
    """
    from branchy_tf import command_line, train

    outcomes = []
    assert train.FLAGS is command_line.FLAGS
    for path in sorted(folder.iterdir(), key=lambda path: int(path.stem)):
        said, crash, status = io.StringIO(), None, None
        sys.argv = ["train", f"--flagfile={path}"]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                # Its flags alone: nothing is trained.
                command_line.run(lambda: None)
            except SystemExit as end:
                status = end.code
            except BaseException as error:
                crash = f"{type(error).__name__}: {error!s:.300}"
        outcomes.append((path.name, status, said.getvalue(), crash))
    return outcomes


def flagfiles_fuzz(
    folder: pathlib.Path,
    count: int,
    first: int = 0,
    damages: Sequence[Damage] = (damaged, in_utf_8),
) -> Fuzz:
    """Fuzzes flagfiles, all read in one process."""
    fuzz = Fuzz("flags", flag_files(), damages, lambda path, number: None)
    for number in range(first, first + count):
        (folder / f"{number}.flags").write_bytes(fuzz.make(number))
    for name, status, said, crash in lab.call(read_flagfiles, folder) if count else []:
        fuzz.outcomes["answered" if status in (0, None) else "refused"] += 1
        complaints = [line for line in said.splitlines() if line.startswith("error: ")]
        if crash or "Traceback" in said or (status and len(complaints) != 1):
            fuzz.problems.append(f"{name}: status {status}, {crash or said!s:.300}")
    return fuzz


def memory() -> float:
    """Memory of this process in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def run(
    folder: pathlib.Path,
    counts: dict[str, int],
    first: int = 0,
    progress: bool = False,
    growth: float = 100,
) -> lab.Findings:
    """Damages and reads that many files of each kind.

    Args:
        folder: an empty one.
        counts: `{kind: how many}`, for each of `KINDS`.
        first: number of the first file.
        progress: whether to show it.
        growth: MB that each kind may add to the process's memory, once it has read a
            tenth: what libraries set up on first use comes before.
    """
    found = lab.Findings("", {})
    lines = []
    for name, make in {
        "images": images_fuzz,
        "npz": npz_fuzz,
        "keras": keras_fuzz,
    }.items():
        fuzz, before = make(), memory()
        numbers = range(first, first + counts[name])
        for i, number in enumerate(tqdm(numbers, name, disable=not progress)):
            if i == len(numbers) // 10:
                before = memory()
            fuzz(folder, number)
        after = memory()
        lines.append(
            f"{counts[name]} {name}: {dict(fuzz.outcomes)}, the slowest took "
            f"{fuzz.slowest:.1f} s; {before:.0f} MB before, {after:.0f} MB after."
        )
        found.figures[name] = dict(fuzz.outcomes)
        found.problems += fuzz.problems[:20]
        if progress:
            # A crash of a library in what follows takes no results with it.
            tqdm.write(lines[-1], file=sys.stderr)
        found.require(
            after - before < growth, f"{name}: memory grew from {before:.0f} MB"
        )
    flagfiles = flagfiles_fuzz(folder, counts["flagfiles"], first)
    lines.append(f"{counts['flagfiles']} flagfiles: {dict(flagfiles.outcomes)}.")
    found.figures["flagfiles"] = dict(flagfiles.outcomes)
    found.problems += flagfiles.problems[:20]
    found.line = "\n".join(lines)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "images": 2000,
        "npz": 2000,
        "keras": 500,
        "flagfiles": 500,
        "first": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    size = size * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    counts = {name: getattr(given, name) for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        found = run(pathlib.Path(folder), counts, given.first, progress=True)
    found.finish()


if __name__ == "__main__":
    main()
