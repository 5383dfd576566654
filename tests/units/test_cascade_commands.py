"""The commands of a cascade, as a user types them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import commands
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_lists_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "branchy_tf", "cascade", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = " ".join(done.stdout.split())
    assert "export Cuts a network at exits" in listed
    assert "serve Serves a cascade of units" in listed


def test_names_an_unknown_command():
    done = subprocess.run(
        [sys.executable, "-m", "branchy_tf.cascade", "exprot"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Unknown command 'exprot'. Did you mean export?" in done.stderr


def test_exports_units(tmp_path):
    done = commands.run(
        "branchy_tf.cascade.export", "--model=branchy_lenet", "--weights=mnist",
        "--at=exit_1", "--names=device,cloud", f"--export_dir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    for name in ("device", "cloud"):
        assert (tmp_path / name / "1/saved_model.pb").is_file()
    # A second export adds versions and leaves the user's file alone.
    (tmp_path / "cascade.yaml").write_text("# mine\n")
    done = commands.run(
        "branchy_tf.cascade.export", "--model=branchy_lenet", "--weights=mnist",
        "--at=exit_1", "--names=device,cloud", f"--export_dir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert (tmp_path / "device/2/saved_model.pb").is_file()
    assert (tmp_path / "cascade.yaml").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--export_dir is missing"),
        (["--export_dir=x"], "--at is missing"),
        (["--export_dir=x", "--at=exit_1", "--sends=half"], "Received 'half'"),
        (["--export_dir=x", "--at=exit_1", "--codec=int4"], "--codec=int4"),
        (
            ["--export_dir=x", "--at=exit_5", "--model=branchy_lenet", "--weights=mnist"],
            "Unknown exit to cut at 'exit_5'",
        ),
    ],
)
def test_export_names_mistakes(tmp_path, flags, said):
    done = commands.run("branchy_tf.cascade.export", *flags, cwd=tmp_path)
    assert said in done.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "There is no file"),
        ("units: {a: {pth: b}}", "'pth' in unit 'a'. Did you mean path?"),
        ("units: {a: {path: nowhere}}", "There is no folder"),
    ],
)
def test_serve_names_mistakes(tmp_path, text, said):
    config = tmp_path / "cascade.yaml"
    if text is not None:
        config.write_text(text)
    done = commands.run("branchy_tf.cascade.serve", f"--config={config}", "--port=0")
    assert said in done.error


def test_serve_needs_a_config():
    assert "--config is missing" in commands.run("branchy_tf.cascade.serve").error


def test_the_demo_runs(tmp_path):
    # Four processes that import TensorFlow.
    done = commands.run("branchy_tf.cascade.demo", f"--output_dir={tmp_path}")
    assert done.status == 0, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if "%" in line]
    assert len(table) == 4
    (killed,) = (line for line in table if "cloud killed" in line)
    assert "100.0%" in killed
    assert " 0.0%" not in killed


def test_the_picture_is_drawn_by_its_script(tmp_path):
    sys.path.append(str(ROOT / "docs"))
    import draw_cascade

    draw_cascade.draw(tmp_path / "cascade.svg")
    text = (tmp_path / "cascade.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert len(text) > 10_000
