from __future__ import annotations

import fractions
import math
import pathlib

import numpy as np
import pytest

from branchy_tf import checks
from branchy_tf.errors import BranchyError


def refused(check, *arguments, **options) -> str:
    with pytest.raises(BranchyError) as caught:
        check(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize("three", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_whole_numbers_are_ints(three):
    found = checks.whole_number("n", three, at_least=3, at_most=3)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [
        None, True, np.bool_(True), "3", b"3", 3.0, np.float32(3), np.array([3]), [3],
        3j, math.nan, {}, object, np.array("3"), np.array(True), "a\nb" * 1000,
    ],
)  # fmt: skip
def test_what_is_no_whole_number_is_refused(value):
    assert "`n` must be a whole number. Received" in refused(
        checks.whole_number, "n", value
    )


def test_whole_numbers_have_their_range():
    assert checks.whole_number("n", 2**62) == 2**62
    assert "must be a whole number. Received" in refused(checks.whole_number, "n", 2**80)
    below = refused(checks.whole_number, "n", 0, at_least=1)
    assert below == "`n` must be a whole number of at least 1. Received 0."
    above = refused(checks.whole_number, "n", np.int64(70000), 0, 65535)
    assert "from 0 to 65,535. Received np.int64(70000)" in above
    assert "at most 5. Received 6" in refused(checks.whole_number, "n", 6, at_most=5)


@pytest.mark.parametrize(
    "half",
    [0.5, np.float32(0.5), np.float16(0.5), np.array(0.5), fractions.Fraction(1, 2)],
)
def test_real_numbers_are_floats(half):
    found = checks.real_number("x", half, above=0, below=1)
    assert found == 0.5
    assert type(found) is float


@pytest.mark.parametrize(
    "value",
    [
        None, True, np.bool_(True), "0.5", b"1", [0.5], np.array([0.5]), 1j, math.nan,
        np.float32("nan"), {}, np.array("0.5"), 10**400, math.inf, -math.inf,
    ],
)  # fmt: skip
def test_what_is_no_real_number_is_refused(value):
    assert "`x` must be a finite number. Received" in refused(
        checks.real_number, "x", value
    )


@pytest.mark.parametrize(
    ("limits", "value", "words"),
    [
        ({"at_least": 0}, -1e-9, "a finite number of at least 0."),
        ({"above": 0}, 0, "a finite number above 0."),
        ({"at_least": 0, "at_most": 1}, 1.01, "a number from 0 to 1."),
        ({"above": 0, "below": 1}, 1, "a number between 0 and 1."),
        ({"above": 0, "below": 1}, 0, "a number between 0 and 1."),
        ({"above": 0, "at_most": 1}, 2, "a number above 0 and at most 1."),
        ({"above": 0, "infinite": True}, math.nan, "a number above 0."),
        ({"above": 0, "infinite": True}, -math.inf, "a number above 0."),
        ({"above": 0, "what": "number of rows"}, 0, "a finite number of rows above 0."),
    ],
)
def test_real_numbers_have_their_range(limits, value, words):
    assert words in refused(checks.real_number, "x", value, **limits)


def test_infinity_may_be_allowed():
    assert checks.real_number("x", np.float32("inf"), infinite=True) == math.inf


@pytest.mark.parametrize("value", ["c", None, 1, ["a"], np.array(["a", "b"]), {"a"}, ""])
def test_names_are_known_ones(value):
    assert checks.one_of("kind", "a", ["a", "b"]) == "a"
    text = refused(checks.one_of, "kind", value, ["a", "b"])
    assert text.startswith("Unknown kind ")
    assert text.endswith("Known: a, b.")


@pytest.mark.parametrize("value", ["", " ", None, 1, b"a", ["a"], pathlib.Path("a")])
def test_texts_are_strings(value):
    assert checks.text("s", "a b") == "a b"
    assert "must be a non-empty string" in refused(checks.text, "s", value)


@pytest.mark.parametrize("value", [None, 0, 1, "true", np.int8(1), []])
def test_switches_are_bools(value):
    assert checks.switch("s", np.bool_(False)) is False
    assert "must be True or False" in refused(checks.switch, "s", value)


@pytest.mark.parametrize("value", ["", None, 1, b"a", ["a"], True])
def test_paths_are_paths(value):
    assert checks.path("p", pathlib.Path("a")) == pathlib.Path("a")
    assert "`p` must be a path" in refused(checks.path, "p", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2.5], [1, 2.5]),
        (np.float32([1, np.inf]), [1, np.inf]),
        ([fractions.Fraction(1, 2)], [0.5]),
        ([[2**70, 1]], [[2.0**70, 1]]),
        ([], []),
    ],
)
def test_arrays_hold_numbers(value, expected):
    np.testing.assert_array_equal(checks.real_array("a", value), expected)


@pytest.mark.parametrize(
    "value",
    [["1"], [None], [True], True, None, "1", [1j], [[1], [1, 2]], {1}, b"1", [10**400]],
)
def test_arrays_of_anything_else_are_refused(value):
    assert "`a` must be numbers" in refused(checks.real_array, "a", value)
