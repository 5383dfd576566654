from __future__ import annotations

import json
import math
import os
import struct

import numpy as np
import pytest

from branchy_tf import files
from branchy_tf.errors import BranchyError


def test_replacing_puts_the_new_file_in_place(tmp_path):
    path = tmp_path / "new" / "folder" / "some.txt"
    with files.replacing(path) as beside:
        beside.write_text("first")
        assert not path.exists()
    with files.replacing(path) as beside:
        beside.write_text("second")
        # A reader, or a kill, meets the old one until all is written.
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["some.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_on_an_error(tmp_path, error):
    path = tmp_path / "some.txt"
    path.write_text("old")

    def write_half():
        with files.replacing(path) as beside:
            beside.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["some.txt"]


def test_replacing_keeps_the_suffix_for_writers_that_go_by_it(tmp_path):
    with files.replacing(tmp_path / "model.keras") as beside:
        assert beside.suffix == ".keras"
        assert beside.parent == tmp_path


def test_new_files_can_be_read_by_whoever_may_read_others(tmp_path):
    # mkstemp's own 0600 would hide a model from the server's user.
    (tmp_path / "usual").touch()
    with files.replacing(tmp_path / "ours"):
        pass
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_absolute_reads_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.absolute("~/runs") == tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    assert files.absolute("runs") == tmp_path / "runs"


def test_json_brings_infinity_back(tmp_path):
    path = tmp_path / "some.json"
    value = {"a": math.inf, "b": [0.5, [math.inf]], "c": {"d": None}, "e": "text"}
    files.write_json(path, value)
    assert files.read_json(path) == value
    # Strict JSON for every other reader: no bare Infinity.
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert plain["a"] == "inf"
    assert plain["b"] == [0.5, ["inf"]]


def test_json_takes_numpy_values(tmp_path):
    path = tmp_path / "some.json"
    files.write_json(
        path,
        {
            "scalar": np.float32(0.5),
            "whole": np.int32(3),
            "truth": np.bool_(True),
            "array": np.array([[1.0, np.inf]]),
            "tuple": (np.float64(2), "x"),
        },
    )
    assert files.read_json(path) == {
        "scalar": 0.5,
        "whole": 3,
        "truth": True,
        "array": [[1.0, math.inf]],
        "tuple": [2.0, "x"],
    }


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_json_refuses_other_non_numbers_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "some.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"new": value})
    assert files.read_json(path) == {"old": 1}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1', "cannot be read as JSON: "),
        (b"", "cannot be read as JSON: "),
        (b'{"a": "\xff"}', "cannot be read as JSON: "),
        (b"[1, 2]", "holds a JSON list; expected an object."),
        (b"null", "holds a JSON NoneType; expected an object."),
        (b"\x00\x00", "cannot be read as JSON: "),
        (b'{"a": NaN}', "cannot be read as JSON: NaN is not JSON; infinity is written "),
        (b'{"a": [-Infinity]}', "cannot be read as JSON: -Infinity is not JSON"),
        (b'{"b": {"a": 1, "a": 2}}', "cannot be read as JSON: the key 'a' is duplicated"),
        (b'{"a": ' * 10**5, "cannot be read as JSON: "),
        (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "cannot be read as JSON: "),
        (b'{"a": ' + b"9" * 10**5 + b"}", "cannot be read as JSON: "),
    ],
)
def test_damaged_json(tmp_path, content, expected):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(BranchyError) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(f"{path} {expected}")
    assert "\n" not in str(caught.value)


def test_missing_json(tmp_path):
    with pytest.raises(BranchyError, match="There is no file"):
        files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("a"), "'a'"),
        (struct.error("short\nand more"), "short"),
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep."), "too deep"),
        (OSError(5, "Input/output error", "elsewhere"), "elsewhere"),
        # What a terminal, or a pipe, would choke on.
        (ValueError("\x1b[2J\r\udcff!"), "\\x1b[2J"),
        (ValueError("x" * 9999), "xxx..."),
    ],
)
def test_reading_tells_the_file_the_reason_and_what_to_do(tmp_path, error, expected):
    path = tmp_path / "some"
    with (
        pytest.raises(BranchyError) as caught,
        files.reading(path, "a thing", "Do this."),
    ):
        raise error
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be read as a thing: ")
    assert expected in text
    assert text.endswith(". Do this.")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 400
    assert caught.value.__cause__ is error


def test_reading_leaves_our_own_errors_and_an_interrupt(tmp_path):
    for error in (BranchyError("clear"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, files.reading(tmp_path, "a thing"):
            raise error
        assert caught.value is error


def test_reading_tells_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "none"
    with pytest.raises(BranchyError) as caught, files.reading(path, "a thing"):
        path.read_bytes()
    assert str(caught.value) == f"There is no file {path}; expected a thing."


def test_csv_has_a_line_for_each_row(tmp_path):
    path = tmp_path / "some.csv"
    files.write_csv(path, [{"a": 1, "b": 1 / 3}, {"a": "x,y", "b": None}])
    assert path.read_text() == 'a,b\n1,0.333333\n"x,y",\n'


def test_versions_are_folders_named_by_a_number(tmp_path):
    for name in ("2", "010", "x1", "1.5", "-3", "²", str(2**63), ".writing-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert list(files.version_folders(tmp_path)) == [2, 10]
    assert files.version_folders(tmp_path)[10].name == "010"
    # A file in the way counts for the next.
    assert files.next_version(tmp_path) == 12


def test_no_folder_has_no_versions(tmp_path):
    assert files.version_folders(tmp_path / "none") == {}
    assert files.next_version(tmp_path / "none") == 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("gs://bucket/net", "is a URL"),
        ("s3:/bucket/net", "is a URL"),
        ("file:///tmp/net", "is a URL"),
        (r"C:\runs\net", "is a Windows path"),
        ("C:/runs/net", "is a Windows path"),
        ("d\udce4ta.npz", r"d\\udce4ta.npz has bytes that are not UTF-8"),
        ("a\0b", r"a\\x00b has bytes"),
        ("a\nb", r"a\\nb has bytes"),
        ("runs/" + "n" * 256, "more than 255 bytes"),
        ("~no_such_user_here/runs", "no home folder"),
        (b"runs", "as text"),
    ],
)
def test_rejects_paths_that_nothing_here_can_have(given, complaint):
    for function in (files.path, files.absolute, files.folder):
        with pytest.raises(BranchyError, match=complaint) as caught:
            function(given)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    ["[run] *?", "ends with a dot.", "ends with a space ", "ähnlich", "a\u202fb", "a:b",
     "n" * 255, "../up"],
)  # fmt: skip
def test_takes_unusual_names(tmp_path, name):
    assert files.path(tmp_path / name) == tmp_path / name
    files.write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    (tmp_path / name).unlink()


def test_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.absolute("~/runs") == tmp_path / "runs"


def test_a_folder_may_not_lie_on_a_file(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert files.folder(tmp_path / "link" / "new") == tmp_path / "link" / "new"
    for given in ("file", "file/run", "link/file/run/deeper"):
        with pytest.raises(BranchyError, match="file is a file; expected a folder"):
            files.folder(tmp_path / given)
