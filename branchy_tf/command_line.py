"""What all commands share: starting, failing in one line, common flags."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from typing import Any

# Before TensorFlow is imported: its notes on CPU and drivers are no news to a
# user; what goes wrong comes as an exception all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

from branchy_tf.errors import BranchyError

FLAGS = flags.FLAGS


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; a user's mistake is one line, status 1.

    Args:
        main: the command; it reads FLAGS.
    """

    def guarded(arguments: list[str]) -> int:
        if len(arguments) > 1:
            return _fail(
                f"Unexpected argument {arguments[1]!r}. Flags are written "
                "--name=value; --help lists them."
            )
        try:
            main()
        except BranchyError as error:
            return _fail(str(error))
        except OSError as error:
            # Disk full, no permission: the user's to mend.
            where = f": {error.filename}" if error.filename else ""
            return _fail(f"{error.strerror or error}{where}.")
        except KeyboardInterrupt:
            return _fail("Interrupted.", status=130)
        return 0

    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_Plain())
    app.run(guarded, flags_parser=_parse)


class _Plain(logging.PythonFormatter):
    def format(self, record) -> str:
        return record.getMessage()


def _parse(arguments: list[str]) -> list[str]:
    try:
        return FLAGS(arguments)
    except flags.Error as error:
        # absl ends unknown flags with its own advice on a line of its own.
        sys.exit(_fail(" ".join(str(error).split()) + " See --help."))


def _fail(message: str, status: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def define_seed(default: int | None) -> None:
    """--seed."""
    flags.DEFINE_integer(
        "seed",
        default,
        "Seed of the weights, the validation split, shuffling and augmentation."
        + ("" if default is not None else " Default: the run's."),
        lower_bound=0,
    )


def define_data(required: bool) -> None:
    """--dataset, --data_dir and --validation_size."""
    otherwise = "" if required else " Default: the run's."
    flags.DEFINE_string(
        "dataset",
        None,
        "mnist, fashion_mnist, cifar10, cifar100, mnist_5k, or the path of an .npz "
        "with x_train, y_train, x_test, y_test." + otherwise,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with <dataset>.npz; without the file, keras.datasets downloads it."
        + otherwise,
    )
    flags.DEFINE_integer(
        "validation_size",
        None,
        "Rows to cut from the training split for validation. Default: "
        + ("a tenth, 5000 at most." if required else "the run's."),
    )


def parse_arguments(text: str) -> dict[str, Any]:
    """Builder arguments from "depth=20,input_shape=32x32x3".

    Raises:
        BranchyError: not of the form name=value,name=value.
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
    """Floats from a list flag ("inf" is one); None stays None.

    Raises:
        BranchyError: an entry is no number.
    """
    if texts is None:
        return None
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise BranchyError(
            f"--{flag}={','.join(texts)}: expected numbers parted by commas ({error})."
        ) from None
