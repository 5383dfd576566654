"""Covers hold for every set of units that fits, and cut fractions off."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from branchy_tf.units.placing import covering


def test_one_of_two_units_that_do_not_fit_together():
    cover = covering.separate(3, {"a": 1.0, "b": 0.5}, {"a": 30.0, "b": 20.0}, 40.0)
    assert cover.site == 3
    assert cover.weights == pytest.approx({"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("held", [{"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 1.0, "c": 1}])
def test_what_sets_of_units_span_is_left_alone(held):
    sizes = {"a": 30.0, "b": 20.0, "c": 10.0}
    assert covering.separate(0, held, sizes, 40.0) is None


def test_no_set_that_fits_is_cut_off():
    random = np.random.default_rng(0)
    cut = 0
    for _ in range(30):
        names = [f"unit_{i}" for i in range(6)]
        sizes = dict(zip(names, random.uniform(1, 10, 6).tolist(), strict=True))
        # As the relaxation does it: memory is full, the last unit a fraction.
        left, held = 20.0, {}
        for name in names:
            held[name] = min(1.0, left / sizes[name])
            left -= held[name] * sizes[name]
        cover = covering.separate(0, held, sizes, 20.0)
        if cover is None:
            continue
        cut += 1
        assert sum(held[name] * cover.weights.get(name, 0.0) for name in names) > 1.001
        for chosen in itertools.product([0, 1], repeat=6):
            there = [name for name, one in zip(names, chosen, strict=True) if one]
            if sum(sizes[name] for name in there) <= 20.0:
                weight = sum(cover.weights.get(name, 0.0) for name in there)
                assert weight <= 1 + 1e-6
    assert cut >= 20
