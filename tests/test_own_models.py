"""A model of one's own goes through every command, from a file or from a function."""

from __future__ import annotations

import pathlib
import shutil

import commands
import keras
import numpy as np
import own_nets
import pytest
import small

from branchy_tf import exits, files, models, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.serving.embedded import EmbeddedServer

NETS = pathlib.Path(own_nets.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mnist_5k) -> pathlib.Path:
    """A working folder with digits.npz and the module my_nets."""
    folder = tmp_path_factory.mktemp("own")
    small.write_npz(folder / "digits.npz", mnist_5k)
    shutil.copy(NETS, folder / "my_nets.py")
    return folder


def run(folder: pathlib.Path, command: str, *flags: str) -> commands.Done:
    """Runs a command in `folder`, where it must succeed."""
    done = commands.run(command, *flags, cwd=folder)
    assert done.status == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def from_function(folder) -> pathlib.Path:
    """The run of a function with a custom layer, calibrated."""
    run(
        folder, "train", "--model=my_nets:net", "--model_args=width=6",
        "--exits=conv_1=my_nets:own_head;conv_2=linear", "--dataset=digits.npz",
        "--epochs=6", "--batch_size=20", "--learning_rate=0.01", "--run_dir=function",
    )  # fmt: skip
    run(folder, "calibrate", "--run_dir=function")
    return folder / "function"


@pytest.fixture(scope="module")
def elsewhere(folder, mnist_5k) -> keras.Model:
    """A network that plain Keras trained; its file is elsewhere.keras."""
    keras.utils.set_random_seed(1)
    model = own_nets.plain(10, width=6)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    train = mnist_5k.train
    model.fit(train.images[:400], train.labels[:400], epochs=3, verbose=0)
    model.save(folder / "elsewhere.keras")
    return model


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """`{layer/weight: values}`; a path may begin with the name of the model."""
    return {
        "/".join(weight.path.split("/")[-2:]): np.asarray(weight)
        for weight in model.weights
    }


def test_a_function_receives_the_shape_and_classes_of_the_data(from_function):
    recorded = (from_function / "train.flags").read_text().splitlines()
    assert "--model=my_nets:net" in recorded
    assert "--exits=conv_1=my_nets:own_head;conv_2=linear" in recorded
    model = keras.models.load_model(
        from_function / "model.keras",
        custom_objects={"own>Scale": own_nets.Scale},
        compile=False,
    )
    assert exits.exit_names(model) == ["exit_1", "exit_2", "exit_3"]
    assert model.input_shape == (None, 28, 28, 1)
    assert model.get_layer("conv_3").filters == 18
    assert model.get_layer("exit_1_hidden").units == 8


# Seven commands, each in a process of its own.
def test_its_run_goes_through_every_other_command(folder, from_function):
    flags = "--run_dir=function", "--seconds=0.1", "--batch_sizes=1"
    run(folder, "evaluate", "--run_dir=function")
    run(folder, "measure", *flags)
    run(folder, "benchmark", *flags, "--threads=1", "--peers=", "--nobfloat16")
    run(folder, "export", "--run_dir=function", "--export_dir=exports")
    for name in ("evaluation", "costs", "benchmark"):
        assert (from_function / f"{name}.json").is_file()
    with EmbeddedServer(folder / "exports/branchy_mine", "mine", port=0) as server:
        flags = f"--server=localhost:{server.port}", "--model_name=mine"
        done = run(folder, "predict", *flags, "--dataset=digits.npz", "--num_images=4")
        assert "Images: 4. Answered by version 1." in done.stdout
        # Compares each answer with the model's own.
        load = "--callers=1", "--seconds=0.2", "--run_dir=function"
        run(folder, "benchmark", *flags, *load)


def test_the_flagfile_repeats_the_training(folder, from_function):
    run(folder, "train", f"--flagfile={from_function}/train.flags", "--run_dir=again")
    first, second = (folder / name / "history.csv" for name in ("function", "again"))
    assert first.read_text() == second.read_text()


