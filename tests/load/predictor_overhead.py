"""Times what the predictor adds to its engine's own call, one row at a time.

Example:

  PYTHONPATH=. python tests/load/predictor_overhead.py exports/branchy_lenet/1 --seconds=5

Prints the microseconds of the engine's own call, of `predict`, and their difference.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

from branchy_tf import EarlyExitPredictor, versions

# Rows in one timed pass, so that a timer tick does not matter.
_ROWS = 50


def own_call(predictor: EarlyExitPredictor, row: dict[str, np.ndarray]) -> Callable:
    """The call of the engine's library, with everything else prepared."""
    engine = predictor._engine
    arrays = row | {"thresholds": predictor.policy.limits}
    if engine.description.format == versions.LITERT:
        file = engine._whole
        interpreter = file._free[0]
        feeds = [arrays[name] for name in file.input_names]
        return lambda: interpreter.run(feeds)
    call, given, _ = engine._early_exit.args
    feeds = [arrays[name] for name in given]
    return lambda: call(*feeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    began = time.perf_counter()
    predictor = EarlyExitPredictor(given.version, threads=given.threads)
    loaded = time.perf_counter() - began
    random = np.random.default_rng(0)
    row = {
        name: random.integers(0, 200, [1, *(n or 32 for n in spec.shape[1:])]).astype(
            spec.dtype
        )
        for name, spec in predictor._engine.inputs.items()
    }
    calls = {
        "engine": own_call(predictor, row),
        "predict": lambda: predictor.predict(row),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + given.seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(_ROWS):
                call()
            times[name].append(1e6 * (time.perf_counter() - start) / _ROWS)
    # Other work on the machine only adds, so the fastest tenth says most.
    for name, quantile in (("median", 0.5), ("fastest tenth", 0.1)):
        engine, whole = (np.quantile(times[key], quantile) for key in calls)
        print(
            f"{name}: engine {engine:.1f} us, predict {whole:.1f} us, "
            f"added {whole - engine:.1f} us"
        )
    print(f"loaded in {loaded:.3f} s; TensorFlow imported: {'tensorflow' in sys.modules}")


if __name__ == "__main__":
    main()
