"""Shows what thresholds that tune themselves do when the images change.

Example:

  python -m zoo.studies.tuner --model=branchy_lenet --weights=mnist \
    --dataset=mnist --seed=1 --run_dir=runs/tuner

Streams of requests are drawn from the test images. In the middle the images get noise,
are blurred or lose contrast, at once or slowly, or nothing happens. Static thresholds,
chosen on the clean validation images, stand beside tuned ones, which start from the
same, and beside the best static ones known afterwards. Writes tuner_study.json and
tuner_study.png to --run_dir.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags, logging
from tabulate import tabulate
from tqdm import tqdm

from branchy_tf import command_line, costs, exits, files, thresholds
from branchy_tf.confidence import CRITERIA
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.tuning import Strategy
from zoo.studies import drifting
from zoo.studies.tuner_plot import plot

FLAGS = flags.FLAGS

command_line.define_model_choice()
command_line.define_data(required=False)
command_line.define_seed(default=None)
flags.DEFINE_enum("criterion", "entropy", list(CRITERIA), "Score of an exit.")
flags.DEFINE_integer("requests", 40_000, "Of a stream.", lower_bound=1)
flags.DEFINE_integer("window", 2_000, "Requests of a window.", lower_bound=1)
flags.DEFINE_integer("streams", 5, "Of each kind.", lower_bound=1)
flags.DEFINE_float("budget", 0.99, "Least share that agrees with the full network.")
flags.DEFINE_float("share", 0.01, "Of the requests that ask every exit.")

_PLAIN, _STATIC, _TUNED = "static, plain", "static", "tuned"
_COLD, _ORACLE, _WINDOWS = "tuned, from nothing", "oracle", "oracle, every window"
_SLOWLY = ", slowly"


def main() -> None:
    if not FLAGS.run_dir:
        raise BranchyError("--run_dir is missing: the folder to write to.")
    if FLAGS.requests % (2 * FLAGS.window):
        raise BranchyError(
            f"--requests={FLAGS.requests} must be an even number of windows of "
            f"{FLAGS.window}: the drift comes in the middle."
        )
    choice = command_line.chosen_model()
    dataset = command_line.chosen_dataset(choice.run, choice.model)
    macs = np.array(costs.cumulative_macs(choice.model))
    # Before the minutes that the scores take.
    _policy(macs)
    policy = ExitPolicy.to_the_end(len(exits.exit_names(choice.model)))
    policy = policy.replace(criterion=FLAGS.criterion)
    predictor = EarlyExitPredictor(choice.model, policy)
    validation = _rows(predictor, dataset.validation.images, "validation")
    test = dataset.test.images
    clean = _rows(predictor, test, "clean")
    changed = {
        name: _rows(predictor, drift(test), name)
        for name, drift in drifting.DRIFTS.items()
    }
    streams = {"none": (clean, drifting.drift_share(FLAGS.requests) * 0)}
    streams |= {
        name: (rows, drifting.drift_share(FLAGS.requests))
        for name, rows in changed.items()
    }
    streams[f"noise{_SLOWLY}"] = (
        changed["noise"],
        drifting.drift_share(FLAGS.requests, slowly=True),
    )
    found: dict[str, list[dict[str, Any]]] = {}
    total = len(streams) * FLAGS.streams
    with tqdm(total=total, unit=" streams", desc="simulating") as bar:
        for name, (rows, share) in streams.items():
            found[name] = []
            for number in range(FLAGS.streams):
                requests = drifting.stream(clean, rows, share, seed=number)
                found[name].append(_contenders(requests, validation, macs, number))
                bar.update()
    result = {
        "model": choice.model.name,
        "dataset": dataset.name,
        "criterion": FLAGS.criterion,
        "budget": FLAGS.budget,
        "window": FLAGS.window,
        "requests": FLAGS.requests,
        "share": FLAGS.share,
        "exit_macs": macs,
        "full_macs": costs.full_macs(choice.model),
        "table": [row for name in found for row in _summary(name, found[name], macs)],
        "streams": found,
    }
    output = pathlib.Path(FLAGS.run_dir)
    files.write_json(output / "tuner_study.json", result)
    shown = {
        name: {who: first[who] for who in (_STATIC, _TUNED, _WINDOWS)}
        for name, (first, *_) in found.items()
    }
    plot(output / "tuner_study.png", shown, FLAGS.budget, FLAGS.window)
    _print(result)
    logging.info("Wrote tuner_study.json and tuner_study.png to %s.", output)


def _policy(macs: np.ndarray, seed: int = 0) -> Strategy:
    return Strategy(macs.tolist(), FLAGS.budget, FLAGS.window, FLAGS.share, seed)


def _rows(predictor: EarlyExitPredictor, images: np.ndarray, name: str) -> drifting.Rows:
    with tqdm(total=len(images), unit=" images", desc=name) as bar:
        probabilities, scores = predictor.all_exits(images, progress=bar.update)
    return drifting.Rows(scores, probabilities.argmax(axis=-1))


def _contenders(
    requests: drifting.Rows, validation: drifting.Rows, macs: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """What each contender does on one stream, window by window."""
    tuned, cold = _policy(macs, seed), _policy(macs, seed)
    careful = tuned.observe(validation.scores, validation.labels)
    plain = thresholds.choose(
        validation.scores, validation.agrees, macs, max_accuracy_drop=1 - FLAGS.budget
    ).thresholds
    best = drifting.oracle(requests, macs, FLAGS.budget).thresholds
    safest = drifting.oracle(requests, macs, FLAGS.budget, FLAGS.window).thresholds
    static = {_PLAIN: plain, _STATIC: careful, _ORACLE: best, _WINDOWS: safest}
    left = {
        name: thresholds.exit_indices(requests.scores, vector)
        for name, vector in static.items()
    }
    left[_TUNED] = drifting.serve(tuned, requests, seed)
    left[_COLD] = drifting.serve(cold, requests, seed)
    found = {
        name: drifting.by_window(requests, exits, macs, FLAGS.window)
        for name, exits in left.items()
    }
    for name, vector in static.items():
        found[name]["thresholds"] = np.asarray(vector)
    for name, policy in ((_TUNED, tuned), (_COLD, cold)):
        found[name] |= policy.status()
    return found


def _summary(name: str, streams: list, macs: np.ndarray) -> list[dict[str, Any]]:
    """A row for each contender, over all streams of one kind."""
    half = FLAGS.requests // FLAGS.window // 2
    rows = []
    for who in (_PLAIN, _STATIC, _TUNED, _COLD, _ORACLE, _WINDOWS):
        # The first window is there to learn in.
        later = np.array([found[who]["agreement"][1:] for found in streams])
        saved = np.array([1 - found[who]["macs"] / macs[-1] for found in streams])
        possible = [1 - found[_ORACLE]["macs"].mean() / macs[-1] for found in streams]
        kept = [1 - found[_WINDOWS]["macs"].mean() / macs[-1] for found in streams]
        rows.append(
            {
                "drift": name,
                "thresholds": who,
                "windows": later.size,
                "broken": int((later < FLAGS.budget - 1e-12).sum()),
                "lowest_agreement": later.min(),
                "saving_before": saved[:, :half].mean(),
                "saving_after": saved[:, half:].mean(),
                "share_of_oracle": saved.mean() / np.mean(possible),
                "share_of_oracle_every_window": saved.mean() / np.mean(kept),
            }
        )
    return rows


def _print(result: dict[str, Any]) -> None:
    print(
        f"\n{result['model']}, {FLAGS.streams} streams of {FLAGS.requests:,} requests "
        f"each; at least {FLAGS.budget:.2%} of every {FLAGS.window:,} are to agree with "
        "the full network:\n"
    )
    head = [
        "drift",
        "thresholds",
        "windows below",
        "lowest",
        "saved before",
        "saved after",
        "of oracle's",
        "of oracle's, every window",
    ]
    rows = [
        [
            row["drift"],
            row["thresholds"],
            f"{row['broken']} of {row['windows']}",
            f"{row['lowest_agreement']:.2%}",
            f"{row['saving_before']:.1%}",
            f"{row['saving_after']:.1%}",
            f"{row['share_of_oracle']:.1%}",
            f"{row['share_of_oracle_every_window']:.1%}",
        ]
        for row in result["table"]
    ]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    command_line.run(main)
