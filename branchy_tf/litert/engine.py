"""Runs a LiteRT version: one row by the whole graph, a batch stage by stage."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from branchy_tf import checks, files, versions
from branchy_tf.errors import BranchyError
from branchy_tf.litert.interpreters import TFLiteFile
from branchy_tf.policy import exits_early

EARLY_EXIT = "early_exit.tflite"


def stage_name(number: int) -> str:
    """The file of a stage, counted from 1."""
    return f"stage_{number}.tflite"


class LiteRTEngine:
    """A loaded LiteRT version; its methods may be called from several threads.

    Nothing is checked here: inputs must have the shapes and dtypes of the description,
    in contiguous memory.

    Args:
        path: the folder of the version.
        threads: the threads inside one operation; None lets LiteRT choose, which is 1.

    Attributes:
        description: the content of branchy.json.

    Raises:
        BranchyError: the folder holds no LiteRT version, a file is missing or damaged, or
            LiteRT is not installed.
    """

    def __init__(self, path: files.Path, threads: int | None = None) -> None:
        folder = files.path(path)
        self.description = versions.describe(folder)
        if self.description.format != versions.LITERT:
            raise BranchyError(
                f"{folder} holds a version in the format {self.description.format}; "
                "expected one of python -m branchy_tf.export --format=litert."
            )
        digests = self.description.content.get("files", {})

        def load(name: str) -> TFLiteFile:
            content = _read(folder / name, digests.get(name))
            return TFLiteFile(folder / name, threads, content)

        self._whole = load(EARLY_EXIT)
        self._stages = [
            load(stage_name(k + 1)) for k in range(len(self.description.exits))
        ]

    @property
    def inputs(self) -> Mapping[str, checks.TensorSpec]:
        """What the model takes, by input name."""
        return self.description.inputs

    @property
    def num_exits(self) -> int:
        """N, the final exit included."""
        return len(self._stages)

    def early_exit(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Routes each row to the first exit that is confident enough.

        Args:
            arrays: the inputs by name, each [B, ...], and `thresholds`, float32
                [1 or B, N-1].

        Returns:
            `{"probabilities": [B, classes], "exit": [B], "score": [B]}`.
        """
        live = [arrays[name] for name in self.description.inputs]
        if len(live[0]) != 1:
            return self._by_stages(live, arrays["thresholds"])
        values = self._whole.run([arrays[name] for name in self._whole.input_names])
        return dict(zip(("probabilities", "exit", "score"), values, strict=True))

    def all_exits(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every exit's `{"probabilities": [B, N, classes], "scores": [B, N]}`."""
        _, probabilities, scores = self._every_stage(arrays)
        return {"probabilities": probabilities, "scores": scores}

    def logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Every exit's logits, before any temperature: float32 [B, N, classes]."""
        return self._every_stage(arrays)[0]

    def _every_stage(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        live = [arrays[name] for name in self.description.inputs]
        count, classes = len(self._stages), self.description.classes
        rows = len(live[0])
        logits = np.empty((rows, count, classes), np.float32)
        probabilities, scores = np.empty_like(logits), np.empty((rows, count), np.float32)
        # LiteRT does not run on no rows.
        for k, stage in enumerate(self._stages if rows else []):
            logits[:, k], probabilities[:, k], scores[:, k], *live = stage.run(live)
        return logits, probabilities, scores

    def _by_stages(
        self, live: list[np.ndarray], thresholds: np.ndarray
    ) -> dict[str, np.ndarray]:
        rows = np.arange(len(live[0]))
        probabilities = np.empty((len(rows), self.description.classes), np.float32)
        exits, scores = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
        limits = _disable_for_nonfinite(live, thresholds)
        for k, stage in enumerate(self._stages if len(rows) else []):
            _, answers, found, *live = stage.run(live)
            if k == len(self._stages) - 1:
                leave = np.ones(len(rows), bool)
            else:
                leave = exits_early(found, limits[:, k])
            here = rows[leave]
            probabilities[here], scores[here] = answers[leave], found[leave]
            exits[here] = k
            if leave.all():
                break
            if leave.any():
                stay = ~leave
                rows, limits = rows[stay], limits[stay]
                live = [tensor[stay] for tensor in live]
        return {"probabilities": probabilities, "exit": exits, "score": scores}


def _disable_for_nonfinite(
    live: Sequence[np.ndarray], thresholds: np.ndarray
) -> np.ndarray:
    """The thresholds of each row, NaN for rows with NaN or infinity in their inputs."""
    rows = len(live[0])
    limits = np.broadcast_to(thresholds, (rows, thresholds.shape[1]))
    for tensor in live:
        if tensor.dtype.kind == "f" and rows:
            finite = np.isfinite(tensor.reshape(rows, -1)).all(axis=1)
            limits = np.where(finite[:, None], limits, np.float32("nan"))
    return limits


def _read(path: pathlib.Path, digest: str | None) -> bytes:
    """The content of a file.

    Raises:
        BranchyError: it is missing, or not as it was exported. LiteRT would crash on some
            damaged files.
    """
    with files.reading(path, "a LiteRT model", "Export the model again."):
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise BranchyError(
            f"{path} is damaged: it differs from the file that was exported. Copy the "
            "version again, or export the model again."
        )
    return content
