"""TLS files of a client, read and checked before it connects."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from collections.abc import Iterator

import grpc

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError, first_line


@dataclasses.dataclass(frozen=True)
class Tls:
    """How a client and a server authenticate each other.

    Attributes:
        ca: PEM file of trusted authorities; default: the public ones that gRPC ships.
        certificate: PEM file of the client's certificate chain, for a server with
            `client_verify`.
        key: PEM file of its key, without a password.
        server_name: the name in the server's certificate, if it is not the host.

    Example:

    ```python
    tls = Tls(ca="ca.pem", certificate="client.pem", key="client.key")
    EarlyExitClient("models.example:8500", model="branchy_lenet", tls=tls)
    ```
    """

    ca: files.Path | None = None
    certificate: files.Path | None = None
    key: files.Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials of a channel.

        Raises:
            BranchyError: a file is missing, unreadable or invalid, or only one of
                certificate and key is given.
        """
        if self.server_name is not None:
            checks.text("server_name", self.server_name)
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key")
            if self.certificate is None:
                given, missing = missing, given
            raise BranchyError(
                f"Tls has a `{given}` and no `{missing}`; a client needs both or none. "
                f"Pass `{missing}` too."
            )
        ca, certificate, key = (
            _read(name, getattr(self, name)) for name in ("ca", "certificate", "key")
        )
        # gRPC would only report a failed connection.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            with _checking(f"`ca`={self.ca}"):
                context.load_verify_locations(cadata=ca.decode("ascii"))
        if self.certificate is not None and self.key is not None:
            with _checking(f"`certificate`={self.certificate}, `key`={self.key}"):
                # Without a password OpenSSL would prompt for one.
                context.load_cert_chain(
                    files.absolute(self.certificate), files.absolute(self.key), ""
                )
        return grpc.ssl_channel_credentials(ca, key, certificate)


def _read(name: str, path: files.Path | None) -> bytes | None:
    if path is None:
        return None
    checks.path(name, path)
    try:
        return files.absolute(path).read_bytes()
    except OSError as error:
        raise BranchyError(
            f"Tls: `{name}`={checks.shown(str(path))[1:-1]} cannot be read: "
            f"{error.strerror}. Pass a PEM file."
        ) from None


@contextlib.contextmanager
def _checking(what: str) -> Iterator[None]:
    try:
        yield
    except (ssl.SSLError, ValueError) as error:
        raise BranchyError(
            f"Tls: {what} is invalid: {first_line(error)}. Pass PEM files; the key must "
            "match the certificate and have no password."
        ) from None
