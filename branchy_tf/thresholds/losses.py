"""What leaving early may lose, as a table of bools: risks that cannot hide.

A risk is the mean of a loss that is 1 or 0. Each function gives [n, N] bool,
true where leaving at that exit loses nothing; the last column is true all over,
since the full network's own answer is what is compared with. Given to the search
in place of correctness, a drop in accuracy is then the risk.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def count_losses_only(correct: Any) -> np.ndarray:
    """Correctness in which no row that an exit wins makes up for one it loses.

    A row counts as right at an exit unless the final exit alone is right. With
    these, an accuracy drop is the share of rows that leaving early answers
    wrongly although the full network knew them: never less than the drop in
    accuracy, and far less a matter of luck on few rows.

    Args:
        correct: [n, N] bool.

    Returns:
        [n, N] bool.

    References:
        The clipped loss of Fast yet Safe (Jazbec et al., NeurIPS 2024,
        arXiv 2405.20915).
    """
    correct = np.asarray(correct)
    return correct | ~correct[:, -1:]


def agreement(labels: Any) -> np.ndarray:
    """Where an exit answers as the final one does; it needs no true labels.

    Args:
        labels: int [n, N], the answer of each exit.

    Returns:
        [n, N] bool.
    """
    labels = np.asarray(labels)
    return labels == labels[:, -1:]
