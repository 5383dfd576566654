"""Two ways of choosing thresholds for a range of budgets, counted on another split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from branchy_tf import exits, scoring, thresholds

# Those of the paper's code.
RATIOS = tuple(step / 20 for step in range(1, 40))
# The page shows one budget in so many; the .csv all.
_SHOWN = 4


def compare(
    validation: scoring.Answers, test: scoring.Answers, macs: Sequence[int]
) -> list[dict[str, Any]]:
    """Both ways at every ratio, chosen on one split and counted on the other.

    Returns:
        A row for each ratio: ratio, expected multiply-adds on the validation split, and
        for each way accuracy and expected multiply-adds on the test split.
    """
    frontier = thresholds.frontier(validation.scores, validation.correct, macs)
    rows = []
    for ratio in RATIOS:
        rates = thresholds.geometric_rates(ratio, len(macs))[:-1]
        by_rates = thresholds.choose(
            validation.scores, validation.correct, macs, exit_rates=rates
        )
        searched = thresholds.choose(
            validation.scores,
            validation.correct,
            macs,
            # The same thresholds may cost a rounding error more.
            max_cost=by_rates.cost * (1 + 1e-12),
            points=frontier,
        )
        row: dict[str, Any] = {"ratio": ratio, "validation_macs": by_rates.cost}
        for way, point in (("geometric", by_rates), ("searched", searched)):
            found = thresholds.evaluate(test.scores, test.correct, macs, point.thresholds)
            row |= {f"{way}_accuracy": found.accuracy, f"{way}_macs": found.cost}
        rows.append(row)
    return rows


def exits_table(macs: Sequence[int], alone: np.ndarray) -> str:
    """The cost and accuracy of each exit on all rows, in Markdown."""
    lines = [
        [exits.exit_name(number), f"{cost / 1e6:.2f}", f"{100 * accuracy:.2f}"]
        for number, (cost, accuracy) in enumerate(zip(macs, alone, strict=True), start=1)
    ]
    head = ["each exit alone", "million multiply-adds", "accuracy (%)"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One budget in four, in Markdown."""
    lines = [
        [
            f"{row['ratio']:.2f}",
            *(
                text
                for way in ("geometric", "searched")
                for text in (
                    f"{row[f'{way}_macs'] / 1e6:.2f}",
                    f"{100 * row[f'{way}_accuracy']:.2f}",
                )
            ),
        ]
        for row in rows[_SHOWN - 1 :: _SHOWN]
    ]
    head = ["ratio", "geometric: million multiply-adds", "accuracy (%)"]
    head += ["searched: million multiply-adds", "accuracy (%)"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How the two ways differ over all budgets, in a sentence."""
    better = np.array(
        [100 * (row["searched_accuracy"] - row["geometric_accuracy"]) for row in rows]
    )
    dearer = np.array([row["searched_macs"] / row["geometric_macs"] for row in rows])
    return (
        f"The searched thresholds are {better.mean():+.2f} points more accurate on "
        f"average ({better.min():+.2f} to {better.max():+.2f}), at {dearer.mean():.3f} "
        f"times the multiply-adds ({dearer.min():.3f} to {dearer.max():.3f})."
    )
