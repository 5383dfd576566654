from __future__ import annotations

import threading

import commands
import guides
import keras
import numpy as np
import pytest
import small

from branchy_tf import data, training
from branchy_tf.errors import BranchyError
from branchy_tf.training import batches, distributing, processes


class Shared(distributing.Distribution):
    """One of several processes, without the others."""

    def __init__(self, devices: int, processes: int, process: int) -> None:
        self.devices, self.processes, self.process = devices, processes, process

    def sharing(self, rows, batch_size):
        return distributing._Padded(rows, batch_size, self)


class Read:
    """An array that notes which rows are read, as files would be."""

    dtype = np.dtype(np.uint8)

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.rows = array, []
        self.shape = array.shape

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows):
        self.rows += np.arange(len(self))[rows].tolist()
        return self._array[rows]


def epoch(distribution, split: data.Split, size: int = 12) -> list:
    with distribution.scope():
        made = batches.Batches(
            split, lambda part: part.labels, size, "flip_shift_cutout", [3]
        )
        return [made[i] for i in range(len(made))]


@pytest.mark.parametrize("devices", [2, 4])
def test_processes_read_parts_of_the_batches_of_one_device(devices):
    """Shuffled, augmented and weighted as one device has them."""
    rows = small.dataset().train.take(slice(29))
    rows = data.Split(rows.inputs, rows.labels, np.arange(29, dtype=np.float32))
    whole = epoch(distributing.ONE_DEVICE, rows)
    read, parts = [], []
    for process in (0, 1):
        files = Read(rows.images)
        lazy = data.Split(files, rows.labels, rows.weights)
        parts.append(epoch(Shared(devices, 2, process), lazy))
        read.append(files.rows)
    for batch, first, second in zip(whole, *parts, strict=True):
        for ours, *halves in zip(batch, first, second, strict=True):
            joined = np.concatenate(halves)
            assert len(joined) % devices == 0
            np.testing.assert_array_equal(joined[: len(ours)], ours)
    # Of 12, 12 and 5 rows, where the last batch begins again.
    assert len(read[0]) == len(read[1]) == 6 + 6 + (3 if devices == 2 else 4)
    assert len(set(read[0]) & set(read[1])) == (1 if devices == 2 else 3)
    assert set(read[0]) | set(read[1]) == set(range(29))


def test_rows_are_padded_to_a_size_that_no_full_batch_has():
    assert Shared(4, 2, 0).sharing(28, 12).padded == {}
    assert Shared(4, 2, 0).sharing(29, 12).padded == {8: 5}
    assert Shared(4, 2, 0).sharing(35, 12).padded == {16: 11}
    assert Shared(4, 2, 0).sharing(1, 12).padded == {4: 1}


@pytest.mark.parametrize("count", [1, 4, 5, 10])
def test_weights_make_the_mean_of_parts_that_of_the_batch(count):
    devices = 3
    weights = distributing._Weighted(24 + count, 12, devices).weights(count)
    values = np.random.default_rng(0).random(count)
    largest = -(-count // devices)
    parts = [(weights * values)[i * largest :][:largest] for i in range(devices)]
    means = [part.mean() if len(part) else 0 for part in parts]
    assert np.mean(means) == pytest.approx(values.mean())
    assert distributing._Weighted(24 + count, 12, devices).weights(12) == pytest.approx(1)
    assert distributing._Weighted(24, 12, devices).weights(12) is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--distribute=data_parallel"], "needs Keras on jax, but it runs on tensorflow"),
        (
            ["--distribute=mirrored"],
            "needs at least two devices, but there is one: /devi",
        ),
        (["--coordinator=a:1"], "--coordinator is for --distribute=data_parallel, but"),
        (
            ["--distribute=mirrored", "--process_id=0"],
            "--process_id is for --distribute=",
        ),
        (["--distribute=both"], "none|mirrored|data_parallel"),
    ],
)
def test_train_rejects_devices_that_are_not_there(tmp_path, flags, expected):
    done = commands.run(
        "train", "--model=branchy_lenet", "--dataset=mnist_5k", "--run_dir=run", *flags,
        cwd=tmp_path,
    )  # fmt: skip
    assert expected in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a:1", 2, None), "--process_id is missing: several processes need"),
        (("a:1", None, None), "--num_processes and --process_id is missing"),
        (("a:1", 2, 2), "--process_id is 2; expected a number from 0 to 1"),
        (("a:1", 2, -1), "--process_id is -1; expected a number from 0 to 1"),
        (("a:1", 1, 0), "--num_processes is 1; expected at least 2"),
        (("a", 2, 0), "--coordinator is 'a'; expected HOST:PORT"),
        (("a:99999", 2, 0), "--coordinator is 'a:99999'; expected HOST:PORT"),
        ((":1", 2, 0), "--coordinator is ':1'; expected HOST:PORT"),
    ],
)
def test_rejects_processes_that_cannot_be(arguments, expected):
    with pytest.raises(BranchyError, match=expected.replace("?", r"\?")):
        training.distribute("data_parallel", *arguments)


