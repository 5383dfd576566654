"""Trains multi-exit models: losses, modes, resuming and the run folder."""

from branchy_tf.training.callbacks import read_history
from branchy_tf.training.compiling import by_exit, compile_exits
from branchy_tf.training.distributing import STRATEGIES, distribute
from branchy_tf.training.phases import make_deterministic, train
from branchy_tf.training.recording import (
    data_flags,
    input_ranges,
    is_stored,
    load_dataset,
    load_stored,
    read_data,
)
from branchy_tf.training.run_folder import RunFolder, changes
from branchy_tf.training.settings import GRADIENT_SCALINGS, MODES, Settings
from branchy_tf.training.transfer import copy_layers

__all__ = [
    "GRADIENT_SCALINGS",
    "MODES",
    "STRATEGIES",
    "RunFolder",
    "Settings",
    "by_exit",
    "changes",
    "compile_exits",
    "copy_layers",
    "data_flags",
    "distribute",
    "input_ranges",
    "is_stored",
    "load_dataset",
    "load_stored",
    "make_deterministic",
    "read_data",
    "read_history",
    "train",
]
