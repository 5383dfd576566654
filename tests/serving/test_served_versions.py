from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import grpc
import numpy as np
import pytest
import servers
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from branchy_tf.errors import ServerError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.serving.embedded.versions import State, Versions

ROW = np.zeros((1, 28, 28, 1), np.uint8)


class Watched:
    """A server that looks for versions often, and what can be asked of it."""

    def __init__(self, server, client, channel):
        self.client = client
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.address = f"localhost:{server.port}"

    def version(self):
        return self.client.predict(ROW).model_version

    def states(self):
        """`{version: (state, what went wrong)}`."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = servers.MODEL
        found = self._models.GetModelStatus(request).model_version_status
        return {v.version: (v.state, v.status.error_message) for v in found}


@contextlib.contextmanager
def watched(folder):
    with (
        EmbeddedServer(
            folder, servers.MODEL, port=0, file_system_poll_wait_seconds=0.05
        ) as server,
        EarlyExitClient(f"localhost:{server.port}", servers.MODEL) as client,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        yield Watched(server, client, channel)


@pytest.fixture
def folder(exported, tmp_path):
    folder = tmp_path / servers.MODEL
    servers.add_version(exported, folder, 1)
    return folder


def test_versions_change_under_requests_that_all_succeed(folder, exported):
    problems, seen, stop = [], [[] for _ in range(4)], threading.Event()

    def ask(server, versions):
        with EarlyExitClient(server.address, servers.MODEL) as client:
            while not stop.is_set():
                try:
                    versions.append(client.predict(ROW).model_version)
                except Exception as error:
                    problems.append(error)

    with watched(folder) as server:
        threads = [threading.Thread(target=ask, args=(server, one)) for one in seen]
        for thread in threads:
            thread.start()
        try:
            for number in (2, 3):
                servers.add_version(exported, folder, number)
                servers.until(lambda n=number: all(one[-1:] == [n] for one in seen))
            shutil.rmtree(folder / "3")
            servers.until(lambda: all(one[-1:] == [2] for one in seen))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        final = {1: (State.END, ""), 2: (State.AVAILABLE, ""), 3: (State.END, "")}
        servers.until(lambda: server.states() == final)
    assert not problems
    for versions in seen:
        assert [version for version, _ in itertools.groupby(versions)] == [1, 2, 3, 2]


def test_only_numbered_folders_are_versions(folder, exported):
    for name in ("latest", "9.tmp", "-9", "9 ", ".9"):
        shutil.copytree(exported / "1", folder / name)
    (folder / "9").write_text("a file")
    servers.add_version(exported, folder, 2)
    with watched(folder) as server:
        assert server.version() == 2
        assert set(server.states()) == {2}


def without(name):
    return lambda version: (version / name).unlink()


def cut(name):
    def damage(version):
        content = (version / name).read_bytes()
        (version / name).write_bytes(content[: len(content) // 2])

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        without("saved_model.pb"),
        cut("saved_model.pb"),
        cut("assets.extra/tf_serving_warmup_requests"),
        lambda version: (version / "saved_model.pb").write_bytes(b""),
    ],
    ids=["no model", "half a model", "half a warm-up", "empty model"],
)
def test_a_damaged_version_waits_until_it_is_whole(folder, exported, damage):
    coming = folder / ".coming"
    shutil.copytree(exported / "1", coming)
    damage(coming)
    with watched(folder) as server:
        coming.rename(folder / "2")
        servers.until(lambda: server.states().get(2, (0, ""))[0] == State.END)
        states = server.states()
        assert states[1] == (State.AVAILABLE, "")
        assert states[2][1]
        assert server.version() == 1

        shutil.copytree(exported / "1", folder / "2", dirs_exist_ok=True)
        servers.until(lambda: server.version() == 2)
        servers.until(lambda: server.states()[1][0] == State.END)
        assert server.states()[2] == (State.AVAILABLE, "")


def test_starts_with_the_version_before_a_damaged_one(folder):
    (folder / "2").mkdir()
    with watched(folder) as server:
        assert server.version() == 1
        assert server.states()[2][0] == State.END


def test_a_server_may_start_before_its_first_version(exported, tmp_path):
    with watched(tmp_path) as server:
        with pytest.raises(ServerError) as caught:
            server.version()
        assert caught.value.code == "NOT_FOUND"
        servers.add_version(exported, tmp_path, 1)
        assert server.client.wait_until_ready() == 1
        assert server.version() == 1


def test_an_old_version_finishes_pending_requests(folder, exported):
    versions = Versions(folder)
    versions.poll()
    with versions.use(None) as (number, model):
        assert number == 1
        servers.add_version(exported, folder, 2)
        versions.poll()
        assert [v.state for v in versions.statuses()] == [
            State.AVAILABLE,
            State.UNLOADING,
        ]
        with versions.use(None) as (newest, _):
            assert newest == 2
        with versions.use(1) as found:
            assert found is None
        assert len(model.run("serving_default", {"images": ROW})["exit"]) == 1
    assert [v.state for v in versions.statuses()] == [State.AVAILABLE, State.END]
    versions.stop()
    assert [v.state for v in versions.statuses()] == [State.END, State.END]


class Counted:
    """Stands for a model, and counts in `open_` how many of its version are open."""

    signatures: ClassVar[dict] = {}

    def __init__(self, open_: Counter, number: int) -> None:
        self._open, self._number = open_, number
        open_[number] += 1

    def close(self) -> None:
        self._open[self._number] -= 1


def numbered(folder, *numbers):
    for number in numbers:
        (folder / str(number)).mkdir()


def test_polls_at_once_load_each_version_once(tmp_path):
    loaded, open_ = Counter(), Counter()
    start = threading.Barrier(8)

    def load(version):
        loaded[version.name] += 1
        time.sleep(0.05)  # loading takes a while
        return Counted(open_, version.name)

    versions = Versions(tmp_path, load)

    def poll():
        start.wait()
        versions.poll()

    for newest in (1, 2):
        numbered(tmp_path, newest)
        with ThreadPoolExecutor(8) as pool:
            for polled in [pool.submit(poll) for _ in range(8)]:
                polled.result()
        assert versions.available() == {newest}
    assert loaded == {"1": 1, "2": 1}
    assert +open_ == {"2": 1}
    versions.stop()
    assert +open_ == {}


def test_a_stop_while_a_version_loads_frees_it(tmp_path):
    open_ = Counter()
    loading, go_on = threading.Event(), threading.Event()

    def load(version):
        loading.set()
        assert go_on.wait(30)
        return Counted(open_, version.name)

    numbered(tmp_path, 1)
    versions = Versions(tmp_path, load)
    with ThreadPoolExecutor(2) as pool:
        polled = pool.submit(versions.poll)
        assert loading.wait(30)
        stopped = pool.submit(versions.stop)
        assert not stopped.done()
        go_on.set()
        polled.result()
        stopped.result()
    assert +open_ == {}
    assert versions.available() == set()

    versions.poll()
    assert versions.available() == set()
