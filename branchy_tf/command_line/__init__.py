"""Shared by all commands: start-up, one-line errors and common flags."""

from __future__ import annotations

import ast
import logging as std_logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import app, flags, logging

import branchy_tf
from branchy_tf import files
from branchy_tf.command_line import startup
from branchy_tf.errors import BranchyError, ServerError, one_line
from branchy_tf.files import flagfiles

if TYPE_CHECKING:
    # Needs numpy, which listing the commands does not.
    from branchy_tf.policy import ExitPolicy

FLAGS = flags.FLAGS


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; a user's mistake prints one line, status 1.

    Args:
        main: the command, which reads FLAGS.
    """

    def guarded(arguments: list[str]) -> int:
        if len(arguments) > 1:
            return _fail(
                f"Unexpected argument {files.printable(arguments[1])!r}. Flags are "
                "written --name=value; --help lists them."
            )
        try:
            main()
        except (BranchyError, ServerError) as error:
            return _fail(str(error))
        except OSError as error:
            # A full disk or missing permission is the user's to fix.
            where = f": {error.filename}" if error.filename else ""
            return _fail(f"{error.strerror or error}{where}.")
        except KeyboardInterrupt:
            return _fail("Interrupted.", status=130)
        return 0

    startup.ready()
    for stream in (sys.stdout, sys.stderr):
        startup.never_fail(stream)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_Plain())
    is_news = _from_folders(branchy_tf.__file__, main.__code__.co_filename)
    logging.get_absl_handler().addFilter(is_news)
    warnings.showwarning = _log_warning
    std_logging.getLogger("tensorflow").setLevel(std_logging.WARNING)
    # An orderly exit removes partial output and ends child processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app.run(guarded, flags_parser=_parse)


def _log_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Logs a warning without the source location, which does not help a user."""
    logging.warning("%s", message)


def _from_folders(*sources: str) -> Callable[[std_logging.LogRecord], bool]:
    """A log filter that drops messages of other libraries below a warning.

    Args:
        sources: files whose folders may log: this package's, and the command's own,
            because studies are outside the package.
    """
    ours = tuple(os.path.dirname(os.path.abspath(source)) for source in sources)

    def is_news(record: std_logging.LogRecord) -> bool:
        return record.levelno >= std_logging.WARNING or record.pathname.startswith(ours)

    return is_news


class _Plain(logging.PythonFormatter):
    def format(self, record) -> str:
        return startup.as_typed(record.getMessage())


def _parse(arguments: list[str]) -> list[str]:
    if {"--help", "-help", "--helpshort", "-h", "-?"} & set(arguments[1:]):
        # absl's --help exits with status 1 and omits the flags defined here.
        source = getattr(sys.modules["__main__"], "__file__", None) or __file__
        print(startup.as_typed(startup.docstring(source)))
        print(FLAGS.main_module_help(), FLAGS.module_help(__name__), sep="\n")
        sys.exit(0)
    try:
        return FLAGS(flagfiles.expand(arguments))
    except BranchyError as error:
        sys.exit(_fail(str(error)))
    except flags.Error as error:
        # absl adds its own advice on unknown flags as a second line.
        sys.exit(_fail(" ".join(str(error).split()) + " See --help."))


def _fail(message: str, status: int = 1) -> int:
    print(startup.as_typed(f"error: {message}"), file=sys.stderr)
    return status


def define_path(name: str, default: str | None, text: str, url: bool = False) -> None:
    """Defines a flag that takes a path; invalid paths are refused during parsing.

    Args:
        name: the name of the flag.
        default: its default.
        text: its help.
        url: whether the flag takes URLs too.
    """
    flags.DEFINE_string(name, default, text)
    check_path(name, url)


def check_path(name: str, url: bool = False) -> None:
    """Adds the same check to a defined flag, or to each entry of a list flag."""

    def check(value: Any) -> bool:
        for given in value if isinstance(value, list) else [value]:
            if not given or (url and files.is_url(given)):
                continue
            try:
                (files.folder if name.endswith("_dir") else files.path)(given)
            except BranchyError as error:
                raise flags.ValidationError(str(error)) from None
        return True

    flags.register_validator(name, check)


