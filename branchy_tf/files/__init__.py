"""Files: paths, reading and writing, flagfiles, Keras model files."""

from branchy_tf.files.contents import (
    read_json,
    reading,
    replacing,
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
from branchy_tf.files.versions import begin_version, finish_version

__all__ = [
    "Path",
    "absolute",
    "begin_version",
    "finish_version",
    "folder",
    "is_url",
    "next_version",
    "path",
    "printable",
    "read_json",
    "reading",
    "replacing",
    "version_folders",
    "write_csv",
    "write_json",
    "write_text",
]
