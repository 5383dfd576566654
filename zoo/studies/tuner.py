r"""Shows how self-tuning thresholds perform when the images drift.

Example:

  python -m zoo.studies.tuner --model=branchy_lenet --weights=mnist \
    --dataset=mnist --seed=1 --run_dir=runs/tuner

Requests are sampled from the test images. Halfway through a stream the images get noisy,
get blurred or lose contrast; the drift is sudden or gradual, and one kind of stream has
none. Compares static thresholds, chosen on clean validation images; thresholds tuned
while serving; and the best static thresholds chosen with hindsight. Writes
tuner_study.json and tuner_study.png to --run_dir.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from tabulate import tabulate
from tqdm import tqdm

from branchy_tf import command_line, costs, exits, files, thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import CRITERIA
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.tuning import Strategy
from zoo.studies import drifting
from zoo.studies.tuner_plot import plot

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=None)
flags.DEFINE_enum("criterion", "entropy", list(CRITERIA), "Score that exits use.")
flags.DEFINE_integer("requests", 40_000, "Requests in each stream.", lower_bound=1)
flags.DEFINE_integer("window", 2_000, "Requests in each window.", lower_bound=1)
flags.DEFINE_integer("streams", 5, "Number of streams of each kind.", lower_bound=1)
flags.DEFINE_float(
    "budget", 0.99, "Minimum share of a window that agrees with the full network."
)
flags.DEFINE_float(
    "share", 0.01, "Minimum share of requests that run every exit, so the tuner learns."
)

_PLAIN, _STATIC, _TUNED = "static, plain", "static", "tuned"
_COLD, _ORACLE, _WINDOWS = "tuned, cold start", "oracle", "oracle, every window"
_CONTENDERS = (_PLAIN, _STATIC, _TUNED, _COLD, _ORACLE, _WINDOWS)
# Columns of the table and how each is written.
_COLUMNS = {
    "drift": ("drift", "{}"),
    "thresholds": ("thresholds", "{}"),
    "broken": ("windows below budget", "{}"),
    "lowest_agreement": ("lowest agreement", "{:.2%}"),
    "saving_before": ("saved before", "{:.1%}"),
    "saving_after": ("saved after", "{:.1%}"),
    "share_of_oracle": ("of oracle", "{:.1%}"),
    "share_of_oracle_every_window": ("of oracle, every window", "{:.1%}"),
}


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder to write to.")
    if FLAGS.requests % (2 * FLAGS.window):
        raise BranchyError(
            f"--requests={FLAGS.requests} must be an even number of windows of "
            f"{FLAGS.window}, because the drift starts halfway."
        )
    choice = command_line.chosen_model()
    dataset = choice.dataset()
    macs = np.array(costs.cumulative_macs(choice.model))
    # Checks the flags before the minutes that scoring takes.
    _strategy(macs)
    policy = ExitPolicy.final_exit_only(len(exits.exit_names(choice.model)))
    policy = policy.replace(criterion=FLAGS.criterion)
    predictor = EarlyExitPredictor(choice.model, policy)
    validation = _outputs(predictor, dataset.validation.images, "validation")
    streams = _streams(predictor, dataset.test.images)
    results: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(streams) * FLAGS.streams, unit=" streams", desc="serving") as bar:
        for drift, (clean, drifted, share) in streams.items():
            results[drift] = []
            for seed in range(FLAGS.streams):
                requests = drifting.stream(clean, drifted, share, seed)
                results[drift].append(_contenders(requests, validation, macs, seed))
                bar.update()
    table = [row for drift in results for row in _summary(drift, results[drift], macs)]
    output = pathlib.Path(FLAGS.run_dir)
    files.write_json(
        output / "tuner_study.json",
        {
            "model": choice.model.name,
            "dataset": dataset.name,
            "criterion": FLAGS.criterion,
            "budget": FLAGS.budget,
            "window": FLAGS.window,
            "requests": FLAGS.requests,
            "share": FLAGS.share,
            "exit_macs": macs,
            "full_macs": costs.full_macs(choice.model),
            "table": table,
            "streams": results,
        },
    )
    drawn = {
        drift: {name: first[name] for name in (_STATIC, _TUNED, _WINDOWS)}
        for drift, (first, *_) in results.items()
    }
    plot(output / "tuner_study.png", drawn, FLAGS.budget, FLAGS.window)
    _print(choice.model.name, table)
    logging.info("Wrote tuner_study.json and tuner_study.png to %s.", output)


def _strategy(macs: np.ndarray, seed: int = 0) -> Strategy:
    return Strategy(macs.tolist(), FLAGS.budget, FLAGS.window, FLAGS.share, seed)


def _outputs(
    predictor: EarlyExitPredictor, images: np.ndarray, name: str
) -> drifting.ExitOutputs:
    with tqdm(total=len(images), unit=" images", desc=name) as bar:
        probabilities, scores = predictor.all_exits(images, progress=bar.update)
    return drifting.ExitOutputs(scores, probabilities.argmax(axis=-1))


def _streams(
    predictor: EarlyExitPredictor, images: np.ndarray
) -> dict[str, tuple[drifting.ExitOutputs, drifting.ExitOutputs, np.ndarray]]:
    """What `drifting.stream` samples from, by the name of the drift."""
    clean = _outputs(predictor, images, "clean")
    drifted = {
        name: _outputs(predictor, drift(images), name)
        for name, drift in drifting.DRIFTS.items()
    }
    sudden = drifting.drift_share(FLAGS.requests)
    gradual = drifting.drift_share(FLAGS.requests, gradual=True)
    return (
        {"none": (clean, clean, np.zeros(FLAGS.requests))}
        | {name: (clean, outputs, sudden) for name, outputs in drifted.items()}
        | {"gradual noise": (clean, drifted["noise"], gradual)}
    )


def _contenders(
    requests: drifting.ExitOutputs,
    validation: drifting.ExitOutputs,
    macs: np.ndarray,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Agreement and multiply-adds of each contender on one stream, by window."""
    tuned, cold = _strategy(macs, seed), _strategy(macs, seed)
    bounded = tuned.observe(validation.scores, validation.labels)
    plain = thresholds.choose(
        validation.scores, validation.agrees, macs, max_accuracy_drop=1 - FLAGS.budget
    ).thresholds
    static = {
        _PLAIN: plain,
        _STATIC: bounded,
        _ORACLE: drifting.oracle(requests, macs, FLAGS.budget).thresholds,
        _WINDOWS: drifting.oracle(requests, macs, FLAGS.budget, FLAGS.window).thresholds,
    }
    results: dict[str, dict[str, Any]] = {}
    for name, vector in static.items():
        exits_taken = thresholds.exit_indices(requests.scores, vector)
        results[name] = drifting.per_window(requests, exits_taken, macs, FLAGS.window)
        results[name]["thresholds"] = np.asarray(vector)
    for name, strategy in ((_TUNED, tuned), (_COLD, cold)):
        exits_taken = drifting.serve(strategy, requests, seed)
        results[name] = drifting.per_window(requests, exits_taken, macs, FLAGS.window)
        results[name] |= strategy.status()
    return results


