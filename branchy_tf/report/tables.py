"""What each exit does, as a table for a page or a terminal."""

from __future__ import annotations

from typing import Any


def exit_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of what each exit does.

    Args:
        found: content of an evaluation.json.
    """
    head = [
        "exit",
        "multiply-adds",
        "alone right",
        "threshold",
        "leave here",
        "right of these",
    ]
    rows = [
        [name, f"{macs:,}", f"{alone:.2%}", limit, f"{rate:.2%}", right]
        for name, macs, alone, limit, rate, right in zip(
            found["exits"],
            found["exit_macs"],
            found["exit_accuracies"],
            [*(f"{t:.4g}" for t in found["thresholds"]), "-"],
            found["exit_rates"],
            ["-" if a is None else f"{a:.2%}" for a in found["leaving_accuracies"]],
            strict=True,
        )
    ]
    return head, rows
