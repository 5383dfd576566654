"""Plots of results, as PNG files."""

from branchy_tf.plots.classes import classes
from branchy_tf.plots.contenders import contenders
from branchy_tf.plots.frontier import frontier
from branchy_tf.plots.gallery import gallery
from branchy_tf.plots.leaving import histograms, leaving
from branchy_tf.plots.load import load
from branchy_tf.plots.reliability import reliability
from branchy_tf.plots.training import training

__all__ = [
    "classes",
    "contenders",
    "frontier",
    "gallery",
    "histograms",
    "leaving",
    "load",
    "reliability",
    "training",
]
