"""From a fitted model to a policy and an export, in Python, and finished runs."""

from branchy_tf.pipeline.calibrating import calibrate
from branchy_tf.pipeline.exporting import export
from branchy_tf.pipeline.runs import Run, load

__all__ = ["Run", "calibrate", "export", "load"]
