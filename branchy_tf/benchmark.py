r"""Times early exit against the plain network, or a server under load.

Examples:

  python -m branchy_tf.benchmark --run_dir=runs/lenet --batch_sizes=1,64
  python -m branchy_tf.benchmark --server=localhost:8500 --model_name=branchy_lenet \
    --run_dir=runs/lenet --callers=1,8,64 --rates=200,400

The first form prints tables and writes benchmark.json, benchmark.csv and benchmark.png
to --run_dir. The contenders are: keras_export, model.export of the network without
exits; frozen, the same network with weights as constants; early_exit at its thresholds,
on test images; forced_exit_N, where all rows take one exit; half_exit_1, where every
other row takes exit_1; unrouted, the frozen network with all branches and no routing;
stage_N, one stage alone, from which the ideal is computed; early_exit_bfloat16, as
written by export --precision=bfloat16. All of these run in a Session, the engine of TF
Serving, whose operations run in the calling thread, as configured in serving/. The
peers, if installed (pip install -e '.[peers,litert]'), are: onnxruntime and
onnxruntime_int8, the network without exits; pytorch, the same exits and thresholds in
eager mode; litert and litert_int8, the network without exits; early_exit_litert and
early_exit_litert_int8, as written by export --format=litert, int8 calibrated again within
the same budget. Contenders in int8 need the validation split of the calibration. Each
contender has its own process, and they are timed in turn. Timings are medians and
comparable only within one run.

The second form sends test images to a server for --seconds, for each number of callers
(a closed loop: each caller sends its next request after an answer) and for each rate (an
open loop: requests arrive at random, and latency counts from the scheduled time). With
--run_dir, or --model and --weights, it compares every answer with that model's own and
writes load.json and load.png to --run_dir. Otherwise --dataset sets the images to send.
"""

import pathlib
import tempfile
from typing import Any

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, files, graphs, plots
from branchy_tf.benchmarking import comparing, contenders, load, tables
from branchy_tf.benchmarking.litert_contenders import Splits
from branchy_tf.benchmarking.machine import machine
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.litert.writing import EXAMPLES
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.answers import ExpectedAnswers

FLAGS = flags.FLAGS

# The most test rows to time or to send.
_MOST_ROWS = 4096

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
flags.DEFINE_list(
    "batch_sizes", ["1", "8", "32", "128"], "Sets the batch sizes to time, in images."
)
flags.DEFINE_list("threads", ["1", "2"], "Sets the numbers of threads to time.")
flags.DEFINE_list(
    "peers",
    list(contenders.PEERS),
    "Sets the other engines to time. An empty list times none.",
)
flags.DEFINE_bool("bfloat16", True, "Whether to time early exit in bfloat16 too.")
flags.DEFINE_bool("int8", True, "Whether to time the peers in int8 too.")
flags.DEFINE_float(
    "seconds",
    4.0,
    "Sets the seconds to measure each batch size with each number of threads; with "
    "--server, each number of callers and each rate.",
    lower_bound=0.1,
)
flags.DEFINE_string(
    "server", None, "Loads the server at this host:port (gRPC) instead of timing here."
)
flags.DEFINE_string("model_name", None, "Sets the name of the served model.")
flags.DEFINE_list(
    "callers",
    ["1", "2", "4", "8", "16", "32", "64"],
    "Sets the numbers of concurrent callers of the closed loop.",
)
flags.DEFINE_list("rates", [], "Sets the rates of the open loop, in requests per second.")
flags.DEFINE_integer("rows", 1, "Sets the number of images per request.", lower_bound=1)
flags.DEFINE_float(
    "timeout", 10.0, "Sets the timeout of each request, in seconds.", lower_bound=1e-3
)


def _time_contenders() -> None:
    batch_sizes = command_line.whole_numbers("batch_sizes")
    threads = command_line.whole_numbers("threads")
    choice = command_line.chosen_model()
    model, output = choice.model, choice.output
    policy = command_line.chosen_policy(choice)
    dataset = choice.dataset()
    if max(batch_sizes) > len(dataset.test):
        raise BranchyError(
            f"--batch_sizes has {max(batch_sizes)}, but {dataset.name} has only "
            f"{len(dataset.test)} test images."
        )
    peers = _peers()
    splits = _splits(choice, dataset) if FLAGS.int8 else None
    with tempfile.TemporaryDirectory() as folder:
        result = comparing.compare(
            model,
            policy,
            _rows(dataset),
            pathlib.Path(folder),
            batch_sizes,
            threads,
            FLAGS.seconds,
            progress=lambda what: logging.info("Timing: %s ...", what),
            peers=peers,
            bfloat16=FLAGS.bfloat16,
            splits=splits,
        )
    print(tables.text(result))
    if output is not None:
        files.write_json(output.benchmark, result)
        files.write_csv(output.benchmark_table, tables.flat(result))
        plots.contenders(output.benchmark_picture, result)
        logging.info("Wrote %s, its table and its picture.", output.benchmark)


