"""TLS between clients, gateway and units."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import trustme

from branchy_tf.errors import ServerError
from branchy_tf.serving import EarlyExitClient, Tls
from branchy_tf.serving.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """PEM files of an authority and of a server, and the server's SSLConfig."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server.private_key_pem.write_to_path(folder / "key.pem")
    server.cert_chain_pems[0].write_to_path(folder / "certificate.pem")

    def quoted(name: str) -> str:
        text = (folder / name).read_text()
        return '"' + text.replace("\n", "\\n") + '"'

    (folder / "ssl.config").write_text(
        f"server_key: {quoted('key.pem')}\nserver_cert: {quoted('certificate.pem')}\n"
    )
    return folder


def test_all_ways_may_use_tls(folder, exact_dir, hard, gateway):
    credentials = grpc.ssl_server_credentials(
        [((folder / "key.pem").read_bytes(), (folder / "certificate.pem").read_bytes())]
    )
    config = folder / "cascade.yaml"
    options = {"ssl_config_file": folder / "ssl.config"}
    with EmbeddedServer(exact_dir / "cloud", port=0, **options) as cloud:
        # The path of the authority is relative to the file.
        config.write_text(
            "model: net\nunits:\n"
            f"  device: {{path: {exact_dir / 'device'}, next: cloud}}\n"
            f"  cloud: {{servers: 'localhost:{cloud.port}', tls: {{ca: ca.pem}}}}\n"
        )
        with gateway(config, credentials=credentials) as served:
            address = f"localhost:{served.gateway.port}"
            tls = Tls(ca=folder / "ca.pem")
            with EarlyExitClient(address, "net", tls=tls, timeout=30) as client:
                answer = client.predict(hard, [0.0])
            assert (answer.exits == 1).all()
            assert not np.asarray(answer.degraded).any()
            with (
                EarlyExitClient(address, "net", timeout=3) as client,
                pytest.raises(ServerError),
            ):
                client.predict(hard)
