"""How every method answers: always with a status."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc
import tensorflow as tf
from absl import logging

from branchy_tf.serving.embedded.refusals import Refusal

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


def answering(method: Callable) -> Callable:
    """Turns refusals and the engine's errors into gRPC statuses."""

    @functools.wraps(method)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except Exception as error:
            code, message = status_of(error)
            if code == grpc.StatusCode.INTERNAL and not isinstance(error, _KNOWN):
                logging.exception("%s failed", method.__name__)
        context.abort(code, message[:1000])

    return answer


_KNOWN = (Refusal, tf.errors.OpError)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status that tells a client of an error."""
    if isinstance(error, Refusal):
        return error.code, str(error)
    if isinstance(error, tf.errors.OpError):
        return _STATUS[error.error_code], error.message
    # Never UNKNOWN with a traceback: the client gets a status to act on.
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
