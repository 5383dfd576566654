from __future__ import annotations

import pytest

from branchy_tf.report import points_from_final_exit


@pytest.mark.parametrize(
    ("drop", "interval", "words"),
    [
        (
            0.0036,
            (0.0013, 0.0058),
            "0.36 points below the final exit (0.13 to 0.58 below)",
        ),
        (-0.005, (-0.01, 0.0), "0.50 points above the final exit (0.00 to 1.00 above)"),
        (
            -0.0009,
            (-0.003, 0.0012),
            "0.09 points above the final exit (0.30 above to 0.12 below)",
        ),
        (0.0, (0.0, 0.0), "as accurate as the final exit (0.00 to 0.00 below)"),
    ],
)
def test_accuracy_drop_is_written_without_signs(drop, interval, words):
    expected = words.replace("(", "(95 % interval: ")
    assert points_from_final_exit(drop, interval) == expected
