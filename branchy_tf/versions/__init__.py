"""Version folders of exported models: what one holds, and how a new one appears."""

from branchy_tf.versions.describing import (
    FORMATS,
    LITERT,
    SAVED_MODEL,
    Description,
    describe,
    find_format,
)
from branchy_tf.versions.writing import (
    NewVersion,
    check_model_name,
    misplaced,
    new_version,
)

__all__ = [
    "FORMATS",
    "LITERT",
    "SAVED_MODEL",
    "Description",
    "NewVersion",
    "check_model_name",
    "describe",
    "find_format",
    "misplaced",
    "new_version",
]