def test_rejects_other_strategies_and_backends(monkeypatch):
    with pytest.raises(BranchyError, match="`distribute` must be one of none, mirror"):
        training.distribute("both")
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(BranchyError, match=r"Set KERAS_BACKEND=tensorflow\.$"):
        training.distribute("mirrored")


def test_rejects_batches_that_devices_cannot_share(tmp_path):
    arguments = small.model(), small.dataset()
    for size, expected in (
        (10, "`batch_size` 10 cannot be shared equally by 4 devices: .* Pass 8, or"),
        (3, "Pass 4, or another multiple of 4"),
        (40, "has 30 rows, fewer than `batch_size` 40"),
    ):
        settings = training.Settings(batch_size=size)
        folder = training.RunFolder(tmp_path / "run")
        with Shared(4, 1, 0).scope(), pytest.raises(BranchyError, match=expected):
            training.train(*arguments, settings, folder)
    assert list(tmp_path.iterdir()) == []


def meet(
    *settings: str, numbers=(0, 1), count: int = 2, seconds: float = 20
) -> tuple[list, list]:
    """What each process got from the roll call, and the messages of those refused."""
    address = f"127.0.0.1:{guides.free_port()}"
    met: list = [None] * len(numbers)
    refused: list = [None] * len(numbers)

    def start(place: int) -> None:
        number = numbers[place]
        call = processes._answer if number else processes._call
        text = settings[place] if settings else ""
        try:
            met[place] = call(address, count, number, seconds, text)
        except BranchyError as error:
            refused[place] = str(error)

    threads = [threading.Thread(target=start, args=(i,)) for i in range(len(numbers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return met, refused


def groups(numbers=(0, 1, 2)) -> tuple[list[processes.Group], list[list[str]]]:
    """Groups that watch each other, and what each was told."""
    met, refused = meet(numbers=numbers, count=len(numbers))
    assert refused == [None] * len(numbers)
    told: list[list[str]] = [[] for _ in numbers]
    made = []
    for number, peers in enumerate(met):
        made.append(processes.Group(len(numbers), number, peers, told[number].append))
        made[-1].watch()
    return made, told


def wait_for(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come")


def test_the_end_of_a_process_is_told_to_all_others():
    made, told = groups()
    made[2].peers[0]._socket.shutdown(2)  # as the system does when a process is killed
    wait_for(lambda: told[0] and told[1])
    for messages in told[:2]:
        assert messages[0].startswith("Process 2 has ended")
        assert messages[0].endswith("the training resumes from its last backup.")


def test_the_error_of_a_process_is_told_to_all_others(monkeypatch):
    monkeypatch.setattr(processes.atexit, "register", lambda *_: None)
    made, told = groups()
    with pytest.raises(OSError, match="no space"), made[1].together(lambda: None):
        raise OSError("no space")
    wait_for(lambda: told[0] and told[2])
    assert told[0][0].startswith("Process 1 failed: no space Start all processes again")
    assert told[2] == told[0]


def test_a_process_that_does_not_come_is_named():
    _, (first, second) = meet(numbers=(0, 2), count=4, seconds=1.5)
    expected = "2 of 4 processes did not come within 1.5 seconds (--process_id=1,3)."
    assert expected in first
    assert expected in second


def test_process_0_that_does_not_come_is_named():
    _, (alone,) = meet(numbers=(1,), seconds=0.5)
    assert "Process 1 did not reach process 0 at --coordinator=127.0.0.1:" in alone
    assert "within 0.5 seconds: Connection refused" in alone


@pytest.mark.parametrize(
    ("settings", "numbers", "expected"),
    [
        (("--a=1\n--b=1", "--a=1\n--b=2"), (0, 1),
         "Process 1 has the settings --b=2 and process 0 --b=1."),
        ((), (0, 1, 1), "Two processes were started with --process_id=1."),
    ],
)  # fmt: skip
def test_processes_that_do_not_fit_are_refused(settings, numbers, expected):
    _, refused = meet(*settings, numbers=numbers, count=len(numbers), seconds=5)
    assert all(expected in message for message in refused)


def test_a_port_in_use_is_reported():
    import socket

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BranchyError, match=f"cannot listen at port {port} of"):
            processes._call(f"127.0.0.1:{port}", 2, 0, 1, "")
