"""Lists and runs the commands of branchy_tf: branchy_tf train --flagfile=FILE."""

from __future__ import annotations

import sys

from branchy_tf.command_line import listing, startup


def commands() -> dict[str, str]:
    """`{command: first line of its docstring}`, without importing the commands."""
    return listing.commands("branchy_tf")


def main(typed: str = "branchy_tf") -> int:
    """Runs the console script.

    Args:
        typed: the name that it was called by.

    Returns:
        The exit status: 0 for help, 1 for an error. A command ends the process itself.
    """
    return listing.run("branchy_tf", typed)


if __name__ == "__main__":
    startup.ready()
    sys.exit(main("python -m branchy_tf"))
