"""Trains the small model under Keras on JAX, without TensorFlow, and says what came out.

Run in a process of its own with KERAS_BACKEND=jax; the argument is an empty folder.
Prints one JSON object.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import pathlib
import sys
from unittest import mock


class WithoutTensorFlow(importlib.machinery.PathFinder):
    """Finds all packages but TensorFlow, as where it is not installed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            return None
        return super().find_spec(name, path, target)


_USUAL = importlib.machinery.PathFinder
sys.meta_path[:] = [WithoutTensorFlow if x is _USUAL else x for x in sys.meta_path]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import keras  # noqa: E402
import small  # noqa: E402

from branchy_tf import training  # noqa: E402
from branchy_tf.training import fitting  # noqa: E402
from branchy_tf.training.callbacks import AtomicBackup  # noqa: E402

FOLDER = pathlib.Path(sys.argv[1])


class Killed(BaseException):
    """Ends a training as a kill would."""


class Batches(keras.callbacks.Callback):
    """Counts the calls of an epoch."""

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self.calls = 0

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.calls += 1


def train(name: str, **settings) -> tuple[list, list, int]:
    """Weights, history and the calls of the last epoch."""
    training.make_deterministic(0)
    model, counter = small.model(), Batches()
    training.train(
        model,
        small.dataset(),
        # 4 steps of 7 rows, and one of 2 rows.
        training.Settings(
            **{
                "epochs": 2,
                "batch_size": 7,
                "learning_rate": 0.01,
                "augmentation": "flip_shift_cutout",
                "class_weights": [1.0, 2.0, 0.5],
            }
            | settings
        ),
        training.RunFolder(FOLDER / name),
        callbacks=[counter],
    )
    history = training.read_history(training.RunFolder(FOLDER / name).history)
    return [w.tolist() for w in model.get_weights()], history, counter.calls


def main() -> None:
    found = {}
    with mock.patch.object(fitting, "_goes_to_device", return_value=False):
        found["host"] = train("host")
    traced = []
    step = keras.Model.train_step

    def counting(self, state, data):
        traced.append(data[0].shape)
        return step(self, state, data)

    with mock.patch.object(keras.Model, "train_step", counting):
        found["several"] = train("several", steps_per_call=3)
    found["traced"] = traced

    backup = AtomicBackup.on_epoch_end

    def killed(self, epoch, logs=None):
        if epoch == 1:
            raise Killed
        backup(self, epoch, logs)

    with mock.patch.object(AtomicBackup, "on_epoch_end", killed):
        try:
            train("resumed", steps_per_call=3)
        except Killed:
            found["killed"] = True
    found["resumed"] = train("resumed", steps_per_call=3)

    keras.config.set_dtype_policy("mixed_bfloat16")
    _, history, calls = train("bfloat16", epochs=1, batch_size=10, distillation=[0.5, 3])
    keras.config.set_dtype_policy("float32")
    saved = training.RunFolder(FOLDER / "bfloat16").load_model()
    policies = {layer.dtype_policy.name for layer in saved.layers}
    found["bfloat16"] = history, calls, sorted(policies)
    importlib.import_module("branchy_tf.train")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
