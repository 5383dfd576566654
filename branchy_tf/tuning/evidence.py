"""Rows with known answers at every exit."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf.policy import exit_indices

# One row in three shapes the path of thresholds; the others test it.
_SHAPING = 3


class Evidence:
    """The newest rows with answers of all exits.

    Every third row shapes paths and the others test them, so that no path is
    tested on rows that it was made from.

    Args:
        num_exits: N.
        most: rows to keep.

    Attributes:
        scores: float32 [n, N].
        agrees: bool [n, N], where an exit answers as the last one does.
        shapes: bool [n].
        ever: rows taken in, also those that have been dropped.
    """

    def __init__(self, num_exits: int, most: int) -> None:
        self._most = most
        self.scores: np.ndarray = np.zeros((0, num_exits), np.float32)
        self.agrees: np.ndarray = np.zeros((0, num_exits), bool)
        self.shapes: np.ndarray = np.zeros(0, bool)
        self.ever = 0

    def __len__(self) -> int:
        return len(self.scores)

    def add(self, scores: np.ndarray, agrees: np.ndarray) -> np.ndarray:
        """Takes rows in.

        Args:
            scores: float32 [m, N].
            agrees: bool [m, N].

        Returns:
            Which of them test, bool [m].
        """
        shapes = (self.ever + np.arange(len(scores))) % _SHAPING == 0
        self.ever += len(scores)
        self.scores = np.concatenate([self.scores, scores])[-self._most :]
        self.agrees = np.concatenate([self.agrees, agrees])[-self._most :]
        self.shapes = np.concatenate([self.shapes, shapes])[-self._most :]
        return ~shapes

    def where_left(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(exits int32 [n], scores float32 [n])`: where each row would have left."""
        exits = exit_indices(self.scores, thresholds)
        return exits, self.scores[np.arange(len(exits)), exits]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {
            "scores": self.scores,
            "agrees": self.agrees.astype(int),
            "shapes": self.shapes.astype(int),
            "ever": self.ever,
        }

    def from_json(self, value: dict[str, Any]) -> Evidence:
        """Takes the place of all rows that it has; returns itself.

        Raises:
            KeyError, TypeError, ValueError: not from `to_json`, or for another
                number of exits.
        """
        shape = (len(value["shapes"]), self.scores.shape[1])
        self.scores = np.asarray(value["scores"], np.float32).reshape(shape)
        self.agrees = np.asarray(value["agrees"], bool).reshape(shape)
        self.shapes = np.array(value["shapes"], bool)
        self.ever = int(value["ever"])
        return self
