"""The versions of one model: found by polling, loaded, swapped, retired."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from branchy_tf.saved_model import warmup
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.versions import version_folders

# ModelVersionStatus.State
LOADING, AVAILABLE, UNLOADING, END = 20, 30, 40, 50


@dataclasses.dataclass
class Version:
    """One version and its state."""

    number: int
    state: int = LOADING
    error: str = ""
    model: SessionModel | None = None
    users: int = 0


class Versions:
    """Serves the highest version in a folder, as TF Serving does by default.

    A new version is loaded and warmed up whole before it takes over; the old
    one answers until then, and what it has begun. A version that cannot be
    loaded is left out until its files change, and the old one stays.

    Args:
        base_path: folder whose numbered folders are versions.
        poll_seconds: how often to look.
    """

    def __init__(self, base_path: pathlib.Path, poll_seconds: float = 1.0) -> None:
        self._base_path = base_path
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._versions: dict[int, Version] = {}
        self._failed: dict[int, tuple] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self) -> None:
        """Loads what is there, then goes on looking in a thread."""
        self.poll()
        if not self._versions:
            logging.warning("There are no versions in %s yet.", self._base_path)
        self._thread.start()

    def stop(self) -> None:
        """Stops looking and frees all versions."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for version in list(self._versions.values()):
            self._retire(version)

    def statuses(self) -> list[Version]:
        """All versions known, newest first."""
        with self._lock:
            return sorted(self._versions.values(), key=lambda v: v.number, reverse=True)

    @contextlib.contextmanager
    def use(self, number: int | None) -> Iterator[tuple[int, SessionModel] | None]:
        """The version `number`, or the newest, kept loaded for as long as needed.

        Gives `(number, model)`, or None where it is not being served.
        """
        with self._lock:
            ready = [v for v in self._versions.values() if v.state == AVAILABLE]
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
                last = found.state == UNLOADING and found.users == 0
            if last:
                self._free(found)

    def poll(self) -> None:
        """Looks once: loads a new highest version, retires the others."""
        folders = version_folders(self._base_path)
        newest = next(
            (
                number
                for number in sorted(folders, reverse=True)
                if self._serves(number) or self._load(number, folders[number])
            ),
            None,
        )
        if newest is None and folders:
            return  # nothing can be loaded: what is served goes on
        for version in self.statuses():
            if version.number != newest:
                self._retire(version)

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except OSError as error:
                logging.warning("Cannot look into %s: %s", self._base_path, error)

    def _serves(self, number: int) -> bool:
        with self._lock:
            version = self._versions.get(number)
            return version is not None and version.state == AVAILABLE

    def _load(self, number: int, folder: pathlib.Path) -> bool:
        files = _fingerprint(folder)
        if self._failed.get(number) == files:
            return False
        version = Version(number)
        with self._lock:
            self._versions[number] = version
        try:
            model = SessionModel(folder)
            try:
                _warm_up(model, folder)
            except BaseException:
                model.close()
                raise
        except Exception as error:
            # Whatever a damaged version raises, the server goes on.
            self._failed[number] = files
            with self._lock:
                version.state = END
                version.error = " ".join(str(error).split())[:500] or type(error).__name__
            logging.error("Version %d cannot be loaded: %s", number, version.error)
            return False
        with self._lock:
            version.model, version.state = model, AVAILABLE
        logging.info("Version %d is ready.", number)
        return True

    def _retire(self, version: Version) -> None:
        with self._lock:
            if version.state != AVAILABLE:
                return
            version.state = UNLOADING
            idle = version.users == 0
        if idle:
            self._free(version)

    def _free(self, version: Version) -> None:
        assert version.model is not None
        version.model.close()
        with self._lock:
            version.model, version.state = None, END
        logging.info("Version %d is unloaded.", version.number)


def _warm_up(model: SessionModel, folder: pathlib.Path) -> None:
    for request in warmup.read(folder):
        arrays = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        model.run(request.model_spec.signature_name, arrays)


def _fingerprint(folder: pathlib.Path) -> tuple:
    """Changes when a file of the version does."""
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
