"""A local page to try a model by hand: draw, drop or choose an image, move thresholds."""

from branchy_tf.playing.opening import (
    of_cascade,
    of_model,
    of_server,
    of_version,
    pixel_range,
)
from branchy_tf.playing.server import PlayServer
from branchy_tf.playing.subjects import Answer, Facts, Subject

__all__ = [
    "Answer",
    "Facts",
    "PlayServer",
    "Subject",
    "of_cascade",
    "of_model",
    "of_server",
    "of_version",
    "pixel_range",
]
