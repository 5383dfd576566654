"""Exports an early-exit model as the next version for TF Serving.

Example:

  python -m branchy_tf.export --run_dir=runs/lenet --export_dir=exports

Loads the new version into a Session, compares it with the Keras model and then moves it
to <export_dir>/<model_name>/<version>/. If there is a data set, every validation image
must take the exit that the calibration expects. Then serve it: python -m branchy_tf.serve
--model_base_path=<export_dir>/<model_name> --model_name=<model_name>

--precision=bfloat16 halves the size and is faster on CPUs with AVX512_BF16 or AMX. The
export compares it with float32 on the validation images first, and fails if too many of
them get another label or take another exit.
"""

from collections.abc import Sequence

from absl import flags, logging

from branchy_tf import command_line, graphs, saved_model
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model.bfloat16 import BFLOAT16, PRECISIONS
from branchy_tf.saved_model.freezing import FREEZE
from branchy_tf.saved_model.writing import MAX_ROWS

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
command_line.define_path("export_dir", None, "The folder of all exported models.")
flags.DEFINE_string(
    "model_name",
    None,
    "Sets the name under which clients request the model. Default: the model's own name.",
)
flags.DEFINE_enum(
    "freeze",
    "auto",
    FREEZE,
    "Whether to store weights as constants, which is faster, or as variables; auto uses "
    "variables for large models.",
)
flags.DEFINE_string(
    "input_dtype",
    None,
    "Sets the dtype of the served images. Default: the model's own, uint8 for the zoo's.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    PRECISIONS,
    "Sets the dtype of weights and computations; bfloat16 is checked on the data set.",
)
flags.DEFINE_float(
    "max_disagreement",
    0.01,
    "Sets the largest share of validation images that may get another label with "
    "bfloat16, and that may take another exit. A fraction of 1.",
)
flags.DEFINE_integer(
    "max_rows",
    MAX_ROWS,
    "Sets the largest number of rows in a request, or in a batch that the server merges; "
    "larger ones are refused before anything is computed.",
    lower_bound=1,
)


def _dataset(choice: command_line.Choice) -> Dataset | None:
    """The data set, or None and a warning if there is no data."""
    try:
        return command_line.chosen_dataset(choice.run, choice.model)
    except BranchyError as error:
        if FLAGS.dataset or FLAGS.precision == BFLOAT16:
            raise
        logging.warning(
            "The export was not compared with the calibration on validation images. %s",
            error,
        )
        return None


def _class_names(
    choice: command_line.Choice, dataset: Dataset | None
) -> Sequence[str] | None:
    """The names of the classes: the data set's, or those that the run recorded."""
    if dataset is not None:
        return dataset.class_names
    return None if choice.run is None else command_line.class_names(choice.run.path)


def main() -> None:
    if not FLAGS.export_dir:
        raise BranchyError("--export_dir is missing: the folder to write versions to.")
    graphs.check_backend()
    choice = command_line.chosen_model()
    model = choice.model
    policy = command_line.chosen_policy(choice)
    dataset = _dataset(choice)
    version = saved_model.export(
        model,
        FLAGS.export_dir,
        FLAGS.model_name or model.name,
        policy,
        freeze=FLAGS.freeze,
        input_dtype=FLAGS.input_dtype,
        precision=FLAGS.precision,
        images=None if dataset is None else dataset.validation.inputs,
        max_disagreement=FLAGS.max_disagreement,
        max_rows=FLAGS.max_rows,
        class_names=_class_names(choice, dataset),
    )
    logging.info("Exported %s.", version)


if __name__ == "__main__":
    command_line.run(main)
