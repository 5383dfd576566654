"""Pictures of results, as PNG."""

from branchy_tf.plots.classes import classes
from branchy_tf.plots.contenders import contenders
from branchy_tf.plots.drift import drift
from branchy_tf.plots.frontier import frontier
from branchy_tf.plots.gallery import gallery
from branchy_tf.plots.growth import growth
from branchy_tf.plots.leaving import histograms, leaving
from branchy_tf.plots.load import load
from branchy_tf.plots.reliability import reliability
from branchy_tf.plots.study import study
from branchy_tf.plots.training import training

__all__ = [
    "classes",
    "contenders",
    "drift",
    "frontier",
    "gallery",
    "growth",
    "histograms",
    "leaving",
    "load",
    "reliability",
    "study",
    "training",
]
