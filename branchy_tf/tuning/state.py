"""The file that lets a tuner go on after a restart."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.tuning.strategy import Strategy

_FORMAT = "branchy_tf tuner, 1"
_MEND = "Name another file, or remove this one to learn anew."


def write(path: files.Path, learned: dict[str, Any], version: int | None) -> None:
    """Writes what `Strategy.to_json` gave, beside and renamed.

    Args:
        path: of the file.
        learned: what it gave.
        version: of the model that it was learned from.
    """
    content = {"format": _FORMAT, "model_version": version, "policy": learned}
    files.write_json(path, content)


def read(path: files.Path, strategy: Strategy) -> int | None:
    """Lets the strategy go on where the file's was.

    Args:
        path: of a file that is there.
        strategy: as it is built; on an error it is left as at the beginning.

    Returns:
        The model's version.

    Raises:
        BranchyError: the file is damaged, or was written for other costs or another
            budget.
    """
    value = files.read_json(path)
    if value.get("format") != _FORMAT:
        raise BranchyError(f"{path} is no state of a threshold tuner. {_MEND}")
    try:
        version, saved = value["model_version"], value["policy"]
        own = strategy.to_json()
        for name in ("costs", "budget"):
            if not np.array_equal(saved[name], own[name]):
                raise BranchyError(
                    f"{path} was written for {name} {saved[name]}; this tuner has "
                    f"{np.asarray(own[name]).tolist()}. {_MEND}"
                )
        strategy.from_json(saved)
        return None if version is None else int(version)
    except BranchyError:
        strategy.forget()
        raise
    except Exception as error:
        # Anything may stand where a number should.
        strategy.forget()
        raise BranchyError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}). {_MEND}"
        ) from error
