"""The command play, over a run folder, a version and a server."""

from __future__ import annotations

import numpy as np
import pytest
import trustme
from play_process import answer, facts, playing

from branchy_tf import EarlyExitPredictor, files, litert
from branchy_tf import playing as library
from branchy_tf.checks import TensorSpec
from branchy_tf.errors import BranchyError
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.serving.messages import Signature


def test_plays_with_a_run(run_dir, tmp_path):
    with playing(tmp_path, f"--run_dir={run_dir}") as connection:
        known = facts(connection)
        calibrated = files.read_json(run_dir / "thresholds.json")
        assert known["thresholds"] == pytest.approx(calibrated["thresholds"])
        assert known["macs"] == [220_150, 1_247_720]
        assert known["samples"] == 1000
        assert answer(connection, "sample=3&thresholds=inf")["exit"] == 0


def test_plays_with_a_version(exported, tmp_path):
    files.write_json(tmp_path / "data.json", {"class_names": list("abcdefghij")})
    flags = [f"--version_dir={exported / '1'}", f"--class_names={tmp_path}"]
    flags += ["--dataset=mnist_5k", "--thresholds=0.5"]
    with playing(tmp_path, *flags) as connection:
        known = facts(connection)
        assert known["thresholds"] == [0.5]
        assert known["criterion"] == "entropy"
        assert known["macs"] == [220_150, 1_247_720]
        assert known["class_names"] == list("abcdefghij")
        assert known["place"].startswith("version 1 in ")
        found = answer(connection, "sample=3&thresholds=0")
        assert found["exit"] == 1
        assert found["exits"][0]["score"] > 0


def test_plays_with_a_litert_version(shipped, policy, samples, tmp_path):
    version = litert.export(shipped("branchy_lenet", "mnist"), tmp_path, "net", policy)
    subject = library.of_version(EarlyExitPredictor(version), version)
    expected = EarlyExitPredictor(shipped("branchy_lenet", "mnist"), policy)
    found = subject.ask(samples.images[0], None)
    assert found.exit == expected.predict(samples.images[:1]).exits[0]
    probabilities, _ = expected.all_exits(samples.images[:1])
    np.testing.assert_allclose(found.probabilities, probabilities[0], atol=1e-4)


def test_plays_with_a_server_over_tls(exported, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def quoted(pem):
        return '"' + pem.bytes().decode("ascii").replace("\n", "\\n") + '"'

    (tmp_path / "ssl.config").write_text(
        f"server_key: {quoted(certificate.private_key_pem)}\n"
        f"server_cert: {quoted(certificate.cert_chain_pems[0])}\n"
    )
    options = {"ssl_config_file": tmp_path / "ssl.config"}
    with EmbeddedServer(exported, "net", port=0, **options) as server:
        flags = [f"--server=localhost:{server.port}", "--model_name=net"]
        flags += [f"--tls_ca={tmp_path / 'ca.pem'}", f"--version_dir={exported / '1'}"]
        with playing(tmp_path, *flags, "--dataset=mnist_5k") as connection:
            known = facts(connection)
            assert known["criterion"] == "entropy"
            assert known["macs"] == [220_150, 1_247_720]
            assert known["units"] is None
            assert answer(connection, "sample=3&thresholds=0")["exit"] == 1
            assert answer(connection, "sample=3&thresholds=inf")["exit"] == 0
            assert "exit" in answer(connection, "sample=3")


class Served:
    """A client of a server whose model has so many exits."""

    def __init__(self, num_exits):
        images = {"images": TensorSpec((-1, 28, 28, 1), "uint8")}
        names = ("all_exits", "early_exit")
        limits = tuple(np.linspace(0.1, 0.2, num_exits - 1))
        self._signature = Signature(1, images, num_exits, 10, names, limits)

    def signature(self):
        return self._signature


def test_a_server_says_its_thresholds_and_a_version_the_rest(exported):
    alone = library.of_server(Served(2), "host:1", "net").facts
    assert list(alone.thresholds) == [0.1]
    assert (alone.criterion, alone.macs) == (None, None)
    assert alone.place == "net on host:1"
    both = library.of_server(Served(2), "host:1", "net", exported / "1").facts
    assert list(both.thresholds) == [0.1]
    assert both.criterion == "entropy"
    with pytest.raises(BranchyError, match="3 exits on the server and 2"):
        library.of_server(Served(3), "host:1", "net", exported / "1")
