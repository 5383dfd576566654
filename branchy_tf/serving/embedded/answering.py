"""How every method answers: always with a status."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc
import tensorflow as tf
from absl import logging
from google.protobuf import message as protobuf
from google.protobuf import message_factory

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


def handlers(service: Any, servicer: Any) -> grpc.GenericRpcHandler:
    """Leads the calls of a service to the methods of a servicer.

    As grpc's generated code does, but messages are parsed here: grpc keeps what it
    knows of a request whose message cannot be parsed for ever (seen in 1.85), and so
    would let a stranger fill the memory.

    Args:
        service: its descriptor; every method takes and gives one message.
        servicer: with a method for each.
    """
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: grpc.unary_unary_rpc_method_handler(
                functools.partial(
                    _parsing,
                    message_factory.GetMessageClass(method.input_type).FromString,
                    getattr(servicer, method.name),
                ),
                response_serializer=lambda message: message.SerializeToString(),
            )
            for method in service.methods
        },
    )


def _parsing(
    parse: Callable, method: Callable, content: bytes, context: grpc.ServicerContext
) -> Any:
    try:
        request = parse(content)
    except protobuf.DecodeError as error:
        # TF Serving's status for it.
        context.abort(grpc.StatusCode.INTERNAL, f"The request cannot be parsed: {error}")
    return method(request, context)


_KNOWN = (Refusal, tf.errors.OpError)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status that tells a client of an error."""
    if isinstance(error, Refusal):
        return error.code, str(error)
    if isinstance(error, tf.errors.OpError):
        return _STATUS[error.error_code], error.message
    # Never UNKNOWN with a traceback: the client gets a status to act on.
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