def test_a_run_needs_its_module_only_for_custom_layers(folder, from_function, tmp_path):
    shutil.copytree(from_function, tmp_path / "run")
    error = commands.run("evaluate", "--run_dir=run", cwd=tmp_path).error
    assert "not registered here: own>Scale" in error
    assert "--import=MODULE; it was saved from my_nets." in error
    done = run(
        folder, "train", "--model=my_nets:plain", "--model_args=classes=12",
        "--exits=auto:1", "--epochs=1", "--dataset=digits.npz", "--run_dir=plain",
    )  # fmt: skip
    assert f"branchy_plain has 12 classes, but {folder}/digits.npz has 10;" in done.stderr
    shutil.copytree(folder / "plain", tmp_path / "plain")
    run(tmp_path, "evaluate", "--run_dir=plain", "--thresholds=0.5")


def test_modules_to_import_are_recorded(folder, from_function, tmp_path):
    shutil.copy(NETS, tmp_path / "my_layers.py")
    shutil.copy(from_function / "model.keras", tmp_path / "trained.keras")
    flags = f"--dataset={folder}/digits.npz", "--model=trained.keras"
    error = commands.run("train", *flags, "--run_dir=run", cwd=tmp_path).error
    assert "not registered here: own>Scale" in error
    assert not (tmp_path / "run").exists()
    flags = (*flags, "--import=my_layers")
    run(tmp_path, "train", *flags, "--epochs=1", "--run_dir=run")
    assert "--import=my_layers\n" in (tmp_path / "run/train.flags").read_text()
    run(tmp_path, "calibrate", "--run_dir=run")
    done = run(tmp_path, "evaluate", *flags, "--thresholds=0.3,0.3")
    assert "exit_3" in done.stdout


def test_a_trained_network_keeps_its_accuracy_to_the_digit(folder, elsewhere, mnist_5k):
    test = mnist_5k.test.take(np.arange(100))
    answers = elsewhere.predict(test.images, verbose=0).argmax(axis=1)
    accuracy = float((answers == test.labels).mean())
    assert accuracy > 0.5
    run(
        folder, "train", "--model=elsewhere.keras",
        "--exits=conv_1=conv(8);conv_2=linear", "--dataset=digits.npz",
        "--mode=branches_only", "--baseline_epochs=0", "--epochs=2", "--run_dir=kept",
    )  # fmt: skip
    trained = keras.models.load_model(folder / "kept/model.keras", compile=False)
    ours, theirs = weights_of(trained), weights_of(elsewhere)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    alone = keras.models.load_model(folder / "kept/baseline.keras", compile=False)
    assert weights_of(alone).keys() == theirs.keys()
    for name, values in weights_of(alone).items():
        np.testing.assert_array_equal(values, theirs[name])

    run(folder, "evaluate", "--run_dir=kept", "--thresholds=0,0")
    evaluated = files.read_json(folder / "kept/evaluation.json")
    assert evaluated["accuracy"] == accuracy
    assert evaluated["exit_accuracies"][-1] == accuracy
    assert evaluated["baseline_accuracy"] == accuracy


def test_training_a_file_starts_from_its_weights(folder, elsewhere):
    run(
        folder, "train", "--model=elsewhere.keras", "--exits=auto:1", "--epochs=1",
        "--dataset=digits.npz", "--learning_rate=1e-12", "--run_dir=joint",
    )  # fmt: skip
    assert (
        f"--model={folder}/elsewhere.keras\n"
        in (folder / "joint/train.flags").read_text()
    )
    trained = keras.models.load_model(folder / "joint/model.keras", compile=False)
    ours, theirs = weights_of(trained), weights_of(elsewhere)
    for name in theirs.keys() - {"norm/moving_mean", "norm/moving_variance"}:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)


