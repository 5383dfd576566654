"""Three unlike cameras: skewed data for each, and ways to serve them.

Each camera sees some classes most of the time, but has to know all of them. Their fronts
differ in kind, depth and exits, and end in feature maps of one shape.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from tabulate import tabulate

from branchy_tf import costs, exits, scoring, thresholds, training, units
from branchy_tf.data import Dataset, Split
from branchy_tf.pipeline.fronts import Front, read_fronts, train_fronts
from branchy_tf.training import recording
from branchy_tf.units.cutting import Unit

# The share of a camera's rows that are of its own classes.
SKEW = 0.8
# The most accuracy that early exits may lose on the camera's validation rows.
MAX_DROP = 0.01
_FILTERS = 16
_CODEC_BYTES = 8

SHARED, OWN, ONE, NEW = "shared tail", "own tails", "one network", "new front"
WAYS = {
    SHARED: "three fronts and one tail, trained jointly",
    OWN: "three fronts, each with a tail of its own",
    ONE: "one network, trained on the rows of all cameras",
    NEW: "each front trained against the frozen tail of the other two",
}


def cameras(loaded: Dataset, rows: int, test_rows: int, seed: int) -> dict[str, Dataset]:
    """The data of three cameras, which share no training row.

    Args:
        loaded: the data set that they are drawn from.
        rows: training rows of each; a quarter as many validation rows are drawn alike.
        test_rows: test rows, the same for all, in the frequencies of `loaded`.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    left = random.permutation(len(loaded.train))
    test = loaded.test.sample(test_rows, seed=0)
    found: dict[str, keras.Model] = {}
    for number, name in enumerate(KINDS):
        mix = class_mix(number, loaded.classes)
        chosen: list[np.ndarray] = []
        for label, share in enumerate(mix):
            own = left[loaded.train.labels[left] == label]
            chosen.append(own[: round(share * rows * 1.25)])
        picked = random.permutation(np.concatenate(chosen))
        left = np.setdiff1d(left, picked, assume_unique=True)
        left = random.permutation(left)
        found[name] = Dataset(
            f"{loaded.name} of {name}",
            loaded.classes,
            loaded.train.take(picked[: len(picked) * 4 // 5]),
            loaded.train.take(picked[len(picked) * 4 // 5 :]),
            test,
            loaded.class_names,
        )
    return found


def class_mix(camera: int, classes: int) -> np.ndarray:
    """The share of each class in the rows of a camera, by its 0-based number."""
    own = np.array_split(np.arange(classes), len(KINDS))[camera]
    mix = np.full(classes, (1 - SKEW) / (classes - len(own)))
    mix[own] = SKEW / len(own)
    return mix


def pooled(sets: Mapping[str, Dataset]) -> Dataset:
    """The rows of all cameras as one data set."""
    first = next(iter(sets.values()))

    def together(part: str) -> Split:
        splits = [dataset.splits[part] for dataset in sets.values()]
        return Split(
            np.concatenate([np.asarray(split.images[:]) for split in splits]),
            np.concatenate([split.labels for split in splits]),
        )

    return dataclasses.replace(
        first, name="all", train=together("train"), validation=together("validation")
    )


def _later(x: Any, classes: int, exit: str) -> Any:
    """The tail: three convolutions with batch norm."""
    for number, (filters, strides) in enumerate(((32, 2), (32, 1), (64, 2)), start=1):
        name = f"later_{number}"
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False, name=name)(
            x
        )
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return exits.linear_head(x, classes, exit)


def _conv(x: Any, filters: int, strides: int, name: str) -> Any:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _plain(x: Any, classes: int) -> tuple[dict[str, Any], Any]:
    x = _conv(_conv(x, _FILTERS, 2, "first"), _FILTERS, 1, "second")
    return {"exit_1": exits.linear_head(x, classes, "exit_1")}, x


def _separable(x: Any, classes: int) -> tuple[dict[str, Any], Any]:
    for number, (filters, strides) in enumerate(
        ((32, 2), (32, 1), (_FILTERS, 1)), start=1
    ):
        name = f"separable_{number}"
        x = layers.SeparableConv2D(filters, 3, strides, padding="same", name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return {"exit_1": exits.linear_head(x, classes, "exit_1")}, x


def _residual(x: Any, classes: int) -> tuple[dict[str, Any], Any]:
    x = _conv(x, _FILTERS, 2, "stem")
    first = exits.linear_head(x, classes, "exit_1")
    y = _conv(x, _FILTERS, 1, "block_1")
    y = layers.Conv2D(_FILTERS, 3, padding="same", name="block_2")(y)
    x = layers.ReLU(name="block")(layers.Add(name="sum")([x, y]))
    return {"exit_1": first, "exit_2": exits.linear_head(x, classes, "exit_2")}, x


# The kind of front of each camera, by its name.
KINDS: dict[str, Callable[[Any, int], tuple[dict[str, Any], Any]]] = {
    "plain": _plain,
    "separable": _separable,
    "residual": _residual,
}


def network(kind: str, input_shape: Sequence[int], classes: int) -> keras.Model:
    """A front of this kind and a tail as one multi-exit network."""
    images = keras.Input(tuple(input_shape), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescale")(images)
    early, x = KINDS[kind](x, classes)
    final = exits.exit_name(len(early) + 1)
    return keras.Model(
        images, {**early, final: _later(x, classes, final)}, name=f"{kind}_network"
    )


def parts(kind: str, sets: Mapping[str, Dataset]) -> list[Unit]:
    """An untrained front of this kind and its tail."""
    dataset = sets[kind]
    model = network(kind, dataset.image_shape, dataset.classes)
    early = exits.exit_names(model)[-2]
    return units.cut(model, [early], [kind, "tail"])


def train_way(
    way: str,
    sets: Mapping[str, Dataset],
    settings: training.Settings,
    folder: pathlib.Path,
) -> dict[str, keras.Model]:
    """Trains what a way needs, unless it is trained, and returns each camera's network.

    Every way takes as many steps, and sees as many rows of each camera in a step.

    Args:
        way: a key of `WAYS`.
        sets: the data of each camera.
        settings: the settings; `batch_size` is the rows of each camera in a step.
        folder: to keep the runs in; an interrupted one goes on.
    """
    if way == ONE:
        together = dataclasses.replace(
            settings, batch_size=settings.batch_size * len(sets)
        )
        dataset = pooled(sets)
        keras.utils.set_random_seed(settings.seed)
        model = network("residual", dataset.image_shape, dataset.classes)
        training.train(model, dataset, together, training.RunFolder(folder / "one"))
        return dict.fromkeys(sets, model)
    if way == SHARED:
        return _jointly(list(sets), sets, settings, folder / "shared")
    if way == OWN:
        return {
            name: _jointly([name], sets, settings, folder / f"own_{name}")[name]
            for name in sets
        }
    found: dict[str, keras.Model] = {}
    for name in sets:
        others = [other for other in sets if other != name]
        run = folder / f"without_{name}"
        _jointly(others, sets, settings, run)
        tail = read_fronts(run).parts(others[0])[1]
        found |= _jointly([name], sets, settings, folder / f"new_{name}", tail)
    return found


def _jointly(
    names: Sequence[str],
    sets: Mapping[str, Dataset],
    settings: training.Settings,
    path: pathlib.Path,
    frozen_tail: Unit | None = None,
) -> dict[str, keras.Model]:
    folder = training.RunFolder(path)
    if not folder.is_finished(settings.epochs):
        keras.utils.set_random_seed(settings.seed)
        made = {name: parts(name, sets) for name in names}
        fronts = {name: Front(made[name][0], sets[name]) for name in names}
        tail = frozen_tail or made[names[0]][1]
        flags = recording.flags_text(settings)
        frozen = frozen_tail is not None
        train_fronts(fronts, tail, settings, folder, flags, freeze_tail=frozen)
    known = read_fronts(path)
    return {name: known.run(name).load_model() for name in names}


def measure(
    way: str, models: Mapping[str, keras.Model], sets: Mapping[str, Dataset]
) -> list[dict[str, Any]]:
    """A row of figures for each camera.

    Thresholds are chosen on the camera's own validation rows, within `MAX_DROP`. The
    figures are of the test rows: `accuracy` in their own frequencies, `mix_accuracy` and
    all others in the frequencies of the camera.
    """
    rows = []
    stored = stored_bytes(way, models)
    for number, (name, model) in enumerate(models.items()):
        dataset = sets[name]
        macs = costs.cumulative_macs(model)
        validation, test = (
            scoring.answers(_logits(model, split), split.labels)
            for split in (dataset.validation, dataset.test)
        )
        point = thresholds.choose(
            validation.scores, validation.correct, macs, max_accuracy_drop=MAX_DROP
        )
        early = test.scores[:, :-1] < np.asarray(point.thresholds)
        taken = np.where(early.any(axis=1), early.argmax(axis=1), len(macs) - 1)
        right = test.correct[np.arange(len(taken)), taken]
        counts = np.bincount(dataset.test.labels, minlength=dataset.classes)
        weight = (class_mix(number, dataset.classes) / counts)[dataset.test.labels]
        goes_on = float(weight @ (taken == len(macs) - 1))
        rows.append(
            {
                "way": way,
                "camera": name,
                "final_accuracy": float(test.correct[:, -1].mean()),
                "accuracy": float(right.mean()),
                "mix_accuracy": float(weight @ right),
                "goes_on": goes_on,
                "macs": float(weight @ np.asarray(macs, float)[taken]),
                "full_macs": macs[-1],
                "sent_bytes": goes_on * feature_bytes(model),
                "stored_bytes": stored,
            }
        )
    return rows


def _logits(model: keras.Model, split: Split) -> np.ndarray:
    """Every exit's logits, float32 [n, N, classes]."""
    outputs = model.predict(np.asarray(split.images[:]), batch_size=256, verbose=0)
    return np.stack([outputs[name] for name in exits.exit_names(model)], axis=1)


def feature_bytes(model: keras.Model) -> int:
    """Bytes of one row that goes on to the tail, in the codec uint8."""
    front, _ = units.cut(model, [exits.exit_names(model)[-2]])
    return sum(
        int(np.prod(tensor.shape[1:])) + _CODEC_BYTES * tensor.shape[-1]
        for tensor in front.carried
    )


def stored_bytes(way: str, models: Mapping[str, keras.Model]) -> int:
    """Bytes of all weights that a way serves, in float32."""
    parts = [units.cut(model, [exits.exit_names(model)[-2]]) for model in models.values()]
    if way == ONE:
        served = parts[0]
    elif way == SHARED:
        served = [*(front for front, _ in parts), parts[0][1]]
    elif way == NEW:
        # Each new front joins the two that the tail was trained with.
        served = [*(front for front, _ in parts), parts[0][1]]
    else:
        served = [unit for pair in parts for unit in pair]
    return 4 * sum(unit.model.count_params() for unit in served)


_COLUMNS = {
    "final_accuracy": "final exit, all classes (%)",
    "accuracy": "early exit, all classes (%)",
    "mix_accuracy": "early exit, its own mix (%)",
    "goes_on": "goes on (%)",
    "macs": "multiply-adds",
    "sent_bytes": "bytes sent",
}


def read_rows(sheet: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of the study's CSV file."""
    kinds: dict[str, type] = {"dataset": str, "way": str, "camera": str, "seed": int}
    with sheet.open(newline="", encoding="utf-8") as file:
        return [
            {name: kinds.get(name, float)(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of each data set: the mean over cameras, and its range by seed."""
    found = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        lines = [
            [way, *(_cell(here, way, column) for column in _COLUMNS), _stored(here, way)]
            for way in _ways(here)
        ]
        head = [dataset, *_COLUMNS.values(), "weights stored (kB)"]
        found.append(tabulate(lines, head, tablefmt="github", disable_numparse=True))
        found.append(_by_camera(here))
    return "\n\n".join(found)


def _ways(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["way"] for row in rows))


def by_seed(rows: Sequence[Mapping[str, Any]], way: str, column: str) -> np.ndarray:
    """The mean over cameras of a figure, for each seed."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    return np.array(
        [
            np.mean([r[column] for r in rows if r["way"] == way and r["seed"] == seed])
            for seed in seeds
        ]
    )


def _cell(rows: Sequence[Mapping[str, Any]], way: str, column: str) -> str:
    values = by_seed(rows, way, column)
    if column in ("macs", "sent_bytes"):
        return f"{values.mean():,.0f}"
    spread = 100 * (values.max() - values.min()) / 2
    return f"{100 * values.mean():.1f} ± {spread:.1f}"


def _stored(rows: Sequence[Mapping[str, Any]], way: str) -> str:
    return f"{next(r['stored_bytes'] for r in rows if r['way'] == way) / 1e3:,.0f}"


def _by_camera(rows: Sequence[Mapping[str, Any]]) -> str:
    """The final exit's accuracy on all classes, by camera."""
    lines = []
    for way in _ways(rows):
        line = [way]
        for name in KINDS:
            values = [
                100 * row["final_accuracy"]
                for row in rows
                if row["way"] == way and row["camera"] == name
            ]
            line.append(f"{np.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}")
        lines.append(line)
    head = ["final exit, all classes (%)", *KINDS]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)
