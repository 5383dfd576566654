"""A local page to try a model by hand: draw, drop or choose an image, move thresholds."""

from branchy_tf.playing.server import PlayServer
from branchy_tf.playing.subjects import (
    Answer,
    Facts,
    Subject,
    of_export,
    of_model,
    pixel_range,
)

__all__ = [
    "Answer",
    "Facts",
    "PlayServer",
    "Subject",
    "of_export",
    "of_model",
    "pixel_range",
]
