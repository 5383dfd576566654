"""A data set as its source holds it, before it is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from branchy_tf.data.splits import Inputs


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """One part of a data set.

    Attributes:
        inputs: as in `Split`.
        labels: an array [n] or [n, 1] of numbers or strings.
        weights: an array [n] of numbers, or None.
        names: what messages call inputs, labels and weights.
    """

    inputs: Inputs
    labels: Any
    weights: Any = None
    names: tuple[str, str, str] = ("inputs", "labels", "weights")


@dataclasses.dataclass(frozen=True)
class Raw:
    """A data set.

    Attributes:
        name: the name of the data set.
        source: what messages call it.
        splits: `{"train", "test"}`, maybe `"validation"`.
        classes: the number of classes if the labels are known to be 0 ... classes - 1.
        class_names: the names of the classes if known.
        stratified: whether validation rows are cut with the shares of the classes.
    """

    name: str
    source: str
    splits: Mapping[str, RawSplit]
    classes: int | None = None
    class_names: Sequence[str] | None = None
    stratified: bool = True
