"""What the page asks: one model, about one image at a time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from branchy_tf import policy
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import Predictions

# The exits are timed at the start, after one call to warm up: each for this long, but
# all of many exits together no longer than that.
_SECONDS, _SECONDS_TOGETHER = 0.3, 2.0
_LEAST_CALLS = 5


class Predictor(Protocol):
    """What `EarlyExitPredictor`, `EarlyExitClient` and `opening.Cascaded` share."""

    def predict(self, images: Any, thresholds: Any = None) -> Predictions: ...

    def all_exits(self, images: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about a model.

    Attributes:
        name: its name.
        shape: (height, width, channels) of its input; None for any height or width.
        exits: the names of the N exits.
        criterion: the name of the score, or None.
        thresholds: the N-1 calibrated thresholds, or None.
        macs: [N], cumulative multiply-adds, or None.
        full_macs: the multiply-adds of the network without branches, or None.
        class_names: the names of the classes, or None.
        pixels: the values that the model reads for black and white pixels.
        units: of a cascade, the name of the unit of each exit; None otherwise.
        place: where the model is, for the page; None in this process.
    """

    name: str
    shape: tuple[int | None, int | None, int]
    exits: Sequence[str]
    criterion: str | None = None
    thresholds: Sequence[float] | None = None
    macs: Sequence[float] | None = None
    full_macs: float | None = None
    class_names: Sequence[str] | None = None
    pixels: tuple[float, float] = (0.0, 255.0)
    units: Sequence[str] | None = None
    place: str | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one image.

    Attributes:
        exit: the exit that the image took, 0-based.
        probabilities: float32 [N, classes], of every exit; NaN for an exit of a cascade
            whose unit does not answer.
        scores: float32 [N], of every exit; NaN as above.
        milliseconds: how long the answer took, early exit included.
        degraded: whether a unit of a cascade that should have answered did not, and this
            is an earlier unit's answer.
    """

    exit: int
    probabilities: np.ndarray
    scores: np.ndarray
    milliseconds: float
    degraded: bool = False

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], the most probable class at each exit."""
        return self.probabilities.argmax(axis=-1)


class Subject:
    """A model to ask about one image at a time; thread-safe as its predictor is.

    Args:
        predictor: see `Predictor`.
        facts: what is known about the model.
        dtype: of the model's input.

    Raises:
        BranchyError: the model does not take one image with 1 or 3 channels.
    """

    def __init__(self, predictor: Predictor, facts: Facts, dtype: Any) -> None:
        if len(facts.shape) != 3 or facts.shape[-1] not in (1, 3):
            raise BranchyError(
                f"{facts.name} takes inputs of shape {facts.shape}; play needs a model "
                "of one image with 1 (grey) or 3 (red, green, blue) channels."
            )
        self.facts = facts
        self._predictor = predictor
        self._dtype = np.dtype(dtype)

    def ask(self, image: np.ndarray, thresholds: Sequence[float] | None) -> Answer:
        """Asks about one image.

        Args:
            image: [height, width, channels] of the model's dtype.
            thresholds: N-1 numbers; None takes the calibrated ones.

        Raises:
            BranchyError, ServerError: what the predictor raises.
        """
        batch = image[None]
        start = time.perf_counter()
        taken = self._predictor.predict(batch, thresholds)
        seconds = time.perf_counter() - start
        every = self._predictor.all_exits(batch)
        # The predictor returns a pair, the client an object.
        if not isinstance(every, tuple):
            every = every.probabilities, every.scores
        return Answer(
            exit=int(taken.exits[0]),
            probabilities=every[0][0],
            scores=every[1][0],
            milliseconds=1e3 * seconds,
            degraded=taken.degraded is not None and bool(taken.degraded[0]),
        )

    def naming(self, class_names: Sequence[str] | None) -> Subject:
        """The same with these names of the classes, unless it has names already."""
        if class_names is None or self.facts.class_names is not None:
            return self
        facts = dataclasses.replace(self.facts, class_names=class_names)
        return Subject(self._predictor, facts, self._dtype)

    def as_input(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as the model reads them.

        Args:
            pixels: uint8 [height, width, channels].
        """
        low, high = self.facts.pixels
        if np.issubdtype(self._dtype, np.floating):
            return (low + (high - low) / 255 * pixels).astype(self._dtype)
        return pixels

    def as_pixels(self, image: np.ndarray) -> np.ndarray:
        """The inverse of `as_input`, for showing: uint8."""
        if image.dtype == np.uint8:
            return image
        low, high = self.facts.pixels
        scaled = 255 * (image.astype(np.float64) - low) / (high - low)
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    def time_exits(self, image: np.ndarray) -> list[float | None]:
        """The milliseconds of an answer at each exit: medians of a few calls here.

        Args:
            image: [height, width, channels] of the model's dtype.

        Returns:
            [N]; None for an exit of a cascade whose unit does not answer.
        """
        number = len(self.facts.exits)
        budget = min(_SECONDS, _SECONDS_TOGETHER / number)
        return [self._median(image, k, number, budget) for k in range(number)]

    def _median(
        self, image: np.ndarray, k: int, number: int, budget: float
    ) -> float | None:
        limits = policy.forcing(k, number)
        seconds = self._timed(image, limits)
        times: list[float] = []
        while seconds is not None and (len(times) < _LEAST_CALLS or sum(times) < budget):
            seconds = self._timed(image, limits)
            times.append(seconds or 0.0)
        return None if seconds is None else 1e3 * statistics.median(times)

    def _timed(self, image: np.ndarray, limits: np.ndarray) -> float | None:
        """The seconds of a call; None if a unit did not answer."""
        start = time.perf_counter()
        try:
            answer = self._predictor.predict(image[None], limits)
        except ServerError:
            return None
        if answer.degraded is not None and answer.degraded[0]:
            return None
        return time.perf_counter() - start
