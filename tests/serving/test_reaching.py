"""What is said where a server is not reached, over real connections."""

from __future__ import annotations

import http.server
import socket
import threading

import grpc
import pytest
import servers
import trustme

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import Tls, addresses
from branchy_tf.serving.channels import Route, explain
from branchy_tf.serving.messages import Target

MODEL = servers.MODEL
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
GONE = "failed to connect to all addresses; last error: "
REFUSED = GONE + "UNKNOWN: ipv4:10.0.0.1:3128: Connection refused"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listen():
    """Starts servers that answer whatever comes with given bytes and hang up."""
    listening = []

    def start(reply: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(reply)

        threading.Thread(target=answer, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listening:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def said(connect, server: str, tls=None, timeout: float = 10) -> str:
    """What a client of a server says of it, in one line."""
    with (
        connect(server, MODEL, tls=tls, timeout=timeout) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.describe()
    assert caught.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_rest_port_is_not_grpcs(connect):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert "pass gRPC's port" in said(connect, f"127.0.0.1:{server.server_port}")
        # Of localhost's two addresses gRPC may tell of the one where nobody listens.
        assert "REST" in said(connect, f"localhost:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"]
)
def test_names_servers_that_are_not_grpc(connect, listen, reply):
    assert "is not a gRPC server" in said(connect, listen(reply))


def test_explains_tls_on_one_side_only(connect, fake, authority):
    certificate = authority.issue_cert("localhost")
    credentials = grpc.ssl_server_credentials(
        [(
            certificate.private_key_pem.bytes(),
            certificate.cert_chain_pems[0].bytes(),
        )]
    )  # fmt: skip
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    assert "does not speak TLS; omit `tls`" in said(connect, fake.address, trusting)
    with servers.FakeServer(credentials=credentials) as server:
        assert "hangs up; pass `tls` if it uses TLS" in said(connect, server.address)
        assert "do not agree on TLS" in said(connect, server.address, Tls())
        # grpc's own credentials do as well as a Tls.
        with connect(f"localhost:{server.port}", MODEL, tls=trusting) as client:
            assert client.wait_until_ready() == 1


def test_explains_a_hang_up_during_the_tls_handshake(connect, listen):
    assert "during the TLS handshake" in said(connect, listen(b""), Tls())


@pytest.mark.parametrize("tls", [True, "ca.pem", {"ca": "ca.pem"}, 0])
def test_tls_is_a_tls_or_credentials(connect, tls):
    with pytest.raises(BranchyError, match="`tls` must be a Tls"):
        connect("localhost:1", MODEL, tls=tls)


def test_names_hosts_that_do_not_resolve(connect):
    text = said(connect, "no-such-host.invalid:8500")
    assert "The name in no-such-host.invalid:8500 does not resolve" in text


def test_suggests_a_missing_port(connect):
    if _is_open(443):
        pytest.skip("something listens on port 443 here")
    assert "write localhost:8500" in said(connect, "localhost")


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_gives_up_a_silent_server(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        text = said(connect, server, timeout=0.5)
    assert text.startswith(f"DEADLINE_EXCEEDED: {server} did not answer in time; pass a")


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_contacts_local_servers_directly(connect, fake, monkeypatch, variable, host):
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with connect(f"{host}:{fake.port}", MODEL) as client:
        assert client.wait_until_ready(timeout=10) == 1


def test_names_a_proxy_that_is_down_or_refuses(connect, listen, monkeypatch):
    down = f"127.0.0.1:{servers.free_port()}"
    refuses = listen(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    for proxy in (down, refuses, listen(b""), "no-such-host.invalid:3128"):
        monkeypatch.setenv("http_proxy", f"http://user:secret@{proxy}")
        text = said(connect, "models.invalid:8500")
        expected = f"The proxy http_proxy=http://{proxy} does not lead to models.invalid"
        assert expected in text
        assert "secret" not in text
    monkeypatch.setenv("no_proxy", "localhost,.invalid")
    assert "does not resolve; correct" in said(connect, "models.invalid:8500")


def test_names_a_silent_proxy(connect, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        text = said(connect, "models.invalid:8500", timeout=0.5)
    assert "in time through the proxy http_proxy=http://127.0.0.1" in text


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (
            "UNAVAILABLE",
            REFUSED,
            r"^UNAVAILABLE: No server answers at h:1; start one",
        ),
        (
            "UNAVAILABLE",
            GONE + "connect timed out",
            "h:1 cannot be reached; correct",
        ),
        ("UNAVAILABLE", GONE + "No route to host", "firewalls"),
        ("UNAVAILABLE", GONE + "Ssl handshake failed", r"agree on TLS; correct Tls\(ca"),
        (
            "UNIMPLEMENTED",
            "Received http2 header with status: 404",
            "^UNAVAILABLE: .*REST",
        ),
        ("UNIMPLEMENTED", "Method not found!", "^UNIMPLEMENTED: Method not found!$"),
        ("NOT_FOUND", "", "h:1 does not serve model 'm' version 3; correct the"),
        ("RESOURCE_EXHAUSTED", "", "no room"),
        ("DATA_LOSS", "two\nlines", "^DATA_LOSS: two lines$"),
    ],
)
def test_statuses_are_explained(code, details, expected):
    with pytest.raises(ServerError, match=expected):
        raise explain(Target("h:1", "m", 3), Route("h:1"), code, details)


def test_a_label_is_named():
    error = explain(Target("h:1", "m", None, "x"), Route("h:1"), "NOT_FOUND", "")
    assert "model 'm' label 'x'" in str(error)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("::1:8500", r"brackets before its port, such as \[::1\]:8500"),
        ("::1", r"such as \[::1\]:8500"),
        ("fe80::1:2:8500", r"such as \[fe80::1:2\]:8500"),
        ("http://localhost:8500", "not a URL: write localhost:8500. Rec"),
        ("https://models.example:443/v1", "write models.example:443, and pass `tls`"),
        ("localhost:99999", "from 1 to 65535"),
        ("localhost:0", "from 1 to 65535"),
        ("localhost:http", "from 1 to 65535"),
        ("localhost:", "from 1 to 65535"),
        (":8500", "must be host:port"),
        ("a b:1", "must be host:port"),
        ("localhost:8500\n", "must be host:port"),
        ("[::1]8500", "must be host:port"),
        ("", "non-empty string"),
        (None, "non-empty string"),
        (8500, "non-empty string"),
    ],
)
def test_rejects_addresses_that_grpc_misreads(connect, server, expected):
    with pytest.raises(BranchyError, match=expected) as caught:
        connect(server, MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "local"),
    [
        ("localhost:1", True),
        ("LOCALHOST:1", True),
        ("a.localhost:1", True),
        ("localhost.example:1", False),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("128.0.0.1:1", False),
        ("0.0.0.0:1", True),
        ("[::1]:1", True),
        ("[::]:1", True),
        ("[fe80::1]:1", False),
        ("unix:/tmp/socket", True),
        ("unix-abstract:name", True),
        ("dns:///localhost:1", True),
        ("dns://8.8.8.8/models.example:1", False),
        ("ipv4:127.0.0.1:1", True),
        ("ipv6:[::1]:1", True),
        ("models.example:1", False),
    ],
)
def test_local_servers_need_no_proxy(monkeypatch, server, local):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert addresses.check_server(server) == server
    assert addresses.is_local(server) == local
    assert (addresses.proxy_for(server) is None) == local


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"http_proxy": ""}, None),
        ({"http_proxy": "http://p:1"}, "http_proxy=http://p:1"),
        (
            {"http_proxy": "http://p:1", "https_proxy": "http://q:2"},
            "https_proxy=http://q:2",
        ),
        (
            {"http_proxy": "http://p:1", "grpc_proxy": "http://r:3"},
            "grpc_proxy=http://r:3",
        ),
        ({"http_proxy": "http://u:p@p:1"}, "http_proxy=http://p:1"),
        ({"http_proxy": "p:1"}, None),
        ({"http_proxy": "socks5://p:1"}, None),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, None),
        ({"http_proxy": "http://p:1", "no_proxy": "a, example"}, None),
        (
            {"http_proxy": "http://p:1", "no_proxy": "example.org,,"},
            "http_proxy=http://p:1",
        ),
        (
            {"http_proxy": "http://p:1", "no_proxy": "*", "no_grpc_proxy": "a"},
            "http_proxy=http://p:1",
        ),
    ],
)
def test_the_environment_names_the_proxy(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert addresses.proxy_for("models.example:8500") == expected


def test_networks_may_be_excepted(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://p:1")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,fd00::/8")
    assert addresses.proxy_for("10.1.2.3:8500") is None
    assert addresses.proxy_for("[fd00::7]:8500") is None
    assert addresses.proxy_for("11.1.2.3:8500") == "http_proxy=http://p:1"


def test_a_unix_socket_is_reached_with_a_proxy_set(connect, monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with (
        servers.FakeServer(listen=f"unix:{tmp_path}/socket") as server,
        connect(server.address, MODEL) as client,
    ):
        assert client.wait_until_ready(timeout=10) == 1
