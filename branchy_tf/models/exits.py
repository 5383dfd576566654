"""Gives a model without early exits the ones that a flag asks for."""

from __future__ import annotations

import keras

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError

# The number of layers to name to a user who gave no exits.
_MOST_NAMED = 4


def with_exits(model: keras.Model, spelled: str | None) -> keras.Model:
    """The model with early exits.

    Args:
        model: a multi-exit model, or a functional or Sequential one with one output.
        spelled: the exits to add, see `exits.parse_exits`, or None for a model that has
            exits.

    Raises:
        BranchyError: the model has exits and others are asked for, it has none and none
            are asked for, or what `exits.parse_exits` and `exits.add_exits` raise.

    Example:

    ```python
    with_exits(keras.applications.MobileNetV2(weights=None), "auto:2")
    ```
    """
    plan = exits.parse_exits(spelled) if spelled else None
    if not isinstance(model, keras.Sequential):
        graphs.check_functional(model)
        finished = isinstance(model.output, dict) and list(model.output) == ["exit_1"]
        if len(model.outputs) > 1 or (finished and plan is None):
            names = exits.exit_names(model)
            if plan is not None:
                raise BranchyError(
                    f"{model.name} already has exits, {', '.join(names)}, so --exits="
                    f"{spelled} cannot be added. Leave --exits out, or pass a model with "
                    "one output: a function that returns branchy_tf.baseline(model)."
                )
            return model
    if plan is None:
        raise BranchyError(
            f"{model.name} has one output and no early exits. Add them with "
            f"--exits=auto:2, or at layers that you choose, such as {_examples(model)}: "
            "--exits='LAYER=linear;LAYER=conv(64)'."
        )
    return plan.add_to(model)


def _examples(model: keras.Model) -> str:
    """Names of layers where exits can be placed, spread over the model."""
    places = exits.exit_places(model)
    count = min(_MOST_NAMED, len(places))
    return ", ".join(
        places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)
    )
