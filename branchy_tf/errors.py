"""The one exception for a user's mistake."""


class BranchyError(ValueError):
    """What was asked cannot be done as asked.

    The message is one line that says what was given, what was expected and
    how to mend it. Commands print it and exit with status 1; in Python it can
    be caught as a `ValueError`.
    """
