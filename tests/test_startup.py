"""The start of commands, in new processes because forked ones have TensorFlow."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from branchy_tf import __main__ as dispatcher

PACKAGE = pathlib.Path(dispatcher.__file__).parent


def start(*arguments: str, options: tuple[str, ...] = (), **env: str):
    quiet = ("TF_CPP_MIN_LOG_LEVEL", "GRPC_VERBOSITY")
    inherited = {k: v for k, v in os.environ.items() if k not in quiet}
    return subprocess.run(
        [sys.executable, *options, "-m", *arguments],
        capture_output=True,
        env=inherited | {"PYTHONPATH": str(PACKAGE.parent)} | env,
        timeout=300,
        check=False,
    )


# tests/test_python.py starts calibrate and export, and expects the same.
@pytest.mark.parametrize("command", ["train", "serve"])
def test_first_line_is_ours(command):
    done = start(f"branchy_tf.{command}", "--nonsense")
    assert done.stderr.startswith(b"error: Unknown command line flag"), done.stderr
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1


def test_failed_import_shows_the_suppressed_output(tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'from C++\\n')\nraise ImportError('broken here')\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    done = start("branchy_tf.train", PYTHONPATH=paths)
    assert b"from C++" in done.stderr
    assert b"broken here" in done.stderr
    assert done.returncode == 1


def test_command_prints_only_our_messages(tmp_path):
    done = start(
        "branchy_tf", "export", "--model=branchy_lenet", "--weights=mnist",
        f"--export_dir={tmp_path}/a b.",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("The export was not compared"), lines
    assert lines[-1].startswith("Exported"), lines


def test_exports_in_an_odd_environment(tmp_path):
    done = start(
        "branchy_tf.export", "--model=branchy_lenet", "--weights=mnist",
        f"--export_dir={tmp_path}", TF_USE_LEGACY_KERAS="1", HOME="/nonexistent",
        MPLCONFIGDIR="/proc/none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "branchy_lenet" / "1" / "saved_model.pb").is_file()


def test_keeps_log_levels_set_by_the_user():
    done = start("branchy_tf.export", "--nonsense", TF_CPP_MIN_LOG_LEVEL="0")
    assert b"oneDNN" in done.stderr or b"absl::InitializeLog" in done.stderr


def test_children_of_a_quiet_command_are_quiet():
    done = start("branchy_tf.export", "--nonsense", TF_CPP_MIN_LOG_LEVEL="3")
    assert done.stderr.startswith(b"error: Unknown command line flag"), done.stderr


def test_help_keeps_the_lines_of_examples():
    done = start("branchy_tf.calibrate", "--help")
    assert b"--max_accuracy_drop=0.01 \\\n    --guarantee" in done.stdout


def test_optimised_python_has_help_too():
    done = start("branchy_tf.serve", "--help", options=("-OO",))
    assert done.stdout.startswith(b"Serves an exported model over gRPC.")
    assert done.stderr == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_escapes_what_a_console_cannot_print(encoding):
    done = start(
        "branchy_tf",
        "serve",
        "--model_base_path=\u2265\u00d7\u00b5",
        PYTHONIOENCODING=encoding,
    )
    assert b"Traceback" not in done.stderr
    assert b"\\u2265" in done.stderr


def test_lists_the_commands_without_importing_them():
    assert set(dispatcher.commands()) >= {"train", "calibrate", "export", "serve"}
    script = (
        "import sys, branchy_tf.__main__ as m; m.commands();"
        "sys.exit('tensorflow' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    listed = start("branchy_tf").stdout.decode()
    assert re.search("train +Trains an early-exit network", listed)


def test_every_command_has_a_description():
    assert all(dispatcher.commands().values())


def test_unknown_command_suggests_the_nearest():
    done = start("branchy_tf", "trian")
    assert b"Unknown command 'trian'. Did you mean train?" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (("branchy_tf.serve",), "python -m branchy_tf.serve --model_base_path"),
        (("branchy_tf", "serve"), "python -m branchy_tf serve --model_base_path"),
    ],
)
def test_help_names_the_command_as_typed(typed, shown):
    assert shown in start(*typed, "--help").stdout.decode()


def test_the_console_script_names_the_command_as_typed():
    script = (
        "import sys; sys.argv = ['branchy_tf', 'serve', '--help'];"
        "from branchy_tf.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "\n  branchy_tf serve --model_base_path" in done.stdout
    assert "python -m" not in done.stdout


def test_missing_keras_backend_is_one_line(tmp_path):
    (tmp_path / "keras.py").write_text("raise ModuleNotFoundError('no', name='jax')\n")
    paths = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    done = start("branchy_tf.train", PYTHONPATH=paths)
    assert done.stderr.startswith(b"error: Keras is set to the backend jax")
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1
