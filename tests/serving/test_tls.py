from __future__ import annotations

import types

import grpc
import pytest
import servers
import trustme

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import Tls

MODEL = servers.MODEL


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """PEM files: two authorities, and a client and a server known to the first."""
    folder = tmp_path_factory.mktemp("pki")
    authority, stranger = trustme.CA(), trustme.CA()
    files = types.SimpleNamespace(folder=folder)
    server = authority.issue_cert("models.example")
    client = authority.issue_cert("client.example")
    for name, blob in {
        "ca": authority.cert_pem,
        "stranger": stranger.cert_pem,
        "certificate": client.cert_chain_pems[0],
        "key": client.private_key_pem,
        "server_certificate": server.cert_chain_pems[0],
        "server_key": server.private_key_pem,
    }.items():
        blob.write_to_path(folder / f"{name}.pem")
        setattr(files, name, folder / f"{name}.pem")
    return files


@pytest.fixture(scope="module", params=[False, True], ids=["server", "mutual"])
def mutual(request):
    """Whether the server wants to know its clients."""
    return request.param


@pytest.fixture
def fake(pki, mutual):
    credentials = grpc.ssl_server_credentials(
        [(pki.server_key.read_bytes(), pki.server_certificate.read_bytes())],
        root_certificates=pki.ca.read_bytes() if mutual else None,
        require_client_auth=mutual,
    )
    with servers.FakeServer(credentials=credentials) as server:
        yield server


def own(pki, mutual):
    return {"certificate": pki.certificate, "key": pki.key} if mutual else {}


def test_connects_to_a_trusted_server(fake, connect, pki, mutual, digits):
    tls = Tls(pki.ca, server_name="models.example", **own(pki, mutual))
    with connect(fake.address, MODEL, tls=tls) as client:
        assert len(client.predict(digits)) == 64
        assert client.wait_until_ready() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"server_name": "other.example"},
        {"server_name": None},  # 127.0.0.1 is not in the certificate
        {"ca": "stranger"},
        {"ca": None},
    ],
)
def test_rejects_other_servers(fake, connect, pki, mutual, digits, wrong):
    arguments = {"ca": "ca", "server_name": "models.example"} | wrong
    if arguments["ca"]:
        arguments["ca"] = getattr(pki, arguments["ca"])
    tls = Tls(**arguments, **own(pki, mutual))
    with (
        connect(fake.address, MODEL, tls=tls) as client,
        pytest.raises(ServerError, match="do not agree on TLS") as caught,
    ):
        client.predict(digits)
    assert caught.value.code == "UNAVAILABLE"
    assert not fake.requests


def test_without_tls_nothing_is_answered(fake, connect, digits):
    with (
        connect(fake.address, MODEL) as client,
        pytest.raises(ServerError, match="pass `tls` if it uses TLS") as caught,
    ):
        client.predict(digits)
    assert caught.value.code == "UNAVAILABLE"
    assert not fake.requests


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ca": "missing"}, r"`ca`=.*missing\.pem cannot be read: No such file"),
        ({"ca": "folder"}, "`ca`=.* cannot be read: Is a directory"),
        ({"ca": "notes"}, r"`ca`=.*notes\.pem is invalid"),
        ({"ca": "binary"}, r"`ca`=.*binary\.pem is invalid"),
        ({"certificate": "certificate"}, "a `certificate` and no `key`"),
        ({"key": "key"}, "a `key` and no `certificate`"),
        ({"certificate": "certificate", "key": "missing"}, "`key`=.*No such file"),
        ({"certificate": "certificate", "key": "server_key"}, "match the cert"),
        ({"certificate": "notes", "key": "key"}, "is invalid"),
    ],
)
def test_rejects_invalid_files(connect, pki, given, expected):
    (pki.folder / "notes.pem").write_text("no certificate")
    (pki.folder / "binary.pem").write_bytes(b"\xff\xfe\x00")
    paths = {
        name: pki.folder if file == "folder" else pki.folder / f"{file}.pem"
        for name, file in given.items()
    }
    with pytest.raises(BranchyError, match=expected) as caught:
        connect("localhost:1", MODEL, tls=Tls(**paths))
    assert "\n" not in str(caught.value)


def test_rejects_a_key_with_a_password_without_prompting(pki):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pki.key.read_bytes(), None)
    locked = pki.folder / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(BranchyError, match="have no password"):
        Tls(certificate=pki.certificate, key=locked).credentials()
