"""The versions of one model: finds, loads, swaps and retires them."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging
from tensorflow_serving.apis import get_model_status_pb2

from branchy_tf.files import version_folders
from branchy_tf.saved_model import warmup
from branchy_tf.saved_model.session import SessionModel

State = get_model_status_pb2.ModelVersionStatus


class Model(Protocol):
    """Runs a version: a `SessionModel` or a `BatchedModel`."""

    signatures: dict[str, Any]

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """See `SessionModel.run`."""

    def close(self) -> None:
        """Frees the model."""


@dataclasses.dataclass
class Version:
    """One version and its state."""

    number: int
    state: int = State.LOADING
    error: str = ""
    model: Model | None = None
    users: int = 0


class Versions:
    """Serves the versions in a folder that a policy selects, as TF Serving does.

    A new version takes over once it is loaded and warmed up; the old one finishes its
    pending requests. A version that fails to load is skipped until its files change, and
    the served versions stay.

    Args:
        base_path: folder with the numbered version folders.
        load: loads a model from a version's folder.
        policy: a ServableVersionPolicy; default: the highest version.
    """

    def __init__(
        self,
        base_path: pathlib.Path,
        load: Callable[[pathlib.Path], Model] = SessionModel,
        policy: Any = None,
    ) -> None:
        self.base_path = base_path
        self.policy = policy
        self._make = load
        # Held while versions are loaded and retired, which takes seconds.
        self._changing = threading.Lock()
        self._stopped = False
        # Held for a moment, to read or change what follows.
        self._lock = threading.Lock()
        self._versions: dict[int, Version] = {}
        self._failed: dict[int, tuple] = {}

    def stop(self) -> None:
        """Frees all versions, each once it is unused; later polls load nothing."""
        with self._changing:
            self._stopped = True
            for version in self.statuses():
                self._retire(version)

    def available(self) -> set[int]:
        """The available versions."""
        return {v.number for v in self.statuses() if v.state == State.AVAILABLE}

    def statuses(self) -> list[Version]:
        """All known versions, newest first."""
        with self._lock:
            return sorted(self._versions.values(), key=lambda v: v.number, reverse=True)

    @contextlib.contextmanager
    def use(self, number: int | None) -> Iterator[tuple[int, Model] | None]:
        """Keeps a version loaded: `number`, or the newest.

        Gives `(number, model)`, or None if it is not available.
        """
        with self._lock:
            ready = [v for v in self._versions.values() if v.state == State.AVAILABLE]
            found = max(
                (v for v in ready if number in (None, v.number)),
                key=lambda v: v.number,
                default=None,
            )
            if found is not None:
                found.users += 1
        if found is None:
            yield None
            return
        try:
            assert found.model is not None
            yield found.number, found.model
        finally:
            with self._lock:
                found.users -= 1
                last = found.state == State.UNLOADING and found.users == 0
            if last:
                self._free(found)

    def poll(self) -> None:
        """Loads the versions that the policy selects, retires the rest.

        Polls in several threads take turns, so that each version is loaded once.
        """
        with self._changing:
            if not self._stopped:
                self._poll()

    def _poll(self) -> None:
        folders = version_folders(self.base_path)
        candidates, most = _candidates(folders, self.policy)
        chosen: list[int] = []
        for number in candidates:
            if len(chosen) < most and (
                self._serves(number) or self._load(number, folders[number])
            ):
                chosen.append(number)
        if candidates and not chosen:
            return  # nothing can be loaded: the served versions stay
        for version in self.statuses():
            if version.number not in chosen:
                self._retire(version)

    def _serves(self, number: int) -> bool:
        with self._lock:
            version = self._versions.get(number)
            return version is not None and version.state == State.AVAILABLE

    def _load(self, number: int, folder: pathlib.Path) -> bool:
        files = _fingerprint(folder)
        if self._failed.get(number) == files:
            return False
        version = Version(number)
        with self._lock:
            self._versions[number] = version
        try:
            model = self._make(folder)
            try:
                warmup.replay(model, folder)
            except BaseException:
                model.close()
                raise
        except Exception as error:
            # A damaged version may raise anything; the server continues.
            self._failed[number] = files
            with self._lock:
                version.state = State.END
                version.error = " ".join(str(error).split())[:500] or type(error).__name__
            logging.error("%s cannot be loaded: %s", folder, version.error)
            return False
        with self._lock:
            version.model, version.state = model, State.AVAILABLE
        logging.info("Version %d of %s is ready.", number, self.base_path.name)
        return True

    def _retire(self, version: Version) -> None:
        with self._lock:
            if version.state != State.AVAILABLE:
                return
            version.state = State.UNLOADING
            idle = version.users == 0
        if idle:
            self._free(version)

    def _free(self, version: Version) -> None:
        assert version.model is not None
        version.model.close()
        with self._lock:
            version.model, version.state = None, State.END
        logging.info("Version %d of %s is unloaded.", version.number, self.base_path.name)


def _candidates(folders: Iterable[int], policy: Any) -> tuple[list[int], int]:
    """The versions that a policy allows, best first, and how many it wants."""
    newest_first = sorted(folders, reverse=True)
    if policy is not None and policy.HasField("specific"):
        wanted = set(policy.specific.versions)
        return [number for number in newest_first if number in wanted], len(wanted)
    if policy is not None and policy.HasField("all"):
        return newest_first, len(newest_first)
    # Unset is 0 and means 1.
    return newest_first, max(policy.latest.num_versions if policy is not None else 1, 1)


def _fingerprint(folder: pathlib.Path) -> tuple:
    """Changes whenever a file of the version changes."""
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
