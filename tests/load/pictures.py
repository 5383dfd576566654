"""What a folder of pictures costs: the speed of training and the memory of each step.

    python tests/load/pictures.py speed --steps=12
    python tests/load/pictures.py memory --images=50000

`speed` trains MobileNetV2 at 96 x 96 from 224 x 224 JPEG files and from the same pixels
in memory, in turn, and prints images per second and their ratio; tf.data reads the same
files for comparison. `memory` makes a folder of JPEG files, 500 of them distinct and the
others links to them, runs a slice of an epoch, calibrate and evaluate in processes of
their own and prints the peak of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SIDE = 224
CLASSES = 10


def make_folder(
    root: pathlib.Path, images: dict[str, int], distinct: int = 500, side: int = SIDE
) -> None:
    """Writes JPEG files of ten classes, of which all but `distinct` are hard links.

    Args:
        root: the folder to make.
        images: `{split: number of images}`.
        distinct: the number of different images.
        side: of the images, in pixels.
    """
    random = np.random.default_rng(0)
    originals = root / "originals"
    originals.mkdir(parents=True)
    for number in range(distinct):
        # Smooth like a photograph, so that the files have the usual size.
        small = random.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        noise = random.normal(0, 6, (side, side, 3))
        shade = 8 * (number % CLASSES)
        pixels = np.clip(np.asarray(picture) * 0.7 + noise + shade, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(
            originals / f"{number}.jpg", quality=90
        )
    for split, count in images.items():
        for label in range(CLASSES):
            (root / split / f"class_{label}").mkdir(parents=True)
        for number in range(count):
            source = number % distinct
            os.link(
                originals / f"{source}.jpg",
                root / split / f"class_{source % CLASSES}" / f"{number}.jpg",
            )


def speed(
    steps: int, batch_size: int, rounds: int, sources: list[str], side: int = 96
) -> dict:
    """Images per second and milliseconds of processor time per image, by source.

    The time of the processors tells what a source costs even on a busy machine: where
    training keeps them busy, decoding can take no more of the speed than its share.

    Args:
        steps: training steps of each measurement.
        batch_size: rows per step.
        rounds: of measurements, in turn.
        sources: any of memory, folder and tf.data.
        side: the side of the model's input, in pixels.
    """
    import keras

    from branchy_tf import data, exits
    from branchy_tf.training.phases import branches_phase
    from branchy_tf.training.settings import Settings
    from zoo.studies.training_timers import StepTimer

    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        rows = (steps + 1) * batch_size
        make_folder(root, {"train": rows + CLASSES, "test": CLASSES}, rows + CLASSES)
        files = data.load(str(root), validation_size=CLASSES, image_size=(side, side))
        files = dataclasses.replace(files, train=files.train.take(slice(0, rows)))
        pixels = dataclasses.replace(files.train, inputs=files.train.read())
        memory = dataclasses.replace(files, train=pixels)
        network = keras.applications.MobileNetV2(
            (side, side, 3), weights=None, classes=CLASSES
        )
        model = exits.add_exits(network, {"block_6_expand_relu": exits.linear_head})
        settings = Settings(batch_size=batch_size)
        phase = branches_phase(model, settings)
        timers: dict[str, Callable[[], float]] = {
            "memory": StepTimer(phase, memory, settings),
            "folder": StepTimer(phase, files, settings),
        }
        timers["tf.data"] = _pipeline_timer(root, phase, settings, side, steps)
        timers = {name: timers[name] for name in sources}
        rates: dict[str, list[float]] = {name: [] for name in sources}
        works: dict[str, list[float]] = {name: [] for name in sources}
        # The first round builds the graphs.
        for number in range(rounds + 1):
            for name, timer in timers.items():
                start = time.process_time()
                rate = batch_size / timer()
                if number:
                    rates[name].append(rate)
                    works[name].append(1e3 * (time.process_time() - start) / rows)
    return {
        "images per second": {k: float(np.median(v)) for k, v in rates.items()},
        "processor ms per image": {k: float(np.median(v)) for k, v in works.items()},
    }


def _pipeline_timer(root, phase, settings, side: int, steps: int) -> Callable[[], float]:
    """Times steps that tf.data feeds with the same files."""
    import keras
    import tensorflow as tf

    from branchy_tf.training.fitting import compiled

    paths = sorted(str(path) for path in root.glob("train/*/*.jpg"))
    labels = [int(pathlib.Path(path).parent.name.partition("_")[2]) for path in paths]
    names = list(phase.model.output)

    def decode(path, label):
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        pixels = tf.image.resize(pixels, (side, side))
        return pixels, dict.fromkeys(names, label)

    rows = tf.data.Dataset.from_tensor_slices((paths, np.array(labels, np.int64)))
    rows = rows.shuffle(len(paths)).map(decode, tf.data.AUTOTUNE)
    batches = rows.batch(settings.batch_size).take(steps + 1).prefetch(2)
    trainer = compiled(phase, settings, steps + 1)
    times: list[float] = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append(time.perf_counter())
    )

    def timer() -> float:
        times.clear()
        trainer.fit(batches, verbose=0, callbacks=[note])
        return (times[-1] - times[0]) / (len(times) - 1)

    return timer


def train_slice(root: str, run_dir: str, rows: int) -> None:
    """Trains B-LeNet for one epoch on the first rows of a folder."""
    import branchy_tf.training as training
    from branchy_tf import data, zoo

    training.make_deterministic(0)
    dataset = data.load(root)
    some = dataset.train.take(slice(0, rows))
    model = zoo.branchy_lenet(input_shape=dataset.image_shape, classes=dataset.classes)
    training.train(
        model,
        dataclasses.replace(dataset, train=some, validation=dataset.validation.take(
            slice(0, rows // 10))),
        training.Settings(epochs=1, learning_rate=1e-4),
        training.RunFolder(run_dir),
        f"--dataset={root}\n--seed=0\n",
    )  # fmt: skip


def memory(images: int, rows: int) -> dict:
    """Peak of the resident memory of each step in GB, and its seconds.

    Args:
        images: in the folder; a tenth each for validation and test.
        rows: training rows of the slice of an epoch.
    """
    result = {"images": images, "training rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        root, run = pathlib.Path(folder, "pictures"), pathlib.Path(folder, "run")
        part = images // 10
        make_folder(root, {"train": images - 2 * part, "validation": part, "test": part})
        own = [sys.executable, __file__, "slice", str(root), str(run), f"--rows={rows}"]
        command = [sys.executable, "-m"]
        for name, line in (
            ("train", own),
            ("calibrate", [*command, "branchy_tf.calibrate", f"--run_dir={run}"]),
            ("evaluate", [*command, "branchy_tf.evaluate", f"--run_dir={run}"]),
        ):
            start = time.perf_counter()
            process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{name} failed")
            result[name] = {
                "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
                "seconds": round(time.perf_counter() - start),
            }
            print(name, result[name], file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "memory", "slice"))
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sources", default="memory,folder,tf.data")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=3200)
    given = parser.parse_args()
    if given.what == "slice":
        train_slice(*given.paths, given.rows)
        return
    run = (
        functools.partial(
            speed, given.steps, given.batch_size, given.rounds, given.sources.split(",")
        )
        if given.what == "speed"
        else functools.partial(memory, given.images, given.rows)
    )
    print(json.dumps(run() | {"load": os.getloadavg(), "cpus": os.cpu_count()}, indent=2))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    main()
