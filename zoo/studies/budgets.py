r"""Compares two ways of choosing thresholds for a range of budgets.

Examples:

  python -m zoo.studies.budgets --run_dir=runs/msdnet
  python -m zoo.studies.budgets --model=branchy_resnet --weights=cifar10 --dataset=cifar10

The first is the budgeted batch classification of MSDNet's paper: the share of the images
that exits falls by a constant ratio from exit to exit, and thresholds on the validation
split follow from it. The second is calibrate's search: the most accurate thresholds on
the validation split whose expected multiply-adds are at most those of the first. Both are
evaluated on the test split. Writes budgets.csv and budgets.png to --study_dir, and the
table into its budgets.md.
"""

import pathlib

from absl import flags, logging

from branchy_tf import command_line, costs, exits, files, scoring
from branchy_tf.exits.confidence import CRITERIA
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import LogitsPredictor
from zoo import cards
from zoo.studies import budget_curves
from zoo.studies.budgets_plot import plot

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=None)
flags.DEFINE_enum(
    "criterion",
    "max_prob",
    list(CRITERIA),
    "Score of both ways; the paper's is the largest probability.",
)
flags.DEFINE_string(
    "study_dir", "zoo/studies", "Folder of the study's page; read and written."
)


def main() -> None:
    choice = command_line.chosen_model()
    dataset = command_line.chosen_dataset(choice.run, choice.model, seed=choice.seed)
    macs = costs.cumulative_macs(choice.model)
    policy = ExitPolicy.final_exit_only(len(exits.exit_names(choice.model)))
    policy = policy.replace(criterion=FLAGS.criterion)
    predictor = LogitsPredictor(choice.model)
    validation, test = (
        scoring.answers(scoring.every_exit(predictor, split), split.labels, policy)
        for split in (dataset.validation, dataset.test)
    )
    rows = budget_curves.compare(validation, test, macs)
    alone = test.correct.mean(axis=0)
    output = pathlib.Path(FLAGS.study_dir)
    files.write_csv(output / "budgets.csv", rows)
    plot(output / "budgets.png", rows, list(zip(macs, alone, strict=True)))
    text = "\n\n".join(
        [
            budget_curves.exits_table(macs, alone),
            budget_curves.table(rows),
            budget_curves.summary(rows),
        ]
    )
    cards.write_figures(output / "budgets.md", text)
    print(text)
    logging.info("Wrote budgets.csv and budgets.png to %s.", output)


if __name__ == "__main__":
    command_line.run(main)
