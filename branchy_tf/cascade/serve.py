r"""Serves a cascade of units over gRPC as if it were one model.

Example:

  python -m branchy_tf.cascade serve --config=units/cascade.yaml --port=8500

Clients ask it as they ask TF Serving. It reads the file again when it changes.
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import prometheus_client
from absl import flags, logging

from branchy_tf import command_line
from branchy_tf.command_line import startup
from branchy_tf.errors import BranchyError
from branchy_tf.serving import addresses, configs

FLAGS = flags.FLAGS

command_line.define_path("config", None, "The cascade.yaml.")
flags.DEFINE_integer("port", 8500, "Port of gRPC; 0 picks a free one.", 0, 65535)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on, IPv4 or IPv6.")
flags.DEFINE_integer(
    "metrics_port", 0, "Port of the Prometheus metrics, over HTTP; 0: none.", 0, 65535
)
command_line.define_path(
    "ssl_config_file", None, "A text SSLConfig, as TF Serving's, which turns on TLS."
)


async def _serve(credentials: grpc.ServerCredentials | None) -> None:
    with startup.hushed():
        from branchy_tf.units.gateway import Gateway

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host = addresses.check_host(FLAGS.host)
    gateway = Gateway(FLAGS.config, FLAGS.port, host, credentials)
    with _serving_metrics(gateway.metrics.registry, host):
        await gateway.start()
        logging.info(
            "Serving %s on %s. Press Ctrl-C to stop.",
            FLAGS.config,
            addresses.join(host, gateway.port),
        )
        await stop.wait()
        logging.info("Stopping ...")
        await gateway.stop()
    logging.info("Stopped.")


@contextlib.contextmanager
def _serving_metrics(registry: Any, host: str) -> Iterator[None]:
    """Serves the metrics over HTTP, if --metrics_port asks for it."""
    if not FLAGS.metrics_port:
        yield
        return
    try:
        server, thread = prometheus_client.start_http_server(
            FLAGS.metrics_port, host, registry
        )
    except OSError as error:
        raise BranchyError(
            f"Cannot listen on {addresses.join(host, FLAGS.metrics_port)}: "
            f"{error.strerror}. Pass another --metrics_port."
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _credentials() -> grpc.ServerCredentials | None:
    if not FLAGS.ssl_config_file:
        return None
    ssl = configs.read(FLAGS.ssl_config_file, "SSLConfig")
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )


def main() -> None:
    if not FLAGS.config:
        raise BranchyError(
            "--config is missing: a cascade.yaml, as `cascade export` writes it."
        )
    asyncio.run(_serve(_credentials()))


if __name__ == "__main__":
    command_line.run(main)
