"""Lists and runs the commands of branchy_tf: branchy_tf train --flagfile=FILE."""

from __future__ import annotations

import difflib
import pathlib
import runpy
import sys

from branchy_tf.command_line import startup

_RUN = "command_line.run(main)"


def commands() -> dict[str, str]:
    """`{command: first line of its docstring}`, without importing the commands."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        if path.name != "__main__.py" and _RUN in path.read_text(encoding="utf-8"):
            found[path.stem] = startup.docstring(path).partition("\n")[0]
    return found


def _usage(typed: str) -> str:
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {text}" for name, text in known.items()]
    return "\n".join(
        [f"Usage: {typed} COMMAND --flag=value ...", "", *lines, "",
         f"{typed} COMMAND --help lists the flags of a command."]
    )  # fmt: skip


def main(typed: str = "branchy_tf") -> int:
    """Runs the console script.

    Args:
        typed: the name that it was called by.

    Returns:
        The exit status: 0 for help, 1 for an error. A command ends the process itself.
    """
    for stream in (sys.stdout, sys.stderr):
        startup.never_fail(stream)
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_usage(typed))
        return 0
    known = commands()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(
            f"error: Unknown command {name!r}.{hint} Known: {', '.join(known)}.",
            file=sys.stderr,
        )
        return 1
    startup.typed_as(f"{typed} ")
    startup.begin()
    sys.argv = [f"{typed} {name}", *arguments]
    runpy.run_module(f"branchy_tf.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    startup.ready()
    sys.exit(main("python -m branchy_tf"))
