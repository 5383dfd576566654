"""BranchyNet's inference, read from Figure 2 of the paper, row by row."""

from __future__ import annotations

import math

import numpy as np

from branchy_tf import exits


def fast_inference(model, inputs: list[np.ndarray], thresholds: np.ndarray):
    """`(probabilities, exits, scores)`; `thresholds` has a row for each example."""
    outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    logits = [np.asarray(outputs[n], np.float64) for n in exits.exit_names(model)]
    answers = []
    for row in range(len(inputs[0])):
        for n, z in enumerate(logits):
            powers = np.exp(z[row] - z[row].max())
            y = powers / powers.sum()
            e = -sum(p * math.log(p) if p > 0 else 0.0 * p for p in y)
            if n == len(logits) - 1 or e < thresholds[row, n]:
                answers.append((y, n, e))
                break
    probabilities, where, scores = zip(*answers, strict=True)
    return np.array(probabilities), np.array(where), np.array(scores)
