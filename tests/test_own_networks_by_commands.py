"""Networks of keras.applications and a transformer, trained and served by commands."""

from __future__ import annotations

import pathlib
import shutil

import commands
import keras
import numpy as np
import own_nets
import pytest

from branchy_tf import costs, files
from branchy_tf.serving.embedded import EmbeddedServer

FAMILIES = [
    "MobileNetV2",
    "EfficientNetV2B0",
    "ConvNeXtTiny",
    "DenseNet121",
    "ResNet50",
    "InceptionV3",
    "Xception",
]
QUICK = {"MobileNetV2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mnist_5k) -> pathlib.Path:
    """A working folder with my_nets.py, digits.npz, and colour.npz of 96 x 96 pixels."""
    folder = tmp_path_factory.mktemp("networks")
    shutil.copy(own_nets.__file__, folder / "my_nets.py")
    train, test = mnist_5k.train.take(np.arange(120)), mnist_5k.test.take(np.arange(40))
    labels = {"y_train": train.labels, "y_test": test.labels}
    images = {"x_train": train.images, "x_test": test.images}
    np.savez(folder / "digits.npz", **images, **labels)
    for name, grey in images.items():
        large = np.pad(grey.repeat(3, 1).repeat(3, 2), [(0, 0), (6, 6), (6, 6), (0, 0)])
        # Digits in their own colours.
        tints = np.random.default_rng(len(grey)).uniform(0.3, 1, (len(grey), 1, 1, 3))
        images[name] = (large * tints).astype(np.uint8)
    np.savez(folder / "colour.npz", **images, **labels)
    return folder


def trained_and_served(folder: pathlib.Path, name: str, *flags: str) -> None:
    """Train, calibrate, export and predict, each by its command."""

    def run(command: str, *more: str) -> commands.Done:
        done = commands.run(command, *more, cwd=folder, seconds=900)
        assert done.status == 0, done.stderr
        return done

    run(
        "train", *flags, f"--run_dir={name}", "--exits=auto:2", "--validation_size=40",
        "--epochs=1", "--batch_size=16",
    )  # fmt: skip
    # One epoch of batch norm statistics leaves a deep network at chance.
    run("calibrate", f"--run_dir={name}", "--undefok=force", "--force")
    calibrated = files.read_json(folder / name / "thresholds.json")
    assert calibrated["exits"] == ["exit_1", "exit_2", "exit_3"]
    model = keras.models.load_model(folder / name / "model.keras", compile=False)
    macs = costs.cumulative_macs(model)
    # The exits are where the cost is divided, not at the ends.
    assert 0.2 < macs[0] / macs[2] < 0.5 < macs[1] / macs[2] < 0.8
    run("export", f"--run_dir={name}", f"--export_dir={name}-exports", "--model_name=net")
    with EmbeddedServer(folder / f"{name}-exports/net", "net", port=0) as server:
        asked = f"--server=localhost:{server.port}", "--model_name=net", "--num_images=8"
        dataset = next(flag for flag in flags if flag.startswith("--dataset"))
        done = run("predict", *asked, dataset, "--timeout=60")
    assert "Images: 8. Answered by version 1." in done.stdout


# A network for large images: training, calibrating and exporting take their time.
@pytest.mark.parametrize("family", FAMILIES)
def test_keras_applications(folder, family, request):
    if family not in QUICK and not request.config.getoption("--all_applications"):
        pytest.skip("takes minutes in all; run with --all_applications")
    trained_and_served(
        folder,
        family,
        f"--model=keras.applications:{family}",
        "--model_args=weights=None",
        "--dataset=colour.npz",
    )


def test_a_transformer(folder):
    trained_and_served(
        folder, "transformer", "--model=my_nets:transformer", "--dataset=digits.npz"
    )
