from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from concurrent import futures

import blocking
import grpc
import numpy as np
import pytest
import servers

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer

MODEL = servers.MODEL


def test_reports_a_missing_server_quickly(connect, digits):
    with connect(f"localhost:{servers.free_port()}", MODEL, timeout=30) as client:
        code, seconds = servers.failure(client.predict, digits)
        assert code == "UNAVAILABLE"
        assert seconds < 10
        with pytest.raises(ServerError, match=r"start one .*branchy_tf\.serve"):
            client.predict(digits)


@pytest.mark.parametrize("rows", [1, 2000])
def test_retries_a_server_that_is_unavailable(fake, connect, rows):
    # gRPC alone keeps no request above 256 KB for another try.
    images = np.zeros((rows, 28, 28, 1), np.uint8)
    fake.fail(2)
    with connect(fake.address, MODEL, max_rows=rows) as client:
        assert len(client.predict(images)) == rows
        assert len(fake.requests) == 3
        fake.fail(4)
        assert servers.failure(client.predict, images)[0] == "UNAVAILABLE"
    assert len(fake.requests) == 3 + 4


@pytest.mark.parametrize("code", ["INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
def test_does_not_retry_what_may_have_reached_the_model(fake, fake_client, digits, code):
    fake.fail(1, code)
    with pytest.raises(ServerError, match="two lines") as caught:
        fake_client.predict(digits)
    assert caught.value.code == code
    assert len(fake.requests) == 1


def test_reconnects_to_a_restarted_server(exported, connect, digits):
    port = servers.free_port()
    with connect(f"localhost:{port}", MODEL) as client:
        with EmbeddedServer(exported, MODEL, port):
            before = client.predict(digits)
        assert servers.failure(client.predict, digits)[0] == "UNAVAILABLE"
        with EmbeddedServer(exported, MODEL, port):
            assert client.wait_until_ready(10) == 1
            servers.assert_same(client.predict(digits), before)


def test_reconnects_within_two_seconds(digits):
    with contextlib.ExitStack() as stack:
        with servers.FakeServer() as first:
            clients = [
                stack.enter_context(kind(first.address, MODEL))
                for kind in (EarlyExitClient, blocking.Blocking)
            ]
            assert [len(client.predict(digits)) for client in clients] == [64, 64]
        # By then gRPC's own pause between attempts would have grown to 4 seconds.
        gone = time.monotonic()
        while time.monotonic() < gone + 5.5:
            for client in clients:
                code, seconds = servers.failure(client.predict, digits)
                assert code == "UNAVAILABLE"
                assert seconds < 5
        with servers.FakeServer(first.port):
            back = time.monotonic()
            waiting = list(clients)

            def work():
                with contextlib.suppress(ServerError):
                    assert len(waiting[-1].predict(digits)) == 64
                    waiting.pop()
                return not waiting

            servers.until(work, 10)
            assert time.monotonic() - back < 2


def test_a_machine_that_vanishes_is_noticed(fake, fake_client, digits):
    fake_client.predict(digits)
    timeouts = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # no socket, or not connected
            connection = socket.socket(fileno=int(descriptor))
            try:
                if connection.getpeername()[1:2] == (fake.port,):
                    level, option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
                    timeouts.add(connection.getsockopt(level, option))
            finally:
                connection.detach()  # it is gRPC's
    assert timeouts == {5000}


def test_clients_share_no_connection(fake, connect, digits):
    peers = set()
    answer = fake.answer

    def remember(request, context):
        peers.add(context.peer())
        return answer(request, context)

    fake.answer = remember
    with connect(fake.address, MODEL) as one, connect(fake.address, MODEL) as other:
        for client in (one, other, one, other):
            client.predict(digits, timeout=5)
    assert len(peers) == 2


def test_a_closed_client_says_so(fake, fake_client, digits):
    fake_client.predict(digits)
    fake_client.close()
    for call in (
        lambda: fake_client.predict(digits),
        lambda: fake_client.all_exits(digits),
        fake_client.describe,
        fake_client.wait_until_ready,
    ):
        with pytest.raises(BranchyError, match="The client is closed"):
            call()
    assert len(fake.requests) == 1


@pytest.mark.parametrize("max_rows", [64, 10])
def test_closing_cancels_pending_calls(fake, connect, digits, max_rows):
    fake.answer = lambda *_: fake.over.wait(60)
    client = connect(fake.address, MODEL, timeout=60, max_rows=max_rows)
    with client, futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(servers.failure, client.predict, digits)
        servers.until(lambda: len(fake.requests) >= min(4, 64 // max_rows))
        client.close()
        client.close()
        assert asking.result(10)[0] == "CANCELLED"


def test_a_forked_process_has_its_own_connection(fake):
    # Forked from a process without this one's threads.
    code = f"""
import os, signal, sys
import numpy as np
from branchy_tf.serving import EarlyExitClient
client = EarlyExitClient("{fake.address}", "{MODEL}", max_rows=2)
images = np.zeros((5, 28, 28, 1), np.uint8)
client.predict(images)
child = os.fork()
signal.alarm(60)
for _ in range(3):
    assert len(client.predict(images)) == 5
if not child:
    client.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(client.predict(images)) == 5
client.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(fake.requests) == (1 + 3 + 3 + 1) * 3


def test_throttles_retries_when_all_requests_fail(fake, digits):
    answer, fake.answer = (
        fake.answer,
        lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "queue full"),
    )
    with EarlyExitClient(fake.address, MODEL, timeout=60) as client:
        client.describe()
        with futures.ThreadPoolExecutor(16) as pool:
            calls = [
                pool.submit(servers.failure, client.predict, digits[:1])
                for _ in range(128)
            ]
            assert {call.result()[0] for call in calls} == {"UNAVAILABLE"}
        assert len(fake.requests) < 128 + 64 + 16
        fake.answer = answer
        assert len(client.predict(digits)) == 64
