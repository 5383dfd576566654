"""Thresholds that follow the traffic, around a client."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy, PolicyLike
from branchy_tf.results import Predictions
from branchy_tf.tuning import state
from branchy_tf.tuning.strategy import Strategy

# The state is written when so many more rows are known, and when its kind changes.
_ROWS_BETWEEN_WRITES = 200


class ThresholdTuner:
    """Asks a client with thresholds that it chooses itself; shared between threads.

    It begins with thresholds 0, at which the full network answers every row, and learns
    from these answers which rows could have left early: where an exit gives the label
    that the last one gives. No true labels are needed. Then most requests get the tuned
    thresholds; a random share, and all while something seems to have changed, asks
    every exit and is answered by the last one, which has been paid for. `Strategy` says
    how it decides and what is promised.

    One tuner is for one model and one version at a time: when another version answers,
    it learns anew. Give traffic that is split between versions a tuner for each.

    Args:
        client: an `EarlyExitClient`, an `EarlyExitPredictor`, or anything else with
            `predict(images, thresholds)` and `all_exits(images)`; for two functions
            `types.SimpleNamespace(predict=..., all_exits=...)`.
        macs: N multiply-adds, cumulative by exit: "macs" in the export's
            assets.extra/branchy.json, or `costs.cumulative_macs(model)`.
        budget: the least share of rows that is to be answered as the full network
            would, in every `window` rows.
        window: so many rows.
        share: of the requests that ask every exit when all is well.
        state_file: where to keep what was learned; read at the start if it is there.
        seed: of the random share.
        policy: what the model is served with, for example from its thresholds.json;
            `tuner.policy` is this one with the tuned thresholds. Default: the
            client's, where it has one, as the predictor does.

    Raises:
        BranchyError: arguments out of range, or a state file that is damaged or of
            another tuner.

    Example:

    ```python
    with EarlyExitClient("localhost:8500", model="branchy_lenet") as client:
        with ThresholdTuner(client, macs, state_file="tuner.json") as tuner:
            answer = tuner.predict(images)
            tuner.thresholds, tuner.status()
    ```
    """

    def __init__(
        self,
        client: Any,
        macs: Sequence[float],
        budget: float = 0.99,
        window: int = 2000,
        share: float = 0.01,
        state_file: files.Path | None = None,
        seed: int = 0,
        policy: PolicyLike | None = None,
    ) -> None:
        if state_file is not None:
            checks.path("state_file", state_file)
        self._client = client
        given = getattr(client, "policy", None) if policy is None else policy
        self._served = None if given is None else ExitPolicy.of(given)
        if self._served is not None:
            self._served.check_exits(len(macs))
        self._strategy = Strategy(macs, budget, window, share, seed)
        self._random = np.random.default_rng(seed)
        self._version: int | None = None
        self._rows_unwritten = 0
        # Guards the above; never held while a server is asked or a file written.
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._file = None if state_file is None else files.path(state_file)
        if self._file is not None and self._file.exists():
            self._version = state.read(self._file, self._strategy)
            logging.info("Goes on from %s: %s.", self._file, self._strategy.status())

    def __enter__(self) -> ThresholdTuner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes the state; the client stays open."""
        self._write()

    @property
    def thresholds(self) -> np.ndarray:
        """Those in force, float32 [N-1]."""
        with self._lock:
            return self._strategy.thresholds

    @property
    def policy(self) -> ExitPolicy:
        """The policy in force: the served one, with the tuned thresholds.

        Raises:
            BranchyError: nobody said what the model is served with.
        """
        if self._served is None:
            raise BranchyError(
                "The tuner does not know the criterion and the temperatures that are "
                "served. Pass policy=, for example the path of the thresholds.json that "
                "was exported."
            )
        return self._served.replace(thresholds=self.thresholds)

    def status(self) -> dict[str, Any]:
        """What it is at.

        Returns:
            `{"state": "learning", "tuned" or "suspicious", "thresholds", "share": of
            the requests to come that ask every exit, "rows": labelled ones it goes by,
            "agreement_bound": lower confidence bound on agreement, "suspicions",
            "changes": how often it learned anew, "model_version"}`.
        """
        with self._lock:
            return self._strategy.status() | {"model_version": self._version}

    def predict(self, images: Any, **options: Any) -> Predictions:
        """Asks for each row's answer, with the thresholds in force.

        Args:
            images: as the client takes them.
            **options: for the client's methods, e.g. `timeout`.

        Returns:
            `Predictions`. Rows of a request that asked every exit say that they left at
            the last one, where they did.

        Raises:
            BranchyError, ServerError: as the client does; nothing is learned then.
        """
        with self._lock:
            limits = self._strategy.thresholds
            ask_all = self._random.random() < self._strategy.share
        if ask_all:
            return self._ask_all(images, options)
        answer = self._client.predict(images, limits, **options)
        with self._lock:
            # Meanwhile another request may have changed the thresholds: then these rows
            # are not comparable with what is known.
            same = np.array_equal(limits, self._strategy.thresholds)
            if self._is_of_version(answer.model_version) and same:
                with self._noting_changes():
                    self._strategy.watch(answer.exits, answer.scores)
        self._write_if_due()
        return answer

    def learn(self, images: Any, **options: Any) -> None:
        """Learns from images like those to come, before any request; no labels needed.

        Args:
            images: as the client takes them; some thousands are worth having.
            **options: for the client's `all_exits`, e.g. `timeout`.

        Raises:
            BranchyError, ServerError: as the client does; nothing is learned then.
        """
        self._ask_all(images, options)

    def _ask_all(self, images: Any, options: dict[str, Any]) -> Predictions:
        answer = self._client.all_exits(images, **options)
        if isinstance(answer, tuple):  # the predictor's
            (probabilities, scores), version = answer, None
        else:
            probabilities, scores = answer.probabilities, answer.scores
            version = answer.model_version
        with self._lock:
            self._is_of_version(version)
            with self._noting_changes():
                self._strategy.observe(scores, probabilities.argmax(axis=-1))
            self._rows_unwritten += len(scores)
        self._write_if_due()
        last = np.full(len(scores), scores.shape[1] - 1, np.int32)
        return Predictions(probabilities[:, -1], last, scores[:, -1], version)

    def _is_of_version(self, version: int | None) -> bool:
        """Whether what is known is of this version; it begins anew if not."""
        if version == self._version:
            return True
        known, self._version = self._version, version
        if known is None:
            return True
        logging.warning(
            "Version %s answers after %s: thresholds are learned anew.", version, known
        )
        self._strategy.forget()
        self._rows_unwritten = _ROWS_BETWEEN_WRITES
        return False

    @contextlib.contextmanager
    def _noting_changes(self) -> Iterator[None]:
        """Tells of another state afterwards, and has it written."""
        before = self._strategy.state
        yield
        now = self._strategy.state
        if now != before:
            logging.info(
                "Thresholds %s (were %s): %s", now, before, self._strategy.thresholds
            )
            self._rows_unwritten = _ROWS_BETWEEN_WRITES

    def _write_if_due(self) -> None:
        if self._rows_unwritten >= _ROWS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        with self._writing:
            with self._lock:
                self._rows_unwritten = 0
                content, version = self._strategy.to_json(), self._version
            try:
                state.write(self._file, content, version)
            except (OSError, BranchyError) as error:
                # Answers matter more than what is remembered of them.
                logging.error("%s could not be written: %s", self._file, error)
