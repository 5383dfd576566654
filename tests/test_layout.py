"""The rules of the code base that a tool can check."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import commands
import pytest

import branchy_tf
from branchy_tf.training.run_folder import parse_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted(ROOT.glob("branchy_tf/**/*.py"))
COMMANDS = {
    "benchmark",
    "calibrate",
    "cascade",
    "compress",
    "demo",
    "evaluate",
    "export",
    "measure",
    "play",
    "predict",
    "serve",
    "train",
}
# From the top down; what stands on one line may import each other.
LAYERS = [
    {"errors"},
    {"checks"},
    {"files", "results"},
    {"policy"},
    {"versions"},
    {"thresholds", "graphs", "images"},
    {"multiply_adds"},
    {"exits"},
    {"zoo", "data"},
    {"models"},
    {"training", "stages"},
    {"costs"},
    {"saved_model"},
    {"litert"},
    {"predictor"},
    {"scoring", "plots"},
    {"calibration", "compression"},
    {"report"},
    {"serving"},
    {"units"},
    {"tuning", "benchmarking", "playing"},
    {"pipeline"},
    {"command_line"},
    COMMANDS,
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "branchy_tf").with_suffix("").parts[0]


def imported_parts(path: pathlib.Path) -> set[str]:
    """The parts of branchy_tf that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "branchy_tf" and rest:
                found.add(rest.split(".")[0])
    return found & set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_data_flows_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return  # its names are imported on first use
    below = {name for name in imported_parts(path) if LEVEL[name] > LEVEL[part]}
    assert not below, f"{part} imports from below: {below}"
    if part not in COMMANDS:
        assert not imported_parts(path) & COMMANDS, "no module imports a command"


def test_every_part_has_its_layer():
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(LEVEL)


def test_the_package_never_imports_its_laboratory():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) zoo\b", text, flags=re.MULTILINE), path
        assert "zoo.studies" not in text, path


def test_studies_are_listed_and_only_commands_among_them_define_flags():
    table = (ROOT / "zoo/studies/README.md").read_text(encoding="utf-8")
    for path in ROOT.glob("zoo/**/*.py"):
        text = path.read_text(encoding="utf-8")
        is_command = "command_line.run(main)" in text
        assert is_command == ("FLAGS = flags.FLAGS" in text), path
        assert is_command or "DEFINE_" not in text, path
        if is_command and path.parent.name == "studies":
            assert f"`python -m zoo.studies.{path.stem} " in table, path


def test_commands_named_in_pages_exist():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("zoo/**/*.md"), *ROOT.glob("zoo/**/*.flags")]
    pages += [*ROOT.glob("docs/*.md"), *ROOT.glob("serving/*.md")]
    pages += [*ROOT.glob("zoo/**/*.py"), *MODULES]
    pages.remove(ROOT / "CHANGELOG.md")
    for page in pages:
        named = re.findall(
            r"-m ((?:branchy_tf|zoo)[\w.]*\w)", page.read_text(encoding="utf-8")
        )
        for module in named:
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), (page, module)


def test_the_package_has_few_modules_at_its_top():
    assert len([*ROOT.glob("branchy_tf/*.py")]) <= 23


def test_only_commands_define_flags():
    for path in MODULES:
        if part_of(path) not in COMMANDS | {"command_line"}:
            assert not re.search(
                r"\bDEFINE_|\bFLAGS\b", path.read_text(encoding="utf-8")
            ), path


# Training seeds TensorFlow and makes it deterministic, where that is the backend.
BACKEND_NEUTRAL = {
    "costs", "data", "exits", "graphs", "stages", "training", "zoo",
}  # fmt: skip


@pytest.mark.parametrize("part", sorted(BACKEND_NEUTRAL))
def test_models_and_training_are_for_any_keras_backend(part):
    paths = [path for path in MODULES if part_of(path) == part]
    assert paths
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # Inside a function it may be imported, for a backend that is there.
        names = [
            name
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [
                getattr(node, "module", None) or "",
                *(a.name for a in node.names),
            ]
        ]
        assert not [n for n in names if n.split(".")[0] == "tensorflow"], path


def test_what_a_client_or_a_gateway_needs_comes_without_tensorflow_and_keras():
    script = (
        "import sys, branchy_tf\n"
        "heavy = {'tensorflow', 'keras', 'tensorflow_serving'}\n"
        "branchy_tf.ExitPolicy(thresholds=[0.1])\n"
        "print(sorted(sys.modules.keys() & (heavy | {'scipy'})))\n"
        "import branchy_tf.serving, branchy_tf.tuning, branchy_tf.units.gateway\n"
        "import branchy_tf.units.placing.manifests, branchy_tf.units.placing.simulating\n"
        "print(sorted(sys.modules.keys() & heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "[]"]


def test_the_version_is_the_same_everywhere():
    # pyproject.toml reads it from the package; Bazel's files have copies.
    for name in ("MODULE.bazel", "pyproject.bzl"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.search(r'^\s*version = "([^"]+)"', text, flags=re.M | re.I)[1]
        assert found == branchy_tf.__version__, name


def test_ci_runs_the_readmes_test_line():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    after = readme.split("<!-- test line -->")[1]
    line = next(x for x in after.splitlines() if x.startswith("python3 "))
    assert line.endswith("-m pytest -q -n 2 --dist loadfile")
    assert ".[dev]" in line
    # .ci/run finds it in the same way.
    assert "<!-- test line -->" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def training_of_the_demo() -> dict[str, str]:
    """Its flags; in a process of its own, which may define them."""
    from branchy_tf import demo

    demo.FLAGS(["demo"])
    epochs = {name: demo.FLAGS[name].value for name in ("epochs", "baseline_epochs")}
    return {name: str(value) for name, value in (demo.TRAINING | epochs).items()}


def test_the_demo_trains_like_its_recipe():
    recipe = (ROOT / "zoo/branchy_lenet/mnist_5k.flags").read_text(encoding="utf-8")
    assert commands.call(training_of_the_demo) == parse_flags(recipe)


def test_recipes_say_how_they_are_run():
    for path in ROOT.glob("zoo/**/*.flags"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert any(
            line.startswith("# python -m branchy_tf.train --flagfile=") for line in lines
        ), path
        for line in lines:
            assert line.startswith(("#", "--")), f"{path}: {line}"


def test_modules_of_tests_have_names_of_their_own():
    # pytest and the tests import them by name, from any folder.
    names = [p.name for p in ROOT.glob("tests/**/*.py") if p.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
