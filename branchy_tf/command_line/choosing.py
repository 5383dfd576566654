"""The model, data set and policy that flags select."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from branchy_tf import files
from branchy_tf.command_line import startup
from branchy_tf.command_line.parsing import parse_arguments, parse_numbers, parse_size
from branchy_tf.errors import BranchyError, one_line

if TYPE_CHECKING:
    # Needs numpy, which listing the commands does not.
    from branchy_tf.policy import ExitPolicy
    from branchy_tf.serving import Tls
    from branchy_tf.units.placing import Topology

FLAGS = flags.FLAGS


class Choice(NamedTuple):
    """The model that the flags select.

    Attributes:
        model: a Keras model.
        run: the folder of the training it comes from, or None.
        output: the folder to write results to, or None.
        thresholds: the file of its calibrated thresholds, which may be missing, or None.
        packaged: the registry's entry if --weights is a tag, or None.
    """

    model: Any
    run: Any
    output: Any
    thresholds: Any
    packaged: Any = None

    @property
    def seed(self) -> int | None:
        """The seed of packaged weights, which cut their validation split, or None."""
        return None if self.packaged is None else self.packaged.seed

    def dataset(self) -> Any:
        """The data set that the flags select, or the one that the model was trained on.

        Raises:
            BranchyError: as for `chosen_dataset`.
        """
        return chosen_dataset(self.run, self.model, seed=self.seed)


def built_model(offered: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The model of --model, with --model_args, --weights and --exits.

    Args:
        offered: arguments that come from the data set, see `models.build`.

    Raises:
        BranchyError: there is no such model, or it cannot be built or loaded.
    """
    from branchy_tf import models

    return models.build(
        FLAGS.model,
        parse_arguments(FLAGS.model_args),
        offered,
        FLAGS.weights or None,
        FLAGS.exits or None,
    )


def chosen_model() -> Choice:
    """The model of --run_dir, or of --model.

    With --model, --run_dir is only the folder to write to.

    Raises:
        BranchyError: the flags select no model, or it cannot be loaded.
    """
    with startup.hushed():
        from branchy_tf import training, zoo

    folder = training.RunFolder(FLAGS.run_dir) if FLAGS.run_dir else None
    if FLAGS.model:
        known = FLAGS.model in zoo.list_models()
        if known and not FLAGS.weights:
            raise BranchyError(
                f"--model={FLAGS.model} needs --weights: a tag or a file. For a model "
                "that you trained, pass --run_dir alone."
            )
        tag = zoo.list_packaged(FLAGS.model).get(FLAGS.weights) if known else None
        thresholds = None if tag is None else tag.thresholds
        return Choice(built_model(), None, folder, thresholds, tag)
    if folder is None:
        raise BranchyError("Pass --run_dir of a training, or --model.")
    if FLAGS.exits:
        raise BranchyError(
            f"--exits={FLAGS.exits} belongs to --model; the model of --run_dir has its "
            "exits. Leave --exits out, or train again with other ones."
        )
    return Choice(folder.load_model(), folder, folder, folder.thresholds)


def chosen_dataset(
    run: Any,
    model: Any = None,
    input_shape: Sequence[int | None] | None = None,
    seed: int | None = None,
) -> Any:
    """The data set that the flags select, or the run's.

    Args:
        run: the folder of a training, or None.
        model: the model that the data must fit, or None.
        input_shape: the shape of its input, for pictures; default: the model's.
        seed: the seed of the validation split, unless --seed or the run has one. Another
            seed than the training's selects rows that the model was trained on.

    Raises:
        BranchyError: no data set is given, it cannot be loaded or does not fit.
    """
    with startup.hushed():
        from branchy_tf import data, training

    recorded = {} if run is None else training.data_flags(run)

    def value(name: str) -> str | None:
        # predict has no --seed and --validation_size: the test split needs neither.
        given = FLAGS[name].value if name in FLAGS else None
        return recorded.get(name) if given is None else given

    name = value("dataset")
    if run is not None and training.is_stored(run, name):
        dataset = training.load_stored(run)
        return dataset if model is None else data.fitted(model, dataset)
    if name is None and run is not None:
        raise BranchyError(
            f"{run.path} does not say which data it was trained on, or they were too "
            "large to store. Pass --dataset."
        )
    if name is None:
        raise BranchyError("--dataset is missing: the data to use, e.g. mnist.")
    for flag in ("validation_size", "seed"):
        # absl checks only the flags of this command line, not those of the run's file.
        if flag in recorded and not recorded[flag].isdecimal():
            raise BranchyError(
                f"{run.flags} has --{flag}={one_line(recorded[flag])}; expected a whole "
                "number of at least 0. Correct it, or train again."
            )
    size, given_seed = value("validation_size"), value("seed")
    # How the pictures of the run's own folder are read.
    own = value if FLAGS.dataset is None else lambda name: FLAGS[name].value
    dataset = data.load(
        name,
        value("data_dir"),
        None if size is None else int(size),
        int(given_seed if given_seed is not None else seed or 0),
        image_size=parse_size(own("image_size")),
        skip_unreadable=str(own("skip_unreadable")) == "True",
        input_shape=input_shape if model is None else _input_shape(model),
    )
    return dataset if model is None else data.fitted(model, dataset)


def _input_shape(model: Any) -> tuple[int | None, ...] | None:
    """The shape of a model's input if it is a single one."""
    return tuple(model.inputs[0].shape[1:]) if len(model.inputs) == 1 else None


