r"""Classifies images with a server and prints at which exit each one left.

Examples:

  python -m branchy_tf.predict --server=localhost:8500 --model_name=branchy_lenet \
    --images=seven.png,nine.jpg --thresholds=0.1
  python -m branchy_tf.predict --server=localhost:8500 --model_name=branchy_lenet \
    --dataset=mnist_5k --num_images=8
  python -m branchy_tf.predict --server=models.example:8500 --tls_ca=ca.pem \
    --model_name=branchy_lenet --label=stable --images=seven.png
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from tabulate import tabulate

from branchy_tf import command_line
from branchy_tf.errors import BranchyError
from branchy_tf.results import exit_name
from branchy_tf.serving import EarlyExitClient

FLAGS = flags.FLAGS

flags.DEFINE_string("server", "localhost:8500", "host:port of the gRPC server.")
flags.DEFINE_string("model_name", None, "Name of the served model.")
flags.DEFINE_string(
    "label", None, "Label of the version to use. Default: the newest version."
)
command_line.define_tls()
flags.DEFINE_list(
    "images",
    None,
    "PNG, JPEG, WebP, GIF, BMP or TIFF files. Images are resized (bilinear) and made "
    "grey or RGB as needed; transparency becomes white; animations give their first "
    "frame. MNIST digits are white on black.",
)
command_line.check_path("images")
command_line.define_class_names("the data set, or numbers.")
flags.DEFINE_integer(
    "num_images",
    16,
    "Number of the data set's test images to classify.",
    lower_bound=1,
)
flags.DEFINE_list(
    "thresholds",
    None,
    "One for each exit but the final one. Default: those of the export.",
)
flags.DEFINE_float("timeout", 10.0, "Seconds to wait for all answers.")
command_line.define_dataset(required=False)


def _images(
    client: EarlyExitClient,
) -> tuple[Any, list[str], list[int] | None, Sequence[str] | None]:
    """`(images, their names, their labels if known, class names if known)`."""
    # First, to notice an unreachable server before data is loaded.
    expected, _ = client.describe()
    if FLAGS.images:
        from branchy_tf import images

        shapes = [value.shape[1:] for value in expected.values()]
        if len(shapes) != 1 or len(shapes[0]) != 3:
            raise BranchyError("--images needs a model that takes one image.")
        arrays, notes = images.read(FLAGS.images, shapes[0])
        print(*notes, sep="\n", end="\n" if notes else "")
        return arrays, list(FLAGS.images), None, None
    shapes = [tuple(value.shape[1:]) for value in expected.values()]
    dataset = command_line.chosen_dataset(
        None, input_shape=shapes[0] if len(shapes) == 1 else None
    )
    test = dataset.test.take(slice(0, FLAGS.num_images))
    names = [f"{dataset.name} test {i}" for i in range(len(test))]
    return test.read(), names, test.labels.tolist(), dataset.class_names


def _class_name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and index < len(names) else str(index)


def main() -> None:
    if not FLAGS.model_name:
        raise BranchyError("--model_name is missing: pass the name of the served model.")
    if bool(FLAGS.images) == bool(FLAGS.dataset):
        raise BranchyError("Pass --images=FILE,FILE or --dataset=NAME, one of the two.")
    limits = command_line.parse_numbers("thresholds", FLAGS.thresholds)
    classes: Sequence[str] | None = command_line.chosen_class_names()
    with EarlyExitClient(
        FLAGS.server,
        FLAGS.model_name,
        timeout=FLAGS.timeout,
        label=FLAGS.label,
        tls=command_line.chosen_tls(),
    ) as client:
        images, names, labels, known = _images(client)
        answer = client.predict(images, limits)
    classes = classes or known
    rows = []
    for i, name in enumerate(names):
        label = answer.labels[i]
        row = [
            name,
            _class_name(label, classes),
            f"{answer.probabilities[i, label]:.4f}",
            exit_name(answer.exits[i] + 1),
            f"{answer.scores[i]:.4f}",
        ]
        rows.append([*row, _class_name(labels[i], classes)] if labels else row)
    head = ["image", "answer", "probability", "exit", "score"]
    print(tabulate(rows, [*head, "label"] if labels else head, disable_numparse=True))
    left = np.bincount(answer.exits)
    shares = ", ".join(f"{exit_name(k + 1)} {n}" for k, n in enumerate(left) if n)
    print(
        f"Images: {len(answer)}. Answered by version {answer.model_version}. Exits: "
        f"{shares}."
    )


if __name__ == "__main__":
    command_line.run(main)
