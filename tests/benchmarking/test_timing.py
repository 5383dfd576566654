from __future__ import annotations

import numpy as np

from branchy_tf.benchmarking import timing


def test_measuring_takes_the_calls_in_turn():
    calls: list[str] = []
    times = timing.time_calls(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        seconds=0.01,
        warm_up=1,
    )
    assert calls[:6] == ["a", "b"] * 3
    for low, median, high in times.values():
        assert 0 < low <= median <= high
    assert np.shape(times["a"]) == (3,)
