"""Makes subjects: of a model or version in this process, of a server's, of a cascade."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from branchy_tf import files, policy, versions
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.playing.subjects import Facts, Predictor, Subject
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.results import Predictions, exit_name

if TYPE_CHECKING:
    # A device that plays with a LiteRT version has no Keras.
    import keras

    from branchy_tf.serving import EarlyExitClient
    from branchy_tf.units import Cascade


class Cascaded:
    """Asks a cascade, which has no signature for every exit at once.

    Args:
        cascade: a `Cascade`, or a client of its gateway.
        num_exits: N.
    """

    def __init__(self, cascade: Cascade | EarlyExitClient, num_exits: int) -> None:
        self._cascade = cascade
        self._num_exits = num_exits

    def predict(self, images: Any, thresholds: Any = None) -> Predictions:
        """See `Cascade.predict`."""
        return self._cascade.predict(images, thresholds)

    def all_exits(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Every exit's answer to one row, by thresholds that force it.

        Args:
            images: [1, ...].

        Returns:
            `(probabilities [1, N, classes], scores [1, N])`, float32; NaN for an exit
            whose unit does not answer.

        Raises:
            ServerError: the first unit does not answer.
        """
        number = self._num_exits
        limits = np.stack([policy.forcing(k, number) for k in range(number)])
        try:
            answers = [self._cascade.predict(np.repeat(images, number, axis=0), limits)]
        except ServerError:
            # With on_failure: error, one unit fails all rows.
            answers = self._one_by_one(images, limits)
        exits, scores, probabilities = (
            np.concatenate([getattr(answer, name) for answer in answers])
            for name in ("exits", "scores", "probabilities")
        )
        # The answer of an earlier exit than the one asked for.
        missing = exits != np.arange(number)
        scores[missing] = probabilities[missing] = np.nan
        return probabilities[None], scores[None]

    def _one_by_one(self, images: Any, limits: np.ndarray) -> list[Predictions]:
        """N answers; from the unit that fails on, that of the exit before."""
        answers = [self._cascade.predict(images, limits[0])]
        with contextlib.suppress(ServerError):
            for limit in limits[1:]:
                answers.append(self._cascade.predict(images, limit))
        return answers + answers[-1:] * (len(limits) - len(answers))


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
    from branchy_tf import costs, exits

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


def of_version(
    predictor: EarlyExitPredictor,
    path: files.Path,
    class_names: Sequence[str] | None = None,
) -> Subject:
    """A version that `export` wrote, of either format, in this process.

    Args:
        predictor: of the version.
        path: its folder.
        class_names: the names of the classes; default: those in its branchy.json.

    Raises:
        BranchyError: the version is damaged, or does not take one image.
    """
    known = versions.describe(path)
    folder = files.absolute(path)
    facts = Facts(
        name=folder.parent.name,
        shape=_one_image(folder.parent.name, _shapes(known.inputs)),
        exits=known.exits,
        criterion=predictor.policy.criterion,
        thresholds=predictor.policy.thresholds,
        place=f"version {folder.name} in {files.printable(str(folder.parent))}",
        **_described(known, class_names),
    )
    return Subject(predictor, facts, _dtype(known.inputs))


