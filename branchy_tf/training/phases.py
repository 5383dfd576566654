"""Training in phases, each of which can be killed and resumed."""

from __future__ import annotations

import contextlib
import shutil

import keras

from branchy_tf import checks, exits, files
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.training import branches, losses
from branchy_tf.training.distillation import DistilledModel
from branchy_tf.training.fitting import Phase, fit
from branchy_tf.training.precision import in_float32
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.settings import Settings
from branchy_tf.training.transfer import Baseline, read_baseline, take_baseline


def make_deterministic(seed: int) -> None:
    """Seeds everything; same seed, machine, versions and threads, same history."""
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

    Training goes on from the backup of an earlier, killed call with the same
    arguments. Writes model.keras, baseline.keras if a baseline was trained,
    history.csv and logs/ (TensorBoard).

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        dataset: the training split is trained on, the validation split watched.
        settings: how.
        folder: where to write.
        flags: text of train.flags, which is written once everything is checked.

    Raises:
        BranchyError: settings, model and data set do not fit together.
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
    """The phase that trains the final exit alone."""
    final = exits.exit_names(model)[-1]
    return Phase(
        "baseline",
        exits.baseline(model),
        lambda trainer, optimizer: losses.compile_baseline(trainer, final, optimizer),
        lambda split: split.labels,
        settings.baseline_epochs,
    )


def branches_phase(model: keras.Model, settings: Settings) -> Phase:
    """The phase of the exits together; what it moves depends on the mode."""
    names = exits.exit_names(model)
    weights = losses.check_loss_weights(names, settings.loss_weights)
    trained, name = model, settings.mode
    if settings.mode == "baseline_first":
        name = "joint"
    elif settings.mode == "branches_only":
        name = "branches"
        weights[-1] = 0.0
        if settings.distillation is None:
            # Nothing asks for the final exit, so it is not computed at all.
            trained = _early_exits(model)
    elif settings.mode == "detached":
        trained = branches.detached(model)
    if settings.gradient_scaling == "equilibrium":
        trained = branches.equilibrium(trained)
    shown = [name for name in names if name in trained.output]
    weights = weights[: len(shown)]

    def compile_(trainer: keras.Model, optimizer: keras.Optimizer) -> None:
        left = trainer.label_weights() if settings.distillation else weights
        losses.compile_joint(trainer, shown, optimizer, left)

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
    # The same graph, not compiled: the optimiser's state is twice the weights, and
    # of use to a resumed training alone, which has its backup.
    plain = in_float32(keras.Model(model.input, model.output, name=model.name))
    with files.replacing(path) as beside:
        plain.save(beside)
