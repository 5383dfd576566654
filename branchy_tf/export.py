r"""Exports an early-exit model as the next version, for TF Serving or for devices.

Examples:

  python -m branchy_tf.export --run_dir=runs/lenet --export_dir=exports
  python -m branchy_tf.export --run_dir=runs/lenet --export_dir=exports \
    --format=litert --quantize=int8

Loads the new version into a Session, compares it with the Keras model and then moves it
to <export_dir>/<model_name>/<version>/. If there is a data set, every validation image
must take the exit that the calibration expects. Then serve it: python -m branchy_tf.serve
--model_base_path=<export_dir>/<model_name> --model_name=<model_name>

--precision=bfloat16 halves the size and is faster on CPUs with AVX512_BF16 or AMX. The
export compares it with float32 on the validation images first, and fails if too many of
them get another label or take another exit.

--format=litert writes early_exit.tflite, which routes one row, stage_1.tflite and so on
for batches, and branchy.json; EarlyExitPredictor runs the folder without TensorFlow.
--quantize=dynamic stores weights in int8, --quantize=int8 computes in int8 too. A
quantised model is calibrated again with the run's budget, because its scores move, and
is refused if it differs too much from float32 on the validation images.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from branchy_tf import command_line, graphs, litert, saved_model, versions
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.litert.converting import QUANTIZE
from branchy_tf.litert.writing import EXAMPLES, MAX_ACCURACY_DROP, MAX_DISAGREEMENT
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
    "format",
    versions.SAVED_MODEL,
    versions.FORMATS,
    "Sets the format: saved_model for TF Serving, litert for devices.",
)
flags.DEFINE_enum(
    "quantize",
    "none",
    QUANTIZE,
    "With --format=litert, sets what is in int8: dynamic, the weights; int8, activations "
    "too, with ranges from rows of the training split.",
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
    "max_accuracy_drop",
    None,
    "With --format=litert, sets how far the accuracy on the validation images may drop "
    f"when quantised. A fraction of 1. Default: {MAX_ACCURACY_DROP}.",
)
flags.DEFINE_float(
    "max_disagreement",
    None,
    "Sets the largest share of validation images that may get another label than in "
    "float32: when quantised, from any one exit; with bfloat16, from early exit, and "
    "also the largest share that may take another exit. A fraction of 1. Default: 0.01 "
    f"with bfloat16, {MAX_DISAGREEMENT} when quantised.",
)
flags.DEFINE_integer(
    "max_rows",
    MAX_ROWS,
    "Sets the largest number of rows in a request, or in a batch that the server merges; "
    "larger ones are refused before anything is computed.",
    lower_bound=1,
)


def _check_flags() -> None:
    misplaced = versions.misplaced(FLAGS.format, FLAGS.flag_values_dict())
    if misplaced is not None:
        name, other = misplaced
        raise BranchyError(
            f"--{name} goes with --format={other}, not --format={FLAGS.format}."
        )


def _dataset(choice: command_line.Choice) -> Dataset | None:
    """The data set, or None and a warning if there is none and none is needed."""
    try:
        return choice.dataset()
    except BranchyError as error:
        if FLAGS.dataset or FLAGS.precision == BFLOAT16 or FLAGS.quantize != "none":
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


def _export_saved_model(choice: command_line.Choice, name: str, policy: Any) -> Any:
    dataset, allowed = _dataset(choice), FLAGS.max_disagreement
    return saved_model.export(
        choice.model,
        FLAGS.export_dir,
        name,
        policy,
        freeze=FLAGS.freeze,
        input_dtype=FLAGS.input_dtype,
        precision=FLAGS.precision,
        images=None if dataset is None else dataset.validation.inputs,
        max_disagreement=0.01 if allowed is None else allowed,
        max_rows=FLAGS.max_rows,
        class_names=_class_names(choice, dataset),
    )


def _export_litert(choice: command_line.Choice, name: str, policy: Any) -> Any:
    model, dataset = choice.model, _dataset(choice)
    data: dict[str, Any] = {}
    if dataset is not None:
        split = dataset.validation
        data = {"images": split.inputs, "labels": split.labels}
        if FLAGS.quantize != "none":
            data["recalibrate"] = command_line.recalibration(choice, split)
            data["examples"] = dataset.train.sample(EXAMPLES, FLAGS.seed or 0).read()
    limits = {
        name: FLAGS[name].value for name in ("max_accuracy_drop", "max_disagreement")
    }
    data |= {name: value for name, value in limits.items() if value is not None}
    return litert.export(
        model,
        FLAGS.export_dir,
        name,
        policy,
        quantize=FLAGS.quantize,
        max_rows=FLAGS.max_rows,
        class_names=_class_names(choice, dataset),
        **data,
    )


def main() -> None:
    if not FLAGS.export_dir:
        raise BranchyError("--export_dir is missing: the folder to write versions to.")
    _check_flags()
    graphs.check_backend()
    choice = command_line.chosen_model()
    policy = command_line.chosen_policy(choice)
    write = _export_litert if FLAGS.format == versions.LITERT else _export_saved_model
    version = write(choice, FLAGS.model_name or choice.model.name, policy)
    logging.info("Exported %s.", version)


if __name__ == "__main__":
    command_line.run(main)
