"""What the page asks: a predictor in this process, or a server's model."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import numpy as np

from branchy_tf import costs, exits, files, policy
from branchy_tf.checks import TensorSpec
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.results import Predictions, exit_name

# Each exit is timed at the start for this long, after one call to warm up.
_SECONDS = 0.3
_LEAST_CALLS = 5


class Predictor(Protocol):
    """The method that `EarlyExitPredictor` and `EarlyExitClient` share."""

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


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one image.

    Attributes:
        exit: the exit that the image took, 0-based.
        probabilities: float32 [N, classes], of every exit.
        scores: float32 [N], of every exit.
        milliseconds: how long the answer took, early exit included.
    """

    exit: int
    probabilities: np.ndarray
    scores: np.ndarray
    milliseconds: float

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], the most probable class at each exit."""
        return self.probabilities.argmax(axis=-1)


class Subject:
    """A model to ask about one image at a time; thread-safe as its predictor is.

    Args:
        predictor: an `EarlyExitPredictor` or an `EarlyExitClient`.
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
        return Answer(int(taken.exits[0]), every[0][0], every[1][0], 1e3 * seconds)

    def as_input(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as the model reads them.

        Args:
            pixels: uint8 [height, width, channels].
        """
        low, high = self.facts.pixels
        if np.issubdtype(self._dtype, np.floating) and (low, high) != (0.0, 255.0):
            return (low + (high - low) / 255 * pixels).astype(self._dtype)
        return pixels

    def as_pixels(self, image: np.ndarray) -> np.ndarray:
        """The inverse of `as_input`, for showing: uint8."""
        if image.dtype == np.uint8:
            return image
        low, high = self.facts.pixels
        scaled = 255 * (image.astype(np.float64) - low) / (high - low)
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    def time_exits(self, image: np.ndarray) -> list[float]:
        """The milliseconds of an answer at each exit: medians of a few calls here.

        Args:
            image: [height, width, channels] of the model's dtype.
        """
        number = len(self.facts.exits)
        medians = []
        for k in range(number):
            limits = policy.forcing(k, number)
            self._seconds(image, limits)
            times: list[float] = []
            while len(times) < _LEAST_CALLS or sum(times) < _SECONDS:
                times.append(self._seconds(image, limits))
            medians.append(1e3 * statistics.median(times))
        return medians

    def _seconds(self, image: np.ndarray, thresholds: np.ndarray) -> float:
        start = time.perf_counter()
        self._predictor.predict(image[None], thresholds)
        return time.perf_counter() - start


def pixel_range(record: files.Path) -> tuple[float, float]:
    """The values for black and white, by a run's record of its training inputs.

    Args:
        record: the data.json of a run; without it, pixels are 0 to 255.
    """
    if not files.path(record).is_file():
        return 0.0, 255.0
    inputs = files.read_json(record).get("inputs") or {}
    only: dict[str, Any] = next(iter(inputs.values()), {})
    return float(only.get("low", 0.0)), float(only.get("high", 255.0))


def of_model(
    model: keras.Model,
    exit_policy: ExitPolicy,
    class_names: Sequence[str] | None = None,
    pixels: tuple[float, float] = (0.0, 255.0),
) -> Subject:
    """A model in this process.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`, one image as input.
        exit_policy: the calibrated policy.
        class_names: the names of the classes, or None.
        pixels: the values that the model reads for black and white pixels.

    Raises:
        BranchyError: the model does not take one image, or the policy does not fit.
    """
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    macs, full_macs = None, None
    with contextlib.suppress(BranchyError):
        # Unknown for a model that takes images of any size.
        macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    facts = Facts(
        name=model.name,
        shape=_one_image(model.name, shapes),
        exits=exits.exit_names(model),
        criterion=exit_policy.criterion,
        thresholds=exit_policy.thresholds,
        macs=macs,
        full_macs=full_macs,
        class_names=class_names,
        pixels=pixels,
    )
    return Subject(EarlyExitPredictor(model, exit_policy), facts, model.inputs[0].dtype)


def of_export(
    client: Predictor,
    name: str,
    inputs: dict[str, TensorSpec],
    num_exits: int,
    description: dict[str, Any] | None = None,
) -> Subject:
    """A model that a server serves.

    Args:
        client: an `EarlyExitClient`.
        name: the name of the model.
        inputs: what the server says about its inputs, from `client.describe`.
        num_exits: N, from there too.
        description: the content of the export's assets.extra/branchy.json, or None; the
            server does not tell multiply-adds, criterion and thresholds.

    Raises:
        BranchyError: the model does not take one image, or the description is of
            another model.
    """
    shapes = [
        tuple(None if side in (None, -1) else side for side in spec.shape[1:])
        for spec in inputs.values()
    ]
    known = description or {}
    names = known.get("exits", [exit_name(k + 1) for k in range(num_exits)])
    if len(names) != num_exits:
        raise BranchyError(
            f"{name} has {num_exits} exits on the server and {len(names)} in "
            "--version_dir. Pass the folder of the served version."
        )
    facts = Facts(
        name=name,
        shape=_one_image(name, shapes),
        exits=names,
        criterion=known.get("criterion"),
        thresholds=known.get("thresholds"),
        macs=known.get("macs"),
        full_macs=known.get("full_macs"),
        class_names=known.get("class_names"),
    )
    return Subject(client, facts, next(iter(inputs.values())).dtype)


def _one_image(name: str, shapes: Sequence[tuple]) -> Any:
    if len(shapes) != 1:
        raise BranchyError(
            f"{name} takes {len(shapes)} inputs; play needs a model of one image."
        )
    return shapes[0]
