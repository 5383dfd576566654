"""Compresses multi-exit models: pruning, clustering and training for int8.

tensorflow-model-optimization does the work on tf_keras, in a process of its own, because
importing it turns TensorFlow to Keras 2. Only `worker` and what it alone imports may
import it.
"""

from branchy_tf.compression.running import compress
from branchy_tf.compression.settings import LEARNING_RATES, METHODS, Settings

__all__ = ["LEARNING_RATES", "METHODS", "Settings", "compress"]
