"""The settings of a compression and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from branchy_tf import checks
from branchy_tf.data import ClassWeights, check_augmentation
from branchy_tf.errors import BranchyError

METHODS = ("prune", "cluster", "qat")

# The peak learning rate of each method. Pruning takes most away and has most to relearn;
# clustered and quantised weights are close to the trained ones.
LEARNING_RATES = {"prune": 1e-3, "cluster": 1e-4, "qat": 1e-4}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a compression.

    Attributes:
        method: `prune`: sets the smallest weights of each kernel to 0. `cluster`: gives
            the weights of each kernel a few distinct values. `qat`: trains for int8 and
            writes a LiteRT file.
        sparsity: of each pruned kernel, the share of weights that are 0, a fraction of 1.
        clusters: the most distinct values of each clustered kernel.
        epochs: the epochs of fine-tuning.
        batch_size: rows per step.
        learning_rate: the maximum, which decays to 0 along a cosine; None takes the
            method's from `LEARNING_RATES`.
        loss_weights: one weight for each exit, or None for 1 each.
        augmentation: a name from `data.AUGMENTATIONS`.
        skip_layers: the names of layers to leave as they are.
        seed: the seed of shuffling and augmentation.
        class_weights: the weights of the classes in the loss; see `data.class_weights`.
            None for 1 each.

    Raises:
        BranchyError: a value has the wrong type or is out of range.

    Example:

    ```python
    Settings("prune", sparsity=0.5, epochs=2)
    ```
    """

    method: str
    sparsity: float = 0.8
    clusters: int = 16
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float | None = None
    loss_weights: Sequence[float] | None = None
    augmentation: str = "none"
    skip_layers: Sequence[str] = ()
    seed: int = 0
    class_weights: ClassWeights | None = None

    def record(self) -> dict[str, Any]:
        """The settings that count for the method, as compression.json stores them."""
        unused = {
            name
            for name, method in (("sparsity", "prune"), ("clusters", "cluster"))
            if method != self.method
        }
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in unused}

    def __post_init__(self) -> None:
        """Checks and converts the values."""
        checks.one_of("method", self.method, METHODS)
        check_augmentation(self.augmentation)
        rate = self.learning_rate
        if rate is None:
            rate = LEARNING_RATES[self.method]
        converted: dict[str, Any] = {
            "sparsity": _sparsity(self.sparsity),
            # Above 256 values, int8 is smaller.
            "clusters": checks.whole_number("clusters", self.clusters, 2, 256),
            "epochs": checks.whole_number("epochs", self.epochs, at_least=1),
            "batch_size": checks.whole_number("batch_size", self.batch_size, at_least=1),
            "learning_rate": checks.real_number("learning_rate", rate, above=0),
            "seed": checks.whole_number("seed", self.seed, at_least=0),
            "skip_layers": [
                checks.text("skip_layers", name) for name in self.skip_layers
            ],
        }
        if self.loss_weights is not None:
            array = checks.real_array("loss_weights", self.loss_weights)
            converted["loss_weights"] = array.ravel().tolist()
        for name, value in converted.items():
            # A frozen dataclass allows no plain assignment.
            object.__setattr__(self, name, value)


def _sparsity(value: float) -> float:
    try:
        return checks.real_number(
            "sparsity", value, above=0, below=1, what="fraction of 1,"
        )
    except BranchyError as error:
        raise BranchyError(f"{error}{checks.percentage_hint(value)}") from None
