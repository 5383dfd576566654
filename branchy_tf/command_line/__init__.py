"""Shared by all commands: start-up, one-line errors and common flags."""

from __future__ import annotations

import ast
import logging as std_logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import app, flags, logging

import branchy_tf
from branchy_tf import files
from branchy_tf.command_line import startup
from branchy_tf.errors import BranchyError, ServerError, one_line
from branchy_tf.files import flagfiles, functions

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
            _import_modules()
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
    define_dataset(required)
    flags.DEFINE_integer(
        "validation_size",
        None,
        "Sets how many rows of the training split to use for validation. Default: "
        + ("a tenth, at most 5000." if required else "the run's."),
    )


def define_dataset(required: bool) -> None:
    """Defines --dataset and --data_dir, for commands that read the test split alone."""
    otherwise = "" if required else " Default: the run's."
    define_path(
        "dataset",
        None,
        "Sets the data set: mnist, fashion_mnist, cifar10, cifar100, mnist_5k; the path "
        "of an .npz with x_train, y_train, x_test, y_test; the path of a folder with "
        "train/, test/ and maybe validation/, each with a folder of pictures per class; "
        "tfds:NAME; or module:function, which returns the splits." + otherwise,
    )
    define_path(
        "data_dir",
        None,
        "Sets the folder with <dataset>.npz, or that of tfds:. If the file is missing, "
        "keras.datasets downloads the data set." + otherwise,
    )
    flags.DEFINE_string(
        "image_size",
        None,
        "Sets the height and width to fit the pictures of a folder to, e.g. 96x96, or "
        "96x96x1 for grey ones. Bilinear; the aspect ratio is not preserved. Default: "
        + ("" if required else "the run's, or ")
        + "the size of the model's input, or else the common size of the pictures.",
    )
    flags.DEFINE_bool(
        "skip_unreadable",
        None,
        "Whether to leave out pictures of a folder that cannot be read. Each picture is "
        "read once at the start to find them. Default: "
        + ("no." if required else "as in the run."),
    )


def define_import() -> None:
    """Defines --import, which `run` obeys before the command begins."""
    flags.DEFINE_list(
        "import",
        [],
        "Imports these Python modules, comma-separated, before a model is loaded, "
        "because they register its custom layers. Default: none, and those that a run's "
        "train.flags names.",
    )


def _import_modules() -> None:
    if "import" in FLAGS:
        for name in FLAGS["import"].value:
            with startup.hushed():
                functions.load_module(name)


def define_model(instead: str = "") -> None:
    """Defines --model, --model_args, --weights, --exits and --import.

    Args:
        instead: the end of the first sentence in the help of --model.
    """
    define_path(
        "model",
        None,
        f"Sets the model{instead}: the name of a zoo model, e.g. branchy_lenet, the path "
        "of a .keras file, which keeps its weights, or module:function, a callable that "
        "returns a Keras model, e.g. keras.applications:MobileNetV2.",
    )
    flags.DEFINE_string(
        "model_args",
        "",
        "Sets keyword arguments of the zoo's builder or of the function, e.g. "
        "depth=20,input_shape=32x32x3. train adds input_shape and classes of the data "
        "set; a function receives them only if it has such parameters.",
    )
    define_path(
        "weights",
        None,
        "Sets the weights to start from: a tag of the zoo, or a .keras file of the same "
        "zoo model; for a function, its argument weights. Default: random weights, or "
        "those that the file or function brings.",
    )
    flags.DEFINE_string(
        "exits",
        None,
        "Adds early exits to a --model that has none: 'LAYER=HEAD;LAYER=HEAD', in order "
        "from the input, or auto:N, which proposes N layers (auto:N=HEAD for another "
        "head than linear). A head is linear, conv(64,32) with the filters of each "
        "convolution, pool(4) with the size of a window, or module:function.",
    )
    define_import()


def define_model_choice() -> None:
    """Defines --run_dir, and what `define_model` does."""
    define_path(
        "run_dir",
        None,
        "The folder of a training. With --model, only the folder to write results to.",
    )
    define_model(" that is used instead of the one in --run_dir")


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
    run: Any, model: Any = None, input_shape: Sequence[int | None] | None = None
) -> Any:
    """The data set that the flags select, or the run's.

    Args:
        run: the folder of a training, or None.
        model: the model that the data must fit, or None.
        input_shape: the shape of its input, for pictures; default: the model's.

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
    size = value("validation_size")
    # How the pictures of the run's own folder are read.
    own = value if FLAGS.dataset is None else lambda name: FLAGS[name].value
    dataset = data.load(
        name,
        value("data_dir"),
        None if size is None else int(size),
        int(value("seed") or 0),
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


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """The sides in the text of --image_size, such as 96x96; None stays None.

    Raises:
        BranchyError: the text has another form.
    """
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (2, 3) or not all(side.isdecimal() for side in sides):
        raise BranchyError(
            f"--image_size={one_line(text)}: expected height and width, for example "
            "96x96, or 96x96x1 for grey pictures."
        )
    return tuple(map(int, sides))


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