def test_commands_take_a_model_without_a_run(folder, elsewhere, tmp_path):
    flags = "--model=elsewhere.keras", "--exits=conv_1=linear", "--thresholds=0.5"
    run(folder, "export", *flags, f"--export_dir={tmp_path}")
    assert (tmp_path / "branchy_plain/1/saved_model.pb").is_file()
    measured = "--seconds=0.1", "--batch_sizes=1", "--dataset=digits.npz"
    done = run(folder, "measure", *flags[:2], *measured)
    assert "exit_2" in done.stdout


def test_a_zoo_network_needs_weights_to_keep(folder, tmp_path):
    flags = [
        "--model=branchy_lenet", "--mode=branches_only", "--baseline_epochs=0",
        f"--dataset={folder}/digits.npz", "--run_dir=run",
    ]  # fmt: skip
    error = commands.run("train", *flags, cwd=tmp_path).error
    assert "but branchy_lenet begins with random ones. Pass --weights" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model=no_nets:net"], "There is no Python module no_nets."),
        (["--model=broken:net"], "Importing broken failed with NameError: name 'oh' is"),
        (["--import=broken"], "Importing broken failed with NameError: name 'oh' is"),
        (["--import=a-b"], "'a-b' is no name of a Python module."),
        (["--model=my_nets:nett"], "has no function nett. Did you mean net?"),
        (["--model=my_nets:raising"], "my_nets:raising raised ZeroDivisionError in "),
        (["--model=none.keras"], "/none.keras."),
        (["--model=my_nets:plain"], "plain has one output and no early exits."),
        (["--exits=conv_9=linear"], "has no layer 'conv_9'. Closest: conv_"),
        (["--exits=conv_1"], "at exit 1 of 1, 'conv_1': expected LAYER=HEAD"),
        (["--exits=conv_1=conv(8);pool=conv(8)"], "conv_head for exit_2 needs a feature"),
        (["--model_args=widht=3"], "no argument 'widht'. Did you mean width?"),
        (["--model_args=classes=4"], "branchy_mine has 4 classes, but"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, flags, expected):
    (tmp_path / "broken.py").write_text("oh\n")
    shutil.copy(NETS, tmp_path / "my_nets.py")
    good = [
        "--model=my_nets:net", f"--dataset={folder}/digits.npz", "--run_dir=run",
    ]  # fmt: skip
    if not any(flag.startswith(("--exits", "--model=my_nets:plain")) for flag in flags):
        good.append("--exits=conv_1=linear")
    assert expected in commands.run("train", *good, *flags, cwd=tmp_path).error
    assert not (tmp_path / "run").exists()


def complaint(*arguments: object, **options: object) -> str:
    with pytest.raises(BranchyError) as caught:
        models.build(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (
            "raising",
            {"classes": 3},
            f"own_nets:raising raised ZeroDivisionError in {NETS}, line "
            f"{NETS.read_text().split('1 / 0')[0].count(chr(10)) + 1}: division by zero.",
        ),
        (
            "a_list",
            {"classes": 3},
            "own_nets:a_list returned [3], of type list; expected a keras.Model.",
        ),
        (
            "nothing",
            {},
            "own_nets:nothing returned None, of type NoneType; expected a keras.Model.",
        ),
        (
            "subclassed",
            {},
            "Expected a functional keras.Model, received Subclassed. A subclassed model "
            "has no graph; build it as keras.Model(inputs, outputs).",
        ),
        (
            "net",
            {},
            "own_nets:net needs the argument 'classes'. Pass it with --model_args="
            "classes=VALUE, or give it a default.",
        ),
        (
            "net",
            {"clases": 3},
            "own_nets:net has no argument 'clases'. Did you mean classes? It takes: "
            "classes, input_shape, width.",
        ),
        (
            "wrong_form",
            {},
            "Model 'wrong_form' has outputs made by the layers exit_1, exit_2, not in a "
            "dict; expected a dict of exit_1 ... exit_N, each made by a layer of that "
            "name. Name each exit's last layer exactly like its key.",
        ),
        (
            "unbuilt",
            {},
            "Sequential model 'unbuilt' has no input shape yet. Begin it with "
            "keras.Input(shape).",
        ),
        (
            "plain",
            {"classes": 10},
            "plain has one output and no early exits. Add them with --exits=auto:2, or "
            "at layers that you choose, such as norm, conv_2: "
            "--exits='LAYER=linear;LAYER=conv(64)'.",
        ),
    ],
)
def test_functions_that_give_no_model_with_exits(function, arguments, expected):
    assert complaint(f"own_nets:{function}", arguments) == expected


