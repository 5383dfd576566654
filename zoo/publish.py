"""Takes a finished run into the zoo: its weights, thresholds and figures.

For a checkout of the project. Example:

  python -m zoo.publish --run_dir=runs/lenet --tag=mnist

The run must be trained, calibrated, and evaluated beside a trained baseline.
Writes weights and thresholds into the package, with their SHA-256 in its
registry, <zoo_dir>/<model>/<tag>.evaluation.json, and the figures in the model
card <zoo_dir>/<model>/<tag>.md and in the table of <zoo_dir>/README.md. Without
--run_dir only the pages are written anew.
"""

import pathlib
import shutil

from absl import flags, logging

from branchy_tf import command_line, exits, files, training, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.zoo import packaged
from zoo import cards

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder of a training.")
flags.DEFINE_string("tag", None, "What the weights will be called, e.g. cifar10.")
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
                f"--tag must be a name of letters, digits and _. Received {FLAGS.tag!r}."
            )
        _take_in(training.RunFolder(FLAGS.run_dir), FLAGS.tag)
    sets = {model: zoo.list_weights(model) for model in zoo.list_models()}
    for path, text in cards.pages(FLAGS.zoo_dir, sets).items():
        files.write_text(path, text)
        logging.info("Wrote the figures of %s.", path)


def _take_in(run: training.RunFolder, tag: str) -> None:
    for path in (run.thresholds, run.evaluation):
        if not path.is_file():
            raise BranchyError(f"{path} is missing. Train, calibrate and evaluate first.")
    recorded = run.read_flags()
    evaluation = files.read_json(run.evaluation)
    if evaluation["baseline_accuracy"] is None:
        raise BranchyError(
            f"{run.evaluation} knows no trained baseline. Train with one, or evaluate "
            "with --baseline=FILE.keras."
        )
    name = recorded["model"]
    model = run.load_model()
    arguments = {
        "input_shape": list(model.input_shape[1:]),
        "classes": exits.num_classes(model),
    } | command_line.parse_arguments(recorded.get("model_args", ""))
    if "exits" not in arguments:
        raise BranchyError(
            f"{run.flags} does not say which exits. Train with "
            "--model_args=exits=..., so that the tag fixes them."
        )
    card = cards.card_file(FLAGS.zoo_dir, name, tag)
    if not card.is_file():
        raise BranchyError(f"There is no model card {card}. Write it first.")

    packaged.add(
        packaged.Packaged(
            model=name,
            tag=tag,
            arguments=arguments,
            dataset=recorded["dataset"],
            baseline_accuracy=evaluation["baseline_accuracy"],
        ),
        model,
        run.thresholds,
    )
    zoo.build(name, weights=tag)
    kept = cards.evaluation_file(FLAGS.zoo_dir, name, tag)
    with files.replacing(kept) as beside:
        shutil.copyfile(run.evaluation, beside)
    logging.info("Took %s in as %s, weights %s.", run.path, name, tag)


if __name__ == "__main__":
    command_line.run(main)
