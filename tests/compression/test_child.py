"""The worker process, replaced by small programs that end in the ways that it may."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

from branchy_tf.compression import child
from branchy_tf.errors import BranchyError


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`program(source)` replaces Python by a program; returns the worker's folder."""

    def replace(source: str) -> pathlib.Path:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\n{source}\n")
        path.chmod(0o755)
        monkeypatch.setattr(child.sys, "executable", str(path))
        return tmp_path

    return replace


def test_yields_messages_and_ends(program):
    folder = program("import json\nfor i in range(2): print(json.dumps({'step': i}))")
    assert list(child.messages(folder)) == [{"step": 0}, {"step": 1}]


def test_an_error_of_the_worker_is_raised_in_one_line(program):
    folder = program('print(\'{"error": "Layer x is unknown."}\')')
    with pytest.raises(BranchyError, match=r"^Layer x is unknown\.$"):
        list(child.messages(folder))


def test_a_crash_is_raised_with_the_last_line_of_the_log(program):
    folder = program("import sys\nsys.exit('first\\nout of memory')")
    with pytest.raises(BranchyError, match="status 1: out of memory"):
        list(child.messages(folder))


def test_closing_ends_the_process(program, monkeypatch):
    started = []
    popen = child.subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(child.subprocess, "Popen", start)
    folder = program("import time\nprint('{}', flush=True)\ntime.sleep(1000)")
    messages = child.messages(folder)
    assert next(messages) == {}
    messages.close()
    assert started[0].returncode is not None


def test_names_the_extra_if_a_package_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "tf_keras" else find(name),
    )
    with pytest.raises(BranchyError) as caught:
        child.check_installed()
    assert str(caught.value) == (
        "Compression needs tf_keras, which is not installed. Install it: pip install "
        "'branchy_tf[compression]'."
    )
