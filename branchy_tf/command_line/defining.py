"""The flags that several commands have."""

from __future__ import annotations

from typing import Any

from absl import flags

from branchy_tf import files
from branchy_tf.command_line import startup
from branchy_tf.errors import BranchyError
from branchy_tf.files import functions

FLAGS = flags.FLAGS


def define_path(name: str, default: str | None, text: str, url: bool = False) -> None:
    """Defines a flag that takes a path; invalid paths are refused during parsing.

    Args:
        name: the name of the flag.
        default: its default.
        text: its help.
        url: whether the flag takes URLs too.
    """
    flags.DEFINE_string(name, default, text)
    check_path(name, url)


def check_path(name: str, url: bool = False) -> None:
    """Adds the same check to a defined flag, or to each entry of a list flag."""

    def check(value: Any) -> bool:
        for given in value if isinstance(value, list) else [value]:
            if not given or (url and files.is_url(given)):
                continue
            try:
                (files.folder if name.endswith("_dir") else files.path)(given)
            except BranchyError as error:
                raise flags.ValidationError(str(error)) from None
        return True

    flags.register_validator(name, check)


def define_seed(default: int | None) -> None:
    """Defines --seed."""
    flags.DEFINE_integer(
        "seed",
        default,
        "Sets the seed of the initial weights, the validation split, shuffling and "
        "augmentation." + ("" if default is not None else " Default: the run's."),
        lower_bound=0,
    )


def define_data(required: bool) -> None:
    """Defines --dataset, --data_dir and --validation_size."""
    define_dataset(required)
    flags.DEFINE_integer(
        "validation_size",
        None,
        "Sets how many rows of the training split to use for validation. Default: "
        + ("a tenth, at most 5000." if required else "the run's."),
    )


def define_dataset(required: bool) -> None:
    """Defines --dataset and --data_dir, for commands that read the test split alone."""
    otherwise = "" if required else " Default: the run's."
    define_path(
        "dataset",
        None,
        "Sets the data set: mnist, fashion_mnist, cifar10, cifar100, mnist_5k; the path "
        "of an .npz with x_train, y_train, x_test, y_test; the path of a folder with "
        "train/, test/ and maybe validation/, each with a folder of pictures per class; "
        "tfds:NAME; or module:function, which returns the splits." + otherwise,
    )
    define_path(
        "data_dir",
        None,
        "Sets the folder with <dataset>.npz, or that of tfds:. If the file is missing, "
        "keras.datasets downloads the data set." + otherwise,
    )
    flags.DEFINE_string(
        "image_size",
        None,
        "Sets the height and width to fit the pictures of a folder to, e.g. 96x96, or "
        "96x96x1 for grey ones. Bilinear; the aspect ratio is not preserved. Default: "
        + ("" if required else "the run's, or ")
        + "the size of the model's input, or else the common size of the pictures.",
    )
    flags.DEFINE_bool(
        "skip_unreadable",
        None,
        "Whether to leave out pictures of a folder that cannot be read. Each picture is "
        "read once at the start to find them. Default: "
        + ("no." if required else "as in the run."),
    )


def define_import() -> None:
    """Defines --import, which `run` obeys before the command begins."""
    flags.DEFINE_list(
        "import",
        [],
        "Imports these Python modules, comma-separated, before a model is loaded, "
        "because they register its custom layers. Default: none, and those that a run's "
        "train.flags names.",
    )


def import_modules() -> None:
    if "import" in FLAGS:
        for name in FLAGS["import"].value:
            with startup.hushed():
                functions.load_module(name)


def define_model(instead: str = "") -> None:
    """Defines --model, --model_args, --weights, --exits and --import.

    Args:
        instead: the end of the first sentence in the help of --model.
    """
    define_path(
        "model",
        None,
        f"Sets the model{instead}: the name of a zoo model, e.g. branchy_lenet, the path "
        "of a .keras file, which keeps its weights, or module:function, a callable that "
        "returns a Keras model, e.g. keras.applications:MobileNetV2.",
    )
    flags.DEFINE_string(
        "model_args",
        "",
        "Sets keyword arguments of the zoo's builder or of the function, e.g. "
        "depth=20,input_shape=32x32x3. train adds input_shape and classes of the data "
        "set; a function receives them only if it has such parameters.",
    )
    define_path(
        "weights",
        None,
        "Sets the weights to start from: a tag of the zoo, or a .keras file of the same "
        "zoo model; for a function, its argument weights. Default: random weights, or "
        "those that the file or function brings.",
    )
    flags.DEFINE_string(
        "exits",
        None,
        "Adds early exits to a --model that has none: 'LAYER=HEAD;LAYER=HEAD', in order "
        "from the input, or auto:N, which proposes N layers (auto:N=HEAD for another "
        "head than linear). A head is linear, conv(64,32) with the filters of each "
        "convolution, pool(4) with the size of a window, or module:function.",
    )
    define_import()


def define_model_choice() -> None:
    """Defines --run_dir, and what `define_model` does."""
    define_path(
        "run_dir",
        None,
        "The folder of a training. With --model, only the folder to write results to.",
    )
    define_model(" that is used instead of the one in --run_dir")


def define_thresholds() -> None:
    """Defines --thresholds, --criterion and --temperatures."""
    flags.DEFINE_list(
        "thresholds",
        None,
        "Sets one threshold for each exit but the final one, in exit order, for example "
        "0.1,0.4. With 0 no image takes the exit, with inf every image does. Default: "
        "the calibrated ones.",
    )
    flags.DEFINE_string(
        "criterion",
        None,
        "Sets the score that --thresholds refer to: entropy (in nats), max_prob or "
        "margin. Default: the run's, or entropy.",
    )
    flags.DEFINE_list(
        "temperatures",
        None,
        "Sets the temperature that the logits of each exit are divided by, in exit "
        "order. Default: the run's, or 1 for every exit.",
    )


def define_class_weights(otherwise: str) -> None:
    """Defines --class_weights.

    Args:
        otherwise: the default, in words.
    """
    define_path(
        "class_weights",
        None,
        "The weights of the classes in the loss: balanced, so that each class counts as "
        "much, or a .json file with weights by class name or number, where others have "
        f"1. Default: {otherwise}.",
    )


def define_topology() -> None:
    """Defines --topology and --units, from which units are placed."""
    define_path("topology", None, "The topology.yaml.")
    define_path(
        "units",
        None,
        "The folder that `cascade export` wrote, for the costs of units that the "
        "topology does not describe.",
    )


def define_tls() -> None:
    """Defines --tls, --tls_ca, --tls_certificate, --tls_key and --tls_server_name."""
    flags.DEFINE_bool("tls", False, "Connects with TLS, as any --tls_ flag does.")
    define_path(
        "tls_ca", None, "PEM file of trusted authorities. Default: the public ones."
    )
    define_path("tls_certificate", None, "PEM file of the client's certificate.")
    define_path("tls_key", None, "PEM file of that certificate's key.")
    flags.DEFINE_string(
        "tls_server_name", None, "Name in the server's certificate. Default: the host."
    )


def define_class_names(otherwise: str) -> None:
    """Defines --class_names.

    Args:
        otherwise: what names the classes without the flag.
    """
    define_path(
        "class_names",
        None,
        "What names the classes: a branchy.json or data.json, or the folder of a run, a "
        f"version or a model. Default: {otherwise}",
    )