def test_exits_of_a_model_are_not_replaced():
    assert complaint("own_nets:with_exits", exits="auto:1") == (
        "complete already has exits, exit_1, exit_2, so --exits=auto:1 cannot be added. "
        "Leave --exits out, or pass a model with one output: a function that returns "
        "branchy_tf.baseline(model)."
    )
    assert exits.exit_names(models.build("own_nets:with_exits")) == ["exit_1", "exit_2"]
    text = complaint("branchy_lenet", exits="auto:1")
    assert text.startswith("branchy_lenet already has exits, exit_1, exit_2, so")


def test_one_output_in_a_dict_is_one_output():
    assert "has one output and no early exits" in complaint("own_nets:named_output")
    model = models.build("own_nets:named_output", exits="conv_1=linear")
    assert exits.exit_names(model) == ["exit_1", "exit_2"]
    # One exit alone is trained as it is.
    assert exits.exit_names(models.build("own_nets:one_exit")) == ["exit_1"]


@pytest.mark.parametrize("given", [None, 5, ["net"], NETS])
def test_rejects_what_is_no_text(given):
    assert complaint(given).startswith("`model` must be the name of a zoo model, the ")
    if given is not None:
        text = complaint("own_nets:plain", {"classes": 3}, exits=given)
        assert text.startswith("`text` must be exits as text, such as")


def test_a_function_receives_only_what_it_takes():
    offered = {"input_shape": (28, 28, 1), "classes": 7}
    assert exits.num_classes(models.build("own_nets:with_exits", {}, offered)) == 7
    given = models.build("own_nets:plain", {"classes": 4}, offered, exits="auto:1")
    assert exits.num_classes(given) == 4
    assert "has no argument 'weights'" in complaint(
        "own_nets:plain", {}, offered, weights="some.weights.h5"
    )
    app = models.build(
        "keras.applications:MobileNetV2",
        {"weights": None, "alpha": 0.35},
        {"input_shape": (32, 32, 3), "classes": 7},
        exits="auto:1",
    )
    assert exits.num_classes(app) == 7


def test_files_take_no_arguments_and_no_weights(tmp_path):
    path = str(tmp_path / "complete.keras")
    own_nets.with_exits().save(path)
    assert exits.exit_names(models.build(path, offered={"classes": 3})) == [
        "exit_1", "exit_2",
    ]  # fmt: skip
    assert complaint(path, {"classes": 3}).startswith("--model_args has classes, but")
    assert complaint(path, weights="mnist").startswith("--weights=mnist cannot be used")
    assert "already has exits" in complaint(path, exits="auto:1")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        text = complaint(path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert "has a precision of its own, so mixed_bfloat16 cannot be used" in text


def test_files_in_other_forms(tmp_path):
    path = str(tmp_path / "net.keras")
    own_nets.wrong_form().save(path)
    assert "outputs made by the layers exit_1, exit_2, not in a dict" in complaint(path)
    subclassed = own_nets.subclassed()
    subclassed(np.zeros((1, 3)))
    subclassed.save(path)
    assert "received Subclassed. A subclassed model has no graph" in complaint(path)
    (tmp_path / "net.keras").write_text("no archive")
    assert "it is no .keras archive" in complaint(path)


def test_unknown_names_say_what_a_model_may_be():
    assert complaint("branchy_lennet") == (
        "Unknown model 'branchy_lennet'. Did you mean branchy_lenet? Known: "
        f"{', '.join(zoo.list_models())}. --model takes the name of a zoo model, the "
        "path of a .keras file, or module:function."
    )
    assert complaint("branchy_lenet", {"weights": "mnist"}) == (
        "--model_args has weights; pass --weights instead."
    )
