"""Early exit in LiteRT: exports for devices, and the engine that runs them.

Running an export needs NumPy and ai-edge-litert, and neither TensorFlow nor Keras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from branchy_tf.litert.engine import LiteRTEngine

if TYPE_CHECKING:
    from branchy_tf.litert.writing import export as export

__all__ = ["LiteRTEngine", "export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from branchy_tf.litert import writing

        return writing.export
    raise AttributeError(f"module 'branchy_tf.litert' has no attribute {name!r}")
