"""Valid and invalid requests through the C API, in a separate process."""

from __future__ import annotations

import c_api
import figure_2
import numpy as np
import odd_models
import pytest
import tensorflow as tf

from branchy_tf import saved_model
from branchy_tf.saved_model.session import SessionModel

INVALID_ARGUMENT = 3


@pytest.fixture(scope="module", params=[True, False], ids=["frozen", "variables"])
def digits_version(request, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    freeze = "true" if request.param else "false"
    return saved_model.export(trained, folder, "digits", [0.25], freeze=freeze)


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """A network that could process images of any height and width."""
    model, (images,) = odd_models.build(odd_models.skip_across_the_cut)
    folder = tmp_path_factory.mktemp("exports")
    return model, images, saved_model.export(model, folder, "any", [0.7])


def signature_of(version, name="early_exit"):
    session = SessionModel(version)
    try:
        return session.signatures[name]
    finally:
        session.close()


@pytest.mark.parametrize("onednn", [True, False])
def test_c_api_matches_figure_2(digits_version, trained, digits, onednn):
    limits = [np.full((64, 1), t, "float32") for t in (0.0, 0.3, np.inf, np.nan)]
    limits.append(np.float32([[0.3]]))
    requests = [{"images": digits, "thresholds": t} for t in limits]
    answers = c_api.run(digits_version, signature_of(digits_version), requests, onednn)
    assert len(answers) == len(requests)
    for request, (code, answer) in zip(requests, answers, strict=True):
        assert code == 0, answer
        each = np.broadcast_to(request["thresholds"], (64, 1))
        probabilities, where, _ = figure_2.fast_inference(trained, [digits], each)
        np.testing.assert_array_equal(answer["exit"], where)
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-4)


def bad_requests(images: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Requests that violate the signature in one respect each."""
    rows, height, width, channels = images.shape
    limits = np.full((rows, 1), 0.3, "float32")
    wrong_images = {
        "a scalar": images[0, 0, 0, 0],
        "rank 1": images[:, 0, 0, 0],
        "rank 2": images[:, :, 0, 0],
        "rank 3, no channels": images[..., 0],
        "rank 3, no batch": images[0],
        "rank 5": images[None],
        "height + 1": np.zeros((rows, height + 1, width, channels), images.dtype),
        "height - 1": images[:, :-1],
        "height 0": images[:, :0],
        "half the height": images[:, ::2],
        "width + 1": np.zeros((rows, height, width + 1, channels), images.dtype),
        "width 0": images[:, :, :0],
        "twice the size": np.zeros((rows, 2 * height, 2 * width, channels), images.dtype),
        "channels + 1": np.zeros((rows, height, width, channels + 1), images.dtype),
        "no channels": images[..., :0],
        "no rows and wrong height": images[:0, :-1],
        "float64": images.astype("float64"),
        "int32": images.astype("int32"),
        "the other dtype": images.astype(
            "float32" if images.dtype == np.uint8 else "uint8"
        ),
    }
    wrong_limits = {
        "scalar": limits[0, 0],
        "rank 1 of the rows": limits[:, 0],
        "rank 1 of the gates": limits[0],
        "rank 3": limits[None],
        "a gate too many": np.zeros((rows, 2), "float32"),
        "no gate": limits[:, :0],
        "a row too many": np.zeros((rows + 1, 1), "float32"),
        "a row too few": limits[:-1],
        "no row": limits[:0],
        "float64": limits.astype("float64"),
        "int32": limits.astype("int32"),
    }
    requests = {
        f"images: {what}": {"images": np.asarray(value), "thresholds": limits}
        for what, value in wrong_images.items()
    }
    for what, value in wrong_limits.items():
        requests[f"thresholds: {what}"] = {
            "images": images,
            "thresholds": np.asarray(value),
        }
    return requests


def check_all_refused(version, images, onednn):
    bad = bad_requests(images)
    good = {"images": images, "thresholds": np.full((len(images), 1), 0.3, "float32")}
    answers = c_api.run(version, signature_of(version), [*bad.values(), good], onednn)
    names = [*bad, "the good one after all"]
    assert len(answers) == len(names), f"the process died at {names[len(answers)]}"
    for name, (code, answer) in zip(names, answers[:-1], strict=False):
        assert code == INVALID_ARGUMENT, f"{name}: {code} {answer}"
    assert answers[-1][0] == 0, answers[-1]

    # The other signatures check their images too.
    for signature in ("serving_default", "all_exits"):
        requests = [
            {"images": request["images"]}
            for name, request in bad.items()
            if name.startswith("images")
        ]
        others = c_api.run(version, signature_of(version, signature), requests, onednn)
        assert [code for code, _ in others] == [INVALID_ARGUMENT] * len(requests)


@pytest.mark.parametrize("onednn", [True, False])
def test_rejects_invalid_requests_without_crashing(digits_version, digits, onednn):
    check_all_refused(digits_version, digits[:5], onednn)


@pytest.mark.parametrize("onednn", [True, False])
def test_fully_convolutional_network_rejects_invalid_requests(convolutional, onednn):
    _, images, version = convolutional
    check_all_refused(version, images, onednn)


@pytest.mark.parametrize("onednn", [True, False])
def test_empty_batches_give_empty_results(convolutional, onednn):
    _, images, version = convolutional
    empty = {"images": images[:0], "thresholds": np.float32([[0.5]])}
    ((code, answer),) = c_api.run(version, signature_of(version), [empty], onednn)
    assert code == 0, answer
    assert answer["probabilities"].shape == (0, 4)
    assert answer["exit"].shape == (0,)


def test_error_code_matches_the_servers():
    assert tf.errors.INVALID_ARGUMENT == INVALID_ARGUMENT
