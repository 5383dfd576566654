"""The process that compresses: everything that needs tf_keras.

Importing tensorflow-model-optimization sets TF_USE_LEGACY_KERAS, so no other process may
do it. It reads from the folder that it is given

  job.json           {"graph", "settings", "exits"}, see `describing` and `Settings`
  weights.npz        the weights of the model
  SPLIT_input_N.npy, SPLIT_labels.npy and, if rows have weights, SPLIT_weights.npy, for
                     the splits train and validation, and each input of the model
  expected.npy       the model's logits for the first validation rows, [n, N, classes]

writes result.npz (prune, cluster) or all_exits.tflite (qat) there, and reports as lines
of JSON on stdout

  {"step", "steps"}                      from time to time
  {"epoch": {figure: value}}             after each epoch
  {"difference", "changed"}              at the end
  {"error": message}                     instead
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from branchy_tf.compression import methods, tflite, twin
from branchy_tf.compression.settings import Settings
from branchy_tf.data import Split
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.training.batches import Batches

Tell = Callable[[dict[str, Any]], None]

# Seconds between reports of steps.
_PAUSE = 0.5
# The rows of a batch of the validation split.
_VALIDATED = 256


class _Rows(tf_keras.utils.Sequence):
    """The training batches of Keras 3's trainings, for tf_keras."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._batches.start_epoch(self._epoch)


class _InOrder(tf_keras.utils.Sequence):
    """The rows of a split in order, read batch by batch."""

    def __init__(self, split: Split, names: list[str]) -> None:
        self._split = split
        self._names = names

    def __len__(self) -> int:
        return -(-len(self._split) // _VALIDATED)

    def __getitem__(self, index: int) -> Any:
        end = min((index + 1) * _VALIDATED, len(self._split))
        batch = self._split.take(np.arange(index * _VALIDATED, end))
        return batch.read(), dict.fromkeys(self._names, batch.labels)


class _Reporter(tf_keras.callbacks.Callback):
    def __init__(self, tell: Tell, steps: int, wrapped: dict[str, str]) -> None:
        super().__init__()
        self._tell = tell
        self._steps = steps
        self._wrapped = wrapped
        self._step = 0
        self._told = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if time.monotonic() - self._told > _PAUSE or self._step == self._steps:
            self._told = time.monotonic()
            self._tell({"step": self._step, "steps": self._steps})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        figures = {}
        for key, value in (logs or {}).items():
            # Figures carry the names of layers, and wrappers change those.
            for name, exit_ in self._wrapped.items():
                key = key.replace(name, exit_)
            figures[key] = float(value)
        self._tell({"epoch": figures})


def work(folder: pathlib.Path, tell: Tell) -> dict[str, Any]:
    """Compresses the model in `folder`; returns the last message."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    settings = Settings(**job["settings"])
    names = job["exits"]
    inputs = [given["name"] for given in job["graph"]["inputs"]]
    train, validation = (_split(folder, part, inputs) for part in ("train", "validation"))
    with np.load(folder / "weights.npz") as weights:
        model = twin.build(job["graph"], weights)
    expected = np.load(folder / "expected.npy")
    rows = validation.take(np.arange(len(expected)))
    difference = twin.difference(model, rows.read(), expected, names)

    tf_keras.utils.set_random_seed(settings.seed)
    batches = Batches(
        train,
        lambda split: dict.fromkeys(names, split.labels),
        settings.batch_size,
        settings.augmentation,
        [settings.seed, 3],
    )
    steps = settings.epochs * len(batches)
    wrapped = methods.wrap(model, settings, steps)
    _fit(wrapped, batches, validation, settings, names, steps, tell)
    if settings.method == "qat":
        content = tflite.convert(wrapped.model, job["graph"]["inputs"], names)
        (folder / "all_exits.tflite").write_bytes(content)
    else:
        stripped = wrapped.strip(wrapped.model)
        found = {layer.name: layer.get_weights() for layer in stripped.layers}
        np.savez(
            folder / "result.npz",
            **{
                f"{number}.{i}": array
                for number, entry in enumerate(job["graph"]["layers"])
                for i, array in enumerate(found[entry["name"]])
            },
        )
    return {"difference": difference, "changed": wrapped.changed}


def _fit(
    wrapped: methods.Wrapped,
    batches: Batches,
    validation: Split,
    settings: Settings,
    names: list[str],
    steps: int,
    tell: Tell,
) -> None:
    model = wrapped.model
    model.compile(
        optimizer=tf_keras.optimizers.Adam(
            tf_keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
        ),
        loss={
            name: tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            for name in names
        },
        loss_weights=dict(zip(names, settings.loss_weights or [], strict=True)),
        metrics={
            name: [tf_keras.metrics.SparseCategoricalAccuracy("accuracy")]
            for name in names
        },
    )
    renamed = {}
    for name in names:
        made_by = model.output[name].node.layer.name
        if made_by != name:
            renamed[made_by] = name
    model.fit(
        _Rows(batches),
        shuffle=False,
        epochs=settings.epochs,
        validation_data=_InOrder(validation, names),
        callbacks=[*wrapped.callbacks, _Reporter(tell, steps, renamed)],
        verbose=0,
    )


def _split(folder: pathlib.Path, name: str, inputs: list[str]) -> Split:
    def load(part: str) -> np.ndarray:
        return np.load(folder / f"{name}_{part}.npy", mmap_mode="r")

    arrays = {given: load(f"input_{number}") for number, given in enumerate(inputs)}
    is_weighted = (folder / f"{name}_weights.npy").exists()
    return Split(
        arrays if len(arrays) > 1 else arrays[inputs[0]],
        load("labels"),
        load("weights") if is_weighted else None,
    )


def _end_with_parent() -> None:
    """Ends this process when the pipe to the process that started it closes."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    # Output of libraries goes to stderr; stdout carries the messages.
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _end_with_parent()

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=stream)

    try:
        tell(work(pathlib.Path(sys.argv[1]), tell))
    except BranchyError as error:
        tell({"error": str(error)})
    except Exception as error:
        tell(
            {"error": f"Compression failed: {type(error).__name__}: {first_line(error)}"}
        )
        raise


if __name__ == "__main__":
    main()
