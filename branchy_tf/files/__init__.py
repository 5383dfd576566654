"""Files: paths, reading and writing, flagfiles, Keras model files."""

from branchy_tf.files.contents import (
    read_json,
    reading,
    replacing,
    umask,
    write_csv,
    write_json,
    write_text,
)
from branchy_tf.files.paths import (
    Path,
    absolute,
    folder,
    is_url,
    next_version,
    path,
    printable,
    version_folders,
)

__all__ = [
    "Path",
    "absolute",
    "folder",
    "is_url",
    "next_version",
    "path",
    "printable",
    "read_json",
    "reading",
    "replacing",
    "umask",
    "version_folders",
    "write_csv",
    "write_json",
    "write_text",
]
