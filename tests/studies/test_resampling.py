from __future__ import annotations

import numpy as np
from scipy import stats

from branchy_tf import scoring, thresholds
from zoo.studies.resampling import violations


def test_the_promise_is_kept_on_real_scores(trained, mnist_5k):
    """A short study; `python -m zoo.studies.guarantee` is the long one."""
    logits = trained.predict(mnist_5k.test.images, batch_size=256, verbose=0)
    every = scoring.answers(
        np.stack([logits["exit_1"], logits["exit_2"]], axis=1), mnist_5k.test.labels
    )
    kept = thresholds.count_losses_only(every.correct)
    plain, promised, expected = violations(
        every.scores, kept, [220_150, 1_247_720], 0.02, 0.9, rows=600, resamplings=200
    )
    # At most 0.1, but for the error of 200 draws.
    assert stats.binomtest(promised["violations"], 200, 0.1, "greater").pvalue > 0.01
    assert plain["violations"] > promised["violations"]
    assert plain["share"] > 0.1
    assert expected["mean_risk"] <= 0.02 + 3 * expected["mean_risk_error"]
    # The promise costs something, but is no refusal.
    assert plain["mean_cost"] < promised["mean_cost"] < 1_000_000
