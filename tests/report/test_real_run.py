"""The report of a trained, calibrated run, in a real browser."""

from __future__ import annotations

import json
import shutil

import commands
import numpy as np
import pages
import pytest
from PIL import Image

from branchy_tf import exits, scoring
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.thresholds import Calibration


@pytest.fixture
def calibration(run_dir, trained):
    return Calibration.read(run_dir / "thresholds.json", exits.exit_names(trained))


def test_sliders_decide_as_the_package(run_dir, trained, mnist_5k, calibration, opened):
    split = mnist_5k.validation
    logits = LogitsPredictor(trained).logits(split.images)
    policy = calibration.policy
    scores = scoring.answers(logits, split.labels, policy).scores
    page = opened(run_dir / "report.html")
    tried = [policy.thresholds, *(point["thresholds"] for point in calibration.frontier)]
    assert len(tried) > 5
    for thresholds in tried:
        expected = policy.replace(thresholds=thresholds).exit_indices(scores)
        assert pages.exits_on(page, thresholds) == expected.tolist()
    # Everything that a person looks at is in the one file, and small.
    assert (run_dir / "report.html").stat().st_size < 5e6
    with Image.open(run_dir / "report/validation_rows.jpg") as sheet:
        assert np.asarray(sheet).std() > 20


def test_measure_adds_milliseconds(run_dir, tmp_path, opened):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    flags = [f"--run_dir={copy}", "--batch_sizes=4", "--seconds=0.1"]
    done = commands.run("measure", *flags)
    assert done.status == 0, done.stderr
    text = (copy / "report.html").read_text(encoding="utf-8")
    packed = json.loads(text.split('id="scores">')[1].split("</script>")[0])
    assert [time["batch"] for time in packed["times"]] == [4]
    page = opened(copy / "report.html")
    assert "ms per image, batches of 4" in page.locator("#figures").inner_text()
