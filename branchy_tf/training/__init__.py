"""Training all exits at once: losses, modes, resuming, the run folder."""

from branchy_tf.training.callbacks import read_history
from branchy_tf.training.phases import MODES, Settings, make_deterministic, train
from branchy_tf.training.run_folder import RunFolder

__all__ = [
    "MODES",
    "RunFolder",
    "Settings",
    "make_deterministic",
    "read_history",
    "train",
]
