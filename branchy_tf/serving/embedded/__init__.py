"""A small gRPC server with TF Serving's semantics, for development and tests.

Like TF Serving it runs models in a Session, with the same messages and status codes. As
it is Python, use tensorflow_model_server in production.
"""

from branchy_tf.serving.embedded.server import EmbeddedServer

__all__ = ["EmbeddedServer"]
