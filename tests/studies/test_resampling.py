from __future__ import annotations

import numpy as np
from scipy import stats

from branchy_tf import scoring, thresholds
from zoo.studies.resampling import violations


def test_guarantee_holds_on_real_scores(trained, mnist_5k):
    """A short version of `python -m zoo.studies.guarantee`."""
    logits = trained.predict(mnist_5k.test.images, batch_size=256, verbose=0)
    every = scoring.answers(
        np.stack([logits["exit_1"], logits["exit_2"]], axis=1), mnist_5k.test.labels
    )
    retained = thresholds.count_losses_only(every.correct)
    plain, guaranteed, expectation = violations(
        every.scores, retained, [220_150, 1_247_720], 0.02, 0.9, rows=600, resamplings=200
    )
    # At most 0.1, up to the sampling error of 200 calibrations.
    assert stats.binomtest(guaranteed["violations"], 200, 0.1, "greater").pvalue > 0.01
    assert plain["violations"] > guaranteed["violations"]
    assert plain["share"] > 0.1
    assert expectation["mean_risk"] <= 0.02 + 3 * expectation["mean_risk_error"]
    # The guarantee has a cost, but still allows early exit.
    assert plain["mean_cost"] < guaranteed["mean_cost"] < 1_000_000