def define_seed(default: int | None) -> None:
    """Defines --seed."""
    flags.DEFINE_integer(
        "seed",
        default,
        "Sets the seed of the initial weights, the validation split, shuffling and "
        "augmentation." + ("" if default is not None else " Default: the run's."),
        lower_bound=0,
    )


def define_data(required: bool) -> None:
    """Defines --dataset, --data_dir and --validation_size."""
    otherwise = "" if required else " Default: the run's."
    define_path(
        "dataset",
        None,
        "Sets the data set: mnist, fashion_mnist, cifar10, cifar100, mnist_5k, or the "
        "path of an .npz with x_train, y_train, x_test, y_test." + otherwise,
    )
    define_path(
        "data_dir",
        None,
        "Sets the folder with <dataset>.npz. If the file is missing, keras.datasets "
        "downloads the data set." + otherwise,
    )
    flags.DEFINE_integer(
        "validation_size",
        None,
        "Sets how many rows of the training split to use for validation. Default: "
        + ("a tenth, at most 5000." if required else "the run's."),
    )


def define_model_choice() -> None:
    """Defines --run_dir, --model, --model_args and --weights."""
    define_path(
        "run_dir",
        None,
        "The folder of a training. With --model, only the folder to write results to.",
    )
    flags.DEFINE_string(
        "model", None, "Takes this model of the zoo instead of the model of --run_dir."
    )
    flags.DEFINE_string(
        "model_args",
        "",
        "Sets arguments of the builder of --model, e.g. depth=20,input_shape=32x32x3.",
    )
    define_path(
        "weights", None, "Sets the weights of --model: a tag of the zoo, or a file."
    )


def define_thresholds() -> None:
    """Defines --thresholds, --criterion and --temperatures."""
    flags.DEFINE_list(
        "thresholds",
        None,
        "Sets one threshold for each exit but the final one, in exit order, for example "
        "0.1,0.4. With 0 no image takes the exit, with inf every image does. Default: "
        "the calibrated ones.",
    )
    flags.DEFINE_string(
        "criterion",
        None,
        "Sets the score that --thresholds refer to: entropy (in nats), max_prob or "
        "margin. Default: the run's, or entropy.",
    )
    flags.DEFINE_list(
        "temperatures",
        None,
        "Sets the temperature that the logits of each exit are divided by, in exit "
        "order. Default: the run's, or 1 for every exit.",
    )


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


def chosen_model() -> Choice:
    """The model of --run_dir, or of --model and --weights.

    With --model, --run_dir is only the folder to write to.

    Raises:
        BranchyError: the flags select no model, or it cannot be loaded.
    """
    with startup.hushed():
        from branchy_tf import training, zoo

    folder = training.RunFolder(FLAGS.run_dir) if FLAGS.run_dir else None
    if FLAGS.model:
        if not FLAGS.weights:
            raise BranchyError(
                f"--model={FLAGS.model} needs --weights: a tag or a file. For a model "
                "that you trained, pass --run_dir alone."
            )
        arguments = parse_arguments(FLAGS.model_args)
        model = zoo.build(FLAGS.model, **arguments, weights=FLAGS.weights)
        tag = zoo.list_packaged(FLAGS.model).get(FLAGS.weights)
        if tag is None:
            return Choice(model, None, folder, None)
        return Choice(model, None, folder, tag.thresholds, tag)
    if folder is None:
        raise BranchyError("Pass --run_dir of a training, or --model and --weights.")
    return Choice(folder.load_model(), folder, folder, folder.thresholds)


