"""Version folders of exported models: what one holds, and how a new one appears."""

from branchy_tf.versions.describing import (
    FORMATS,
    LITERT,
    SAVED_MODEL,
    Description,
    describe,
    find_format,
)
from branchy_tf.versions.writing import check_model_name, new_version

__all__ = [
    "FORMATS",
    "LITERT",
    "SAVED_MODEL",
    "Description",
    "check_model_name",
    "describe",
    "find_format",
    "new_version",
]
