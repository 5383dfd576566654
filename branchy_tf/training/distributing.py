"""Trains on several devices: which rows each one takes, and which process writes.

Each device takes its part of every batch, with the same weights, and their gradients are
averaged; so the result is that of one device with the same batches, up to rounding. A
training asks the `current` distribution, which is one device unless a `scope` is open.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.training.processes import Group, join

STRATEGIES = ("none", "mirrored", "data_parallel")


class Sharing:
    """How the batches of one split are shared: one device takes them whole.

    Args:
        rows: the number of rows of the split.
        batch_size: rows per batch; the last one has the rest.

    Attributes:
        batch_size: rows per batch, which may be fewer for a split smaller than a batch.
        rest: rows of the last batch if it is smaller.
    """

    def __init__(self, rows: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rest = rows % batch_size

    def rows(self, count: int) -> np.ndarray | slice:
        """Which rows of a batch of `count` rows this process reads."""
        return slice(None)

    def weights(self, count: int) -> np.ndarray | None:
        """float32 [count], additional weights of a batch's rows; None for 1 each."""
        return None


class Distribution:
    """A training on one device by one process, and what others do differently.

    Attributes:
        devices: the number of devices of all processes.
        processes: the number of processes.
        process: the number of this one, from 0.
    """

    devices = 1
    processes = 1
    process = 0

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder, as one of them does."""
        return self.process == 0

    @contextlib.contextmanager
    def scope(self) -> Iterator[Distribution]:
        """Makes it the current one; build the model and train it inside."""
        before = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(before)

    def check(self, model: keras.Model, batch_size: int, rows: int) -> None:
        """Checks that all devices hold the model and can share a full batch equally.

        Args:
            model: the model to train.
            batch_size: rows of a full batch.
            rows: those of the training split.

        Raises:
            BranchyError: they do not, or there is no full batch.
        """
        if not all(self._holds(weight) for weight in model.weights):
            raise BranchyError(
                f"{model.name} was built outside of the scope of the {self.devices} "
                "devices, so they do not hold its weights. Build or load it inside: with "
                "training.distribute(...).scope()."
            )
        if batch_size % self.devices:
            smaller = batch_size - batch_size % self.devices
            raise BranchyError(
                f"`batch_size` {batch_size} cannot be shared equally by {self.devices} "
                "devices: it is the number of rows in a step of all devices together. "
                f"Pass {smaller or self.devices}, or another multiple of {self.devices}."
            )
        if self.devices > 1 and rows < batch_size:
            raise BranchyError(
                f"The training split has {rows} rows, fewer than `batch_size` "
                f"{batch_size}; several devices need at least one full batch. Pass a "
                "smaller one, or train on one device."
            )

    def _holds(self, weight: keras.Variable) -> bool:
        """Whether all devices hold a weight."""
        return True

    def sharing(self, rows: int, batch_size: int) -> Sharing:
        """How the batches of a split of `rows` rows are shared."""
        return Sharing(rows, batch_size)

    @contextlib.contextmanager
    def adapted(
        self, trainer: keras.Model, training: Sharing, validation: Sharing
    ) -> Iterator[None]:
        """Adapts a compiled model to shared batches, for as long as it is fitted."""
        yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Around writing a model: tells whether this process `writes`."""
        yield self.writes

    def agree(self, value: Any) -> Any:
        """The value of process 0, of JSON's types; waits for all processes."""
        return value


ONE_DEVICE = Distribution()
_current = contextvars.ContextVar("distribution", default=ONE_DEVICE)


def current() -> Distribution:
    """The distribution whose scope is open; otherwise one device."""
    return _current.get()


def distribute(
    strategy: str = "none",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    start_seconds: float = 300,
    settings: str = "",
    lost: Callable[[str], None] | None = None,
) -> Distribution:
    """The devices to train on; call it before anything is computed.

    Args:
        strategy: `none`: one device. `mirrored`: all devices of this machine, with Keras
            on TensorFlow. `data_parallel`: all devices of one or several processes, with
            Keras on JAX.
        coordinator: host:port, where process 0 listens and all others find it. None for
            a single process.
        num_processes: how many processes train together.
        process_id: the number of this process, from 0.
        start_seconds: how long to wait for all processes to start.
        settings: what must be the same in all processes; their lines are compared.
        lost: called in a thread with a message, when another process has ended: it must
            end this one, which would wait for the other forever. Default: ends with
            status 1.

    Raises:
        BranchyError: the arguments or the Keras backend do not fit, there is one device
            only, or a process did not come.

    Example:

    ```python
    with training.distribute("mirrored").scope():
        training.train(branchy_lenet(), dataset, settings, RunFolder("runs/lenet"))
    ```
    """
    if strategy not in STRATEGIES:
        raise BranchyError(
            f"`distribute` must be one of {', '.join(STRATEGIES)}. Received {strategy!r}."
        )
    several = _check_processes(strategy, coordinator, num_processes, process_id)
    if strategy == "none":
        return ONE_DEVICE
    _check_backend(strategy)
    if strategy == "mirrored":
        return Mirrored()
    if several is None:
        return DataParallel()
    group = join(*several, seconds=start_seconds, settings=settings, lost=lost)
    try:
        return DataParallel(group)
    except BaseException as error:
        group.fail(error)
        raise


