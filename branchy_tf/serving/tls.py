"""TLS for a client: which files, read and checked before anything connects."""

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
    """How to know a server, and how it knows this client.

    Attributes:
        ca: PEM file of the authorities to trust; default: the public ones that
            come with gRPC.
        certificate: PEM file of the client's own certificate and those that vouch
            for it, for a server with `client_verify`.
        key: PEM file of its key, not encrypted.
        server_name: the name in the server's certificate, where that is not the
            host that is called.

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
        """What a channel needs.

        Raises:
            BranchyError: a file is missing, unreadable or not what it should be, or
                one of certificate and key is given alone.
        """
        if self.server_name is not None:
            checks.text("server_name", self.server_name)
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key")
            if self.certificate is None:
                given, missing = missing, given
            raise BranchyError(
                f"Tls has a `{given}` and no `{missing}`; a client shows both or none. "
                f"Pass `{missing}` too."
            )
        ca, certificate, key = (
            _read(name, getattr(self, name)) for name in ("ca", "certificate", "key")
        )
        # gRPC itself would say no more than that it could not connect.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            with _checking(f"`ca`={self.ca}"):
                context.load_verify_locations(cadata=ca.decode("ascii"))
        if self.certificate is not None and self.key is not None:
            with _checking(f"`certificate`={self.certificate}, `key`={self.key}"):
                # Without a password OpenSSL would ask the terminal for one.
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
            f"Tls: {what} will not do: {first_line(error)}. Pass PEM files; a key must "
            "belong to its certificate and have no password."
        ) from None
