"""Streams of requests whose images change on the way, and what thresholds do on them.

The scores of every exit are computed once for the clean images and once for the changed
ones. A stream draws from these with replacement, so that thousands of requests cost a
network nothing more.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from branchy_tf import thresholds
from branchy_tf.tuning import Strategy


def noisy(images: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Adds normal noise: uint8 [n, H, W, C] in and out."""
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return _pixels(images + noise)


def blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    """Blurs with a Gaussian, so many pixels wide: uint8 [n, H, W, C] in and out."""
    sides = (0, deviation, deviation, 0)
    return _pixels(ndimage.gaussian_filter(images.astype(np.float32), sides))


def flat(images: np.ndarray, contrast: float) -> np.ndarray:
    """Draws pixels to each image's mean: uint8 [n, H, W, C] in and out."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32)
    return _pixels(mean + contrast * (images - mean))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


DRIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": lambda images: noisy(images, 40),
    "blur": lambda images: blurred(images, 1.5),
    "contrast": lambda images: flat(images, 0.3),
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """What every exit says of some images.

    Attributes:
        scores: float32 [n, N].
        labels: int [n, N].
    """

    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @functools.cached_property
    def agrees(self) -> np.ndarray:
        """Where an exit gives the label of the last one, bool [n, N]."""
        return thresholds.agreement(self.labels)


def stream(clean: Rows, changed: Rows, share: np.ndarray, seed: int) -> Rows:
    """Draws requests.

    Args:
        clean: what is drawn from before a drift.
        changed: the same images, changed.
        share: [requests], how likely each is to be a changed one.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    rows = random.integers(len(clean), size=len(share))
    late = (random.random(len(share)) < share)[:, None]
    return Rows(
        np.where(late, changed.scores[rows], clean.scores[rows]),
        np.where(late, changed.labels[rows], clean.labels[rows]),
    )


def drift_share(requests: int, slowly: bool = False) -> np.ndarray:
    """[requests]: a drift in the middle; slowly, it grows over a quarter of the way."""
    done = (np.arange(requests) - requests // 2) / (requests / 4 if slowly else 1e-9)
    return np.clip(done, 0, 1)


def serve(policy: Strategy, requests: Rows, seed: int) -> np.ndarray:
    """Serves one request after the other as a `ThresholdTuner` would.

    Args:
        policy: as it is at the first request.
        requests: of which it sees no more than a client would.
        seed: of the share that asks every exit.

    Returns:
        int [n], the exit at which each left; the last for those that asked every exit.
    """
    random = np.random.default_rng(seed)
    last = requests.scores.shape[1] - 1
    exits = np.full(len(requests), last)
    for i, coin in enumerate(random.random(len(requests))):
        scores = requests.scores[i : i + 1]
        if coin < policy.share:
            policy.observe(scores, requests.labels[i : i + 1])
        else:
            left = thresholds.exit_indices(scores, policy.thresholds)
            exits[i] = left[0]
            policy.watch(left, scores[0, left])
    return exits


def by_window(
    requests: Rows, exits: np.ndarray, costs: np.ndarray, window: int
) -> dict[str, np.ndarray]:
    """What leaving at these exits did, window by window.

    Args:
        requests: a whole number of windows.
        exits: int [n].
        costs: [N] cumulative.
        window: requests.

    Returns:
        `{"agreement": share answered as the full network does, "macs": mean cost}`,
        float64 [windows] each.
    """
    agreed = requests.agrees[np.arange(len(exits)), exits]
    return {
        "agreement": agreed.reshape(-1, window).mean(axis=1),
        "macs": np.asarray(costs, np.float64)[exits].reshape(-1, window).mean(axis=1),
    }


def oracle(
    requests: Rows, costs: np.ndarray, budget: float, window: int | None = None
) -> Any:
    """The best static thresholds there are for a stream, known afterwards.

    Args:
        requests: the whole stream.
        costs: [N] cumulative.
        budget: the least share that is to agree.
        window: where the budget is to hold in every window, and not only overall.

    Returns:
        A `thresholds.Point`.
    """
    points = thresholds.frontier(requests.scores, requests.agrees, costs)
    within: Sequence[Any] = [p for p in points if p.accuracy >= budget - 1e-12]
    if window is None:
        return within[0]
    for point in within:
        exits = thresholds.exit_indices(requests.scores, point.thresholds)
        if by_window(requests, exits, costs, window)["agreement"].min() >= budget - 1e-12:
            return point
    return within[-1]
