r"""Sentiment of short reviews by a small transformer with an exit after each block.

Most reviews say what they mean; some turn it around ("not good", "good at first, but
..."), and those are what the later blocks are for. The reviews are made from a grammar
with a seed, so nothing is downloaded.

Run in a checkout:

  python -m branchy_tf.train --model=examples.text:model --dataset=examples.text:data \
    --exits="block_1=linear;block_2=linear" --epochs=6 --run_dir=runs/text
  python -m branchy_tf.calibrate --run_dir=runs/text
  python -m branchy_tf.evaluate --run_dir=runs/text
  python -m branchy_tf.export --run_dir=runs/text --export_dir=exports --model_name=text

`python -m examples.text reviews.npz` writes the same data set as a file, for
`--dataset=reviews.npz`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

CLASSES = ("negative", "neutral", "positive")
LENGTH = 24

_ASPECTS = str.split("food soup bread wine service staff music room view menu coffee")
_WORDS = {
    "negative": str.split("bad awful cold bland slow rude noisy boring stale terrible"),
    "neutral": str.split("average ordinary usual plain standard typical"),
    "positive": str.split("good great warm tasty quick friendly lovely fresh superb"),
}
_OPPOSITE = {"negative": "positive", "neutral": "neutral", "positive": "negative"}
_FRAMES = (
    "the {aspect} was {word}",
    "we found the {aspect} {word}",
    "{word} {aspect} again",
    "my friends called the {aspect} {word}",
)
_TURNED = (
    "the {aspect} was not {word}",
    "nobody could call the {aspect} {word}",
    "the {aspect} was anything but {word}",
)
_FILLERS = (
    "we came on a monday",
    "the place was full",
    "it rained that day",
    "our table was near the door",
    "we had booked in advance",
)


def _vocabulary() -> dict[str, int]:
    """{word: token}; 0 is padding and 1 any other word."""
    frames = " ".join([*_FRAMES, *_TURNED, *_FILLERS, "but at first in the end"])
    words = {word for word in frames.split() if "{" not in word}
    words |= {*_ASPECTS, *(word for group in _WORDS.values() for word in group)}
    return {word: token for token, word in enumerate(sorted(words), start=2)}


VOCABULARY = _vocabulary()


def tokens(reviews: Sequence[str]) -> np.ndarray:
    """The tokens of reviews, int32 [n, LENGTH], padded with 0 or cut.

    Example:

    ```python
    client.predict(tokens(["the soup was not bad"]))
    ```
    """
    rows = np.zeros((len(reviews), LENGTH), np.int32)
    for row, review in zip(rows, reviews, strict=True):
        known = [VOCABULARY.get(word, 1) for word in review.lower().split()][:LENGTH]
        row[: len(known)] = known
    return rows


def review(label: str, random: np.random.Generator) -> str:
    """A review with this sentiment; one in three is hard."""

    def clause(feeling: str, turned: bool) -> str:
        frame = random.choice(_TURNED if turned else _FRAMES)
        word = random.choice(_WORDS[_OPPOSITE[feeling] if turned else feeling])
        return str(frame).format(aspect=random.choice(_ASPECTS), word=word)

    kind = random.random()
    # To turn "average" around gives no sentiment.
    turned = kind < 1 / 6 and label != "neutral"
    if 1 / 6 <= kind < 1 / 3:
        first = clause(str(random.choice(CLASSES)), turned=False)
        parts = [f"at first {first} but in the end {clause(label, turned=False)}"]
    else:
        parts = [clause(label, turned)]
    if random.random() < 0.5:
        parts.insert(int(random.integers(0, 2)), str(random.choice(_FILLERS)))
    return " ".join(parts)


def data(rows: int = 6000, seed: int = 0) -> dict:
    """Training, validation and test reviews, in the shares 4 to 1 to 1."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), rows)
    inputs = tokens([review(CLASSES[label], random) for label in labels])
    cuts = [rows * 4 // 6, rows * 5 // 6]
    names = ("train", "validation", "test")
    splits = zip(np.split(inputs, cuts), np.split(labels, cuts), strict=True)
    return dict(zip(names, splits, strict=True)) | {"class_names": CLASSES}


def model(
    classes: int = len(CLASSES), width: int = 32, blocks: int = 3, heads: int = 2
) -> keras.Model:
    """A transformer that reads tokens, int32 [B, LENGTH].

    Its blocks end in the layers block_1, block_2, ...: the places for exits.
    """
    ids = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = layers.Embedding(len(VOCABULARY) + 2, width, name="embed")(ids)
    x = Positions(name="positions")(x)
    for k in range(1, blocks + 1):
        y = layers.LayerNormalization(name=f"norm_{k}_1")(x)
        y = layers.MultiHeadAttention(heads, width // heads, name=f"attention_{k}")(y, y)
        x = layers.Add(name=f"sum_{k}")([x, y])
        y = layers.LayerNormalization(name=f"norm_{k}_2")(x)
        y = layers.Dense(2 * width, activation="gelu", name=f"hidden_{k}")(y)
        x = layers.Add(name=f"block_{k}")([x, layers.Dense(width, name=f"out_{k}")(y)])
    x = layers.GlobalAveragePooling1D(name="mean")(
        layers.LayerNormalization(name="norm")(x)
    )
    return keras.Model(ids, layers.Dense(classes, name="logits")(x), name="text")


@keras.saving.register_keras_serializable("examples")
class Positions(layers.Layer):
    """Adds a trained vector for each position of a text."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Makes the vectors, [length, width]."""
        self.vectors = self.add_weight(
            name="vectors", shape=shape[1:], initializer="random_normal"
        )

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Adds them to [B, length, width]."""
        return x + self.vectors


def write(path: str, rows: int = 6000) -> None:
    """Writes the data set as an .npz, as `--dataset` takes it."""
    made = data(rows)
    arrays = {"class_names": np.array(made.pop("class_names"))}
    for part, (inputs, labels) in made.items():
        arrays |= {f"x_{part}": inputs, f"y_{part}": labels}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    write(sys.argv[1])
