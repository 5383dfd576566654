"""Exports multi-exit Keras models as SavedModels for TF Serving."""

from branchy_tf.saved_model.early_exit import EarlyExitModule
from branchy_tf.saved_model.writing import export

__all__ = ["EarlyExitModule", "export"]