def class_names(path: files.Path) -> list[str] | None:
    """The names of the classes that a file or folder records.

    Args:
        path: a branchy.json or a data.json; the folder of a run, of a version, or of a
            model, which stands for its newest version.

    Returns:
        The names, or None if there is no such file or it records none.

    Raises:
        BranchyError: the file is damaged.
    """
    place = files.path(path)
    versions = files.version_folders(place)
    folders = [place, *(versions[number] for number in sorted(versions)[-1:])]
    for file in (
        place,
        *(
            folder / name
            for folder in folders
            for name in ("data.json", "branchy.json", "assets.extra/branchy.json")
        ),
    ):
        if file.is_file():
            names = files.read_json(file).get("class_names")
            if names is None:
                return None
            if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
                raise BranchyError(
                    f"{file}: class_names is no list of strings. Export the model again."
                )
            return names
    return None


def chosen_class_names() -> list[str] | None:
    """The names of the classes that --class_names records; None without the flag.

    Raises:
        BranchyError: the file or folder names no classes.
    """
    if not FLAGS.class_names:
        return None
    found = class_names(FLAGS.class_names)
    if found is None:
        raise BranchyError(
            f"--class_names={FLAGS.class_names} names no classes: expected a "
            "branchy.json or data.json with class_names, or a folder with one."
        )
    return found


def chosen_tls() -> Tls | None:
    """The TLS files of the flags; None if none of them asks for TLS."""
    from branchy_tf.serving import Tls

    given = Tls(FLAGS.tls_ca, FLAGS.tls_certificate, FLAGS.tls_key, FLAGS.tls_server_name)
    return given if FLAGS.tls or given != Tls() else None


def chosen_policy(choice: Choice) -> ExitPolicy:
    """The policy of the flags, or the calibrated one.

    Args:
        choice: the model that the policy must fit.

    Raises:
        BranchyError: there are no thresholds, or they do not fit the model.
    """
    from branchy_tf import exits, graphs, thresholds
    from branchy_tf.policy import ExitPolicy

    names = exits.exit_names(choice.model)
    path = choice.thresholds
    given = parse_numbers("thresholds", FLAGS.thresholds)
    temperatures = parse_numbers("temperatures", FLAGS.temperatures)
    thresholds.check_temperatures(temperatures, len(names))
    changes: dict[str, Any] = {}
    if temperatures is not None:
        changes["temperatures"] = temperatures
    if given is not None:
        thresholds.check(given, len(names))
        policy = ExitPolicy(thresholds=given)
        if path is not None and path.is_file():
            known = thresholds.Calibration.read(path, names).policy
            policy = known.replace(thresholds=given, weights="")
        if FLAGS.criterion:
            changes["criterion"] = FLAGS.criterion
    elif path is None:
        raise BranchyError(
            f"There are no calibrated thresholds for {FLAGS.model}. Pass --thresholds="
            f"{','.join(['0.1'] * (len(names) - 1))}, one for each exit but the final "
            "one."
        )
    elif not path.exists():
        raise BranchyError(
            f"There are no thresholds: {path} is missing. Run python -m "
            "branchy_tf.calibrate with the same --run_dir, or pass --thresholds."
        )
    else:
        fingerprint = graphs.fingerprint(choice.model)
        policy = thresholds.Calibration.read(path, names, fingerprint).policy
        if FLAGS.criterion not in (None, policy.criterion):
            raise BranchyError(
                f"--criterion={FLAGS.criterion}, but {path} holds thresholds "
                f"for {policy.criterion}. Calibrate with --criterion={FLAGS.criterion}."
            )
    return policy.replace(**changes)


def chosen_topology() -> Topology:
    """The topology of --topology, with the costs of the units of --units.

    Raises:
        BranchyError: --topology is missing, or a file is invalid.
    """
    from branchy_tf.units.placing import measured, reading

    if not FLAGS.topology:
        raise BranchyError(
            "--topology is missing: a topology.yaml with sites, links and demand."
        )
    return reading.load(FLAGS.topology, measured.of(FLAGS.units))


def report_context(run: Any, dataset: Any) -> Any:
    """What the report tells beside its figures.

    Args:
        run: the folder of the training, or None.
        dataset: the data set of the figures.
    """
    from branchy_tf import report, training
    from branchy_tf.benchmarking.machine import machine

    return report.Context(
        machine=machine(),
        class_names=getattr(dataset, "class_names", None),
        history=[] if run is None else training.read_history(run.history),
    )


def recalibration(choice: Choice, split: Any) -> Any:
    """A function that calibrates a quantised model again within the known budget.

    Args:
        choice: the float32 model.
        split: the validation split of its calibration.

    Returns:
        A function from logits [n, N, classes] for `split` to a policy; None if the
        thresholds are the user's own.

    Raises:
        BranchyError: there is no calibration, or the rows are not those it was made on.
    """
    if FLAGS.thresholds is not None:
        return None
    from branchy_tf import calibration, costs, exits, scoring, thresholds
    from branchy_tf.predictor import EarlyExitPredictor

    known = thresholds.Calibration.read(choice.thresholds, exits.exit_names(choice.model))
    routed = scoring.route(EarlyExitPredictor(choice.model, known.policy), split)
    calibration.check_same_rows(known, routed, split.labels)
    macs, seed = costs.cumulative_macs(choice.model), FLAGS.seed or 0
    return lambda logits: calibration.repeat(known, logits, split.labels, macs, seed)
