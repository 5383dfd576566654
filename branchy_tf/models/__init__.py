"""Models as flags name them: of the zoo, from a `.keras` file, or from a function."""

from branchy_tf.models.building import build
from branchy_tf.models.calling import call_builder
from branchy_tf.models.exits import with_exits

__all__ = ["build", "call_builder", "with_exits"]
