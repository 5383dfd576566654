from __future__ import annotations

import figure_2
import keras
import numpy as np
import odd_models
import pytest
import tensorflow as tf

import branchy_tf
from branchy_tf import exits, saved_model
from branchy_tf.saved_model.session import SessionModel

MODELS = [
    odd_models.skip_across_the_cut,
    odd_models.several_live_tensors,
    odd_models.several_inputs,
    odd_models.exits_off_exits,
    odd_models.later_exit_made_first,
    odd_models.nested_model,
    odd_models.many_exits,
]
RNG = np.random.default_rng(7)


def choices_of_thresholds(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Thresholds [B, N-1], never equal to a score, where rounding would decide."""
    rows, gates = scores.shape[0], scores.shape[1] - 1

    def same(limits):
        return np.tile(np.float32(limits), (rows, 1))

    # In the middle of the widest gap between the scores of each exit.
    ordered = np.sort(scores[:, :-1], axis=0)
    below = np.diff(ordered, axis=0).argmax(axis=0)
    middle = (ordered[below, range(gates)] + ordered[below + 1, range(gates)]) / 2
    mixed = same(middle)
    mixed[::2] = RNG.choice([0, np.inf, 1e-9], size=mixed[::2].shape)
    return {
        "all early": same([np.inf] * gates),
        "all late": same([0] * gates),
        "negative": same([-1] * gates),
        "nan": same([np.nan] * gates),
        "parted in the middle": same(middle),
        "a row each": mixed,
        "only the last gate": same([0] * (gates - 1) + [np.inf]),
    }


def session_of(model, folder, frozen=True):
    module = saved_model.EarlyExitModule(model, [0.5] * gates_of(model), frozen=frozen)
    module.save(folder)
    return SessionModel(folder), module.input_names


def gates_of(model):
    return len(model.outputs) - 1


@pytest.mark.parametrize("builder", MODELS, ids=lambda b: b.__name__)
def test_session_routes_like_figure_2(builder, tmp_path):
    model, inputs = odd_models.build(builder)
    session, names = session_of(model, tmp_path)
    feed = dict(zip(names, inputs, strict=True))
    scores = session.run("all_exits", feed)["scores"]
    for name, limits in choices_of_thresholds(scores).items():
        answer = session.run("early_exit", feed | {"thresholds": limits})
        probabilities, where, score = figure_2.fast_inference(model, inputs, limits)
        np.testing.assert_array_equal(answer["exit"], where, err_msg=name)
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
        np.testing.assert_allclose(answer["score"], score, rtol=1e-4, atol=1e-5)
        assert answer["exit"].dtype == np.int32
        assert answer["probabilities"].dtype == answer["score"].dtype == np.float32


@pytest.mark.parametrize("frozen", [True, False])
def test_digits_route_like_figure_2(trained, digits, tmp_path, frozen):
    session, _ = session_of(trained, tmp_path, frozen)
    scores = session.run("all_exits", {"images": digits})["scores"]
    for limits in choices_of_thresholds(scores).values():
        answer = session.run("early_exit", {"images": digits, "thresholds": limits})
        probabilities, where, _ = figure_2.fast_inference(trained, [digits], limits)
        np.testing.assert_array_equal(answer["exit"], where)
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)


def test_one_row_of_thresholds_applies_to_all_rows(trained, digits, tmp_path):
    session, _ = session_of(trained, tmp_path)
    one = session.run("early_exit", {"images": digits, "thresholds": np.float32([[0.3]])})
    each = session.run(
        "early_exit", {"images": digits, "thresholds": np.full((64, 1), 0.3, "float32")}
    )
    np.testing.assert_array_equal(one["exit"], each["exit"])
    assert 0 < one["exit"].sum() < 64


@pytest.mark.parametrize("limit", [0.0, 0.3, np.inf])
def test_batches_of_one_and_of_many_agree(trained, digits, tmp_path, limit):
    session, _ = session_of(trained, tmp_path)
    limits = np.float32([[limit]])
    many = session.run("early_exit", {"images": digits, "thresholds": limits})
    for row in range(0, 64, 5):
        one = session.run(
            "early_exit", {"images": digits[row : row + 1], "thresholds": limits}
        )
        assert one["exit"] == many["exit"][row]
        np.testing.assert_allclose(
            one["probabilities"][0], many["probabilities"][row], atol=1e-5
        )


def test_nan_row_takes_the_final_exit_and_affects_no_other(tmp_path):
    model, (images,) = odd_models.build(odd_models.skip_across_the_cut)
    session, _ = session_of(model, tmp_path)
    limits = np.float32([[np.inf]])
    clean = session.run("early_exit", {"images": images, "thresholds": limits})
    images[2] = np.nan
    answer = session.run("early_exit", {"images": images, "thresholds": limits})
    assert answer["exit"].tolist() == [0, 0, 1, 0, 0, 0]
    assert np.isnan(answer["score"][2])
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(
        answer["probabilities"][others], clean["probabilities"][others], atol=1e-6
    )


def test_early_exit_adds_few_operations(trained, digits, tmp_path):
    session, _ = session_of(trained, tmp_path)
    kinds = {}
    for way, limit in {"leave": np.inf, "stay": 0}.items():
        feed = {"images": digits[:4], "thresholds": np.float32([[limit]])}
        names = session.operations("early_exit", feed)
        # The request is checked before the first branch.
        inside = [name for name in names if "cond/" in name]
        kinds[way] = {name.rpartition("/")[2].partition("_")[0] for name in inside}
    assert kinds["leave"] >= {"Less", "All"}
    # Remaining rows are found only if there are any, and gathered only if some exit.
    for way in kinds.values():
        assert not {"Where", "GatherV2", "TensorScatterUpdate"} & way
    assert not {"Equal", "Any"} & kinds["leave"]
    assert "Any" in kinds["stay"]


def test_empty_batch_gives_empty_results(trained, digits, tmp_path):
    session, _ = session_of(trained, tmp_path)
    empty = {"images": digits[:0]}
    for limits in (np.zeros((1, 1), "float32"), np.zeros((0, 1), "float32")):
        answer = session.run("early_exit", empty | {"thresholds": limits})
        assert answer["probabilities"].shape == (0, 10)
        assert answer["exit"].shape == answer["score"].shape == (0,)
    answer = session.run("all_exits", empty)
    assert answer["probabilities"].shape == (0, 2, 10)
    assert answer["scores"].shape == (0, 2)


def test_graph_size_is_linear_in_the_exits():
    sizes = [graph_bytes(number) for number in (3, 6, 12)]
    # With nested names, the factor would be 2.9.
    assert sizes[2] - sizes[1] < 2.1 * (sizes[1] - sizes[0])


def graph_bytes(number):
    """The size of early_exit's graph for a chain of `number` equal stages."""
    x = values = keras.Input((4,))
    outputs = {}
    for k in range(1, number + 1):
        x = keras.layers.Dense(4)(x)
        outputs[f"exit_{k}"] = exits.logits_head(x, 3, f"exit_{k}")
    model = keras.Model(values, outputs)
    module = saved_model.EarlyExitModule(model, [0.5] * (number - 1))
    graph = module.functions["early_exit"].get_concrete_function().graph
    return graph.as_graph_def().ByteSize()


def test_inputs_must_have_equal_rows(tmp_path):
    model, (image, extra) = odd_models.build(odd_models.several_inputs)
    session, _ = session_of(model, tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError):
        session.run("serving_default", {"image": image, "extra": extra[:4]})


def test_predictor_matches_figure_2(trained, digits):
    predictor = branchy_tf.EarlyExitPredictor(trained, thresholds=[0.3])
    answer = predictor.predict(digits, batch_size=24)
    limits = np.full((64, 1), 0.3)
    probabilities, where, scores = figure_2.fast_inference(trained, [digits], limits)
    np.testing.assert_array_equal(answer.exits, where)
    np.testing.assert_array_equal(answer.labels, probabilities.argmax(axis=1))
    np.testing.assert_allclose(answer.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.scores, scores, rtol=1e-4, atol=1e-5)
    assert answer.model_version is None
    assert 0 < answer.exit_rates(2)[0] < 1


def test_predictor_accepts_thresholds_per_call_and_row(trained, digits):
    predictor = branchy_tf.EarlyExitPredictor(trained, thresholds=[0.0])
    assert set(predictor.predict(digits).exits) == {1}
    assert set(predictor.predict(digits, thresholds=[np.inf]).exits) == {0}
    own = np.where(np.arange(64)[:, None] % 2, np.inf, 0)
    answer = predictor.predict(digits, thresholds=own, batch_size=10)
    assert answer.exits.tolist() == [1, 0] * 32
    empty = predictor.predict(digits[:0])
    assert len(empty) == 0
    assert empty.probabilities.shape == (0, 10)


def test_predictor_accepts_several_inputs_by_name():
    model, (image, extra) = odd_models.build(odd_models.several_inputs)
    predictor = branchy_tf.EarlyExitPredictor(model, thresholds=[np.inf])
    assert set(predictor.predict({"image": image, "extra": extra}).exits) == {0}
    with pytest.raises(ValueError, match="image, extra"):
        predictor.predict(image)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 28, 1), "uint8"), r"images\[None\]"),
        (np.zeros((2, 28, 28), "uint8"), r"images\[..., None\]"),
        (np.zeros((2, 28, 27, 1), "uint8"), r"uint8 \[B, 28, 28, 1\]"),
        (np.zeros((2, 28, 28, 1)), "astype"),
        ([[1, 2], [3]], "shape"),
        (None, "shape"),
    ],
)
def test_predictor_rejects_invalid_images(trained, images, message):
    predictor = branchy_tf.EarlyExitPredictor(trained, thresholds=[0.1])
    with pytest.raises(ValueError, match=message):
        predictor.predict(images)


@pytest.mark.parametrize("limits", [[0.1, 0.2], [-1], [np.nan], [[0.1]] * 3])
def test_predictor_rejects_invalid_thresholds(trained, digits, limits):
    predictor = branchy_tf.EarlyExitPredictor(trained, thresholds=[0.1])
    with pytest.raises(ValueError, match="thresholds"):
        predictor.predict(digits, thresholds=limits)
