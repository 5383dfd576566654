"""Trains in phases, each of which can be killed and resumed."""

from __future__ import annotations

import contextlib
import shutil

import keras

from branchy_tf import checks, exits, files
from branchy_tf.data import Dataset, fitted, weighted
from branchy_tf.errors import BranchyError
from branchy_tf.training import branches, losses
from branchy_tf.training.distillation import DistilledModel
from branchy_tf.training.fitting import Phase, fit
from branchy_tf.training.precision import in_float32
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.settings import Settings
from branchy_tf.training.transfer import Baseline, read_baseline, take_baseline


def make_deterministic(seed: int) -> None:
    """Makes training reproducible on the same machine, versions and threads.

    Args:
        seed: seeds Python, NumPy and the Keras backend.
    """
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def train(
    model: keras.Model,
    dataset: Dataset,
    settings: Settings,
    folder: RunFolder,
    flags: str | None = None,
) -> None:
    """Trains `model` in place and writes the run folder.

    A killed training resumes when called again with the same arguments. Writes
    model.keras, baseline.keras if a baseline was trained, history.csv and logs/
    (TensorBoard).

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        dataset: trains on its training split and evaluates on its validation split.
        settings: the settings of the training.
        folder: the folder to write to.
        flags: the text of train.flags, written after all checks.

    Raises:
        BranchyError: settings, model and data set do not fit together.

    Example:

    ```python
    settings = Settings(epochs=20, loss_weights=[1.0, 0.3])
    train(branchy_lenet(), data.load("mnist_5k"), settings, RunFolder("runs/lenet"))
    ```
    """
    for name, value, kind in (
        ("dataset", dataset, Dataset),
        ("settings", settings, Settings),
        ("folder", folder, RunFolder),
    ):
        if not isinstance(value, kind):
            raise BranchyError(
                f"`{name}` must be a {kind.__name__}. Received {checks.shown(value)}."
            )
    settings.check(model, dataset)
    dataset = weighted(fitted(model, dataset), settings.class_weights)
    baseline = None
    if settings.baseline is not None:
        baseline = read_baseline(exits.baseline(model), settings.baseline)
    if flags is not None:
        files.write_text(folder.flags, flags)
    if settings.has_baseline_phase:
        _train_baseline(model, dataset, settings, folder, baseline)
    _train_branches(model, dataset, settings, folder)
    _save(model, folder.model)
    shutil.rmtree(folder.backups, ignore_errors=True)


def _train_baseline(
    model: keras.Model,
    dataset: Dataset,
    settings: Settings,
    folder: RunFolder,
    baseline: Baseline | None,
) -> None:
    phase = baseline_phase(model, settings)
    if baseline is not None:
        take_baseline(phase.model, baseline, folder.baseline)
        return
    # Without epochs, the network was trained elsewhere.
    if phase.epochs:
        fit(phase, dataset, settings, folder, exits.exit_names(model))
    _save(phase.model, folder.baseline)


def _train_branches(
    model: keras.Model, dataset: Dataset, settings: Settings, folder: RunFolder
) -> None:
    frozen: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if settings.mode == "branches_only":
        frozen = branches.frozen_trunk(model)
    with frozen:
        phase = branches_phase(model, settings)
        fit(phase, dataset, settings, folder, exits.exit_names(model))


def baseline_phase(model: keras.Model, settings: Settings) -> Phase:
    """The phase that trains only the final exit."""
    final = exits.exit_names(model)[-1]
    return Phase(
        "baseline",
        exits.baseline(model),
        lambda trainer, optimizer: losses.compile_baseline(trainer, final, optimizer),
        lambda split: split.labels,
        settings.baseline_epochs,
    )


def branches_phase(model: keras.Model, settings: Settings) -> Phase:
    """The phase that trains the branches; the mode decides what else it trains."""
    names = exits.exit_names(model)
    weights = losses.check_loss_weights(names, settings.loss_weights)
    trained, name = model, settings.mode
    if settings.mode == "baseline_first":
        name = "joint"
    elif settings.mode == "branches_only":
        name = "branches"
        weights[-1] = 0.0
        if settings.distillation is None:
            # The final exit has no loss, so it need not be computed.
            trained = _early_exits(model)
    elif settings.mode == "detached":
        trained = branches.detached(model)
    if settings.gradient_scaling == "equilibrium":
        trained = branches.equilibrium(trained)
    shown = [name for name in names if name in trained.output]
    weights = weights[: len(shown)]

    def compile_(trainer: keras.Model, optimizer: keras.Optimizer) -> None:
        of_labels = trainer.label_weights() if settings.distillation else weights
        losses.compile_joint(trainer, shown, optimizer, of_labels)

    def wrap(inputs, outputs) -> keras.Model:
        if settings.distillation is None:
            return keras.Model(inputs, outputs)
        ordered = {name: outputs[name] for name in shown}
        return DistilledModel(inputs, ordered, weights, *settings.distillation)

    return Phase(
        name,
        trained,
        compile_,
        lambda split: dict.fromkeys(shown, split.labels),
        settings.epochs,
        wrap,
    )


def _early_exits(model: keras.Model) -> keras.Model:
    *early, _ = exits.exit_tensors(model).items()
    return keras.Model(model.input, dict(early), name=model.name)


def _save(model: keras.Model, path: files.Path) -> None:
    # Not compiled: the optimiser's state is twice the size of the weights, and only a
    # resumed training needs it, which has its backup.
    plain = in_float32(keras.Model(model.input, model.output, name=model.name))
    with files.replacing(path) as beside:
        plain.save(beside)
