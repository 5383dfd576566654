"""Times every contender in turn, and derives gains and costs."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf import graphs
from branchy_tf.benchmarking import contenders, timing
from branchy_tf.benchmarking.litert_contenders import Splits
from branchy_tf.benchmarking.machine import machine
from branchy_tf.benchmarking.processes import Process
from branchy_tf.benchmarking.rows import Arrays, count, take
from branchy_tf.benchmarking.worker import rows_of_pass
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.results import Predictions

# The alternatives to early exit.
OTHERS = (
    "keras_export",
    "frozen",
    "onnxruntime",
    "onnxruntime_int8",
    "litert",
    "litert_int8",
    "pytorch",
)
# Stands for the fastest of `contenders.INT8`.
FASTEST_INT8 = "fastest_int8"

# Contenders that answer a request from image to label, each in its own process.
_WHOLE = (
    "early_exit",
    contenders.BFLOAT16,
    *contenders.LITERT_EARLY_EXIT,
    *OTHERS,
)

# OpenMP and ONNX Runtime threads spin for a while, which would slow the next process.
_PAUSE = 0.002
_CHECKED_ROWS = 64
# The last digits may decide near ties.
_LEAST_AGREEMENT = 0.95
# bfloat16 has three digits and int8 fewer; `export` decides how well they must agree.
_LEAST_IN_SHORT = 0.8
_SHORT = {contenders.BFLOAT16, "early_exit_litert_int8", *contenders.INT8}
# int8 is calibrated again, so its rows may take other exits.
_OTHER_POLICY = {"early_exit_litert_int8"}


def compare(
    model: keras.Model,
    policy: ExitPolicy,
    inputs: Any,
    folder: pathlib.Path,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    progress: Callable[[str], object] = lambda what: None,
    peers: Sequence[str] = tuple(contenders.PEERS),
    bfloat16: bool = True,
    splits: Splits | None = None,
) -> dict[str, Any]:
    """Times all contenders; see benchmark.json in the contract.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: the calibrated one.
        inputs: real rows: [n, ...], or a dict by name for several inputs. Their mix of
            easy and hard ones decides the gain.
        folder: an empty folder for the contenders' files.
        batch_sizes: to time.
        threads: numbers of threads to time.
        seconds: to measure for each batch size and number of threads.
        progress: called with a description of each step.
        peers: other engines to try, of `contenders.PEERS`.
        bfloat16: whether to time early exit in bfloat16 too.
        splits: the rows that contenders in int8 need; None leaves those out.

    Returns:
        The content of benchmark.json. Beside the contract's: `left_out` {name: why},
        `litert_gains`, the gains of LiteRT's early exits [{"contender", "batch",
        "threads", "over", "gain", "ideal_gain", "share_of_ideal"}], `quality` of each
        LiteRT version, see `litert_contenders.write`,
        `bfloat16_gains` [{"batch", "threads", "over", "gain"}],
        `memory` of each process [{"contender", "threads", "imports_mb", "peak_mb"}],
        `routing` [{"batch", "threads", "last_over_unrouted", "first_over_stage",
        "first_extra_us"}], and the contenders `half_exit_1` (every other row exits at
        exit_1, the others at the final exit) and `unrouted` (the frozen network with its
        branches but no routing).

    Raises:
        BranchyError: a process ended, or a contender disagrees with the predictor.
    """
    progress("writing the contenders")
    arrays = graphs.cast_inputs(model, inputs)
    there = count(arrays)
    programs, left_out, quality = contenders.write(
        model, arrays, policy, folder, peers, bfloat16, splits
    )
    answers, full = _expected(EarlyExitPredictor(model, policy), arrays)
    results: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    short_gains: list[dict[str, Any]] = []
    litert_gains: list[dict[str, Any]] = []
    routing: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    for number in threads:
        progress(f"starting the contenders, threads: {number}")
        starting = contenders.started(programs, list(arrays), number, folder)
        with starting as (processes, not_started):
            left_out |= not_started
            _check_answers(processes, answers, full)
            exits = _litert_exits(processes, there)
            for batch in batch_sizes:
                progress(f"batch {batch}, threads: {number}")
                rows = _time(processes, batch, there, seconds)
                common = {"batch": batch, "threads": number}
                results += [row | common for row in rows.values()]
                passed = rows_of_pass(there, batch)
                reach = _reach(answers.exits[:passed], policy.num_exits)
                gains += [gain | common for gain in _gains(rows, reach)]
                for name, taken in exits.items():
                    reach = _reach(taken[:passed], policy.num_exits)
                    litert_gains += [
                        {"contender": name} | gain | common
                        for gain in _litert_gains(rows, name, reach)
                    ]
                short_gains += [gain | common for gain in _bfloat16_gains(rows)]
                routing.append(common | _routing(rows, batch))
            memory += [
                {"contender": name, "threads": number} | processes[name].ask("memory")
                for name in _WHOLE
                if name in processes
            ]
    return {
        "machine": machine(),
        "results": results,
        "gains": gains,
        "bfloat16_gains": short_gains,
        "litert_gains": litert_gains,
        "quality": quality,
        "routing": routing,
        "memory": memory,
        "left_out": left_out,
    }


def _expected(
    predictor: EarlyExitPredictor, inputs: Arrays
) -> tuple[Predictions, np.ndarray]:
    """The routed answers to all rows; the full network's labels of the first ones."""
    probabilities, _ = predictor.all_exits(take(inputs, slice(_CHECKED_ROWS)))
    return predictor.predict(inputs), probabilities[:, -1].argmax(axis=-1)


