"""Times early exit against the plain network, or a server under load.

Examples:

  python -m branchy_tf.benchmark --run_dir=runs/lenet --batch_sizes=1,64
  python -m branchy_tf.benchmark --server=localhost:8500 --model_name=branchy_lenet \
    --run_dir=runs/lenet --callers=1,8,64 --rates=200,400

The first prints tables and writes benchmark.json, benchmark.csv and benchmark.png to
--run_dir. Contenders: keras_export, model.export of the network without exits; frozen,
the same frozen as our exports are; early_exit at its thresholds, on test images;
forced_exit_N, all rows to one exit; half_exit_1, every other row leaves at exit_1;
unrouted, the frozen network with all branches and no routing; stage_N, that part of the
network alone, of which the ideal is made; early_exit_bfloat16, what export
--precision=bfloat16 writes; all these in a Session, the engine of TF Serving, whose
operations run in the thread that calls, as serving/ has it. Peers, where they are
installed (pip install -e '.[peers]'): onnxruntime, the network without exits;
pytorch, the same exits and thresholds in eager mode. Each has a process of its own and
all are timed in turn. Timings are medians, and comparable within one run alone.

The second asks a server about test images, --seconds for each number of callers (a
closed loop: each asks again once it is answered) and for each rate (an open loop:
requests arrive by chance, and latency counts from when one was due). With --run_dir,
or --model and --weights, every answer is compared with that model's own, and load.json
and load.png are written to --run_dir. Without, --dataset says what to ask about.
"""

import pathlib
import tempfile
from typing import Any

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, files, plots
from branchy_tf.benchmarking import comparing, contenders, load, tables
from branchy_tf.benchmarking.machine import machine
from branchy_tf.errors import BranchyError
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.answers import ExpectedAnswers

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_thresholds()
command_line.define_seed(default=None)
flags.DEFINE_list("batch_sizes", ["1", "8", "32", "128"], "Batch sizes to time.")
flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads to time.")
flags.DEFINE_list(
    "peers", list(contenders.PEERS), "Other engines to time; none: an empty list."
)
flags.DEFINE_bool("bfloat16", True, "Whether to time early exit in bfloat16 too.")
flags.DEFINE_float(
    "seconds",
    4.0,
    "How long to measure each batch size with each number of threads; or each number "
    "of callers and each rate.",
    lower_bound=0.1,
)
flags.DEFINE_string("server", None, "host:port of gRPC: put this server under load.")
flags.DEFINE_string("model_name", None, "Of the served model.")
flags.DEFINE_list(
    "callers", ["1", "2", "4", "8", "16", "32", "64"], "Numbers of callers at a time."
)
flags.DEFINE_list("rates", [], "Requests a second that arrive by chance.")
flags.DEFINE_integer("rows", 1, "Images in each request.", lower_bound=1)
flags.DEFINE_float("timeout", 10.0, "Seconds for each request.", lower_bound=1e-3)


def _time_contenders() -> None:
    batch_sizes = command_line.whole_numbers("batch_sizes")
    threads = command_line.whole_numbers("threads")
    choice = command_line.chosen_model()
    model, run, output = choice.model, choice.run, choice.output
    policy = command_line.chosen_policy(choice)
    dataset = command_line.chosen_dataset(run, model)
    if max(batch_sizes) > len(dataset.test):
        raise BranchyError(
            f"--batch_sizes has {max(batch_sizes)}, and {dataset.name} only "
            f"{len(dataset.test)} test images."
        )
    with tempfile.TemporaryDirectory() as folder:
        result = comparing.compare(
            model,
            policy,
            dataset.test.images[:4096],
            pathlib.Path(folder),
            batch_sizes,
            threads,
            FLAGS.seconds,
            progress=lambda what: logging.info("Timing: %s ...", what),
            peers=_peers(),
            bfloat16=FLAGS.bfloat16,
        )
    print(tables.text(result))
    if output is not None:
        files.write_json(output.benchmark, result)
        files.write_csv(output.benchmark_table, tables.flat(result))
        plots.contenders(output.benchmark_picture, result)
        logging.info("Wrote %s, its table and its picture.", output.benchmark)


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
            f"--rates must be requests a second, more than 0. Received "
            f"{','.join(FLAGS.rates)}."
        )
    if not FLAGS.model_name:
        raise BranchyError("--model_name is missing: the name of the served model.")
    with EarlyExitClient(FLAGS.server, FLAGS.model_name, timeout=FLAGS.timeout) as client:
        # First of all: a server that is down is noticed before data is loaded.
        client.describe()
        traffic, output = _traffic(client)
        results = load.run_loops(
            traffic,
            callers,
            rates,
            FLAGS.seconds,
            FLAGS.timeout,
            progress=lambda what: logging.info("Asking: %s ...", what),
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
            f"{wrong} answers are not those of the model that they were compared with. "
            "Is it the model, the criterion and the temperatures that are served?"
        )


def _traffic(client: EarlyExitClient) -> tuple[load.Traffic, Any]:
    """What to ask, checked where there is a model to check by; where to write."""
    if not (FLAGS.run_dir or FLAGS.model):
        limits = command_line.parse_numbers("thresholds", FLAGS.thresholds)
        images = command_line.chosen_dataset(None).test.images
        thresholds = None if limits is None else [limits]
        return load.Traffic(client, images, FLAGS.rows, thresholds), None
    choice = command_line.chosen_model()
    policy = command_line.chosen_policy(choice)
    images = command_line.chosen_dataset(choice.run, choice.model).test.images
    predictor = EarlyExitPredictor(choice.model, policy)
    expected = ExpectedAnswers(*predictor.all_exits(images))
    thresholds = [list(policy.thresholds)]
    traffic = load.Traffic(client, images, FLAGS.rows, thresholds, lambda _: expected)
    return traffic, choice.output


def main() -> None:
    if FLAGS.server:
        _load_server()
    else:
        _time_contenders()


if __name__ == "__main__":
    command_line.run(main)
