r"""Cuts a network at exits and exports each unit as a servable of its own.

Examples:

  python -m branchy_tf.cascade export --model=branchy_resnet --weights=cifar10 \
    --at=exit_1,exit_2 --names=device,edge,cloud --export_dir=units

  python -m branchy_tf.cascade export --fronts=runs/cameras --export_dir=units

It writes <export_dir>/<unit>/<version>/ for TF Serving, a models.config that serves all
units from one server, and a cascade.yaml that runs all of them in one process.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from branchy_tf import command_line, graphs, units
from branchy_tf.errors import BranchyError
from branchy_tf.pipeline import fronts
from branchy_tf.saved_model.freezing import FREEZE
from branchy_tf.saved_model.writing import MAX_ROWS
from branchy_tf.units.codecs import CODECS
from branchy_tf.units.cutting import FEATURES, SENDS, Unit

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_thresholds()
command_line.define_path("export_dir", None, "The folder to write the units to.")
flags.DEFINE_list(
    "fronts",
    None,
    "Exports the calibrated fronts of these trainings with --front, and the tail that "
    "they share, instead of cutting a network; comma-separated folders.",
)
command_line.check_path("fronts")
flags.DEFINE_list(
    "at",
    None,
    "Sets the exits after which to cut, in order, for example exit_1,exit_2. An empty "
    "list exports a single unit.",
)
flags.DEFINE_list(
    "names", None, "Sets the names of the units, in order. Default: unit_1, unit_2, ..."
)
flags.DEFINE_list(
    "sends",
    [FEATURES],
    "Sets what a unit sends on for the rows that it is not sure of: features, the "
    "tensors at the cut, or image, the image again. One for all cuts, or one for each.",
)
flags.DEFINE_enum(
    "codec",
    "uint8",
    CODECS,
    "Sets the form in which features travel: uint8, one byte per number, float16, or "
    "none, as they are.",
)
flags.DEFINE_string(
    "model_name", None, "Sets the name of the cascade. Default: the model's own name."
)
flags.DEFINE_enum(
    "freeze",
    "auto",
    FREEZE,
    "Whether to store weights as constants, which is faster, or as variables; auto uses "
    "variables for large units.",
)
flags.DEFINE_string(
    "input_dtype",
    None,
    "Sets the dtype of the served images. Default: the model's own, uint8 for the zoo's.",
)
flags.DEFINE_integer(
    "max_rows",
    MAX_ROWS,
    "Sets the largest number of rows in a request; larger ones are refused before "
    "anything is computed.",
    lower_bound=1,
)


def main() -> None:
    if not FLAGS.export_dir:
        raise BranchyError("--export_dir is missing: the folder to write the units to.")
    graphs.check_backend()
    if FLAGS.fronts:
        _export_fronts()
        return
    if FLAGS.at is None:
        raise BranchyError(
            "--at is missing: the exits after which to cut, e.g. --at=exit_1."
        )
    for way in FLAGS.sends:
        if way not in SENDS:
            raise BranchyError(
                f"--sends={','.join(FLAGS.sends)}: expected {' or '.join(SENDS)}. "
                f"Received {way!r}."
            )
    choice = command_line.chosen_model()
    policy = command_line.chosen_policy(choice)
    sends = FLAGS.sends[0] if len(FLAGS.sends) == 1 else FLAGS.sends
    parts = units.cut(choice.model, [x for x in FLAGS.at if x], FLAGS.names, sends)
    name = FLAGS.model_name or choice.model.name
    names = None if choice.run is None else command_line.class_names(choice.run.path)
    _export(parts, policy, model_name=name, class_names=names)


def _export_fronts() -> None:
    for name in ("run_dir", "model", "at", "names", "thresholds", "model_name"):
        if FLAGS[name].value:
            raise BranchyError(
                f"--{name} does not go with --fronts, whose trainings say it."
            )
    found = fronts.exportable(FLAGS.fronts)
    _export(found.units, found.policies, class_names=found.class_names)


def _export(parts: Sequence[Unit], policy: Any, **options: Any) -> None:
    versions = units.export(
        parts,
        FLAGS.export_dir,
        policy,
        codec=FLAGS.codec,
        freeze=FLAGS.freeze,
        input_dtype=FLAGS.input_dtype,
        max_rows=FLAGS.max_rows,
        **options,
    )
    for version in versions:
        logging.info("Exported %s.", version)


if __name__ == "__main__":
    command_line.run(main)
