"""Trains in phases, each of which can be killed and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence

import keras
from absl import logging

from branchy_tf import checks, exits, files, graphs
from branchy_tf.data import Dataset, fitted, weighted
from branchy_tf.errors import BranchyError
from branchy_tf.training import branches, distributing, losses, recording
from branchy_tf.training.callbacks import has_backup
from branchy_tf.training.distillation import DistilledModel
from branchy_tf.training.fitting import Phase, fit
from branchy_tf.training.precision import in_float32
from branchy_tf.training.run_folder import RunFolder, changes
from branchy_tf.training.settings import Settings
from branchy_tf.training.transfer import Baseline, read_baseline, take_baseline
from branchy_tf.training.weighting import WeightedModel


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
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains `model` in place and writes the run folder, which every command takes.

    A killed training resumes when called again with the same arguments, and a finished
    one loads its weights into `model`. With more `epochs`, a finished training goes on
    from the backup of its last epoch, as if it had been started with that number:
    weights, optimiser, shuffling and augmentation continue. With a constant learning
    rate the result is that of one long training, bit for bit. Other schedules are those
    of the long training from there on, so the rate rises again.

    Writes model.keras, baseline.keras if a baseline was trained, history.csv, logs/
    (TensorBoard), train.flags, data.json, data.npz for data that cannot be loaded by
    name, and backup/, which later epochs need.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        dataset: trains on its training split and evaluates on its validation split.
        settings: the settings of the training.
        folder: the folder to write to.
        flags: the text of train.flags, written after all checks; default: the settings.
        callbacks: called after those of the training. Their own state is not backed up:
            for early stopping that survives a kill, set `Settings.patience`.

    Raises:
        BranchyError: settings, model and data set do not fit together, the folder holds
            a training with other settings, or another process trains into it.

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
    _check_callbacks(callbacks)
    settings.check(model, dataset)
    distribution = distributing.current()
    distribution.check(model, settings.batch_size, len(dataset.train))
    if distribution.devices > 1 and settings.sample_weighting is not None:
        raise BranchyError(
            "`sample_weighting` divides the rows of a batch among the exits, which "
            "several devices cannot do each for its part. Train on one device."
        )
    given = dataset
    dataset = weighted(fitted(model, dataset), settings.class_weights)
    baseline = None
    if settings.baseline is not None:
        baseline = read_baseline(exits.baseline(model), settings.baseline)
    if flags is None:
        _check_same(folder, settings)
        flags = recording.flags_text(settings)
    with folder.locked() if distribution.writes else contextlib.nullcontext():
        if distribution.agree(folder.is_finished(settings.epochs)):
            logging.info("%s is already trained; nothing to do.", folder.path)
            graphs.copy_weights(folder.load_model(), model)
            return
        last = branches_phase(model, settings).name
        if distribution.writes:
            _prepare_more_epochs(folder, last)
            recording.write_data(folder, model, given)
            files.write_text(folder.flags, flags)
        _check_shared(folder)
        if settings.has_baseline_phase:
            trained = has_backup(folder.backup(last)) and folder.baseline.is_file()
            if distribution.agree(trained):
                # The phase is over, and a finished run keeps no backup of it.
                baseline = read_baseline(exits.baseline(model), folder.baseline)
            _train_baseline(model, dataset, settings, folder, baseline, callbacks)
        _train_branches(model, dataset, settings, folder, callbacks)
        _save(model, folder.model)
        for backup in folder.backups.iterdir() if distribution.writes else ():
            if backup.name != last:
                shutil.rmtree(backup, ignore_errors=True)


def _check_shared(folder: RunFolder) -> None:
    """Checks that all processes see the folder that one of them writes."""
    distribution = distributing.current()
    distribution.agree(None)
    if not folder.flags.is_file():
        raise BranchyError(
            f"Process {distribution.process} does not see {folder.flags}, which process "
            "0 has written. Pass a --run_dir in a file system that all machines share."
        )


def _check_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    is_list = isinstance(callbacks, (list, tuple))
    if not is_list or not all(
        isinstance(callback, keras.callbacks.Callback) for callback in callbacks
    ):
        raise BranchyError(
            "`callbacks` must be a list of keras.callbacks.Callback. Received "
            f"{checks.shown(callbacks)}."
        )


def _check_same(folder: RunFolder, settings: Settings) -> None:
    """Raises `BranchyError` if the folder holds a training with other settings."""
    if not folder.flags.is_file():
        return
    old = folder.read_flags()
    now: dict[str, str | None] = dict.fromkeys(
        field.name for field in dataclasses.fields(settings)
    )
    now |= recording.settings_flags(settings)
    if folder.may_continue(old, settings.epochs):
        now.pop("epochs")
    changed = changes(old, now, {}, "`{}`")
    if changed:
        raise BranchyError(
            f"{folder.path} holds a training with other settings: {'; '.join(changed)}. "
            "Pass the same settings to resume it, or another folder."
        )


def _prepare_more_epochs(folder: RunFolder, phase: str) -> None:
    """Turns a finished run into an unfinished one that its backup resumes."""
    if not folder.model.is_file() or not folder.flags.is_file():
        return
    if not has_backup(folder.backup(phase)):
        raise BranchyError(
            f"{folder.path} has no backup of its last epoch, so it cannot be trained for "
            f"more. Start from its weights in another folder: {folder.model}."
        )
    folder.model.unlink()


def _train_baseline(
    model: keras.Model,
    dataset: Dataset,
    settings: Settings,
    folder: RunFolder,
    baseline: Baseline | None,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    phase = baseline_phase(model, settings)
    if baseline is not None:
        take_baseline(phase.model, baseline, folder.baseline)
        return
    # Without epochs, the network was trained elsewhere.
    if phase.epochs:
        fit(phase, dataset, settings, folder, exits.exit_names(model), callbacks)
    _save(phase.model, folder.baseline)


def _train_branches(
    model: keras.Model,
    dataset: Dataset,
    settings: Settings,
    folder: RunFolder,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    frozen: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if settings.mode == "branches_only":
        frozen = branches.frozen_trunk(model)
    with frozen:
        phase = branches_phase(model, settings)
        fit(phase, dataset, settings, folder, exits.exit_names(model), callbacks)


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
        ordered = {name: outputs[name] for name in shown}
        if settings.distillation is not None:
            return DistilledModel(inputs, ordered, weights, *settings.distillation)
        if settings.sample_weighting is not None:
            delta, ratio = settings.sample_weighting
            return WeightedModel(inputs, ordered, weights, delta, ratio, settings.seed)
        return keras.Model(inputs, outputs)

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
    with distributing.current().writing() as writes:
        if not writes:
            return
        plain = in_float32(keras.Model(model.input, model.output, name=model.name))
        with files.replacing(path) as beside:
            plain.save(beside)
