"""A small gRPC server with TF Serving's semantics, for development and tests.

It runs the engine that TF Serving runs, a Session, behind the same messages and
status codes, but it is Python: for production use tensorflow_model_server.
"""

from branchy_tf.serving.embedded.server import EmbeddedServer

__all__ = ["EmbeddedServer"]
