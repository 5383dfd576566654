"""The served models by name, version and label, and changes to them."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from absl import logging

from branchy_tf import files, versions
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving import configs
from branchy_tf.serving.embedded.batching import BatchedModel
from branchy_tf.serving.embedded.litert import LiteRTModel
from branchy_tf.serving.embedded.statuses import Refusal, invalid, not_found, unmet
from branchy_tf.serving.embedded.versions import Model, Version, Versions
from branchy_tf.serving.options import ServerOptions


@dataclasses.dataclass
class _Served:
    """One model: its versions, and their labels."""

    versions: Versions
    labels: dict[str, int] = dataclasses.field(default_factory=dict)


class Models:
    """Loads models, watches for changes, and finds the version for a request.

    Args:
        options: of the server.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._batching = options.batching()
        self._served: dict[str, _Served] = {}
        # Held while models change. Requests read `_served` without it, as it is only
        # replaced as a whole.
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._threads = []
        for name, job, seconds in (
            ("versions", self.poll, options.file_system_poll_wait_seconds),
            ("config", self._read_config, options.model_config_file_poll_wait_seconds),
        ):
            if seconds:
                self._threads.append(
                    threading.Thread(
                        target=self._repeat, args=(job, seconds), name=name, daemon=True
                    )
                )

    def start(self) -> None:
        """Loads the models, then watches for changes in threads.

        Raises:
            Refusal: an invalid version label.
        """
        self._apply(self._options.models(), first=True)
        for name, model in self._served.items():
            if not model.versions.statuses():
                where = model.versions.base_path
                logging.warning("There are no versions of %s in %s yet.", name, where)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops watching and frees all models."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for model in self._served.values():
            model.versions.stop()

    def poll(self) -> None:
        """Looks once for new and removed versions."""
        with self._changing:
            for model in self._served.values():
                model.versions.poll()

    def reload(self, config: Any) -> None:
        """Switches to another ModelServerConfig.

        New models are loaded before old ones are unloaded, and pending requests finish. A
        label must name a version that is available before the change, or be new if the
        options allow it.

        Raises:
            Refusal: the config is invalid or cannot be met; nothing has changed.
        """
        if not config.HasField("model_config_list"):
            if config.HasField("custom_model_config"):
                raise unmet(
                    "Cannot transition to requested config. It is only legal to "
                    "transition from one ModelConfigList to another."
                )
            return  # an empty config changes nothing, as in TF Serving
        try:
            configs.check_models(config)
        except BranchyError as error:
            raise invalid(str(error)) from None
        self._apply(config)

    @contextlib.contextmanager
    def use(self, request: Any) -> Iterator[tuple[int, Model]]:
        """The version in a request's model_spec.

        Raises:
            Refusal: INVALID_ARGUMENT without a model's name or with an unknown label,
                NOT_FOUND for a model or version that is not served.
        """
        with contextlib.ExitStack() as held:
            while True:
                name, number = self._resolve(request)
                model = self._served.get(name)
                if model is not None:
                    found = held.enter_context(model.versions.use(number))
                    if found is not None:
                        break
                # The model may have been replaced in between.
                if self._served.get(name) is model:
                    raise _not_served(name, number)
            yield found

    def statuses(self, request: Any) -> list[Version]:
        """The states of the versions in a request's model_spec.

        Raises:
            Refusal: as for `use`.
        """
        name, number = self._resolve(request)
        model = self._served.get(name)
        found = [] if model is None else model.versions.statuses()
        found = [version for version in found if number in (None, version.number)]
        if not found:
            what = "any versions" if number is None else f"version {number}"
            raise not_found(f"Could not find {what} of model {name}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._served

    def _resolve(self, request: Any) -> tuple[str, int | None]:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.version_label:
            model = self._served.get(spec.name)
            if model is None or spec.version_label not in model.labels:
                raise invalid(
                    f"Unrecognized servable version label: {spec.version_label}"
                )
            return spec.name, model.labels[spec.version_label]
        return spec.name, spec.version.value if spec.HasField("version") else None

    def _apply(self, config: Any, first: bool = False) -> None:
        with self._changing:
            wanted = {model.name: model for model in config.model_config_list.config}
            self._check_labels(wanted)
            served, old = {}, self._served
            for name, model in wanted.items():
                path = files.path(model.base_path)
                known = old.get(name)
                if known is not None and known.versions.base_path == path:
                    versions = known.versions
                else:
                    versions = Versions(path, self._load, model.model_version_policy)
                served[name] = _Served(versions, dict(model.version_labels))
            kept = {id(model.versions) for model in old.values()}
            added = {
                name: model.versions
                for name, model in served.items()
                if id(model.versions) not in kept
            }
            self._load_added(added, first)
            # Labels move before the versions that they named are unloaded.
            self._served = served
            for name, model in served.items():
                if name not in added:
                    model.versions.policy = wanted[name].model_version_policy
                    model.versions.poll()
            remaining = {id(model.versions) for model in served.values()}
            for model in old.values():
                if id(model.versions) not in remaining:
                    model.versions.stop()

    def _load_added(self, added: dict[str, Versions], first: bool) -> None:
        try:
            for versions in added.values():
                versions.poll()
            empty = [name for name, found in added.items() if not found.available()]
            if empty and not first:  # a server may start before its first version
                raise unmet(
                    f"Some models did not become available: {{{', '.join(empty)}}}"
                )
        except BaseException:
            for versions in added.values():
                versions.stop()
            raise

    def _check_labels(self, wanted: dict[str, Any]) -> None:
        for name, model in wanted.items():
            known = self._served.get(name, None)
            available = known.versions.available() if known else set()
            for label, number in sorted(model.version_labels.items()):
                new = known is None or label not in known.labels
                if number not in available and not (
                    new and self._options.allow_version_labels_for_unavailable_models
                ):
                    raise unmet(
                        f"Request to assign label {label} to version {number} of model "
                        f"{name}, which is not currently available for inference"
                    )

    def _load(self, folder: pathlib.Path) -> Model:
        threads = self._options.tensorflow_intra_op_parallelism
        if versions.find_format(folder) == versions.LITERT:
            served = LiteRTModel(folder, threads)
            served.warm_up()
            if self._batching is not None:
                logging.warning("%s: LiteRT versions run without batching.", folder)
            return served
        model = SessionModel(
            folder,
            threads,
            self._options.tensorflow_inter_op_parallelism or -1,
        )
        return model if self._batching is None else BatchedModel(model, self._batching)

    def _read_config(self) -> None:
        self.reload(self._options.models())

    def _repeat(self, job: Any, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                job()
            except (OSError, BranchyError, Refusal) as error:
                logging.warning("The served models stay unchanged: %s", error)


def _not_served(name: str, number: int | None) -> Refusal:
    wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return not_found(f"Servable not found for request: {wanted}")
