"""The settings of a training and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from branchy_tf import checks, exits, files
from branchy_tf.data import (
    ClassWeights,
    Dataset,
    check_augmentable,
    check_augmentation,
    check_fits,
    class_weights,
)
from branchy_tf.errors import BranchyError
from branchy_tf.training import branches, distillation, losses, optimizers

MODES = ("joint", "baseline_first", "branches_only", "detached")
GRADIENT_SCALINGS = ("none", "equilibrium")

# {setting: smallest whole number}.
_WHOLE = {"epochs": 1, "baseline_epochs": 0, "batch_size": 1, "seed": 0}
_WITH_BASELINE = ("baseline_first", "branches_only")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a training.

    Attributes:
        mode: `joint`: all exits jointly from the start. `baseline_first`: the final
            exit alone, then all exits jointly from those weights, as in the
            BranchyNet paper. `branches_only`: the final exit alone, then the branches
            on the frozen trunk; with linear heads this is conditional deep learning.
            `detached`: all exits at once, but no gradient of a branch reaches the
            trunk.
        epochs: epochs of the phase that trains the branches.
        baseline_epochs: epochs of the baseline phase. With 0, the network keeps the
            weights that it comes with, and they are its baseline.
        batch_size: rows per step.
        optimizer: a name from `optimizers.OPTIMIZERS`.
        learning_rate: the maximum learning rate of each phase.
        schedule: a name from `optimizers.SCHEDULES`, applied to each phase.
        weight_decay: see `optimizers.build`.
        loss_weights: one weight for each exit, or None for 1 each.
        gradient_scaling: `none`, or `equilibrium`; see `branches.equilibrium`.
        distillation: None, or (gamma, tau); see `distillation.DistilledModel`.
        augmentation: a name from `data.AUGMENTATIONS`.
        patience: with early stopping, the number of epochs without a smaller val_loss
            after which a phase ends. Each phase then has the weights of its best epoch.
            Default: every epoch is trained, and the last one's weights are kept.
        steps_per_call: the steps that run in one call, see `on_device`. More of them
            spend less time between steps and make callbacks of batches rarer. Default:
            32 under JAX on an accelerator with the data in memory, otherwise 1.
        seed: the seed of shuffling and augmentation. (`keras.utils.set_random_seed`
            before building the model seeds its weights.)
        class_weights: the weights of the classes in the loss: `balanced`, a .json file,
            or the weights themselves; see `data.class_weights`. None for 1 each.
        baseline: the path of a baseline.keras that replaces the baseline phase, or of
            a model.keras, whose trunk is used; see `transfer.take_baseline`.

    Raises:
        BranchyError: a value has the wrong type or is out of range.

    Example:

    ```python
    Settings(mode="baseline_first", epochs=20, loss_weights=[1.0, 0.3])
    ```
    """

    mode: str = "joint"
    epochs: int = 10
    baseline_epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    loss_weights: Sequence[float] | None = None
    gradient_scaling: str = "none"
    distillation: Sequence[float] | None = None
    augmentation: str = "none"
    patience: int | None = None
    steps_per_call: int | None = None
    seed: int = 0
    baseline: files.Path | None = None
    class_weights: ClassWeights | None = None

    @property
    def has_baseline_phase(self) -> bool:
        """Whether the first phase trains the final exit alone."""
        return self.mode in _WITH_BASELINE

    def __post_init__(self) -> None:
        """Checks and converts the values."""
        checks.one_of("mode", self.mode, MODES)
        checks.one_of("optimizer", self.optimizer, optimizers.OPTIMIZERS)
        checks.one_of("schedule", self.schedule, optimizers.SCHEDULES)
        checks.one_of("gradient_scaling", self.gradient_scaling, GRADIENT_SCALINGS)
        check_augmentation(self.augmentation)
        if self.baseline is not None:
            checks.path("baseline", self.baseline)
        converted: dict[str, Any] = {
            name: checks.whole_number(name, getattr(self, name), at_least=least)
            for name, least in _WHOLE.items()
        }
        for name in ("patience", "steps_per_call"):
            if getattr(self, name) is not None:
                converted[name] = checks.whole_number(name, getattr(self, name), 1)
        converted["learning_rate"] = checks.real_number(
            "learning_rate", self.learning_rate, above=0
        )
        converted["weight_decay"] = checks.real_number(
            "weight_decay", self.weight_decay, at_least=0
        )
        for name in ("loss_weights", "distillation"):
            if getattr(self, name) is not None:
                # `check` compares their number with the model's exits.
                array = checks.real_array(name, getattr(self, name))
                converted[name] = array.ravel().tolist()
        for name, value in converted.items():
            # A frozen dataclass allows no plain assignment.
            object.__setattr__(self, name, value)

    def check(self, model: keras.Model, dataset: Dataset) -> None:
        """Checks the settings against a model and a data set.

        `transfer.read_baseline` checks the file of a `baseline`.

        Raises:
            BranchyError: they do not fit together.
        """
        self._check_exits(model)
        if self.baseline is not None and not self.has_baseline_phase:
            raise BranchyError(
                f"Mode {self.mode} has no baseline phase, so `baseline` {self.baseline} "
                "would not be used. Choose one of the modes "
                f"{', '.join(_WITH_BASELINE)}, or pass --initial_weights."
            )
        check_fits(model, dataset)
        if (self.steps_per_call or 1) > 1 and keras.backend.backend() == "torch":
            raise BranchyError(
                f"Keras on PyTorch runs one step in a call. Received `steps_per_call` "
                f"{self.steps_per_call}. Leave it out, or set KERAS_BACKEND=jax."
            )
        if self.class_weights is not None:
            class_weights(self.class_weights, dataset)
        check_augmentable(self.augmentation, dataset)

    def _check_exits(self, model: keras.Model) -> None:
        tensors = exits.exit_tensors(model)
        exits.check_logits(tensors)
        names = list(tensors)
        weights = losses.check_loss_weights(names, self.loss_weights)
        if len(names) < 2 and self.mode != "joint":
            raise BranchyError(
                f"Mode {self.mode} trains branches, but {model.name} has none. Add exits "
                "with exits.add_exits."
            )
        if self.mode == "branches_only" and not any(weights[:-1]):
            raise BranchyError(
                "Mode branches_only trains the early exits, but their `loss_weights` are "
                f"all 0: {weights}. Give one of them a weight."
            )
        if self.mode == "detached":
            branches.detached(model)
        if self.gradient_scaling == "equilibrium":
            if self.mode in ("branches_only", "detached"):
                raise BranchyError(
                    f"In mode {self.mode} no gradient of a branch reaches the trunk. Use "
                    "`gradient_scaling` equilibrium with mode joint or baseline_first."
                )
            branches.equilibrium(model)
        if self.distillation is not None:
            if len(self.distillation) != 2:
                raise BranchyError(
                    "`distillation` must be two numbers gamma,tau, e.g. 0.5,3. Received "
                    f"{list(self.distillation)}."
                )
            distillation.check(*self.distillation)
            if self.mode != "branches_only" and not weights[-1]:
                raise BranchyError(
                    "`distillation` needs a trained final exit, but in mode "
                    f"{self.mode} its loss weight is 0. Received `loss_weights` "
                    f"{weights}. Give the final exit a weight."
                )
