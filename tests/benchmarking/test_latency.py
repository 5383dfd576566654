from __future__ import annotations

import numpy as np
import pytest
import small

from branchy_tf import costs
from branchy_tf.benchmarking import latency
from branchy_tf.errors import BranchyError


def test_each_stage_is_timed_at_each_batch_size():
    images = small.dataset().test.images
    rows = latency.stage_milliseconds(small.model(), images, [1, 4], seconds=0.02)
    assert [(r["batch"], r["stage"]) for r in rows] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for row in rows:
        assert 0 < row["low"] <= row["ms_per_image"] <= row["high"]
    first, both = latency.cumulative_milliseconds(rows, 4)
    assert (first, both) == (
        rows[2]["ms_per_image"],
        rows[2]["ms_per_image"] + rows[3]["ms_per_image"],
    )


@pytest.mark.parametrize("batch", [0, 11, 1.5])
def test_refuses_a_batch_size(batch):
    with pytest.raises(BranchyError, match="from 1 to 10"):
        latency.stage_milliseconds(small.model(), np.zeros((10, 8, 8, 1)), [batch])


def test_stages_add_up_to_the_whole():
    model = small.model()
    rows = costs.by_stage(model)
    assert [row["exit"] for row in rows] == ["exit_1", "exit_2"]
    assert sum(row["parameters"] for row in rows) == model.count_params()
    totals = np.cumsum([row["macs"] for row in rows]).tolist()
    assert totals == costs.cumulative_macs(model) == [402, 447]
