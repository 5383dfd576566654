"""Reports with sliders, made of scores that a test chooses."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from branchy_tf import files
from branchy_tf.data import Split
from branchy_tf.policy import ExitPolicy
from branchy_tf.report import Report, Section
from branchy_tf.report.scores import pack
from branchy_tf.results import exit_name
from branchy_tf.scoring import Answers
from branchy_tf.thresholds import Calibration, evaluate


def answers(rows: int, exits: int, classes: int = 10, seed: int = 0) -> Answers:
    """Scores, answers and labels at random; later exits are correct more often."""
    random = np.random.default_rng(seed)
    scores = random.gamma(1, 0.5, (rows, exits)).astype(np.float32)
    labels = random.integers(classes, size=rows)
    given = np.tile(labels[:, None], exits)
    wrong = random.random((rows, exits)) < 0.5 / (1 + np.arange(exits))
    given[wrong] = random.integers(classes, size=wrong.sum())
    probabilities = np.zeros((rows, exits, classes), np.float32)
    np.put_along_axis(probabilities, given[..., None], 1.0, axis=-1)
    return Answers(probabilities, scores, labels)


def frontier_of(every: Answers, macs: list[int], points: int = 20) -> list[dict]:
    """Some points with equal thresholds at every exit, by cost."""
    found = []
    for threshold in np.linspace(2, 0, points).tolist():
        limits = [threshold] * (len(macs) - 1)
        point = evaluate(every.scores, every.correct, macs, limits)
        found.append(
            {"thresholds": limits, "accuracy": point.accuracy, "macs": point.cost}
        )
    return sorted(found, key=lambda point: point["macs"])


def write(
    folder: pathlib.Path,
    every: Answers,
    policy: ExitPolicy,
    images: np.ndarray | None = None,
    class_names: list[str] | None = None,
    title: str = "A network",
    budget: dict | None = None,
    costs: dict | None = None,
    figures: dict | None = None,
    guarantee: dict | None = None,
) -> pathlib.Path:
    """report.html over these answers; returns its path."""
    rows, exits = every.scores.shape
    macs = [1000 * (k + 1) for k in range(exits)]
    calibration = Calibration(
        policy=policy,
        exits=[exit_name(k + 1) for k in range(exits)],
        validation={"full_macs": 900 * exits},
        frontier=frontier_of(every, macs),
        budget=budget or {},
        guarantee=guarantee,
    )
    if images is None:
        images = np.zeros((rows, 1, 1, 2), np.uint8)
    make = functools.partial(
        pack,
        calibration=calibration,
        answers=every,
        split=Split(images, every.labels),
        macs=macs,
        class_names=class_names,
    )
    report_folder = folder / "report"
    report_folder.mkdir(exist_ok=True)
    section = Section("Validation split", report_folder, "validation")
    section.sliders(make)
    costs_file = folder / "costs.json"
    if costs is not None:
        files.write_json(costs_file, costs)
    page = Report(folder / "report.html", report_folder, title, costs_file)
    page.write("validation", section)
    if figures is not None:
        test = Section("Test split", report_folder, "test")
        test.figures = figures
        page.write("test", test)
    return folder / "report.html"


def exits_on(page, thresholds):
    """The exits that the page's script computes for all rows."""
    given = ["inf" if t == np.inf else t for t in thresholds]
    return page.evaluate(
        """(given) => Array.from(sliders.exitIndices(
          given.map((t) => (t === "inf" ? Infinity : t))))""",
        given,
    )
