"""Requests that are answered with a status instead of a result."""

from __future__ import annotations

import grpc


class Refusal(Exception):
    """A request that is answered with a status.

    Attributes:
        code: the gRPC status.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refusal:
    """What is wrong with the request itself."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refusal:
    """What is not served."""
    return Refusal(grpc.StatusCode.NOT_FOUND, message)


def unmet(message: str) -> Refusal:
    """What the server's state does not allow."""
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
