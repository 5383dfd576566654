"""Conversations with servers that are in memory: no channel, no clock but one."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import conversation as conversation_module
from branchy_tf.serving import wire
from branchy_tf.serving.conversation import Conversation, Pause
from branchy_tf.serving.messages import Target


@dataclasses.dataclass
class Model:
    """A version: rows come back with their first value as their score."""

    shape: tuple = (2,)
    dtype: type = np.uint8
    num_exits: int = 2
    classes: int = 3

    def describe(self):
        served = wire.SignatureDefMap()
        for name in ("early_exit", "serving_default", "all_exits"):
            signature = served.signature_def[name]
            for key, dtype, sides in [
                ("images", self.dtype, self.shape),
                ("thresholds", np.float32, (self.num_exits - 1,)),
            ]:
                example = wire.TensorProto()
                wire.fill(example, np.zeros((1, *sides), dtype))
                signature.inputs[key].dtype = example.dtype
                signature.inputs[key].tensor_shape.CopyFrom(example.tensor_shape)
                signature.inputs[key].tensor_shape.dim[0].size = -1
        return served.SerializeToString()

    def answer(self, request):
        images = wire.to_array(request.inputs["images"])
        if images.dtype != self.dtype or images.shape[1:] != self.shape:
            raise ServerError("INVALID_ARGUMENT", "the images do not fit")
        scores = images[:, 0].astype(np.float32)
        if "thresholds" in request.inputs:
            limits = wire.to_array(request.inputs["thresholds"])
            if limits.shape != (len(images), self.num_exits - 1):
                raise ServerError("INVALID_ARGUMENT", "the thresholds do not fit")
            scores = limits[:, 0]
        outputs = {
            "probabilities": np.full((len(images), self.classes), 0.25, np.float32),
            "exit": np.full(len(images), self.num_exits - 1, np.int32),
            "score": scores,
        }
        if request.model_spec.signature_name == "all_exits":
            outputs = {
                "probabilities": np.repeat(
                    outputs["probabilities"][:, None], self.num_exits, axis=1
                ),
                "scores": np.repeat(scores[:, None], self.num_exits, axis=1),
            }
        return outputs


class Server:
    """Versions of a model, and what was asked of them.

    Attributes:
        models: by version; those that are loaded.
        newest: the version that answers who asks for none.
        predicted: the PredictRequests that came.
        described: how many questions for a signature came.
        sends: the `Send`s that came.
        before: called with the number of each PredictRequest, from 1, before it.
    """

    def __init__(self, **versions):
        self.models = {int(name[1:]): model for name, model in versions.items()}
        self.newest = max(self.models)
        self.predicted, self.sends, self.described = [], [], 0
        self.before = lambda number: None

    def hold(self, steps):
        try:
            step = next(steps)
            while True:
                assert not isinstance(step, Pause)
                self.sends.append(step)
                try:
                    replies = [self._reply(step.method, ask()) for ask in step.requests]
                except ServerError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(replies)
        except StopIteration as done:
            return done.value

    def _reply(self, method, data):
        if method == wire.PREDICT:
            request = wire.PredictRequest.FromString(data)
            self.predicted.append(request)
            self.before(len(self.predicted))
            number, model = self._find(request.model_spec)
            response = wire.PredictResponse()
            for name, array in model.answer(request).items():
                wire.fill(response.outputs[name], array)
        else:
            self.described += 1
            request = wire.GetModelMetadataRequest.FromString(data)
            number, model = self._find(request.model_spec)
            response = wire.GetModelMetadataResponse()
            response.metadata["signature_def"].value = model.describe()
        response.model_spec.version.value = number
        return response.SerializeToString()

    def _find(self, spec):
        number = spec.version.value if spec.HasField("version") else self.newest
        if number not in self.models:
            raise ServerError("NOT_FOUND", f"version {number}")
        return number, self.models[number]

    @property
    def pins(self):
        """The version that each PredictRequest asked for."""
        return [
            request.model_spec.version.value
            if request.model_spec.HasField("version")
            else None
            for request in self.predicted
        ]


def talk(**keywords):
    target = Target("host:1", "lenet", keywords.pop("version", None))
    return Conversation(target, keywords.pop("timeout", 10.0), **keywords)


def rows(count, dtype=np.uint8):
    return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(dtype)


def assert_own_rows(answer, count):
    scores = answer.scores if answer.scores.ndim == 1 else answer.scores[:, 0]
    np.testing.assert_array_equal(scores, np.arange(count))


def test_splits_large_batches_and_keeps_their_order():
    server = Server(v1=Model())
    answer = server.hold(talk(max_rows=4).predict(rows(10), None, None))
    assert_own_rows(answer, 10)
    assert answer.probabilities.shape == (10, 3)
    assert answer.exits.dtype == np.int32
    sent = [len(wire.to_array(request.inputs["images"])) for request in server.predicted]
    assert sent == [4, 4, 2]
    assert server.pins == [None] * 3


def test_every_part_has_the_thresholds_of_its_rows():
    server = Server(v1=Model())
    limits = np.arange(10, dtype=np.float32)[::-1, None]
    answer = server.hold(talk(max_rows=3).predict(rows(10), limits, None))
    np.testing.assert_array_equal(answer.scores, limits[:, 0])


def test_splits_all_exits_too():
    server = Server(v1=Model(num_exits=3))
    answer = server.hold(talk(max_rows=3).all_exits(rows(10), None))
    assert_own_rows(answer, 10)
    assert answer.probabilities.shape == (10, 3, 3)
    assert answer.labels.shape == answer.scores.shape == (10, 3)
    assert len(answer) == 10
    assert answer.model_version == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ((2,), np.uint8, 1000),  # what a batching server takes
        ((1024,), np.float32, 512),  # half of the 4 MB of gRPC
        ((3 * 2**20,), np.uint8, 1),
    ],
)
def test_parts_are_as_large_as_servers_accept(shape, dtype, size):
    server = Server(v1=Model(shape, dtype))
    images = np.zeros((size + 1, *shape), dtype)
    server.hold(talk().predict(images, None, None))
    first, second = server.predicted
    assert first.inputs["images"].tensor_shape.dim[0].size == size
    assert second.inputs["images"].tensor_shape.dim[0].size == 1


def test_rejects_more_than_a_message_can_hold(monkeypatch):
    server, images = Server(v1=Model((100,))), np.zeros((10, 100), np.uint8)
    monkeypatch.setattr(wire, "MOST_BYTES", 999)
    with pytest.raises(BranchyError, match=r"10 rows have 1,000 bytes; .*`max_rows`"):
        server.hold(talk().predict(images, None, None))
    assert not server.predicted
    assert len(server.hold(talk(max_rows=9).predict(images, None, None))) == 10


@pytest.mark.parametrize("max_rows", [0, -3])
def test_every_part_has_rows(max_rows):
    with pytest.raises(BranchyError, match="at least 1"):
        talk(max_rows=max_rows)


def test_all_parts_share_one_deadline():
    server = Server(v1=Model(), v2=Model())
    server.newest = 1

    def swap(number):
        server.newest = 1 if number == 1 else 2

    server.before = swap
    start = time.monotonic()
    server.hold(talk(max_rows=4).predict(rows(10), None, 7))
    # The signature, the parts, that of the new version, the first part again.
    assert len(server.sends) == 4
    (deadline,) = {send.deadline for send in server.sends}
    assert start + 7 <= deadline <= time.monotonic() + 7


def test_sends_nothing_after_the_deadline():
    send = conversation_module.Send("method", [], time.monotonic() - 1)
    with pytest.raises(ServerError, match="No time was left") as caught:
        send.left()
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_swap_between_parts_asks_the_old_ones_again():
    server = Server(v1=Model(), v2=Model(classes=5))
    server.newest = 1

    def swap(number):
        if number == 3:
            server.newest = 2

    server.before = swap
    answer = server.hold(talk(max_rows=2).predict(rows(8), None, None))
    assert_own_rows(answer, 8)
    assert answer.model_version == 2
    assert answer.probabilities.shape == (8, 5)
    assert server.pins == [None] * 4 + [2, 2]
    again = [wire.to_array(request.inputs["images"]) for request in server.predicted[4:]]
    np.testing.assert_array_equal(np.concatenate(again), rows(4))


def test_a_roll_back_between_parts_asks_all_again():
    server = Server(v1=Model(), v2=Model())

    def roll_back(number):
        if number == 3:
            server.newest = 1
            del server.models[2]

    server.before = roll_back
    answer = server.hold(talk(max_rows=2).predict(rows(8), None, None))
    assert_own_rows(answer, 8)
    assert answer.model_version == 1
    # Version 2 is asked for the rest, is gone, and all are asked anew.
    assert server.pins == [None] * 4 + [2] + [None] * 4


def test_a_version_that_vanishes_before_it_is_described_asks_all_again():
    server = Server(v1=Model())
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))

    def flicker(number):
        server.newest = {2: 2}.get(number, 1)
        server.models[2] = Model()

    server.before = flicker
    find = server._find

    def gone(spec):
        if not spec.signature_name and spec.HasField("version"):
            server.models.pop(2, None)
        return find(spec)

    server._find = gone
    answer = server.hold(talking.predict(rows(2), None, None))
    assert answer.model_version == 1
    assert server.pins == [None, None, None]


def test_gives_up_a_server_that_keeps_swapping():
    server = Server(v1=Model())

    def swap(number):
        server.models, server.newest = {number: Model()}, number

    server.before = swap
    with pytest.raises(ServerError, match="ask again") as caught:
        server.hold(talk(max_rows=1).predict(rows(2), None, None))
    assert caught.value.code == "ABORTED"
    # Both parts, one of them again, both anew, and so on.
    assert len(server.predicted) == 2 + 1 + 2 + 1 + 2


def test_images_that_the_new_version_does_not_take_are_never_answered():
    server = Server(v1=Model())
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))
    # A server that checks no shapes.
    server.models[2], server.newest = Model((3,)), 2
    server.models[2].answer = Model().answer
    with pytest.raises(BranchyError, match=r"expected uint8 \[B, 3\]"):
        server.hold(talking.predict(rows(2), None, None))


def test_a_new_version_may_have_more_exits():
    server = Server(v1=Model(num_exits=2))
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))
    server.models[2], server.newest = Model(num_exits=3), 2
    answer = server.hold(talking.predict(rows(2), None, None))
    assert set(answer.exits) == {2}
    with pytest.raises(BranchyError, match="expected 2, one for each exit"):
        server.hold(talking.predict(rows(2), [0.1], None))


def test_thresholds_for_the_old_version_are_explained():
    server = Server(v1=Model(num_exits=2))
    talking = talk()
    server.hold(talking.predict(rows(2), [0.1], None))
    server.models[2], server.newest = Model(num_exits=3), 2
    # The server refuses them; what the client knew was of another version.
    with pytest.raises(BranchyError, match="expected 2, one for each exit"):
        server.hold(talking.predict(rows(2), [0.1], None))
    assert len(server.predicted) == 2


@pytest.mark.parametrize("version", [1, 2])
def test_what_fits_the_served_version_is_sent_after_a_swap_or_restart(version):
    # After a restart the same number may be another model.
    server = Server(v1=Model(dtype=np.uint8))
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))
    server.models = {version: Model(dtype=np.float32)}
    server.newest = version
    answer = server.hold(talking.predict(rows(2), None, None))
    assert_own_rows(answer, 2)
    assert answer.model_version == version
    floats = rows(2, np.float32)
    assert_own_rows(server.hold(talking.predict(floats, None, None)), 2)


def test_a_swap_between_signature_and_batch_is_followed():
    server = Server(v1=Model(dtype=np.uint8))

    def swap(number):
        server.models, server.newest = {2: Model(dtype=np.float32)}, 2

    server.before = swap
    answer = server.hold(talk().predict(rows(2), None, None))
    assert_own_rows(answer, 2)
    assert answer.model_version == 2
    # What the new version refused is sent again as it takes it.
    assert len(server.predicted) == 2


def test_accepts_the_exits_of_a_restarted_server():
    server = Server(v1=Model(num_exits=2))
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))
    server.models = {1: Model(num_exits=4)}
    assert set(server.hold(talking.predict(rows(2), None, None)).exits) == {3}


def test_asks_for_the_signature_once():
    server = Server(v1=Model())
    talking = talk()
    for _ in range(5):
        server.hold(talking.predict(rows(2), [0.5], None))
    assert server.described == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND"])
def test_failures_clear_the_known_signature(code):
    server = Server(v1=Model())
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))

    def fail(_):
        raise ServerError(code, "")

    server.before = fail
    with pytest.raises(ServerError, match=code):
        server.hold(talking.predict(rows(2), None, None))
    assert len(server.predicted) == 2
    server.before = lambda _: None
    server.hold(talking.predict(rows(2), None, None))
    assert server.described == 2


def test_does_not_retry_with_an_unchanged_signature():
    server = Server(v1=Model())
    talking = talk()
    server.hold(talking.predict(rows(2), None, None))

    def refuse(_):
        raise ServerError("INVALID_ARGUMENT", "no")

    server.before = refuse
    with pytest.raises(ServerError, match="no"):
        server.hold(talking.predict(rows(2), None, None))
    assert len(server.predicted) == 2


def test_rejects_answers_of_another_version():
    server = Server(v1=Model(), v2=Model())
    answer = server.hold(talk(version=1).predict(rows(2), None, None))
    assert answer.model_version == 1
    assert server.pins == [1]
    server.models = {1: Model()}
    find = server._find

    def confuse(spec):
        return 2, find(spec)[1]

    server._find = confuse
    with pytest.raises(ServerError, match="version 2, not 1"):
        server.hold(talk(version=1).predict(rows(2), None, None))


def test_rejects_rows_with_different_numbers_of_classes():
    server = Server(v1=Model())

    def change(number):
        server.models[1].classes = 3 + number

    server.before = change
    with pytest.raises(ServerError, match="different numbers of classes"):
        server.hold(talk(max_rows=1).predict(rows(2), None, None))


@pytest.mark.parametrize("timeout", [0, -1, np.nan, np.inf, 1e10, "2", True, [2]])
def test_there_is_always_a_deadline(timeout):
    server = Server(v1=Model())
    for steps in (
        talk().predict(rows(2), None, timeout),
        talk().all_exits(rows(2), timeout),
        talk().describe(timeout),
        talk().wait_until_ready(timeout),
    ):
        with pytest.raises(BranchyError, match=r"`timeout` must be a number of seconds"):
            server.hold(steps)
    assert not server.sends
