"""The exceptions that say what went wrong in one line."""


class BranchyError(ValueError):
    """What was asked cannot be done as asked.

    The message is one line that says what was given, what was expected and
    how to mend it. Commands print it and exit with status 1; in Python it can
    be caught as a `ValueError`.
    """

    def __init__(self, message: str) -> None:
        # A name that was given, such as a file's, may hold the end of a line.
        super().__init__(" ".join(message.splitlines()))


class ServerError(RuntimeError):
    """A server did not answer, or refused.

    Attributes:
        code: name of the gRPC status, e.g. "UNAVAILABLE".
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {' '.join(message.splitlines())}")
        self.code = code


# Keras ends some messages with a whole model's configuration.
_LONGEST = 300


def one_line(text: str) -> str:
    """The first line of a text from elsewhere, fit for a message.

    Whatever a damaged file brings into it (control characters, half a character) is
    written as an escape, and a long line is cut.
    """
    line = next(iter(text.strip().splitlines()), "")
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line; its type if nothing."""
    return one_line(str(error)) or type(error).__name__
