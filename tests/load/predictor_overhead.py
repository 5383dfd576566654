"""Measures what the predictor adds to its engine's own call, one row at a time.

Examples:

  PYTHONPATH=. python tests/load/predictor_overhead.py exports/lenet/1
  PYTHONPATH=. python tests/load/predictor_overhead.py exports/lenet/1 --imports=20

Takes the folder of a version in either format. Prints the microseconds of the engine's
own call, of `predict`, and their difference, the median over pairs of passes that take
turns; and of `predict` around an engine that has its answer ready, which is the
predictor's own work without the noise of the engine. CPU time counts while this process
runs; to wall time, other work on the machine adds. With --imports, prints how long new
processes take to import what runs the version instead, and to load it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from branchy_tf import EarlyExitPredictor, versions

# Rows in one timed pass, so that a timer tick does not matter.
_ROWS = 20
_CLOCKS = {"CPU": time.process_time, "wall": time.perf_counter}
# What a new process does, and reports in seconds: wall and CPU time.
_START = """
import json, sys, time
clocks = [time.perf_counter, time.process_time]
now = [clock() for clock in clocks]
from branchy_tf import EarlyExitPredictor
import branchy_tf.predictor
if sys.argv[2] == "litert":
    import branchy_tf.litert.engine, ai_edge_litert.interpreter
else:
    import branchy_tf.saved_model.engines
imported = [clock() for clock in clocks]
predictor = EarlyExitPredictor(sys.argv[1])
loaded = [clock() for clock in clocks]
print(json.dumps({
    "import": [b - a for a, b in zip(now, imported)],
    "load": [b - a for a, b in zip(imported, loaded)],
    "heavy": sorted({"tensorflow", "keras"} & set(sys.modules)),
}))
"""


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


class Ready:
    """An engine that has its answer ready.

    Args:
        predictor: of the version.
        row: what it is asked.
    """

    def __init__(self, predictor: EarlyExitPredictor, row: dict[str, np.ndarray]) -> None:
        self.inputs = predictor._engine.inputs
        self.num_exits = predictor.num_exits
        arrays = row | {"thresholds": predictor.policy.limits}
        self._answer = predictor._engine.early_exit(arrays)

    def early_exit(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._answer


def measure_calls(path: pathlib.Path, threads: int, seconds: float) -> None:
    """Prints what `predict` adds to the engine's own call."""
    predictor = EarlyExitPredictor(path, threads=threads)
    random = np.random.default_rng(0)
    row = {
        name: random.integers(0, 200, [1, *(n or 32 for n in spec.shape[1:])]).astype(
            spec.dtype
        )
        for name, spec in predictor._engine.inputs.items()
    }
    around = EarlyExitPredictor(path, threads=threads)
    around._engine = Ready(predictor, row)  # type: ignore[assignment]
    calls = [
        own_call(predictor, row),
        lambda: predictor.predict(row),
        lambda: around.predict(row),
    ]
    for call in calls:
        for _ in range(100):
            call()
    passes: list[list[list[float]]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        passes.append([_pass(call) for call in calls])
    # [pass, call, clock]
    times = np.array(passes)
    for i, clock in enumerate(_CLOCKS):
        engine, whole, own = times[:, :, i].T
        print(
            f"{clock} time: engine {np.median(engine):.1f} us, predict "
            f"{np.median(whole):.1f} us, added {np.median(whole - engine):.1f} us; the "
            f"predictor's own work {np.median(own):.1f} us, {len(times)} passes"
        )


def _pass(call: Callable) -> list[float]:
    """Microseconds of one call, by each clock."""
    before = [clock() for clock in _CLOCKS.values()]
    for _ in range(_ROWS):
        call()
    after = [clock() for clock in _CLOCKS.values()]
    return [1e6 * (b - a) / _ROWS for a, b in zip(before, after, strict=True)]


def measure_imports(path: pathlib.Path, times: int) -> None:
    """Prints how long new processes take until they can predict."""
    kind = versions.find_format(path)
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _START, str(path), kind],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.splitlines()[-1]
        )
        for _ in range(times)
    ]
    for what in ("import", "load"):
        for i, clock in enumerate(("wall", "CPU")):
            taken = [one[what][i] for one in found]
            print(
                f"{what}, {clock} time: fastest {min(taken):.3f} s, median "
                f"{statistics.median(taken):.3f} s of {times} processes"
            )
    print(f"imported: {', '.join(found[0]['heavy']) or 'neither TensorFlow nor Keras'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--imports", type=int, default=0, metavar="PROCESSES")
    given = parser.parse_args()
    if given.imports:
        measure_imports(given.version, given.imports)
    else:
        measure_calls(given.version, given.threads, given.seconds)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
