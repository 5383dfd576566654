"""Units that are down, late, or do not belong together."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import sys
import time

import grpc
import numpy as np
import pytest
import servers
from cascade_files import write
from tensorflow_serving.apis import prediction_service_pb2_grpc

from branchy_tf import EarlyExitPredictor, ExitPolicy, saved_model, units, zoo
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "load"))


@pytest.fixture(scope="module")
def expected(network, policy, mnist_5k):
    """Every exit's probabilities and scores for the first 96 test images."""
    predictor = EarlyExitPredictor(network, policy)
    return predictor.all_exits(mnist_5k.test.images[:96])


@contextlib.contextmanager
def stoppable(folder: pathlib.Path, port: int = 0):
    server = EmbeddedServer(folder, port=port)
    server.start()
    stopped = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            server.stop(0)

    server.end = stop
    try:
        yield server
    finally:
        stop()


def test_rows_of_a_unit_that_is_down_keep_the_best_answer_and_are_marked(
    tmp_path, exact_dir, expected, hard, gateway
):
    with stoppable(exact_dir / "cloud") as cloud:
        config = write(tmp_path, exact_dir, f"servers: 'localhost:{cloud.port}'")
        with (
            gateway(config) as served,
            EarlyExitClient(served.address, "net", timeout=30) as client,
        ):
            before = client.predict(hard, [0.01])
            assert not before.degraded.any()
            went_on = before.exits == 1
            assert 0 < went_on.sum() < len(hard)
            cloud.end()
            answer = client.predict(hard, [0.01])
            np.testing.assert_array_equal(answer.degraded, went_on)
            assert (answer.exits == 0).all()
            probabilities, scores = expected
            np.testing.assert_allclose(
                answer.probabilities, probabilities[:, 0], atol=1e-5
            )
            np.testing.assert_allclose(answer.scores, scores[:, 0], atol=1e-5)
            rows = served.metric(
                "branchy_cascade_degraded_rows_total", unit="cloud", code="UNAVAILABLE"
            )
            assert rows == went_on.sum()
            # It comes back at the same address.
            with stoppable(exact_dir / "cloud", cloud.port):
                servers.until(lambda: not client.predict(hard, [0.01]).degraded.any())


def test_on_failure_error_refuses(tmp_path, exact_dir, hard, gateway):
    with stoppable(exact_dir / "cloud") as cloud:
        where = f"servers: 'localhost:{cloud.port}'"
        config = write(tmp_path, exact_dir, where, "on_failure: error\n")
        with (
            gateway(config) as served,
            EarlyExitClient(served.address, "net", timeout=30) as client,
        ):
            client.predict(hard)
            cloud.end()
            # A request that no row leaves the first unit with needs nothing else.
            assert (client.predict(hard, [np.inf]).exits == 0).all()
            with pytest.raises(ServerError) as caught:
                client.predict(hard, [0.0])
            assert caught.value.code == "UNAVAILABLE"


class Silent(servers.FakeServer):
    """Describes a unit as its server does, but does not answer until the test is over.

    Attributes:
        left: the seconds that each request had left.
    """

    def __init__(self, unit: EmbeddedServer) -> None:
        super().__init__()
        self._unit = f"localhost:{unit.port}"
        self.left: list[float] = []
        self.answer = self._wait

    def _wait(self, request, context) -> None:
        self.left.append(context.time_remaining())
        self.over.wait(20)
        context.abort(grpc.StatusCode.UNAVAILABLE, "")

    def GetModelMetadata(self, request, context):
        with grpc.insecure_channel(self._unit) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return stub.GetModelMetadata(request)


def test_a_unit_that_is_late_is_not_waited_for(tmp_path, exact_dir, hard, gateway):
    with stoppable(exact_dir / "cloud") as cloud, Silent(cloud) as fake:
        config = write(tmp_path, exact_dir, f"servers: '{fake.address}', timeout: 0.2")
        with (
            gateway(config) as served,
            EarlyExitClient(served.address, "net", timeout=30) as client,
        ):
            client.describe()
            start = time.monotonic()
            answer = client.predict(hard, [0.0])
            assert answer.degraded.all()
            assert time.monotonic() - start < 15
            fake.over.set()


