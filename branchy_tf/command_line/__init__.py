"""Shared by all commands: start-up, one-line errors and common flags."""

from __future__ import annotations

import logging as std_logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

import branchy_tf
from branchy_tf import files
from branchy_tf.command_line import startup
from branchy_tf.command_line.choosing import (
    Choice,
    built_model,
    chosen_class_names,
    chosen_dataset,
    chosen_model,
    chosen_policy,
    chosen_tls,
    chosen_topology,
    class_names,
    recalibration,
    report_context,
)
from branchy_tf.command_line.defining import (
    check_path,
    define_class_names,
    define_class_weights,
    define_data,
    define_dataset,
    define_import,
    define_model,
    define_model_choice,
    define_path,
    define_seed,
    define_thresholds,
    define_tls,
    define_topology,
    import_modules,
)
from branchy_tf.command_line.fronts import (
    FRONT,
    built_fronts,
    built_tail,
    parse_fronts,
    parse_tail,
    spelled,
)
from branchy_tf.command_line.parsing import (
    parse_arguments,
    parse_numbers,
    parse_size,
    whole_numbers,
)
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.files import flagfiles

__all__ = [
    "FRONT",
    "Choice",
    "built_fronts",
    "built_model",
    "built_tail",
    "check_path",
    "chosen_class_names",
    "chosen_dataset",
    "chosen_model",
    "chosen_policy",
    "chosen_tls",
    "chosen_topology",
    "class_names",
    "define_class_names",
    "define_class_weights",
    "define_data",
    "define_dataset",
    "define_import",
    "define_model",
    "define_model_choice",
    "define_path",
    "define_seed",
    "define_thresholds",
    "define_tls",
    "define_topology",
    "end",
    "parse_arguments",
    "parse_fronts",
    "parse_numbers",
    "parse_size",
    "parse_tail",
    "recalibration",
    "report_context",
    "run",
    "spelled",
    "whole_numbers",
]

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
            import_modules()
            main()
        except (BranchyError, ServerError) as error:
            return _fail(str(error))
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
    try:
        with startup.printed():
            app.run(guarded, flags_parser=_parse)
    except OSError as error:
        # A full disk or missing permission is the user's to fix.
        where = f": {error.filename}" if error.filename else ""
        sys.exit(_fail(f"{error.strerror or error}{where}."))


def end(message: str) -> None:
    """Prints an error and ends the process at once, from any thread.

    For a command whose main thread waits for what will never come; files that are being
    written are not replaced.
    """
    os._exit(_fail(message))


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
        shared = FLAGS.module_help(f"{__name__}.defining")
        print(FLAGS.main_module_help(), shared, sep="\n")
        sys.exit(0)
    try:
        return FLAGS(flagfiles.expand(arguments))
    except BranchyError as error:
        sys.exit(_fail(str(error)))
    except flags.Error as error:
        # absl adds its own advice on unknown flags as a second line.
        sys.exit(_fail(" ".join(str(error).split()) + " See --help."))


def _fail(message: str, status: int = 1) -> int:
    print(startup.as_typed(f"error: {message}"), file=sys.stderr, flush=True)
    return status
