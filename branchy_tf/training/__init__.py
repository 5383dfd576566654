"""Training all exits at once: losses, modes, resuming, the run folder."""

from branchy_tf.training.callbacks import read_history
from branchy_tf.training.phases import MODES, Settings, make_deterministic, train
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.transfer import copy_layers

__all__ = [
    "MODES",
    "RunFolder",
    "Settings",
    "copy_layers",
    "make_deterministic",
    "read_history",
    "train",
]
