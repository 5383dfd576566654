"""Statuses: every method answers with a result or a gRPC status."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc
import tensorflow as tf
from absl import logging
from google.protobuf import message as protobuf
from google.protobuf import message_factory

from branchy_tf.errors import BranchyError
from branchy_tf.serving import compression

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class Refusal(Exception):
    """Ends a request with a status.

    Attributes:
        code: the gRPC status.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refusal:
    """The request itself is wrong."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refusal:
    """The model or version is not served."""
    return Refusal(grpc.StatusCode.NOT_FOUND, message)


def unmet(message: str) -> Refusal:
    """The server's state does not allow it."""
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and message that report an error to the client."""
    if isinstance(error, Refusal):
        return error.code, str(error)
    if isinstance(error, tf.errors.OpError):
        return _STATUS[error.error_code], error.message
    # Never UNKNOWN with a traceback: clients need a status they can act on.
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"


def answering(method: Callable) -> Callable:
    """Turns the exceptions of a method into gRPC statuses."""

    @functools.wraps(method)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except Exception as error:
            code, message = status_of(error)
            if not isinstance(error, (Refusal, tf.errors.OpError)):
                logging.exception("%s failed", method.__name__)
        context.abort(code, message[:1000])

    return answer


def handlers(service: Any, servicer: Any) -> grpc.GenericRpcHandler:
    """Routes the calls of a service to the methods of a servicer.

    grpc's generated code does the same, but has grpc parse the messages. For a message
    that does not parse, grpc keeps what it knows of the request forever (seen in 1.85),
    so a stranger could fill the memory. Here the handler parses.

    Args:
        service: its descriptor; every method takes and returns one message.
        servicer: an object with these methods.
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
        if compression.is_marked(context.invocation_metadata()):
            content = compression.unpack(content)
        request = parse(content)
    except BranchyError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except protobuf.DecodeError as error:
        # TF Serving's status for it.
        context.abort(grpc.StatusCode.INTERNAL, f"The request cannot be parsed: {error}")
    return method(request, context)