def _rows(dataset: Dataset) -> Any:
    """The inputs of the first test rows, in memory."""
    return dataset.test.take(slice(_MOST_ROWS)).read()


def _splits(choice: command_line.Choice, dataset: Dataset) -> Splits | None:
    """The rows for int8, or None and a warning if they are not those of the policy."""
    try:
        again = command_line.recalibration(choice, dataset.validation)
    except BranchyError as error:
        logging.warning("Nothing is timed in int8. %s", error)
        return None
    examples = dataset.train.sample(EXAMPLES, FLAGS.seed or 0).read()
    return Splits(examples, dataset.validation, dataset.test, again)


def _peers() -> list[str]:
    unknown = sorted(set(FLAGS.peers) - set(contenders.PEERS))
    if unknown:
        raise BranchyError(
            f"--peers has {', '.join(unknown)}. Known: {', '.join(contenders.PEERS)}."
        )
    return FLAGS.peers


def _load_server() -> None:
    callers = command_line.whole_numbers("callers") if FLAGS.callers else []
    rates = command_line.parse_numbers("rates", FLAGS.rates) or []
    if not all(0 < rate < float("inf") for rate in rates):
        raise BranchyError(
            f"--rates must be finite requests per second above 0. Received "
            f"{','.join(FLAGS.rates)}."
        )
    if not FLAGS.model_name:
        raise BranchyError("--model_name is missing: the name of the served model.")
    with EarlyExitClient(FLAGS.server, FLAGS.model_name, timeout=FLAGS.timeout) as client:
        # Notices a server that is down before any data is loaded.
        client.describe()
        traffic, output = _traffic(client)
        results = load.run_loops(
            traffic,
            callers,
            rates,
            FLAGS.seconds,
            FLAGS.timeout,
            progress=lambda what: logging.info("Sending: %s ...", what),
        )
    if output is not None:
        written = {
            "machine": machine(),
            "server": FLAGS.server,
            "model": FLAGS.model_name,
            "rows": FLAGS.rows,
            "timeout": FLAGS.timeout,
            "results": results,
        }
        files.write_json(output.load, written)
        plots.load(output.load_picture, results)
        logging.info("Wrote %s and %s.", output.load, output.load_picture)
    names = {
        "requests_per_second": "requests/s",
        "rows_per_second": "rows/s",
        "p50_ms": "p50 ms",
        "p95_ms": "p95 ms",
        "p99_ms": "p99 ms",
        "wrong": "wrong",
    }
    rows = [
        [f"{row['callers']} callers" if row["callers"] else f"{row['rate']:g}/s arrive"]
        + [row[name] for name in names]
        + [", ".join(f"{n} {code}" for code, n in row["errors"].items()) or "none"]
        for row in results
    ]
    head = ["load", *names.values(), "errors"]
    print(tabulate(rows, head, floatfmt=".1f", missingval="-"))
    wrong = sum(row["wrong"] for row in results)
    if wrong:
        raise BranchyError(
            f"{wrong} answers differ from those of the model that they were compared "
            "with. Check that the server has the same model, criterion and temperatures."
        )


def _traffic(client: EarlyExitClient) -> tuple[load.Traffic, Any]:
    """The requests to send, and the folder to write to.

    With a model, the requests carry the expected answers.
    """
    if not (FLAGS.run_dir or FLAGS.model):
        limits = command_line.parse_numbers("thresholds", FLAGS.thresholds)
        inputs = _rows(command_line.chosen_dataset(None))
        thresholds = None if limits is None else [limits]
        return load.Traffic(client, inputs, FLAGS.rows, thresholds), None
    choice = command_line.chosen_model()
    policy = command_line.chosen_policy(choice)
    inputs = graphs.named_inputs(choice.model, _rows(choice.dataset()))
    predictor = EarlyExitPredictor(choice.model, policy)
    expected = ExpectedAnswers(*predictor.all_exits(inputs))
    thresholds = [list(policy.thresholds)]
    traffic = load.Traffic(client, inputs, FLAGS.rows, thresholds, lambda _: expected)
    return traffic, choice.output


def main() -> None:
    if FLAGS.server:
        _load_server()
    else:
        _time_contenders()


if __name__ == "__main__":
    command_line.run(main)
