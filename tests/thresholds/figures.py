"""Figures of the search for thresholds, too slow for a test.

Time and memory on 10,000 rows, then the frontier against a screen of 200
thresholds an exit on the validation scores of finished runs:

    python tests/thresholds/figures.py [RUN_DIR ...]
"""

from __future__ import annotations

import itertools
import pathlib
import sys
import time
import tracemalloc

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from samples import rows

from branchy_tf import costs, data, scoring, thresholds
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.training import RunFolder


def time_and_memory(num_exits: int) -> None:
    scores, correct = rows(10_000, num_exits)
    by_exit = np.arange(1, num_exits + 1)
    start = time.perf_counter()
    points = thresholds.frontier(scores, correct, by_exit)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    thresholds.frontier(scores, correct, by_exit)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(
        f"10,000 rows, {num_exits} exits: {seconds:.2f} s, {len(points)} points, "
        f"{peak:.0f} MB at most"
    )


def screen(run_dir: str) -> None:
    folder = RunFolder(run_dir)
    model, recorded = folder.load_model(), folder.read_flags()
    dataset = data.load(
        recorded["dataset"], recorded.get("data_dir"), None, int(recorded["seed"])
    )
    split, macs = dataset.validation, np.array(costs.cumulative_macs(model), float)
    logits = scoring.every_exit(LogitsPredictor(model), split)
    every = scoring.answers(logits, split.labels)
    scores, correct = every.scores, every.correct
    points = thresholds.frontier(scores, correct, macs)
    cost = np.array([point.cost for point in points])
    accuracy = np.array([point.accuracy for point in points])
    shares = np.linspace(0, 1, 200)[1:]
    grids = [
        [0.0, *np.nextafter(np.quantile(column, shares), np.float32(np.inf))]
        for column in scores[:, :-1].T
    ]
    above = below = total = 0
    for vector in itertools.product(*grids):
        exits = thresholds.exit_indices(scores, vector)
        right = correct[np.arange(len(exits)), exits].mean()
        spent = np.bincount(exits, minlength=len(macs)) @ macs / len(exits)
        best = accuracy[np.searchsorted(cost, spent + 1e-6) - 1]
        above += right > best + 1e-12
        below += right < best - 1e-12
        total += 1
    print(
        f"{model.name}, {len(split):,} rows: of {total:,} vectors screened {above} lie "
        f"above the frontier of {len(points)} points, {below:,} below"
    )


if __name__ == "__main__":
    for number in (2, 3, 7):
        time_and_memory(number)
    for path in sys.argv[1:]:
        screen(path)
