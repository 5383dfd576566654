"""Exports an early-exit model as the next version for TF Serving.

Example:

  python -m branchy_tf.export --run_dir=runs/lenet --export_dir=exports

Writes <export_dir>/<model_name>/<version>/ after loading it into a Session and
comparing it with the Keras model; on the validation images, if there is a data set,
each row must leave where the calibration says. Then serve it: python -m branchy_tf.serve
--model_base_path=<export_dir>/<model_name> --model_name=<model_name>

--precision=bfloat16 halves its size and is faster on CPUs with AVX512_BF16 or AMX. It
is compared with float32 on the validation images first, and refused where too many of
them get another label or leave at another exit.
"""

from typing import Any

from absl import flags, logging

from branchy_tf import command_line, graphs, saved_model
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model.bfloat16 import BFLOAT16, PRECISIONS
from branchy_tf.saved_model.freezing import FREEZE
from branchy_tf.saved_model.writing import MAX_ROWS

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
command_line.define_path("export_dir", None, "Folder of all exported models.")
flags.DEFINE_string("model_name", None, "What clients ask for. Default: the model's.")
flags.DEFINE_enum("freeze", "auto", FREEZE, "Weights as constants (faster) or variables.")
flags.DEFINE_string(
    "input_dtype",
    None,
    "Of the served images. Default: the model's, uint8 for the zoo's.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    PRECISIONS,
    "Of weights and computations; bfloat16 needs the data set to be checked on.",
)
flags.DEFINE_float(
    "max_disagreement",
    0.01,
    "The largest share of validation images that bfloat16 may give another label, and "
    "that may leave at another exit.",
)
flags.DEFINE_integer(
    "max_rows",
    MAX_ROWS,
    "The most rows of a request, or of a batch that the server merges; larger ones are "
    "refused before anything is computed.",
    lower_bound=1,
)


def _validation_images(choice: command_line.Choice) -> Any:
    """What the export is compared on; None, and a note, where there is no data."""
    try:
        return command_line.chosen_dataset(choice.run, choice.model).validation.images
    except BranchyError as error:
        if FLAGS.dataset or FLAGS.precision == BFLOAT16:
            raise
        logging.warning(
            "Not checked: that exit rates and answers are the calibrated ones on "
            "validation images. %s",
            error,
        )
        return None


def main() -> None:
    if not FLAGS.export_dir:
        raise BranchyError("--export_dir is missing: where to write versions.")
    graphs.check_backend()
    choice = command_line.chosen_model()
    model = choice.model
    policy = command_line.chosen_policy(choice)
    version = saved_model.export(
        model,
        FLAGS.export_dir,
        FLAGS.model_name or model.name,
        policy,
        freeze=FLAGS.freeze,
        input_dtype=FLAGS.input_dtype,
        precision=FLAGS.precision,
        images=_validation_images(choice),
        max_disagreement=FLAGS.max_disagreement,
        max_rows=FLAGS.max_rows,
    )
    logging.info("Exported %s.", version)


if __name__ == "__main__":
    command_line.run(main)