def _check_processes(
    strategy: str,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> tuple[str, int, int] | None:
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if strategy != "data_parallel":
        found = next(name for name in given if name not in missing)
        raise BranchyError(
            f"--{found} is for --distribute=data_parallel, but --distribute is "
            f"{strategy}: only JAX trains in several processes. Leave --{found} out, or "
            "pass --distribute=data_parallel."
        )
    if coordinator is None or num_processes is None or process_id is None:
        raise BranchyError(
            f"--{' and --'.join(missing)} is missing: several processes need "
            "--coordinator=HOST:PORT, --num_processes and each its own --process_id."
        )
    if num_processes < 2:
        raise BranchyError(
            f"--num_processes is {num_processes}; expected at least 2. A single process "
            "needs neither --coordinator nor --process_id."
        )
    if not 0 <= process_id < num_processes:
        raise BranchyError(
            f"--process_id is {process_id}; expected a number from 0 to "
            f"{num_processes - 1}, because --num_processes is {num_processes}."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BranchyError(
            f"--coordinator is {coordinator!r}; expected HOST:PORT, the address of "
            "process 0, such as 10.0.0.1:1234."
        )
    return coordinator, num_processes, process_id


def _check_backend(strategy: str) -> None:
    needed = {"mirrored": "tensorflow", "data_parallel": "jax"}[strategy]
    found = keras.backend.backend()
    if found != needed:
        other = "data_parallel" if strategy == "mirrored" else "mirrored"
        advice = f", or pass --distribute={other}" if found != "torch" else ""
        raise BranchyError(
            f"--distribute={strategy} needs Keras on {needed}, but it runs on {found}. "
            f"Set KERAS_BACKEND={needed}{advice}."
        )


def _check_several(strategy: str, kind: str, count: int) -> None:
    if count < 2:
        raise BranchyError(
            f"--distribute={strategy} needs at least two devices, but there is one: "
            f"{kind}. Leave --distribute out."
        )


class Mirrored(Distribution):
    """All devices of this machine, under TensorFlow.

    The layers draw random numbers, as in dropout, on each device for itself.

    Raises:
        BranchyError: there is one device only.
    """

    def __init__(self) -> None:
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        _check_several("mirrored", devices[0].name, len(devices))
        self.devices = len(devices)
        self._strategy = tf.distribute.MirroredStrategy([d.name for d in devices])

    @contextlib.contextmanager
    def scope(self) -> Iterator[Distribution]:
        """Makes it the current one; build the model and train it inside."""
        with self._strategy.scope(), super().scope():
            yield self

    def _holds(self, weight: keras.Variable) -> bool:
        import tensorflow as tf

        return isinstance(weight.value, tf.distribute.DistributedValues)

    def sharing(self, rows: int, batch_size: int) -> Sharing:
        """How the batches of a split of `rows` rows are shared."""
        # Keras needs a first batch of equal parts.
        fewer = max(rows - rows % self.devices, 1)
        return _Weighted(rows, min(batch_size, fewer), self.devices)

    @contextlib.contextmanager
    def adapted(
        self, trainer: keras.Model, training: Sharing, validation: Sharing
    ) -> Iterator[None]:
        """Batch norm takes its statistics from all devices, as it would on one."""
        normed = [
            layer
            for layer in trainer._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
            and not layer.synchronized
        ]
        for layer in normed:
            layer.synchronized = True
        try:
            yield
        finally:
            for layer in normed:
                layer.synchronized = False


class _Weighted(Sharing):
    """Weights that make up for parts of different sizes.

    TensorFlow cuts a batch of r rows into parts of at most ceil(r / devices) rows and
    averages the means of the parts. A row of a part of n rows thus needs the weight
    n devices / r for the mean of the batch.
    """

    def __init__(self, rows: int, batch_size: int, devices: int) -> None:
        super().__init__(rows, batch_size)
        self._devices = devices

    def weights(self, count: int) -> np.ndarray | None:
        """float32 [count], additional weights of a batch's rows; None for 1 each."""
        if not self.rest % self._devices:
            return None
        largest = -(-count // self._devices)
        starts = np.arange(0, count, largest)
        sizes = np.minimum(largest, count - starts)
        return np.repeat(sizes * self._devices / count, sizes).astype(np.float32)


class DataParallel(Distribution):
    """All devices of one or several processes, under JAX.

    The layers draw random numbers, as in dropout, as they would on one device.

    Args:
        group: the processes; None for this one alone.

    Raises:
        BranchyError: there is one device only, or the processes differ in their number
            of devices.
    """

    def __init__(self, group: Group | None = None) -> None:
        import jax

        self._group = group
        if group is not None:
            self.processes, self.process = group.processes, group.process
        devices = keras.distribution.list_devices()
        _check_several("data_parallel", devices[0], len(devices))
        self.devices = len(devices)
        if jax.local_device_count() * self.processes != self.devices:
            raise BranchyError(
                f"Process {self.process} has {jax.local_device_count()} of "
                f"{self.devices} devices in {self.processes} processes; expected as "
                "many in each. Start processes with the same number of devices."
            )
        # Each process reads its own rows; Keras could cut only tf.data pipelines.
        self._keras = keras.distribution.DataParallel(auto_shard_dataset=False)

    @contextlib.contextmanager
    def scope(self) -> Iterator[Distribution]:
        """Makes it the current one; build the model and train it inside.

        Processes leave it together, and an error in one of them ends the others.
        """
        with contextlib.ExitStack() as stack:
            if self._group is not None:
                stack.enter_context(self._group.together(lambda: self.agree(None)))
            stack.enter_context(self._keras.scope())
            stack.enter_context(super().scope())
            yield self

    def _holds(self, weight: keras.Variable) -> bool:
        return len(weight.value.sharding.device_set) == self.devices

    def sharing(self, rows: int, batch_size: int) -> Sharing:
        """How the batches of a split of `rows` rows are shared."""
        return _Padded(rows, batch_size, self)

    @contextlib.contextmanager
    def adapted(
        self, trainer: keras.Model, training: Sharing, validation: Sharing
    ) -> Iterator[None]:
        """Drops the rows that pad the last batch, inside of the compiled step."""
        assert isinstance(training, _Padded)
        assert isinstance(validation, _Padded)
        trainer.train_step = _without(trainer.train_step, training.padded)
        trainer.test_step = _without(trainer.test_step, validation.padded)
        yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Around writing a model: tells whether this process `writes`.

        Inside, new variables belong to this process alone. Keras makes some while it
        saves, and would wait for the other processes to make them too.
        """
        keras.distribution.set_distribution(None)
        try:
            yield self.writes
        finally:
            keras.distribution.set_distribution(self._keras)

    def agree(self, value: Any) -> Any:
        """The value of process 0, of JSON's types; waits for all processes."""
        if self.processes == 1:
            return value
        from jax.experimental import multihost_utils

        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        # The shape must be the same everywhere.
        text = np.resize(text, size) if self.process else text
        return json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))


class _Padded(Sharing):
    """Equal parts for each device, where the last batch begins again to fill them.

    Its padded size is one that no full batch has, so that the compiled step, which knows
    the shape, can tell how many rows are real.

    Attributes:
        padded: `{padded size: real rows}` of the last batch; empty if it needs none.
    """

    def __init__(self, rows: int, batch_size: int, of: DataParallel) -> None:
        super().__init__(rows, batch_size)
        self._of = of
        self.padded: dict[int, int] = {}
        if self.rest % of.devices:
            size = self.rest + -self.rest % of.devices
            self.padded = {size + of.devices * (size == batch_size): self.rest}

    def rows(self, count: int) -> np.ndarray | slice:
        """Which rows of a batch of `count` rows this process reads."""
        if count == self.rest and self.padded:
            (size,) = self.padded
        else:
            size = count
        part = size // self._of.processes
        return np.arange(self._of.process * part, (self._of.process + 1) * part) % count


def _without(step: Callable, padded: Mapping[int, int]) -> Callable:
    """A step on a batch without the rows that pad it."""

    def trimmed(state, data):
        return step(state, keras.tree.map_structure(_trim, data))

    def _trim(array):
        return array[: padded.get(array.shape[0], array.shape[0])]

    return trimmed if padded else step
