"""Request streams whose images drift, and how thresholds perform on them.

Every exit is run once on the clean images and once on each drifted copy. A stream samples
these outputs with replacement, so thousands of requests need no further inference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from branchy_tf import thresholds
from branchy_tf.tuning import Strategy

# Agreement is a share of requests: this allows for rounding and for nothing else.
ROUNDING = 1e-12


def noisy(images: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Adds Gaussian noise: uint8 [n, H, W, C] in and out."""
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return _pixels(images + noise)


def blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    """Applies a Gaussian blur, deviation in pixels: uint8 [n, H, W, C] in and out."""
    sides = (0, deviation, deviation, 0)
    return _pixels(ndimage.gaussian_filter(images.astype(np.float32), sides))


def low_contrast(images: np.ndarray, contrast: float) -> np.ndarray:
    """Scales each image's contrast around its mean: uint8 [n, H, W, C] in and out."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32)
    return _pixels(mean + contrast * (images - mean))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


DRIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": lambda images: noisy(images, 40),
    "blur": lambda images: blurred(images, 1.5),
    "contrast": lambda images: low_contrast(images, 0.3),
}


@dataclasses.dataclass(frozen=True)
class ExitOutputs:
    """The output of every exit for some images.

    Attributes:
        scores: float32 [n, N].
        labels: predicted labels, int [n, N].
    """

    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @functools.cached_property
    def agrees(self) -> np.ndarray:
        """Whether each exit predicts the final exit's label, bool [n, N]."""
        return thresholds.agreement(self.labels)


def stream(
    clean: ExitOutputs, drifted: ExitOutputs, share: np.ndarray, seed: int
) -> ExitOutputs:
    """Samples requests.

    Args:
        clean: outputs for the images before the drift.
        drifted: outputs for the same images after it.
        share: [requests], the probability that each request is a drifted image.
        seed: of the sampling.
    """
    random = np.random.default_rng(seed)
    rows = random.integers(len(clean), size=len(share))
    is_drifted = (random.random(len(share)) < share)[:, None]
    return ExitOutputs(
        np.where(is_drifted, drifted.scores[rows], clean.scores[rows]),
        np.where(is_drifted, drifted.labels[rows], clean.labels[rows]),
    )


def drift_share(requests: int, gradual: bool = False) -> np.ndarray:
    """Share of drifted images, [requests]: 0 for the first half, then 1.

    A gradual drift takes a quarter of the stream to grow from 0 to 1.
    """
    position = np.arange(requests) - requests // 2
    if not gradual:
        return (position > 0).astype(np.float64)
    return np.clip(position / (requests / 4), 0, 1)


def serve(strategy: Strategy, requests: ExitOutputs, seed: int) -> np.ndarray:
    """Serves one request after another as a `ThresholdTuner` would.

    Args:
        strategy: its state before the first request; it is updated.
        requests: the strategy sees no more of each than a client would.
        seed: of the choice of requests that run every exit.

    Returns:
        int [n], the exit taken by each request; the final exit where every exit ran.
    """
    random = np.random.default_rng(seed)
    final = requests.scores.shape[1] - 1
    exits = np.full(len(requests), final)
    for i, draw in enumerate(random.random(len(requests))):
        scores = requests.scores[i : i + 1]
        if draw < strategy.share:
            strategy.observe(scores, requests.labels[i : i + 1])
        else:
            taken = thresholds.exit_indices(scores, strategy.thresholds)
            exits[i] = taken[0]
            strategy.watch(taken, scores[0, taken])
    return exits


def per_window(
    requests: ExitOutputs, exits: np.ndarray, costs: np.ndarray, window: int
) -> dict[str, np.ndarray]:
    """Agreement and cost of each window, given the exit that each request takes.

    Args:
        requests: a whole number of windows.
        exits: int [n].
        costs: [N], cumulative multiply-adds.
        window: number of requests in a window.

    Returns:
        `{"agreement": share that agrees with the full network, "macs": mean
        multiply-adds per request}`, float64 [windows] each.
    """
    agrees = requests.agrees[np.arange(len(exits)), exits]
    return {
        "agreement": agrees.reshape(-1, window).mean(axis=1),
        "macs": np.asarray(costs, np.float64)[exits].reshape(-1, window).mean(axis=1),
    }


def oracle(
    requests: ExitOutputs, costs: np.ndarray, budget: float, window: int | None = None
) -> thresholds.Point:
    """The cheapest static thresholds for a stream, chosen with hindsight.

    Args:
        requests: the whole stream.
        costs: [N], cumulative multiply-adds.
        budget: minimum share that agrees with the full network.
        window: if set, every window of this many requests must meet the budget; by
            default only the whole stream must.
    """
    points = thresholds.frontier(requests.scores, requests.agrees, costs)
    within = [point for point in points if point.accuracy >= budget - ROUNDING]
    if window is None:
        return within[0]
    for point in within:
        exits = thresholds.exit_indices(requests.scores, point.thresholds)
        agreement = per_window(requests, exits, costs, window)["agreement"]
        if agreement.min() >= budget - ROUNDING:
            return point
    return within[-1]
