"""The fuzz command for files, shortened to seconds."""

from __future__ import annotations

import fuzz_files
import lab
import numpy as np
import pytest
from PIL import Image

from branchy_tf.errors import BranchyError


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    counts = {"images": 400, "npz": 150, "keras": 8, "flagfiles": 0}
    found = fuzz_files.run(tmp_path, counts)
    assert not found.problems, f"{found.line}\n" + "\n".join(found.problems)
    for name in ("images", "npz", "keras"):
        # The damage goes deep and yet leaves some as they were.
        assert found.figures[name]["answered"] > 0
        assert found.figures[name]["refused"] >= counts[name] / 4
    assert list(tmp_path.iterdir()) == []


def test_flagfiles_are_parsed_or_refused_in_one_line(tmp_path):
    damages = [fuzz_files.in_utf_8]
    fuzz = fuzz_files.flagfiles_fuzz(tmp_path, 60, damages=damages)
    assert fuzz.problems == []
    assert fuzz.outcomes["answered"] > 0
    assert fuzz.outcomes["refused"] > 0


class TwoLines(BranchyError):
    def __str__(self) -> str:
        return "two\nlines"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (KeyError("shape"), "KeyError: 'shape'"),
        (TwoLines(""), "more than a line: two"),
        (None, None),
        (BranchyError("one line"), None),
    ],
)
def test_notices_unexpected_outcomes(tmp_path, error, problem):
    def read(path, number):
        if error is not None:
            raise error

    fuzz = fuzz_files.Fuzz("npz", [b"content"], [fuzz_files.damaged], read)
    fuzz(tmp_path, 7)
    assert fuzz.problems == ([] if problem is None else [f"7.npz: {problem}"]) or (
        problem is not None and fuzz.problems[0].startswith(f"7.npz: {problem}")
    )
    assert sum(fuzz.outcomes.values()) == 1


def test_every_valid_file_is_read(tmp_path):
    for make in (fuzz_files.images_fuzz, fuzz_files.npz_fuzz, fuzz_files.keras_fuzz):
        fuzz = make()
        for number, valid in enumerate(fuzz._valid):
            path = tmp_path / str(number)
            path = path.with_suffix(f".{fuzz.kind}")
            path.write_bytes(valid)
            if valid[:4] in (b"II*\0", b"MM\0*") and Image.open(path).mode == "F":
                continue  # floats, which are no pixels
            fuzz._read(path, number)


def test_a_number_makes_the_same_file_again():
    first, second = fuzz_files.images_fuzz(), fuzz_files.images_fuzz()
    made = [first.make(number) for number in range(60)]
    assert made == [second.make(number) for number in range(60)]
    assert len({*made}) > 55


def test_damage_inside_has_valid_checksums(tmp_path):
    # Or a reader would see no further than them.
    path = tmp_path / "some.png"
    drawn = Image.fromarray(np.zeros((20, 30), np.uint8))
    drawn.save(path)
    valid, said = path.read_bytes(), []
    for number in range(40):
        path.write_bytes(fuzz_files.png_inside(valid, np.random.default_rng(number)))
        try:
            Image.open(path).load()
            said.append("")
        except Exception as error:
            said.append(str(error))
    assert not any("checksum" in text for text in said)
    assert 5 < said.count("") < 40


def test_the_command_documents_its_usage():
    assert (lab.ROOT / "tests/load/fuzz_files.py").is_file()
    assert "\n  python tests/load/fuzz_files.py " in fuzz_files.__doc__
