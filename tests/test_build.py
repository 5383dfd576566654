"""BUILD files agree with the sources: what belongs to what, and what needs what.

They are evaluated here as Bazel would, but for rules, which are noted down.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import fnmatch
import functools
import graphlib
import pathlib
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import branchy_tf

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = "//branchy_tf:base"
RULES = {
    "@rules_python//python:defs.bzl": ["py_binary", "py_library", "py_test"],
    "@rules_python//python:packaging.bzl": ["py_package", "py_wheel"],
    "": ["alias", "filegroup", "test_suite"],
}
# Of the builtins of Starlark those that Python has too.
BUILTINS = [
    "all", "any", "bool", "dict", "enumerate", "len", "list", "max", "min", "range",
    "reversed", "sorted", "str", "tuple", "zip",
]  # fmt: skip
LABELS = ("actual", "data", "deps", "main", "srcs", "tests")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What is imported under another name than it is installed under.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "tensorflow_serving": "tensorflow-serving-api",
    "yaml": "pyyaml",
}
# Imported by others: Keras's callback writes its logs with TensorBoard.
AT_RUN_TIME = {"//branchy_tf/training:training": {"tensorboard"}}


def build_files() -> list[pathlib.Path]:
    folders = ("branchy_tf", "docs", "examples", "tests", "zoo")
    inner = [path for name in folders for path in (ROOT / name).rglob("BUILD")]
    return sorted([ROOT / "BUILD", *inner])


def bzl_files() -> list[pathlib.Path]:
    return sorted(ROOT.glob("*.bzl"))


def requirement_name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


def locked() -> dict[str, str]:
    """`{package: its pinned version}` of the lock file."""
    text = (ROOT / "requirements_lock.txt").read_text(encoding="utf-8")
    found = re.findall(r"^(\S+)==([^\s;]+)", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def pip_label(name: str) -> str:
    return "@pip//" + canonicalize_name(name).replace("-", "_")


@dataclasses.dataclass
class Target:
    """A rule as it was called; labels are whole (//folder:name), files are paths."""

    label: str
    rule: str
    attributes: dict[str, Any]

    def labels(self, *names: str) -> list[str]:
        found = []
        for name in names or LABELS:
            value = self.attributes.get(name) or []
            found += [value] if isinstance(value, str) else value
        folder = self.label[2:].partition(":")[0]
        return [whole(label, folder) for label in found]

    @property
    def files(self) -> list[str]:
        """The paths of its sources."""
        return [path_of(label) for label in self.labels("srcs")]


def whole(label: str, folder: str) -> str:
    if label.startswith("@"):
        return label
    if not label.startswith("//"):
        return f"//{folder}:{label.removeprefix(':')}"
    return label if ":" in label else f"{label}:{label.rpartition('/')[2]}"


def path_of(label: str) -> str:
    return label[2:].replace(":", "/").removeprefix("/")


class Package:
    """The targets of one folder, from its BUILD file."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.targets: dict[str, Target] = {}
        self.exported: set[str] = set()
        self.visibility = ["//visibility:private"]
        functions: dict[str, Callable] = {
            "exports_files": self.exported.update,
            "glob": self._glob,
            "licenses": lambda kinds: None,
            "package": self._package,
            "subpackages": self._subpackages,
        } | {rule: self._rule(rule) for rule in RULES[""]}
        native = types.SimpleNamespace(package_name=lambda: folder, **functions)
        self._bzl = {"native": native}
        self._run(ROOT / folder / "BUILD", functions)

    def _run(self, path: pathlib.Path, names: dict[str, Any]) -> dict[str, Any]:
        known = {name: getattr(builtins, name) for name in BUILTINS}
        found = {"__builtins__": known, "fail": pytest.fail, **names}
        found["load"] = lambda source, *wanted: found.update(self._load(source, wanted))
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), found)
        return found

    def _load(self, source: str, wanted: Iterable[str]) -> dict[str, Any]:
        if source in RULES:
            there = {rule: self._rule(rule) for rule in RULES[source]}
        elif source == "@pip//:requirements.bzl":
            there = {"all_requirements": [pip_label(name) for name in locked()]}
        else:
            there = self._run(ROOT / path_of(whole(source, self.folder)), self._bzl)
        return {name: there[name] for name in wanted}

    def _rule(self, rule: str) -> Callable:
        def call(*, name: str, **attributes: Any) -> None:
            label = f"//{self.folder}:{name}"
            assert name not in self.targets, f"{label} is there twice"
            self.targets[name] = Target(label, rule, attributes)

        return call

    def _package(self, default_visibility: list[str]) -> None:
        self.visibility = default_visibility

    def _glob(
        self, include: list[str], exclude: Iterable[str] = (), allow_empty: bool = False
    ) -> list[str]:
        top, found = ROOT / self.folder, set()
        for pattern in include:
            # ** matches folders alone to pathlib, but any files below to Bazel.
            for path in top.glob(re.sub(r"\*\*$", "**/*", pattern)):
                inner = [*path.parents][: len(path.relative_to(top).parts) - 1]
                if path.is_file() and not any((x / "BUILD").exists() for x in inner):
                    found.add(str(path.relative_to(top)))
        found -= {x for x in found for pattern in exclude if fnmatch.fnmatch(x, pattern)}
        assert found or allow_empty, f"//{self.folder} has nothing like {include}"
        return sorted(found)

    def _subpackages(self, include: list[str]) -> list[str]:
        assert include == ["*"]
        return sorted(x.parent.name for x in (ROOT / self.folder).glob("*/BUILD"))


@functools.cache
def packages() -> dict[str, Package]:
    folders = [path.parent.relative_to(ROOT) for path in build_files()]
    names = ["" if folder == pathlib.Path() else str(folder) for folder in folders]
    return {name: Package(name) for name in names}


@functools.cache
def targets() -> dict[str, Target]:
    found = [t for package in packages().values() for t in package.targets.values()]
    return {target.label: target for target in found}


def libraries(folders: str = "") -> list[str]:
    """The libraries with sources whose folders begin like that."""
    return [
        label
        for label, target in targets().items()
        if target.rule == "py_library" and target.files and label[2:].startswith(folders)
    ]


@functools.cache
def owners() -> dict[str, list[str]]:
    """`{path: labels}` of the libraries and tests whose source a file is."""
    found: dict[str, list[str]] = {str(x.relative_to(ROOT)): [] for x in sources()}
    for target in targets().values():
        if target.rule in ("py_library", "py_test"):
            for path in target.files:
                found.setdefault(path, []).append(target.label)
    return found


def sources(*folders: str) -> list[pathlib.Path]:
    return [
        path
        for folder in folders or ("branchy_tf", "zoo", "docs", "examples", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@functools.cache
def imported(path: str) -> set[str]:
    """The dotted names that a file imports when it runs, those in functions too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for_types = {id(x) for n in ast.walk(tree) if is_for_types(n) for x in ast.walk(n)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def module_files() -> dict[str, str]:
    """`{dotted name: path}` of the modules; those of tests/ and docs/ by their stem."""
    found = {}
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in ("tests", "docs"):
            parts = parts[-1:]
        elif parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = str(path.relative_to(ROOT))
    return found


def imported_file(name: str) -> str | None:
    """The project's file that an imported name is in or is."""
    while name:
        if name in module_files():
            return module_files()[name]
        name = name.rpartition(".")[0]
    return None


def imported_packages(path: str) -> set[str]:
    """The third-party packages that a file imports, as they are installed."""
    tops = {n.partition(".")[0] for n in imported(path) if imported_file(n) is None}
    tops -= set(sys.stdlib_module_names)
    return {canonicalize_name(DISTRIBUTIONS.get(top, top)) for top in tops}


def needed(target: Target) -> set[str]:
    """The labels of the libraries and packages that a target's sources import."""
    found = set()
    # What the package's own __init__.py imports, it imports on first use.
    for path in set(target.files) - {"branchy_tf/__init__.py"}:
        files = {imported_file(name) for name in imported(path)} - {None}
        found |= {label for file in files for label in owners()[file]}
        found |= {pip_label(name) for name in imported_packages(path)}
    return found - {target.label}


def dependencies(label: str) -> list[str]:
    return targets()[label].labels("deps") if label in targets() else []


def offered(label: str) -> set[str]:
    """What a dependency stands for: itself; or, if it has no sources, what it needs."""
    if label not in targets() or targets()[label].files:
        return {label}
    return {x for dependency in dependencies(label) for x in offered(dependency)}


def closure(label: str) -> set[str]:
    found, todo = set(), [label]
    while todo:
        new = todo.pop()
        if new not in found:
            found.add(new)
            todo += dependencies(new)
    return found


def declared(*extras: str) -> set[str]:
    """The packages that pyproject.toml names: always needed, or for these extras."""
    project = PYPROJECT["project"]
    lines = [x for extra in extras for x in project["optional-dependencies"][extra]]
    lines += [] if extras else project["dependencies"]
    return {requirement_name(line) for line in lines} - {"branchy-tf"}


FOR_USERS = sorted(set(PYPROJECT["project"]["optional-dependencies"]) - {"dev"})


def test_build_files_are_starlark():
    """Python's grammar less what Starlark has not; what is a list must not be a set."""
    python_only = (
        ast.Import, ast.ImportFrom, ast.ClassDef, ast.Try, ast.With, ast.While, ast.Set,
        ast.JoinedStr, ast.GeneratorExp, ast.SetComp, ast.Raise, ast.Yield, ast.Global,
        ast.Is, ast.NamedExpr,
    )  # fmt: skip
    for path in [*build_files(), *bzl_files(), ROOT / "MODULE.bazel"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, python_only), f"{path}:{node.lineno}"
        if path.suffix != ".bzl":
            allowed = (ast.Expr, ast.Assign)
            assert all(isinstance(node, allowed) for node in tree.body), path


def test_each_source_belongs_to_one_target():
    # Each test's main module, and so no library's.
    several = {"tests/bazel_main.py"}
    wrong = {
        path: labels
        for path, labels in owners().items()
        if len(labels) != 1 and path not in several
    }
    assert not wrong, "add them to a BUILD file: each to one target"


def test_commands_belong_to_the_library_that_they_need():
    binaries = [t for t in targets().values() if t.rule == "py_binary"]
    assert binaries
    for target in binaries:
        (path,) = target.files
        assert target.labels("srcs") == target.labels("main")
        assert owners()[path] == target.labels("deps"), target.label


def test_commands_have_a_target():
    run = re.compile(
        r"^    (command_line\.run\(main|sys\.exit\((main|listing\.run))",
        flags=re.MULTILINE,
    )
    commands = {
        str(path.relative_to(ROOT))
        for path in sources("branchy_tf", "zoo")
        if run.search(path.read_text(encoding="utf-8"))
        # The commands of `cascade` run through its __main__.py.
        and (path.parent.name != "cascade" or path.stem == "__main__")
    }
    binaries = [t for t in targets().values() if t.rule == "py_binary"]
    assert {path for target in binaries for path in target.files} == commands
    in_package = {path for path in commands if path.startswith("branchy_tf/")}
    aliases = [t.labels("actual") for t in targets().values() if t.rule == "alias"]
    named = {path for (label,) in aliases for path in targets()[label].files}
    assert named == in_package


def test_labels_are_there_and_may_be_used():
    for target in targets().values():
        folder = target.label[2:].partition(":")[0]
        for label in target.labels():
            if label.startswith("@"):
                assert label in map(pip_label, locked()), (target.label, label)
                continue
            package = packages()[label[2:].partition(":")[0]]
            name = label.partition(":")[2]
            if name not in package.targets:
                assert (ROOT / path_of(label)).is_file(), (target.label, label)
                assert package.folder == folder or name in package.exported, label
                continue
            attributes = package.targets[name].attributes
            seen = attributes.get("visibility", package.visibility)
            allowed = [
                whole(x, package.folder)
                .replace("//visibility:public", "//")
                .removesuffix("__subpackages__")
                .removesuffix("__pkg__")
                .removesuffix(":")
                for x in seen
            ]
            assert folder == package.folder or any(
                f"//{folder}".startswith(x) for x in allowed
            ), f"{target.label} may not see {label}"


@pytest.mark.parametrize("label", libraries("branchy_tf") + libraries("zoo"))
def test_libraries_depend_on_what_they_import(label):
    target = targets()[label]
    needs = needed(target)
    needs |= {pip_label(name) for name in AT_RUN_TIME.get(label, ())}
    optional = {pip_label(name) for name in declared(*FOR_USERS)}
    dependencies = target.labels("deps")
    assert len(set(dependencies)) == len(dependencies)
    assert label == BASE or BASE in closure(label)
    # With it come its packages, which are the ones that most import.
    base = {BASE, *targets()[BASE].labels("deps")} if label != BASE else set()
    there = {x for dependency in dependencies for x in offered(dependency)} | base
    assert needs - there - optional == set(), f"{label} imports these too"
    needless = [x for x in dependencies if not offered(x) & needs and x not in base]
    assert needless == [], f"{label} does not import these"


def test_the_library_is_all_but_the_commands():
    everything = set(libraries("branchy_tf"))
    assert offered("//branchy_tf:branchy_tf") >= everything - {"//branchy_tf:commands"}


@pytest.mark.parametrize(
    "label", [x for x in targets() if x.startswith("//tests") and targets()[x].files]
)
def test_tests_can_import_what_they_import(label):
    missing = needed(targets()[label]) - closure(label)
    # Skipped without them.
    missing -= {pip_label(name) for name in declared(*FOR_USERS)}
    assert missing == set()


def test_targets_do_not_depend_in_a_circle():
    graph = {label: dependencies(label) for label in targets()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_what_the_package_offers_is_public():
    for name in [*branchy_tf._SUBMODULES, "tuning"]:
        (label,) = owners()[module_files()[f"branchy_tf.{name}"]]
        assert targets()[label].attributes["visibility"] == ["//visibility:public"], label


def test_the_client_needs_neither_keras_nor_tensorflow():
    for name in ("serving", "tuning"):
        found = closure(f"//branchy_tf/{name}:{name}")
        assert not found & {"@pip//keras", "@pip//tensorflow"}, name


def test_the_wheel_holds_the_package_and_its_data():
    (package,) = [t for t in targets().values() if t.rule == "py_package"]
    labels = [x for label in closure(package.label) if label in targets() for x in
              targets()[label].labels("srcs", "data")]  # fmt: skip
    packaged = {path_of(x) for x in labels if x.startswith("//branchy_tf")}
    ignored = {"BUILD", "__pycache__"}
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "branchy_tf").rglob("*")
        if path.is_file() and not ignored & set(path.parts)
    }
    assert packaged == files


def test_the_wheel_says_what_pyproject_says():
    (wheel,) = [t for t in targets().values() if t.rule == "py_wheel"]
    says, project = wheel.attributes, PYPROJECT["project"]
    extras = dict(project["optional-dependencies"])
    del extras["dev"]
    assert says["requires"] == project["dependencies"]
    assert says["extra_requires"] == extras
    assert says["version"] == branchy_tf.__version__
    assert says["summary"] == project["description"]
    assert says["python_requires"] == project["requires-python"]
    assert says["license"] == project["license"]
    assert [{"name": says["author"]}] == project["authors"]
    scripts = [f"{name} = {called}" for name, called in project["scripts"].items()]
    assert says["entry_points"] == {"console_scripts": scripts}


def test_what_the_package_imports_is_declared():
    used = set().union(*(imported_packages(path) for path in owners()
                         if path.startswith("branchy_tf/")))  # fmt: skip
    at_run_time = set().union(*AT_RUN_TIME.values())
    assert used - declared() - declared(*FOR_USERS) == set()
    assert declared() - used - at_run_time == set(), "nothing imports these"


def test_what_tests_and_studies_import_is_declared():
    for path in owners():
        undeclared = imported_packages(path) - declared() - declared(*FOR_USERS, "dev")
        assert undeclared == set(), path


def test_the_lock_file_pins_what_pyproject_asks_for():
    text = (ROOT / "requirements_lock.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "-index" not in text
    pinned = re.findall(r"^\S+==.*\n    --hash=sha256:", text, flags=re.MULTILINE)
    assert len(pinned) == len(locked())
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["demo"], *extras["dev"]]:
        if requirement_name(line) != "branchy-tf":
            version = locked().get(requirement_name(line), "0")
            assert Requirement(line).specifier.contains(version), (
                f"requirements_lock.txt has not {line}; its top says how to remake it"
            )


def test_the_module_reads_files_that_are_there():
    text = (ROOT / "MODULE.bazel").read_text(encoding="utf-8")
    labels = re.findall(r'"(//[^"]*)"', text)
    assert labels == ["//:requirements_lock.txt"]
    assert (ROOT / path_of(labels[0])).is_file()
    # Other names would not reach the labels of BUILD files.
    assert 'hub_name = "pip"' in text
    assert f'name = "{PYPROJECT["project"]["name"]}"' in text


def test_sizes_are_of_tests_that_are_there():
    found = packages()["tests"]._run(ROOT / "build_defs.bzl", packages()["tests"]._bzl)
    for test, size in found["SIZES"].items():
        assert (ROOT / f"{test}.py").is_file(), test
        assert size in ("medium", "large"), test


def test_buildifier_has_nothing_to_say():
    buildifier = shutil.which("buildifier")
    if buildifier is None:
        pytest.skip("buildifier is not installed: npm install -g @bazel/buildifier")
    files = [*build_files(), *bzl_files(), ROOT / "MODULE.bazel"]
    done = subprocess.run(
        [buildifier, "-mode=check", "-lint=warn", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout + done.stderr