def test_the_remaining_deadline_goes_along(tmp_path, exact_dir, hard, gateway):
    with stoppable(exact_dir / "cloud") as cloud, Silent(cloud) as fake:
        config = write(tmp_path, exact_dir, f"servers: '{fake.address}'")
        with (
            gateway(config) as served,
            EarlyExitClient(served.address, "net", timeout=3) as client,
        ):
            client.describe()
            # Without a timeout of its own the unit gets almost all of the request's time,
            # and the answer still comes before the client gives up.
            assert client.predict(hard[:2], [0.0]).degraded.all()
            fake.over.set()
        assert 0 < fake.left[0] < 3


def test_another_replica_answers_for_one_that_is_down(tmp_path, exact_dir, hard, gateway):
    with stoppable(exact_dir / "cloud") as one, stoppable(exact_dir / "cloud") as two:
        where = f"servers: ['localhost:{one.port}', 'localhost:{two.port}']"
        config = write(tmp_path, exact_dir, where)
        with (
            gateway(config) as served,
            EarlyExitClient(served.address, "net", timeout=30) as client,
        ):
            client.describe()
            one.end()
            for _ in range(20):
                assert not client.predict(hard[:4], [0.0]).degraded.any()


def test_requests_share_calls_to_a_later_unit(tmp_path, exact_dir, hard, gateway):
    from concurrent import futures

    where = f"path: {exact_dir / 'cloud'}, concurrency: 1"
    config = write(tmp_path, exact_dir, where)
    with (
        gateway(config) as served,
        EarlyExitClient(served.address, "net", timeout=60) as client,
    ):
        client.describe()
        with futures.ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(lambda i: client.predict(hard[i : i + 1], [0.0]), range(96))
            )
        assert not any(answer.degraded.any() for answer in answers)
        together = client.predict(hard, [0.0])
        for i, answer in enumerate(answers):
            np.testing.assert_allclose(
                answer.probabilities[0], together.probabilities[i], atol=1e-5
            )
        calls = served.metric("branchy_cascade_calls_total", unit="cloud", code="OK")
        assert calls < 97


def test_follows_changes_of_the_file(tmp_path, exact_dir, hard, gateway):
    config = write(tmp_path, exact_dir, f"path: {exact_dir / 'cloud'}")
    with (
        gateway(config) as served,
        EarlyExitClient(served.address, "net", timeout=30) as client,
    ):
        client.predict(hard)
        good = config.read_text()

        def replace(text: str) -> None:
            beside = tmp_path / "beside"
            beside.write_text(text)
            os.replace(beside, config)

        # A damaged file changes nothing.
        replace(good.replace("next", "nxt"))
        time.sleep(1.5)
        client.predict(hard)
        replace(good.replace("model: net", "model: other"))
        with EarlyExitClient(served.address, "other", timeout=30) as other:
            servers.until(lambda: answers(other, hard))
        with pytest.raises(ServerError):
            client.predict(hard)


def answers(client, images) -> bool:
    try:
        client.predict(images)
    except ServerError:
        return False
    return True


def test_a_gateway_starts_before_its_units(tmp_path, exact_dir, hard, gateway):
    port = servers.free_port()
    config = write(tmp_path, exact_dir, f"servers: 'localhost:{port}'")
    with gateway(config) as served:
        with (
            EarlyExitClient(served.address, "net", timeout=1) as client,
            pytest.raises(ServerError),
        ):
            client.predict(hard)
        with (
            stoppable(exact_dir / "cloud", port),
            EarlyExitClient(served.address, "net", timeout=30) as client,
        ):
            client.wait_until_ready(30)
            assert not client.predict(hard).degraded.any()


# --- units that do not belong together


def other_network():
    """The same layers with other weights."""
    model = zoo.branchy_lenet(weights="mnist")
    layer = model.get_layer("conv_3")
    layer.set_weights([weight + 0.01 for weight in layer.get_weights()])
    return model


def export(folder, model, *, codec="none", at=("exit_1",), names=("device", "cloud")):
    policy = ExitPolicy(thresholds=[0.0])
    units.export(units.cut(model, at, names), folder, policy, codec=codec)
    return folder


