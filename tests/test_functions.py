"""Functions and modules that flags name."""

from __future__ import annotations

import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.files import functions


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory whose modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("my_models:build", True),
        ("package.models:Family.build", True),
        ("branchy_lenet", False),
        ("models/net.keras", False),
        ("C:/net.keras", False),
        ("gs://bucket/net.keras", False),
        ("tfds:", False),
    ],
)
def test_tells_functions_from_names_and_paths(text, is_one):
    assert functions.names_function(text) == is_one


def test_loads_a_function_of_the_working_directory(here):
    (here / "nets_of_mine.py").write_text("class A:\n    def b(): return 7\n")
    assert functions.load_function("nets_of_mine:A.b")() == 7


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("own_a:bild", "def build(): pass", "has no function bild. Did you mean build"),
        ("own_b:build", "import not_there", "No module named 'not_there'"),
        ("own_c:build", "1 / 0", "ZeroDivisionError: division by zero"),
        ("own_d:build", "raise SystemExit(3)", "SystemExit: 3"),
        ("own_e:build", "def f(:", "SyntaxError"),
        ("own_f:build", "build = 3", "is of type int, not a function"),
    ],
)
def test_own_errors_of_a_module_are_shown(here, text, source, message):
    (here / f"{text.partition(':')[0]}.py").write_text(source)
    with pytest.raises(BranchyError, match=r"^[^\n]*$") as error:
        functions.load_function(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere_at_all:build", "There is no Python module nowhere_at_all"),
        ("nowhere_at_all", "does not have the form module:function"),
        ("models.py:build", "There is no Python module models"),
    ],
)
def test_missing_modules_are_named(here, text, message):
    with pytest.raises(BranchyError) as error:
        functions.load_function(text)
    assert message in str(error.value)