def chosen_dataset(run: Any, model: Any = None) -> Any:
    """The data set that the flags select, or the run's.

    Args:
        run: the folder of a training, or None.
        model: the model that the data must fit, or None.

    Raises:
        BranchyError: no data set is given, it cannot be loaded or does not fit.
    """
    with startup.hushed():
        from branchy_tf import data

    recorded = {} if run is None else run.read_flags()

    def value(name: str) -> str | None:
        given = FLAGS[name].value
        return recorded.get(name) if given is None else given

    name = value("dataset")
    if name is None:
        raise BranchyError("--dataset is missing: the data to use, e.g. mnist.")
    for flag in ("validation_size", "seed"):
        # absl checks only the flags of this command line, not those of the run's file.
        if flag in recorded and not recorded[flag].isdecimal():
            raise BranchyError(
                f"{run.flags} has --{flag}={one_line(recorded[flag])}; expected a whole "
                "number of at least 0. Correct it, or train again."
            )
    size = value("validation_size")
    dataset = data.load(
        name,
        value("data_dir"),
        None if size is None else int(size),
        int(value("seed") or 0),
    )
    if model is not None:
        data.check_fits(model, dataset)
    return dataset


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
    else:
        fingerprint = graphs.fingerprint(choice.model)
        policy = thresholds.Calibration.read(path, names, fingerprint).policy
        if FLAGS.criterion not in (None, policy.criterion):
            raise BranchyError(
                f"--criterion={FLAGS.criterion}, but {path} holds thresholds "
                f"for {policy.criterion}. Calibrate with --criterion={FLAGS.criterion}."
            )
    return policy.replace(**changes)


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
    from branchy_tf import calibration, costs, exits, thresholds
    from branchy_tf.predictor import EarlyExitPredictor

    known = thresholds.Calibration.read(choice.thresholds, exits.exit_names(choice.model))
    routed = EarlyExitPredictor(choice.model, known.policy).predict(split.images)
    calibration.check_same_rows(known, routed, split.labels)
    macs, seed = costs.cumulative_macs(choice.model), FLAGS.seed or 0
    return lambda logits: calibration.repeat(known, logits, split.labels, macs, seed)


def training_examples(dataset: Any, count: int) -> Any:
    """Rows of the training split, sampled by --seed.

    Args:
        dataset: the data set.
        count: the number of rows, if there are as many.
    """
    import numpy as np

    order = np.random.default_rng(FLAGS.seed or 0).permutation(len(dataset.train))
    return dataset.train.take(np.sort(order[:count])).images


def parse_arguments(text: str) -> dict[str, Any]:
    """Builder arguments from "depth=20,input_shape=32x32x3".

    Raises:
        BranchyError: the text has another form than name=value,name=value.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BranchyError(
                f"--model_args={text!r}: expected name=value,name=value, for example "
                f"classes=100,input_shape=32x32x3. Received {part!r}."
            )
        if name.strip() == "weights":
            raise BranchyError("--model_args has weights; pass --weights instead.")
        arguments[name.strip()] = _value(value.strip())
    return arguments


def _value(text: str) -> Any:
    sides = text.split("x")
    if len(sides) > 1 and all(side.isdigit() for side in sides):
        return tuple(int(side) for side in sides)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_numbers(flag: str, texts: list[str] | None) -> list[float] | None:
    """Floats from a list flag, which may include "inf"; None stays None.

    Raises:
        BranchyError: an entry is not a number.
    """
    if texts is None:
        return None
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise BranchyError(
            f"--{flag}={','.join(texts)}: expected comma-separated numbers ({error})."
        ) from None


def whole_numbers(flag: str) -> list[int]:
    """Whole numbers of at least 1 from a list flag.

    Raises:
        BranchyError: the list is empty, or an entry is invalid.
    """
    numbers = parse_numbers(flag, FLAGS[flag].value) or []
    if not numbers or any(n < 1 or not n.is_integer() for n in numbers):
        raise BranchyError(
            f"--{flag} must be comma-separated whole numbers of at least 1. Received "
            f"{','.join(FLAGS[flag].value)}."
        )
    return [int(n) for n in numbers]