def _check_answers(
    processes: dict[str, Process], answers: Predictions, full: np.ndarray
) -> None:
    """Raises `BranchyError` if a contender computes something else."""
    for name in _WHOLE:
        if name not in processes:
            continue
        found = processes[name].ask("answer", contender=name, rows=len(full))
        routed = found["exits"] is not None
        labels = answers.labels[: len(full)] if routed else full
        agree = labels == found["labels"]
        if routed and name not in _OTHER_POLICY:
            agree &= answers.exits[: len(full)] == found["exits"]
        if agree.mean() < (_LEAST_IN_SHORT if name in _SHORT else _LEAST_AGREEMENT):
            raise BranchyError(
                f"{name} agrees with the predictor on {agree.sum()} of {len(full)} "
                "images: it computes something else, so its times are meaningless."
            )


def _time(
    processes: dict[str, Process], batch: int, count: int, seconds: float
) -> dict[str, dict[str, Any]]:
    def timer(process: Process, contender: str) -> float:
        time.sleep(_PAUSE)
        answer = process.ask("time", contender=contender, batch=batch)
        return answer["seconds"]

    timers = {
        name: functools.partial(timer, process, name)
        for name, process in processes.items()
        # One row has no half.
        if batch > 1 or name != "half_exit_1"
    }
    quartiles = timing.interleave(timers, seconds, warm_up=1)
    rows = rows_of_pass(count, batch)
    return {
        name: {
            "contender": name,
            "ms_per_image": 1e3 * median / rows,
            "low": 1e3 * low / rows,
            "high": 1e3 * high / rows,
        }
        for name, (low, median, high) in quartiles.items()
    }


def _litert_exits(processes: dict[str, Process], rows: int) -> dict[str, np.ndarray]:
    """The exits that each LiteRT version takes, at its own policy."""
    return {
        name: np.asarray(
            processes[name].ask("answer", contender=name, rows=rows)["exits"]
        )
        for name in contenders.LITERT_EARLY_EXIT
        if name in processes
    }


def _reach(exits: np.ndarray, count: int) -> list[float]:
    """The share of rows that enter each stage."""
    return [float((exits >= k).mean()) for k in range(count)]


def _gains(
    rows: dict[str, dict[str, Any]], reach: Sequence[float]
) -> list[dict[str, Any]]:
    return _over(rows, "early_exit", "stage", reach, OTHERS)


def _litert_gains(
    rows: dict[str, dict[str, Any]], contender: str, reach: Sequence[float]
) -> list[dict[str, Any]]:
    int8 = [rows[name] for name in contenders.INT8 if name in rows]
    if int8:
        fastest = min(int8, key=lambda row: row["ms_per_image"])
        rows = rows | {FASTEST_INT8: fastest}
    stage = f"{contenders.LITERT_EARLY_EXIT[contender]}_stage"
    return _over(rows, contender, stage, reach, (*OTHERS, "early_exit", FASTEST_INT8))


def _over(
    rows: dict[str, dict[str, Any]],
    contender: str,
    stage: str,
    reach: Sequence[float],
    others: Sequence[str],
) -> list[dict[str, Any]]:
    """The gains of early exit, and of its ideal: no more than the stages entered."""
    measured = rows[contender]["ms_per_image"]
    ideal = sum(
        share * rows[f"{stage}_{k + 1}"]["ms_per_image"] for k, share in enumerate(reach)
    )
    return [
        {
            "over": over,
            "gain": gain,
            "ideal_gain": rows[over]["ms_per_image"] / ideal,
            "share_of_ideal": ideal / measured,
        }
        for over, gain in _times_as_fast(rows, contender, others).items()
    ]


def _bfloat16_gains(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    if contenders.BFLOAT16 not in rows:
        return []
    found = _times_as_fast(rows, contenders.BFLOAT16, (*OTHERS, "early_exit"))
    return [{"over": over, "gain": gain} for over, gain in found.items()]


def _times_as_fast(
    rows: dict[str, dict[str, Any]], contender: str, others: Sequence[str]
) -> dict[str, float]:
    """How many times as fast as each other contender that takes part."""
    ms = rows[contender]["ms_per_image"]
    return {over: rows[over]["ms_per_image"] / ms for over in others if over in rows}


def _routing(rows: dict[str, dict[str, Any]], batch: int) -> dict[str, float]:
    """The cost of routing when thresholds force the exit."""
    ms = {name: row["ms_per_image"] for name, row in rows.items()}
    last = [name for name in ms if name.startswith("forced_exit_")][-1]
    extra = ms["forced_exit_1"] - ms["stage_1"]
    return {
        "last_over_unrouted": ms[last] / ms["unrouted"],
        "first_over_stage": ms["forced_exit_1"] / ms["stage_1"],
        "first_extra_us": 1e3 * extra * batch,
    }
