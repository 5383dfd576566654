"""Inputs as trained: which batches are of another scale, and which only look unusual."""

from __future__ import annotations

import numpy as np
import pytest

from branchy_tf import files
from branchy_tf.checks import ranges
from branchy_tf.checks.ranges import InputRange
from branchy_tf.errors import BranchyError

PIXELS = InputRange((None, 8, 8, 1), "uint8", 0, 255, True)
RAW_FLOATS = InputRange((None, 8, 8, 1), "float32", 0, 255, True)
UNIT = InputRange((None, 8, 8, 1), "float32", 0, 1, False)
CENTRED = InputRange((None, 8, 8, 1), "float32", -1, 1, False)
STANDARD = InputRange((None, 8, 8, 1), "float32", -2.5, 3.1, False)
TABLE = InputRange((None, 6), "float32", -4, 9, False)
COUNTS = InputRange((None, 6), "int64", 0, 5000, True)
TOKENS = InputRange((None, 20), "int32", 0, 20_000, True)


def raw(rows: int = 16, top: int = 256) -> np.ndarray:
    """Pictures of raw pixels below `top`, uint8 [rows, 8, 8, 1]."""
    return np.random.default_rng(rows).integers(0, top, (rows, 8, 8, 1), np.uint8)


def unit(rows: int = 16) -> np.ndarray:
    return (raw(rows) / 255).astype(np.float32)


def table(rows: int, spread: float) -> np.ndarray:
    return np.random.default_rng(rows).normal(0, spread, (rows, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("trained", "given", "advice"),
    [
        (UNIT, raw().astype(np.float32), "Divide by 255."),
        (UNIT, raw(1).astype(np.float32), "Divide by 255."),
        # A dark picture of the wrong scale: at most 20 of 255.
        (UNIT, raw(4, top=21).astype(np.float32), "Divide by 255."),
        # Half of the pictures are black, so their median says nothing.
        (
            UNIT,
            np.concatenate([np.zeros((9, 8, 8, 1)), raw(7)]).astype(np.float32),
            "Divide by 255.",
        ),
        (CENTRED, raw().astype(np.float32), "Prepare them as for the training."),
        (STANDARD, raw().astype(np.float32), "Prepare them as for the training."),
        (RAW_FLOATS, unit(), "Multiply by 255."),
        (RAW_FLOATS, unit(1), "Multiply by 255."),
        (RAW_FLOATS, 2 * unit() - 1, "Multiply by 255."),
        (RAW_FLOATS, 5 * unit() - 2, "Prepare them as for the training."),
        (TABLE, table(20, 500), "Prepare them as for the training."),
        (COUNTS, table(20, 1), "Prepare them as for the training."),
    ],
)
def test_refuses_another_scale(trained, given, advice):
    with pytest.raises(BranchyError) as caught:
        ranges.check({"images": trained}, {"images": given}, "Or else.")
    text = str(caught.value)
    assert text.startswith("`images` holds values from ")
    assert f"trained on {trained}: another scale. {advice} Or else." in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        (PIXELS, raw()),
        (PIXELS, raw(1)),
        # Dark pictures, and a night of them: whole numbers, a few bright pixels.
        (PIXELS, raw(1, top=2)),
        (PIXELS, raw(8, top=3)),
        (PIXELS, raw(31, top=3)),
        (PIXELS, raw(400, top=12)),
        (RAW_FLOATS, raw(8, top=2).astype(np.float32)),
        # Resized without rounding: fractions, but above 1.
        (RAW_FLOATS, 40 * unit()),
        (RAW_FLOATS, 3 * unit(8)),
        (PIXELS, np.zeros((100, 8, 8, 1), np.uint8)),
        (PIXELS, np.full((3, 8, 8, 1), 255, np.uint8)),
        (PIXELS, raw(0)),
        (UNIT, unit()),
        (UNIT, 0.02 * unit()),
        (UNIT, 0.001 * unit(4)),
        (UNIT, 2.5 * unit()),
        (CENTRED, unit()),
        (STANDARD, 2 * unit() - 1),
        # A table's outliers, one sentence of common words, one of rare ones.
        (TABLE, table(50, 3)),
        (TABLE, np.concatenate([table(49, 3), table(1, 1e6)])),
        (COUNTS, np.ones((3, 6), np.int64)),
        (TOKENS, np.full((64, 20), 7, np.int32)),
        (TOKENS, np.full((1, 20), 19_999, np.int32)),
        (InputRange((None, 2), "bool", 0, 1, True), np.ones((4, 2), bool)),
    ],
)
def test_accepts_what_is_only_unusual(trained, given):
    assert ranges.check({"images": trained}, {"images": given}) is None


