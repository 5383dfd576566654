"""Lists the commands of a package and runs one of them."""

from __future__ import annotations

import difflib
import importlib
import pathlib
import runpy
import sys

from branchy_tf.command_line import startup

_RUN = "command_line.run(main)"
_LIST = "listing.run("


def commands(package: str) -> dict[str, str]:
    """`{command: first line of its docstring}`, without importing the commands.

    A command is a module, or a package that has commands of its own.

    Args:
        package: its dotted name.
    """
    folder = pathlib.Path(str(importlib.import_module(package).__file__)).parent
    found = {}
    for path in sorted(folder.glob("*.py")):
        if path.name != "__main__.py" and _RUN in path.read_text(encoding="utf-8"):
            found[path.stem] = startup.docstring(path).partition("\n")[0]
    for path in folder.glob("*/__main__.py"):
        if _LIST in path.read_text(encoding="utf-8"):
            found[path.parent.name] = startup.docstring(path).partition("\n")[0]
    return dict(sorted(found.items()))


def run(package: str, typed: str) -> int:
    """Runs the command that the first argument names.

    Args:
        package: whose commands there are.
        typed: what the user typed before the command.

    Returns:
        The exit status: 0 for help, 1 for an error. A command ends the process itself.
    """
    for stream in (sys.stdout, sys.stderr):
        startup.never_fail(stream)
    name, *arguments = sys.argv[1:] or ["--help"]
    known = commands(package)
    if name in ("--help", "-h", "help"):
        with startup.printed():
            print(_usage(typed, known))
        return 0
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(
            f"error: Unknown command {name!r}.{hint} Known: {', '.join(known)}.",
            file=sys.stderr,
        )
        return 1
    if package == "branchy_tf":
        startup.typed_as(f"{typed} ")
    startup.begin()
    sys.argv = [f"{typed} {name}", *arguments]
    runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
    return 0


def _usage(typed: str, known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {text}" for name, text in known.items()]
    return "\n".join(
        [f"Usage: {typed} COMMAND --flag=value ...", "", *lines, "",
         f"{typed} COMMAND --help lists the flags of a command."]
    )  # fmt: skip
