"""The commands place, simulate and manifests, and the figures in the guide."""

from __future__ import annotations

import json
import pathlib
import re

import commands
import pytest

from branchy_tf import units

DOCS = pathlib.Path(__file__).resolve().parents[3] / "docs"
EXAMPLE = DOCS / "placement.yaml"


def run(name, *arguments, cwd):
    return commands.run(f"branchy_tf.cascade.{name}", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    done = run("place", f"--topology={EXAMPLE}", cwd=folder)
    assert done.status == 0, done.stderr
    return folder, done.stdout


def test_places_simulates_and_writes_manifests(placed):
    folder, printed = placed
    value = json.loads((folder / "placement.json").read_text(encoding="utf-8"))
    assert "total watts" in printed
    assert f"Mean latency {value['latency_ms']:.4g} ms" in printed

    done = run("simulate", f"--topology={EXAMPLE}", "--rows=2000", cwd=folder)
    assert done.status == 0, done.stderr
    found = json.loads((folder / "simulation.json").read_text(encoding="utf-8"))
    assert found["rows"] == 1800
    assert f"Mean {found['mean_ms']:.4g} ms" in done.stdout

    done = run("manifests", f"--topology={EXAMPLE}", cwd=folder)
    assert done.status == 0, done.stderr
    assert (folder / "manifests/kubernetes.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("place", [], "--topology is missing"),
        ("place", ["--topology=nowhere.yaml"], "There is no file"),
        ("place", [f"--topology={EXAMPLE}", "--seconds=0"], "`seconds`"),
        ("place", [f"--topology={EXAMPLE}", "--units=nowhere"], "There is no file"),
        ("simulate", [f"--topology={EXAMPLE}"], "JSON|There is no file"),
        ("manifests", [], "--topology is missing"),
    ],
)
def test_mistakes_are_one_line(name, arguments, message, tmp_path):
    done = run(name, *arguments, cwd=tmp_path)
    assert done.status == 1
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_guide_has_the_examples_figures():
    guide = (DOCS / "placement.md").read_text(encoding="utf-8")
    found = units.place(None, EXAMPLE)
    assert f"finds {found.latency_ms:.1f} ms per row" in guide
    (gain,) = (gain for gain in found.gains if gain.binding)
    assert gain.kind == "total_watts"
    assert f"saves {gain.ms_per_unit:.1f} ms per watt" in guide