def test_units_of_other_weights_are_refused(tmp_path, exact_dir, hard):
    other = export(tmp_path / "other", other_network())
    config = write(tmp_path, exact_dir, f"path: {other / 'cloud'}", "on_failure: error\n")
    with (
        units.Cascade(config) as cascade,
        pytest.raises(ServerError, match="made for other weights than cloud") as caught,
    ):
        cascade.predict(hard, [0.0])
    assert caught.value.code == "FAILED_PRECONDITION"
    # Set to answer, the device's answers stay, all marked.
    config = write(tmp_path, exact_dir, f"path: {other / 'cloud'}")
    with units.Cascade(config) as cascade:
        assert cascade.predict(hard, [0.0]).degraded.all()


def test_a_new_version_of_one_unit_marks_until_the_other_follows(
    tmp_path, exact_dir, hard
):
    served = tmp_path / "units"
    shutil.copytree(exact_dir, served)
    other = export(tmp_path / "other", other_network())
    with units.Cascade(served / "cascade.yaml") as cascade:
        assert not cascade.predict(hard, [0.0]).degraded.any()
        for name, marked in (("cloud", True), ("device", False)):
            beside = served / name / ".coming"
            shutil.copytree(other / name / "1", beside)
            os.rename(beside, served / name / "2")
            servers.until(
                lambda wanted=marked: (
                    cascade.predict(hard, [0.0]).degraded == wanted
                ).all()
            )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda folder, network: export(folder, network, codec="uint8"),
            ["'device'", "codec none", "'cloud'", "uint8"],
        ),
        (
            lambda folder, _: export(folder, zoo.branchy_lenet(classes=7)),
            ["'device' has 10 classes", "'cloud' has 7"],
        ),
        (
            lambda folder, _: export(folder, zoo.branchy_lenet((32, 32, 1))),
            ["device", "cloud", "features_1", "[B, 30, 30, 5]", "[B, 34, 34, 5]"],
        ),
    ],
)
def test_units_that_do_not_fit_are_named_on_both_sides(
    tmp_path, exact_dir, network, make, said
):
    other = make(tmp_path / "other", network)
    config = write(tmp_path, exact_dir, f"path: {other / 'cloud'}")
    with pytest.raises(BranchyError) as caught:
        units.Cascade(config)
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_a_unit_in_the_wrong_place_is_named(tmp_path, exact_dir):
    config = tmp_path / "cascade.yaml"
    config.write_text(f"units:\n  device: {{path: {exact_dir / 'device'}}}\n")
    with pytest.raises(BranchyError, match="'device' sends rows on, but names no next"):
        units.Cascade(config)


def test_a_whole_model_is_no_unit(tmp_path, network, policy):
    saved_model.export(network, tmp_path, "device", policy)
    config = tmp_path / "cascade.yaml"
    config.write_text("units:\n  device: {path: device}\n")
    with pytest.raises(BranchyError, match="is no unit: it has the signatures"):
        units.Cascade(config)


def test_a_folder_without_versions_is_named(tmp_path):
    config = tmp_path / "cascade.yaml"
    config.write_text("units:\n  device: {path: nowhere}\n")
    with pytest.raises(BranchyError, match=r"There is no folder .*nowhere"):
        units.Cascade(config)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(BranchyError, match="holds no version of unit 'device'"):
        units.Cascade(config)


def test_units_describe_themselves(cut_dir, policy):
    device, cloud = (
        json.loads((cut_dir / name / "1/assets.extra/branchy.json").read_text())
        for name in ("device", "cloud")
    )
    assert device["unit"]["next"] == "cloud"
    assert device["unit"]["codec"] == cloud["unit"]["codec"] == "uint8"
    assert device["exits"] == ["exit_1"]
    assert cloud["exits"] == ["exit_2"]
    assert device["thresholds"] == pytest.approx(policy.thresholds)
    assert cloud["thresholds"] == []
    assert device["features"] == cloud["inputs"]
    assert len(cloud["unit"]["fingerprint"]) == 16
    assert device["macs"][0] > 0


def test_features_are_sent_only_once_exported_together(tmp_path, network, policy):
    with pytest.raises(BranchyError, match="Two units are named"):
        units.export(units.cut(network, ["exit_1"], ["a", "cloud"])[:1] * 2, tmp_path,
                     policy)  # fmt: skip
    assert not list(tmp_path.iterdir())
