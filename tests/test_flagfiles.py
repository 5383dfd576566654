from __future__ import annotations

import random

import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.files import flagfiles

TEXT = "# a comment\r\n--model=net\r\n\r\n  --run_dir=l\u00e4ufe  \r\n// another\r\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]
)
def test_reads_what_editors_and_shells_write(tmp_path, encoding):
    bom = "\ufeff" if encoding.endswith(("le", "be")) else ""
    path = tmp_path / "some.flags"
    path.write_bytes((bom + TEXT).encode(encoding))
    assert flagfiles.read(path) == ["--model=net", "--run_dir=l\u00e4ufe"]


def test_nested_files_stand_in_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner.flags").write_text("--b=2\n")
    (tmp_path / "outer.flags").write_text("--a=1\n--flagfile=inner.flags\n--c=3\n")
    assert flagfiles.expand(
        ["command", "--flagfile", "outer.flags", "--d=4", "--", "--flagfile=none"]
    ) == ["command", "--a=1", "--b=2", "--c=3", "--d=4", "--", "--flagfile=none"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("--run_dir=läufe\n--a=1".encode("latin-1"), "not UTF-8: byte 0xe4 in line 1"),
        (b"--a=1\n--b=\xff", "not UTF-8: byte 0xff in line 2"),
        (b"--a=\0", "NUL"),
        ("--a=1".encode("utf-16-le"), "NUL"),
        (b"\xff\xfe-", "cannot|not UTF-8"),
        (b"--flagfile=", "--flagfile is empty"),
        (b"--flagfile=some.flags", "names itself"),
        (b"--flagfile=none.flags", "There is no flagfile none.flags"),
        (b"--flagfile=.", "cannot be read: Is a directory"),
        (b"--flagfile=s3://bucket/flags", "is a URL"),
    ],
)
def test_rejects_what_is_no_flagfile(tmp_path, monkeypatch, content, complaint):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.flags"
    path.write_bytes(content)
    with pytest.raises(BranchyError, match=complaint) as caught:
        flagfiles.read(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_give_flags_or_one_line(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "some.flags"
    read, refused = 0, []
    for _ in range(500):
        content = bytearray(TEXT.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))
        for _ in range(rng.randint(0, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randint(1, len(content))])
        try:
            flagfiles.read(path)
            read += 1
        except BranchyError as error:
            refused.append(str(error))
    assert read
    assert refused
    assert all(len(text.splitlines()) == 1 for text in refused)
