"""A network and a client that are not there: scores and labels by a formula."""

from __future__ import annotations

import threading
import types

import numpy as np

from branchy_tf.results import Predictions
from branchy_tf.thresholds import exit_indices

MACS = [1, 4]


def rows(n: int, seed: int = 0, harm: float = 0.0, factor: float = 1.0) -> tuple:
    """Scores float32 [n, 2] and labels [n, 2] of two exits.

    Args:
        n: rows.
        seed: of the draw.
        harm: how many more of the rows, also sure ones, exit_1 answers differently.
        factor: of the scores of exit_1.
    """
    random = np.random.default_rng(seed)
    first = random.gamma(1, 0.5, n)
    differs = random.random(n) < harm + 0.5 * (first / (1 + first)) ** 3
    final = random.integers(0, 5, n)
    labels = np.stack([np.where(differs, 5, final), final], axis=1)
    scores = np.stack([factor * first, random.gamma(1, 0.1, n)], axis=1)
    return scores.astype(np.float32), labels


class Client:
    """Answers "images" that are numbers of rows; counts what it is asked."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray, version: int = 1) -> None:
        self.scores, self.labels, self.version = scores, labels, version
        self.asked = {"predict": 0, "all_exits": 0}
        self.options: list[dict] = []
        self._lock = threading.Lock()

    def _count(self, what: str, options: dict) -> None:
        with self._lock:
            self.asked[what] += 1
            self.options.append(options)

    def predict(self, images, thresholds, **options):
        self._count("predict", options)
        exits = exit_indices(self.scores[images], thresholds)
        return Predictions(
            np.eye(6, dtype=np.float32)[self.labels[images, exits]],
            exits,
            self.scores[images, exits],
            self.version,
        )

    def all_exits(self, images, **options):
        self._count("all_exits", options)
        return types.SimpleNamespace(
            probabilities=np.eye(6, dtype=np.float32)[self.labels[images]],
            scores=self.scores[images],
            model_version=self.version,
        )
