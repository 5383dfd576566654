from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import commands
import pytest
import small

from branchy_tf import command_line
from branchy_tf.errors import BranchyError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("depth=20", {"depth": 20}),
        ("depth=20, classes=100,", {"depth": 20, "classes": 100}),
        ("input_shape=32x32x3", {"input_shape": (32, 32, 3)}),
        ("rate=0.5,name=some_net", {"rate": 0.5, "name": "some_net"}),
        ("axis=None,bias=True", {"axis": None, "bias": True}),
        # Neither a shape nor a number: unchanged.
        ("name=exit", {"name": "exit"}),
    ],
)
def test_builder_arguments(text, expected):
    arguments = command_line.parse_arguments(text)
    assert arguments == expected
    assert [type(x) for x in arguments.values()] == [type(x) for x in expected.values()]


@pytest.mark.parametrize("text", ["depth", "=20", "depth=20,classes", "a b=3", "1=2"])
def test_malformed_builder_arguments(text):
    with pytest.raises(BranchyError) as caught:
        command_line.parse_arguments(text)
    assert f"--model_args={text!r}: expected name=value,name=value" in str(caught.value)


def test_numbers():
    assert command_line.parse_numbers("thresholds", None) is None
    assert command_line.parse_numbers("thresholds", ["0.1", "inf", "1e-3"]) == [
        0.1,
        math.inf,
        1e-3,
    ]
    with pytest.raises(
        BranchyError, match=r"--thresholds=0.1,low: expected comma-separated numbers"
    ):
        command_line.parse_numbers("thresholds", ["0.1", "low"])


def test_uncreatable_folder_is_one_line(tmp_path, mnist_5k):
    data = small.write_npz(tmp_path / "digits.npz", mnist_5k)
    (tmp_path / "file").touch()
    done = commands.run(
        "train", "--model=branchy_lenet", f"--dataset={data}", "--epochs=1",
        f"--run_dir={tmp_path / 'file' / 'run'}",
    )  # fmt: skip
    assert "Not a directory" in done.error
    assert str(tmp_path / "file") in done.error
    assert done.status == 1


def test_missing_flagfile_is_one_line():
    done = commands.run("train", "--flagfile=none.flags")
    assert "none.flags" in done.error
    assert done.status == 1


def test_flags_may_come_from_a_file_and_the_last_one_wins(tmp_path):
    path = tmp_path / "some.flags"
    path.write_text("# a comment\n--model=branchy_lenet\n--dataset=first.npz\n")
    flags = ["--run_dir=run", "--dataset=second.npz"]
    run = [commands.run("train", f"--flagfile={path}", *flags, cwd=tmp_path)]
    run += [commands.run("train", *flags, f"--flagfile={path}", cwd=tmp_path)]
    assert "second.npz" in run[0].error
    assert "first.npz" in run[1].error


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "train",
            ["model", "model_args", "dataset", "data_dir", "epochs", "batch_size",
             "learning_rate", "loss_weights", "mode", "weights", "seed", "run_dir"],
        ),
        (
            "evaluate",
            ["run_dir", "model", "weights", "dataset", "data_dir", "thresholds"],
        ),
        (
            "calibrate",
            ["run_dir", "criterion", "max_accuracy_drop", "min_accuracy", "max_macs"],
        ),
    ],
)  # fmt: skip
def test_help_lists_the_flags_and_succeeds(command, flags):
    done = commands.run(command, "--help")
    listed = [flag for flag in flags if f"--{flag}" in done.stdout.replace("[no]", "")]
    assert listed == flags
    assert "Traceback" not in done.stderr
    assert done.status == 0


def test_warnings_are_log_lines():
    script = (
        "import warnings; from branchy_tf import command_line;"
        "command_line.run(lambda: warnings.warn('Mind the step.'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Mind the step." in done.stderr.splitlines()
    assert "UserWarning" not in done.stderr


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe whose reader has left, as `head` does after its lines."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


RUN = "from branchy_tf import command_line; command_line.run(lambda: {})"
BROKEN = 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "branchy_tf"),
        ("-m", "branchy_tf.cascade"),
        ("-c", RUN.format("print('a line')")),
        ("-c", RUN.format("print('a line ' * 100_000)")),
        ("-c", RUN.format("None"), "--help"),
    ],
    ids=["list", "list of a package", "a line", "much", "help"],
)
def test_ends_quietly_when_nobody_reads_its_output(unread, arguments):
    done = subprocess.run(
        [sys.executable, *arguments], stdout=unread, stderr=subprocess.PIPE, check=False
    )
    assert (done.stderr, done.returncode) == (b"", BROKEN)


def test_ends_quietly_when_nobody_reads_its_error(unread):
    script = [sys.executable, "-c", RUN.format("None"), "--nonsense"]
    done = subprocess.run(script, stdout=unread, stderr=unread, check=False)
    assert done.returncode == BROKEN


@pytest.mark.parametrize("what", ["print('a line')", "open('/no/such')"])
def test_a_failure_of_the_system_is_one_line(what):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(what)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    expected = "No space left on device" if "print" in what else "No such file or dir"
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


def test_another_broken_pipe_is_an_error():
    what = "(_ for _ in ()).throw(BrokenPipeError(32, 'Broken pipe'))"
    script = [sys.executable, "-c", RUN.format(what)]
    done = subprocess.run(script, capture_output=True, check=False)
    assert (done.stderr, done.returncode) == (b"error: Broken pipe.\n", 1)
