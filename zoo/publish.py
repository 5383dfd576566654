"""Adds a finished training run to the zoo: its weights, thresholds and figures.

Run from a checkout of the project. Example:

  python -m zoo.publish --run_dir=runs/lenet --tag=mnist

The run must be trained, calibrated and evaluated, best together with a trained baseline.
Writes the weights and thresholds into the package and their SHA-256 into its registry;
the evaluation to <zoo_dir>/<model>/<tag>.evaluation.json; and the figures into the model
card <zoo_dir>/<model>/<tag>.md and the table in <zoo_dir>/README.md. Without --run_dir,
only rewrites the figures on the pages.
"""

import pathlib
import shutil

from absl import flags, logging

from branchy_tf import command_line, exits, files, training, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.zoo import packaged
from zoo import cards

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "run_dir", None, "Folder of a training run. Default: none, only rewrite the pages."
)
flags.DEFINE_string(
    "tag", None, "Name for the weights, e.g. cifar10; required with --run_dir."
)
flags.DEFINE_string("zoo_dir", "zoo", "Folder of recipes, model cards and figures.")


def main() -> None:
    if not pathlib.Path(FLAGS.zoo_dir).is_dir():
        raise BranchyError(
            f"There is no folder {FLAGS.zoo_dir}. Run this in a checkout of the project, "
            "or pass --zoo_dir."
        )
    if FLAGS.run_dir:
        if not FLAGS.tag or not FLAGS.tag.isidentifier():
            raise BranchyError(
                "--tag must be letters, digits and _, starting with a letter, e.g. "
                f"cifar10. Received {FLAGS.tag!r}."
            )
        _add(training.RunFolder(FLAGS.run_dir), FLAGS.tag)
    sets = {model: zoo.list_weights(model) for model in zoo.list_models()}
    for path, text in cards.pages(FLAGS.zoo_dir, sets).items():
        files.write_text(path, text)
        logging.info("Wrote the figures into %s.", path)


def _add(run: training.RunFolder, tag: str) -> None:
    for path in (run.thresholds, run.evaluation):
        if not path.is_file():
            raise BranchyError(f"{path} is missing. Train, calibrate and evaluate first.")
    recorded = run.read_flags()
    evaluation = files.read_json(run.evaluation)
    if evaluation["baseline_accuracy"] is None:
        logging.warning(
            "%s has no trained baseline to compare with, and the zoo's table will not "
            "show one. Train with --mode=baseline_first, or evaluate with "
            "--baseline=FILE.keras.",
            run.evaluation,
        )
    name = recorded["model"]
    model = run.load_model()
    arguments = {
        "input_shape": list(model.input_shape[1:]),
        "classes": exits.num_classes(model),
    } | command_line.parse_arguments(recorded.get("model_args", ""))
    if "exits" not in arguments:
        raise BranchyError(
            f"{run.flags} does not name the exits. Train with --model_args=exits=..., "
            "because the tag must fix them."
        )
    card = cards.card_file(FLAGS.zoo_dir, name, tag)
    if not card.is_file():
        raise BranchyError(
            f"There is no model card {card}. Write it first, with the two lines "
            f"{cards.BEGIN} and {cards.END} where its figures go."
        )

    packaged.add(
        packaged.Packaged(
            model=name,
            tag=tag,
            arguments=arguments,
            dataset=recorded["dataset"],
            baseline_accuracy=evaluation["baseline_accuracy"],
            seed=int(recorded["seed"]),
        ),
        model,
        run.thresholds,
    )
    zoo.build(name, weights=tag)
    with files.replacing(cards.evaluation_file(FLAGS.zoo_dir, name, tag)) as beside:
        shutil.copyfile(run.evaluation, beside)
    logging.info("Added %s as weights %s of %s.", run.path, tag, name)


if __name__ == "__main__":
    command_line.run(main)
