"""The tables that commands print, the page shows and model cards hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from branchy_tf.calibration import Calibrated

# The head and the rows of a table, for `tabulate` and `Section.table`.
Table = tuple[list[str], list[list[str]]]


def calibration_table(
    names: Sequence[str], macs: Sequence[int], calibrated: Calibrated
) -> Table:
    """The figures of each exit on the validation split.

    Args:
        names: the names of the N exits.
        macs: [N], cumulative multiply-adds.
        calibrated: the result of `calibrate`.
    """
    chosen = calibrated.chosen
    head = [
        "exit",
        "multiply-adds",
        "accuracy alone",
        "temperature",
        "threshold",
        "exit rate",
    ]
    rows = [
        [name, f"{total:,}", f"{alone:.2%}", f"{temperature:.3f}", limit, f"{rate:.1%}"]
        for name, total, alone, temperature, limit, rate in zip(
            names,
            macs,
            calibrated.answers.correct.mean(axis=0),
            calibrated.policy.temperatures or (),
            _limits(chosen.thresholds),
            chosen.exit_rates,
            strict=True,
        )
    ]
    return head, rows


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """The figures of each exit on the test split.

    Args:
        evaluation: the content of an evaluation.json.
    """
    head = [
        "exit",
        "multiply-adds",
        "accuracy alone",
        f"threshold ({evaluation['criterion']})",
        "exit rate",
        "accuracy here",
    ]
    rows = [
        [name, f"{macs:,}", f"{alone:.2%}", limit, f"{rate:.2%}", exiting]
        for name, macs, alone, limit, rate, exiting in zip(
            evaluation["exits"],
            evaluation["exit_macs"],
            evaluation["exit_accuracies"],
            _limits(evaluation["thresholds"]),
            evaluation["exit_rates"],
            ["-" if a is None else f"{a:.2%}" for a in evaluation["leaving_accuracies"]],
            strict=True,
        )
    ]
    return head, rows


def class_table(evaluation: dict[str, Any], most: int = 20) -> Table:
    """The figures of each class on the test split.

    Args:
        evaluation: the content of an evaluation.json.
        most: the most classes to list; of more, those with the largest drop.
    """
    head = ["class", "rows", "accuracy", "final exit", "drop", *evaluation["exits"]]
    known = [one for one in evaluation["classes"] if one["num_examples"]]
    shown = known
    if len(known) > most:
        shown = sorted(
            known, key=lambda one: one["accuracy"] - one["final_exit_accuracy"]
        )
        shown = shown[:most]
    rows = [
        [
            one["class"],
            f"{one['num_examples']:,}",
            f"{one['accuracy']:.2%}",
            f"{one['final_exit_accuracy']:.2%}",
            f"{100 * (one['final_exit_accuracy'] - one['accuracy']):.2f}",
            *(f"{rate:.1%}" for rate in one["exit_rates"]),
        ]
        for one in shown
    ]
    return head, rows


def criteria_table(compared: Sequence[dict[str, Any]]) -> Table:
    """The accuracy of each criterion at equal cost, and the point it would choose."""
    measure = compared[0]["measure"]
    costs = [point["cost"] for point in compared[0]["at_equal_cost"]]
    head = ["criterion", *(f"{measure} at {cost:,.4g}" for cost in costs)]
    head += [f"chosen: {measure}", "cost"]
    rows = [
        [row["criterion"]]
        + [f"{point['accuracy']:.2%}" for point in row["at_equal_cost"]]
        + [f"{row['accuracy']:.2%}", f"{row['cost']:,.4g}"]
        for row in compared
    ]
    return head, rows


def points_from_final_exit(drop: float, interval: Sequence[float]) -> str:
    """An accuracy drop in words, with its 95 % interval.

    Args:
        drop: accuracy of the final exit minus that of early exit, fractions of 1.
        interval: `(low, high)` of the drop.

    Example:

    ```python
    points_from_final_exit(-0.0009, (-0.003, 0.0012))
    # "0.09 points above the final exit (95 % interval: 0.30 above to 0.12 below)"
    ```
    """
    low, high = interval
    if low < 0 < high:
        spread = f"{-100 * low:.2f} above to {100 * high:.2f} below"
    else:
        near, far = sorted((abs(low), abs(high)))
        spread = f"{100 * near:.2f} to {100 * far:.2f} {_side(low + high)}"
    points = f"{abs(100 * drop):.2f}"
    if points == "0.00":
        place = "as accurate as the final exit"
    else:
        place = f"{points} points {_side(drop)} the final exit"
    return f"{place} (95 % interval: {spread})"


def _side(drop: float) -> str:
    return "above" if drop < 0 else "below"


def _limits(thresholds: Sequence[float]) -> list[str]:
    return [*(f"{threshold:.4g}" for threshold in thresholds), "-"]