@pytest.mark.parametrize(
    ("trained", "given", "expected"),
    [
        (PIXELS, raw(32, top=3), "they are almost black, or have another scale."),
        (
            PIXELS,
            np.rint(unit(40)).astype(np.uint8),
            "they are almost black, or",
        ),
        (UNIT, unit(64) / 255, "they are almost black, or have another scale."),
        (UNIT, 5 * unit(), "they may have another scale."),
        (TABLE, table(1, 1e6), "they may have another scale."),
    ],
)
def test_warns_in_one_line_of_what_it_cannot_tell(trained, given, expected):
    text = ranges.check({"x": trained}, {"x": given})
    assert text.startswith("`x` holds values from ")
    assert expected in text
    assert "\n" not in text


def test_no_real_digits_or_darkened_ones_are_refused(mnist_5k):
    """Every row of the data set, alone and as a batch, down to a tenth of its light."""
    known = ranges.measure({"images": x} for x, _ in mnist_5k.train.batches(512))
    images = mnist_5k.test.images
    for light in (1, 0.5, 0.2, 0.1):
        darker = (images * light).astype(np.uint8)
        assert ranges.check(known, {"images": darker}) is None
        for row in darker[::25]:
            assert ranges.check(known, {"images": row[None]}) is None
    # As floats too, for a network that takes raw pixels as floats.
    assert ranges.check(known, {"images": (images * 0.1).astype(np.float32)}) is None
    for row in images[::25]:
        with pytest.raises(BranchyError, match="Multiply by 255"):
            ranges.check(known, {"images": (row[None] / 255).astype(np.float32)})


def test_measures_batch_by_batch():
    parts = [raw(3, top=100), raw(4), raw(2, top=50)]
    found = ranges.measure({"a": part, "b": part / 2 - 9} for part in parts)
    whole = np.concatenate(parts)
    assert found["a"] == InputRange((None, 8, 8, 1), "uint8", 0, whole.max(), True)
    assert found["b"].dtype == "float64"
    assert (found["b"].low, found["b"].high) == (-9, whole.max() / 2 - 9)
    assert not found["b"].whole
    # Empty rows are neither; and one fraction is enough.
    again = ranges.measure([{"a": raw(0)}, {"a": raw(2) * 1.0}, {"a": unit(1)}])
    assert not again["a"].whole


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([], "no rows"),
        ([{"x": np.float32([[1, np.nan]])}], "'x' holds NaN or infinite values"),
        ([{"x": np.float32([[1, np.inf]])}], "'x' holds NaN or infinite values"),
    ],
)
def test_measures_finite_numbers_only(batches, expected):
    with pytest.raises(BranchyError, match=expected):
        ranges.measure(batches)


def test_ranges_survive_their_file(tmp_path):
    known = {"images": PIXELS, "table": TABLE}
    path = tmp_path / "data.json"
    files.write_json(path, {"inputs": {n: r.to_json() for n, r in known.items()}})
    assert ranges.ranges_from_json(files.read_json(path)["inputs"], path) == known
    assert ranges.ranges_from_json(None, path) is None
    # As in the branchy.json of a policy that does not know them.
    unknown = {"shape": [None, 4], "dtype": "float32"}
    assert ranges.ranges_from_json({"y": unknown}, path) is None
    both = {"x": known["images"].to_json(), "y": unknown}
    assert set(ranges.ranges_from_json(both, path)) == {"x"}
    plain = {"shape": [None, 2], "dtype": "float32", "low": 0, "high": 1}
    assert ranges.ranges_from_json({"x": plain}, path)["x"].whole is False


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "expected an object"),
        ({"x": 3}, "expected an object with shape"),
        ({"x": {"shape": [1], "dtype": "uint8", "low": 0}}, "it lacks high"),
        ({"x": {"shape": 1, "dtype": "uint8", "low": 0, "high": 1}}, "list of sides"),
        ({"x": {"shape": [], "dtype": "uint8", "low": 2, "high": 1}}, "low at most"),
        ({"x": {"shape": [], "dtype": "uint8", "low": "a", "high": 1}}, "low at most"),
        ({"x": {"shape": [], "dtype": "mood", "low": 0, "high": 1}}, "'mood' is no dt"),
    ],
)
def test_rejects_damaged_ranges(value, expected):
    with pytest.raises(BranchyError, match=expected) as caught:
        ranges.ranges_from_json(value, "here.json")
    assert str(caught.value).startswith("here.json has inputs that cannot be read: ")
