"""From a multi-exit Keras model to a version that TF Serving loads."""

from branchy_tf.saved_model.early_exit import EarlyExitModule
from branchy_tf.saved_model.writing import export

__all__ = ["EarlyExitModule", "export"]
