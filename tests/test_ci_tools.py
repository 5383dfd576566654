"""`.ci/tools` installs what tests want, and never holds them up."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

TOOLS = pathlib.Path(__file__).resolve().parent.parent / ".ci/tools"

APT = """#!/bin/bash
echo "$*" >>"$LOG"
[[ $* != *"$HANGS"* ]] || sleep 60
[[ $* != *"$FAILS"* ]]
"""


@pytest.fixture
def tools(tmp_path):
    """`tools(user=..., ...)`, the output of a run with a made apt-get, and its calls."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "timeout", "sleep"):
        (programs / name).symlink_to(shutil.which(name))

    def script(name, text):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(user="0", apt=True, hangs="nothing", fails="nothing", chromium="/none"):
        script("id", f"#!/bin/bash\necho {user}\n")
        if apt:
            script("apt-get", APT)
        log = tmp_path / "log"
        log.write_text("")
        environment = {
            "PATH": str(programs), "HOME": str(tmp_path), "LOG": str(log),
            "HANGS": hangs, "FAILS": fails, "CHROMIUM": chromium, "TOOLS_SECONDS": "1",
        }  # fmt: skip
        done = subprocess.run(
            ["/bin/bash", TOOLS], env=environment, capture_output=True, text=True,
            timeout=50, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        calls = [
            (line.split()[-1], "--download-only" in line, "--no-download" in line)
            for line in log.read_text().splitlines()
        ]
        return done.stdout.splitlines(), calls

    return run


def test_downloads_and_then_installs(tools):
    said, calls = tools()
    assert said == []
    assert calls == [
        ("update", False, False),
        ("nginx", True, False),
        ("nginx", False, True),
        ("chromium", True, False),
        ("chromium", False, True),
    ]


def test_a_browser_that_is_there_is_used(tools):
    said, calls = tools(chromium="/bin/bash")
    assert said == []
    assert "chromium" not in {name for name, *_ in calls}


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_download_that_fails_or_is_slow_is_given_up(tools, how):
    said, calls = tools(**{how: "--download-only chromium"})
    assert said == ["chromium cannot be installed; the tests of pages are skipped."]
    assert calls[-1] == ("chromium", True, False)


@pytest.mark.parametrize("lacking", [{"user": "1000"}, {"apt": False}])
def test_without_root_or_apt_nothing_is_tried(tools, lacking):
    said, calls = tools(**lacking)
    assert [line.split()[0] for line in said] == ["nginx", "chromium"]
    assert calls == []
