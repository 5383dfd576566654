from __future__ import annotations

import commands
import grpc
import numpy as np
import pytest
import servers
import trustme
from PIL import Image


def predict(served, *flags, **keywords):
    flags = (f"--server={served.address}", f"--model_name={servers.MODEL}", *flags)
    return commands.run("predict", *flags, **keywords)


def table(done):
    """`[[cell, ...], ...]` of the rows below the ruler."""
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    (ruler,) = (i for i, line in enumerate(lines) if line.startswith("---"))
    return [line.split() for line in lines[ruler + 1 : -1]]


@pytest.fixture
def pictures(tmp_path, digits):
    """Digit 0 as it is; digit 1 as a larger colour photograph."""
    Image.fromarray(digits[0, :, :, 0]).save(tmp_path / "zero.png")
    large = Image.fromarray(digits[1, :, :, 0]).convert("RGB").resize((84, 56))
    large.save(tmp_path / "one.jpg", quality=95)
    (tmp_path / "notes.png").write_text("not an image")
    return tmp_path


def test_classifies_image_files(served, client, digits, pictures):
    done = predict(served, "--images=zero.png,one.jpg", cwd=pictures)
    expected = client.predict(digits[:2])
    rows = table(done)
    assert [row[0] for row in rows] == ["zero.png", "one.jpg"]
    assert rows[0][1:] == [
        str(expected.labels[0]),
        f"{expected.probabilities[0].max():.4f}",
        f"exit_{expected.exits[0] + 1}",
        f"{expected.scores[0]:.4f}",
    ]
    # The photograph is the same digit still.
    assert rows[1][1] == str(expected.labels[1])
    assert "Images: 2. Answered by version 1." in done.stdout


def test_reports_how_it_fits_images(served, pictures):
    done = predict(served, "--images=zero.png,one.jpg", cwd=pictures)
    first = done.stdout.splitlines()[0]
    assert first.startswith("one.jpg: made grey, resized from 84x56 to 28x28 (bilinear")
    assert "zero.png:" not in done.stdout


def test_classifies_a_data_set(served, client, mnist_5k):
    done = predict(served, "--dataset=mnist_5k", "--num_images=8")
    expected = client.predict(mnist_5k.test.images[:8])
    rows = table(done)
    assert [row[2] for row in rows] == [str(i) for i in range(8)]
    assert [row[3] for row in rows] == [str(label) for label in expected.labels]
    assert [row[5] for row in rows] == [f"exit_{k + 1}" for k in expected.exits]
    assert [row[7] for row in rows] == [str(label) for label in mnist_5k.test.labels[:8]]
    left = np.bincount(expected.exits, minlength=2)
    for k in np.flatnonzero(left):
        assert f"exit_{k + 1} {left[k]}" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("thresholds", "exit_"), [("0", "exit_2"), ("inf", "exit_1")])
def test_thresholds_decide_the_exits(served, pictures, thresholds, exit_):
    flags = ["--images=zero.png,one.jpg", f"--thresholds={thresholds}"]
    done = predict(served, *flags, cwd=pictures)
    assert {row[3] for row in table(done)} == {exit_}
    assert done.stdout.rstrip().endswith(f"Exits: {exit_} 2.")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "one of the two"),
        (["--images=zero.png", "--dataset=mnist_5k"], "one of the two"),
        (["--images=notes.png"], "notes.png cannot be read as an image: its format"),
        (["--images=zero.png,two.png"], "There is no image two.png"),
        (["--images=."], "cannot be read"),
        (["--images=zero.png", "--thresholds=0.1,0.2"], "expected 1, for exit_1"),
        (["--images=zero.png", "--thresholds=-1"], "at least 0"),
        (["--images=zero.png", "--thresholds=low"], "expected comma-separated numbers"),
        (["--images=zero.png", "--model_name=vgg"], "does not serve model 'vgg'"),
        (["--images=zero.png", "--model_name="], "--model_name is missing"),
        (["--dataset=mnist_5k", "--num_images=0"], "num_images"),
        (["--images=zero.png", "--timeout=0"], "seconds above 0"),
        (["--images=zero.png", "--tls_ca=no.pem"], "no.pem cannot be read"),
        (["--images=zero.png", "--tls_key=key.pem"], "no `certificate`"),
        (["--images=zero.png", "--server=::1:8500"], r"[::1]:8500"),
        (["--images=zero.png", "--tls"], "does not speak TLS"),
    ],
)
def test_rejects_bad_flags(served, pictures, flags, expected):
    assert expected in predict(served, *flags, cwd=pictures).error


def test_no_server_is_one_line(pictures):
    server = f"localhost:{servers.free_port()}"
    flags = [f"--server={server}", "--model_name=m", "--images=zero.png"]
    done = commands.run("predict", *flags, cwd=pictures)
    assert f"UNAVAILABLE: No server answers at {server}" in done.error


def test_asks_for_a_label_over_tls(pictures):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(pictures / "ca.pem")
    certificate = authority.issue_cert("models.example")
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    flags = ["--images=zero.png", "--label=stable", "--tls_ca=ca.pem"]
    with servers.FakeServer(credentials=credentials) as fake:
        done = predict(fake, *flags, cwd=pictures)
        assert "do not agree on TLS" in done.error
        done = predict(fake, *flags, "--tls_server_name=models.example", cwd=pictures)
    assert len(table(done)) == 1
    (request,) = fake.requests
    assert request.model_spec.version_label == "stable"