def _summary(
    drift: str, streams: Sequence[Mapping[str, Any]], macs: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each contender, over all streams with one drift."""
    half = FLAGS.requests // FLAGS.window // 2
    saved = {
        name: np.array([1 - result[name]["macs"] / macs[-1] for result in streams])
        for name in _CONTENDERS
    }
    rows = []
    for name in _CONTENDERS:
        # The tuner may learn during the first window, which is not counted.
        agreement = np.array([result[name]["agreement"][1:] for result in streams])
        rows.append(
            {
                "drift": drift,
                "thresholds": name,
                "windows": agreement.size,
                "broken": int((agreement < FLAGS.budget - drifting.ROUNDING).sum()),
                "lowest_agreement": agreement.min(),
                "saving_before": saved[name][:, :half].mean(),
                "saving_after": saved[name][:, half:].mean(),
                "share_of_oracle": saved[name].mean() / saved[_ORACLE].mean(),
                "share_of_oracle_every_window": saved[name].mean()
                / saved[_WINDOWS].mean(),
            }
        )
    return rows


def _print(model: str, table: Sequence[dict[str, Any]]) -> None:
    print(
        f"\n{model}, {FLAGS.streams} streams of {FLAGS.requests:,} requests with each "
        f"drift. Budget: at least {FLAGS.budget:.2%} of every {FLAGS.window:,} requests "
        "agree with the full network.\n"
    )
    shown = [row | {"broken": f"{row['broken']} of {row['windows']}"} for row in table]
    rows = [
        [form.format(row[key]) for key, (_, form) in _COLUMNS.items()] for row in shown
    ]
    head = [title for title, _ in _COLUMNS.values()]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    command_line.run(main)