def of_server(
    client: EarlyExitClient,
    server: str,
    name: str,
    version: files.Path | None = None,
    class_names: Sequence[str] | None = None,
) -> Subject:
    """A model that a server serves, or a cascade behind its gateway.

    Args:
        client: asks the server.
        server: its address, for the page.
        name: the name of the model.
        version: the folder of the served version, which tells multiply-adds and criterion
            as a server does not; None: the page leaves them out.
        class_names: the names of the classes; default: those of the version.

    Raises:
        BranchyError: the model does not take one image, or the version is of another
            model.
        ServerError: the server does not answer.
    """
    served = client.signature()
    more: dict[str, Any] = {"class_names": class_names}
    names: Sequence[str] = [exit_name(k + 1) for k in range(served.num_exits)]
    thresholds: Sequence[float] | None = served.thresholds
    if version is not None:
        known = versions.describe(version)
        names = known.exits
        if len(names) != served.num_exits:
            raise BranchyError(
                f"{name} has {served.num_exits} exits on the server and {len(names)} in "
                "--version_dir. Pass the folder of the served version."
            )
        more = {"criterion": known.policy.criterion, **_described(known, class_names)}
        thresholds = thresholds or known.policy.thresholds
    facts = Facts(
        name=name,
        shape=_one_image(name, _shapes(served.inputs)),
        exits=names,
        thresholds=thresholds,
        units=served.units,
        place=f"{name} on {server}",
        **more,
    )
    predictor: Predictor = client
    if served.units is not None:
        predictor = Cascaded(client, served.num_exits)
    return Subject(predictor, facts, _dtype(served.inputs))


def of_cascade(
    cascade: Cascade, path: files.Path, class_names: Sequence[str] | None = None
) -> Subject:
    """The units of a cascade.yaml, asked from this process.

    Args:
        cascade: of the file.
        path: the file; units with `path` tell multiply-adds and criterion.
        class_names: the names of the classes, or None.

    Raises:
        BranchyError: the first unit does not take one image.
        ServerError: a unit does not answer.
    """
    from branchy_tf.units import configs

    known = cascade.describe()
    # Nothing is known of units on servers.
    described = [
        _of_unit(configs.load(path).units[unit].path)
        for unit, _ in itertools.groupby(known.units)
    ]
    macs = [one.get("macs") or [] for one in described]
    facts = Facts(
        name=known.name,
        shape=_one_image(known.name, _shapes(known.inputs)),
        exits=[exit_name(k + 1) for k in range(known.exits)],
        criterion=next((one["criterion"] for one in described if one), None),
        thresholds=known.thresholds.tolist(),
        macs=np.cumsum(np.concatenate(macs)).tolist() if all(macs) else None,
        class_names=class_names,
        units=known.units,
        place=f"the units of {files.printable(str(path))}",
    )
    return Subject(Cascaded(cascade, known.exits), facts, _dtype(known.inputs))


def _of_unit(folder: files.Path | None) -> Mapping[str, Any]:
    """The branchy.json of the newest version of a unit in this process."""
    if folder is None:
        return {}
    newest = max(files.version_folders(files.path(folder)).items())[1]
    return files.read_json(newest / "assets.extra" / "branchy.json")


def _described(
    known: versions.Description, class_names: Sequence[str] | None
) -> dict[str, Any]:
    """What the branchy.json of a version tells, as arguments of `Facts`."""
    names = class_names or known.content.get("class_names")
    return {
        "macs": known.content.get("macs"),
        "full_macs": known.content.get("full_macs"),
        "class_names": names,
        "pixels": pixel_range(known.content),
    }


def pixel_range(record: Mapping[str, Any]) -> tuple[float, float]:
    """The values for black and white, by a record of the training's inputs.

    Args:
        record: the content of a run's data.json or of a branchy.json; where it does not
            tell the smallest and largest values, pixels are 0 to 255.
    """
    inputs = record.get("inputs") or {}
    only: Mapping[str, Any] = next(iter(inputs.values()), {})
    low, high = float(only.get("low", 0.0)), float(only.get("high", 255.0))
    return (low, high) if low < high else (0.0, 255.0)


def _shapes(inputs: Mapping[str, Any]) -> list[tuple[int | None, ...]]:
    """The shapes of the inputs without the batch; a server says -1 for any size."""
    return [
        tuple(None if side in (None, -1) else side for side in spec.shape[1:])
        for spec in inputs.values()
    ]


def _dtype(inputs: Mapping[str, Any]) -> Any:
    return next(iter(inputs.values())).dtype


def _one_image(name: str, shapes: Sequence[tuple[int | None, ...]]) -> Any:
    if len(shapes) != 1:
        raise BranchyError(
            f"{name} takes {len(shapes)} inputs; play needs a model of one image."
        )
    return shapes[0]
