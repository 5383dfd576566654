"""The exceptions of the package, each with a message of one line."""


class BranchyError(ValueError):
    """Invalid arguments, files or settings.

    The message says in one line what was given, what was expected and how to fix it.
    Commands print it and exit with status 1.
    """

    def __init__(self, message: str) -> None:
        # Names, such as those of files, may contain line breaks.
        super().__init__(" ".join(message.splitlines()))


class ServerError(RuntimeError):
    """A server did not answer or refused.

    Attributes:
        code: name of the gRPC status, e.g. "UNAVAILABLE".
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {' '.join(message.splitlines())}")
        self.code = code


# Some messages of Keras end with a whole model configuration.
_LONGEST = 300


def one_line(text: str) -> str:
    """The first line of a text from another library, ready for a message.

    Escapes unprintable characters, as from damaged files, and truncates long lines.
    """
    line = next(iter(text.strip().splitlines()), "")
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it is empty."""
    return one_line(str(error)) or type(error).__name__
