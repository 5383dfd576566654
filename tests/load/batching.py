"""Measures the gain of batching: throughput with it over throughput without.

Two servers of one model, one with --enable_batching, are asked in turn. A batch saves
nothing but work inside the engine; how much that is, is measured beside, in process and
with one thread. Exact command:

  python tests/load/batching.py --export=exports/branchy_resnet --callers=32 \
    --batching_parameters_file=serving/batching.config \
    --server_flags=--tensorflow_intra_op_parallelism=1
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Sequence

import exported
import lab
import numpy as np

from branchy_tf.benchmarking import load, timing
from branchy_tf.saved_model.session import SessionModel

_LEAST_GAIN = 1.5


def run(
    export: pathlib.Path,
    dataset: str | None,
    callers: int,
    seconds: float,
    rounds: int = 4,
    parameters: pathlib.Path | None = None,
    flags: Sequence[str] = (),
) -> lab.Findings:
    """Asks each server in turn, `rounds` times `seconds`.

    Args:
        export: folder of the model.
        dataset: what to ask about; default: noise.
        callers: at a time.
        seconds: of each turn.
        rounds: turns of each server.
        parameters: text proto of BatchingParameters; default: the server's.
        flags: of both servers.
    """
    batching = ["--enable_batching"]
    if parameters is not None:
        batching.append(f"--batching_parameters_file={parameters}")
    rates: dict[str, list[float]] = {"off": [], "on": []}
    errors = {}
    with (
        tempfile.TemporaryDirectory() as name,
        exported.serving(export, pathlib.Path(name), flags) as (_, plain),
        exported.serving(export, pathlib.Path(name), [*flags, *batching]) as (_, batched),
    ):
        images = exported.images(plain, dataset)
        asks = {"off": load.Traffic(plain, images), "on": load.Traffic(batched, images)}
        for turn in range(rounds + 1):
            for way, ask in asks.items():
                outcome = load.closed_loop(ask, callers, 30, seconds)
                errors |= outcome.errors
                # The first turn warms up.
                if turn:
                    rates[way].append(outcome.summary()["requests_per_second"])
    off, on = (float(np.median(rates[way])) for way in ("off", "on"))
    gain = on / off
    alone, together = _in_process(
        exported.newest(export), images[:512], callers, min(seconds, 4)
    )
    found = lab.Findings(
        f"{callers} callers, one image each: {off:.0f} requests/s without batching, "
        f"{on:.0f} with, {gain:.2f} times as many (at least {_LEAST_GAIN:g} wanted). In "
        f"process an image takes {1e3 * alone:.3f} ms alone and {1e3 * together:.3f} ms "
        f"in a batch of {callers}, one thread: {alone / together:.2f} times is about the "
        "most there is.",
        {"off": off, "on": on, "gain": gain, "most": alone / together},
    )
    found.require(not errors, f"requests failed: {errors}")
    found.require(gain >= _LEAST_GAIN, f"batching brings {gain:.2f} times")
    return found


def _in_process(
    version: pathlib.Path, images: np.ndarray, batch: int, seconds: float
) -> tuple[float, float]:
    """Seconds per image, one at a time and in batches."""
    model = SessionModel(version, intra_op_threads=1)
    (name,) = {*model.signatures["early_exit"].inputs} - {"thresholds"}

    def run(rows: int) -> None:
        for start in range(0, len(images), rows):
            model.run("early_exit", {name: images[start : start + rows]})

    calls = [functools.partial(run, rows) for rows in (1, batch)]
    named = dict(zip(("alone", "together"), calls, strict=True))
    times = timing.time_calls(named, seconds, warm_up=1)
    model.close()
    alone, together = (float(median) / len(images) for _, median, _ in times.values())
    return alone, together


def main() -> None:
    parser = exported.parser(__doc__)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batching_parameters_file", type=pathlib.Path)
    given = parser.parse_args()
    found = run(
        given.export,
        given.dataset,
        given.callers,
        given.seconds,
        given.rounds,
        given.batching_parameters_file,
        given.server_flags,
    )
    found.finish()


if __name__ == "__main__":
    main()
