"""The sections of the report: a calibration and an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import files, plots, thresholds
from branchy_tf.calibration import Calibrated
from branchy_tf.data import Split
from branchy_tf.plots.gallery import can_show
from branchy_tf.policy import ExitPolicy
from branchy_tf.report.page import Section
from branchy_tf.report.tables import (
    calibration_table,
    criteria_table,
    evaluation_table,
    points_from_final_exit,
)
from branchy_tf.scoring import Answers, Evaluation, answers
from branchy_tf.thresholds import Calibration


def validation_section(
    folder: files.Path,
    calibrated: Calibrated,
    calibration: Calibration,
    logits: np.ndarray,
    split: Split,
    macs: Sequence[int],
    baseline: tuple[float, float] | None,
    class_names: Sequence[str] | None = None,
) -> Section:
    """How the thresholds were chosen.

    Args:
        folder: the folder to write its pictures to.
        calibrated: the result of the calibration.
        calibration: the content of thresholds.json.
        logits: float32 [n, N, classes], of every exit.
        split: the validation split.
        macs: [N], cumulative multiply-adds.
        baseline: `(multiply-adds, accuracy)` of the trained baseline, or None.
        class_names: the names of the classes, or None.
    """
    section = Section("Choosing thresholds: validation split", folder, "validation")
    chosen, known = calibrated.chosen, calibration.validation
    asked = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in calibration.budget.items()
        if (name, value) != ("risk", "accuracy")
    )
    section.paragraph(
        f"{len(split):,} images. Criterion: {calibrated.policy.criterion}. Requested: "
        f"{asked or 'the cheapest thresholds that match the final exit'}."
    )
    low, high = known["accuracy_interval"]
    section.paragraph(
        f"Chosen: accuracy {chosen.accuracy:.2%} (95 % bootstrap interval {low:.2%} to "
        f"{high:.2%}; the final exit has {known['final_exit_accuracy']:.2%}) for "
        f"{chosen.cost:,.0f} expected multiply-adds per image instead of "
        f"{known['full_macs']:,}, a gain of {known['gain']:.2f}x over the network "
        "without branches. These images chose the thresholds, so the figures are "
        "slightly optimistic; the test split is unbiased."
    )
    if calibrated.guarantee is not None:
        section.paragraph(guarantee_in_words(calibrated.guarantee), note=True)
    correct = calibrated.answers.correct
    section.table(*calibration_table(calibration.exits, macs, calibrated))
    if calibrated.compared:
        section.paragraph("The criteria at equal cost; the best one is used.")
        section.table(*criteria_table(calibrated.compared))
    knee = thresholds.find_knee(calibrated.points)
    _frontier(
        section,
        [(p.cost, p.accuracy) for p in calibrated.points],
        macs,
        correct,
        (chosen.cost, chosen.accuracy),
        "validation",
        (knee.cost, knee.accuracy),
        baseline,
    )
    _leaving(section, calibrated.answers, calibrated.policy)
    _exits(section, calibrated.answers, logits)
    exits = calibrated.policy.exit_indices(calibrated.answers.scores)
    given = calibrated.answers.given[np.arange(len(exits)), exits]
    _rows(section, split, exits, given, len(macs), class_names)
    return section


def test_section(
    folder: files.Path,
    policy: ExitPolicy,
    evaluation: Evaluation,
    split: Split,
    frontier: Sequence[dict[str, Any]],
    class_names: Sequence[str] | None,
) -> Section:
    """The figures of the policy on the test split, which chose nothing.

    Args:
        folder: the folder to write its pictures to.
        policy: decides which rows exit where.
        evaluation: the result of the evaluation.
        split: the test split.
        frontier: the frontier in thresholds.json, which is counted again on the test
            split; may be empty.
        class_names: the names of the classes, or None.
    """
    section = Section("Results: test split", folder, "test")
    result, every = evaluation.result, evaluation.answers
    low, high = result["accuracy_interval"]
    drop = points_from_final_exit(
        result["accuracy_drop"], result["accuracy_drop_interval"]
    )
    section.paragraph(
        f"{result['num_examples']:,} images of {result['dataset']}, routed through the "
        f"exported graph. Accuracy {result['accuracy']:.2%} (95 % interval {low:.2%} to "
        f"{high:.2%}), {drop}. {result['macs']:,.0f} expected multiply-adds per image "
        f"instead of {result['full_macs']:,}: a gain of {result['gain']:.2f}x over the "
        "network without branches."
    )
    section.table(*evaluation_table(result))
    macs = result["exit_macs"]
    curve = [point["thresholds"] for point in frontier]
    if curve:
        # The file holds a part of the frontier, maybe without the chosen thresholds.
        curve.append(result["thresholds"])
    points = sorted(
        (thresholds.evaluate(every.scores, every.correct, macs, one) for one in curve),
        key=lambda point: point.cost,
    )
    alone = result["baseline_accuracy"]
    _frontier(
        section,
        [(p.cost, p.accuracy) for p in points],
        macs,
        every.correct,
        (result["macs"], result["accuracy"]),
        "test",
        None,
        None if alone is None else (result["full_macs"], alone),
    )
    _leaving(section, every, policy)
    _exits(section, every, evaluation.logits)
    routed = evaluation.routed
    _rows(section, split, routed.exits, routed.labels, len(macs), class_names)
    return section


def guarantee_in_words(promised: thresholds.Guarantee) -> str:
    """The guarantee and the rows it is based on, in two sentences."""
    rows = (
        f"{promised.num_tuning:,} images proposed the thresholds, and "
        f"{promised.num_test:,} others tested them at a risk of {promised.risk:.2%}"
    )
    if promised.level == thresholds.EXPECTATION:
        return (
            f"Guaranteed: the expected risk is at most {promised.max_risk:.2%}. {rows}."
        )
    return (
        f"Guaranteed: with probability {promised.level:.0%} the risk is at most "
        f"{promised.max_risk:.2%}. {rows} (p-value {promised.p_value:.3g})."
    )


def _frontier(
    section: Section,
    points: list[tuple[float, float]],
    macs: Sequence[int],
    correct: np.ndarray,
    chosen: tuple[float, float],
    split: str,
    knee: tuple[float, float] | None,
    baseline: tuple[float, float] | None,
) -> None:
    section.picture(
        "frontier",
        "Accuracy against expected multiply-adds per image of the best thresholds. A "
        "square is one exit alone on all images.",
        functools.partial(
            plots.frontier,
            points=points,
            exits=list(zip(macs, correct.mean(axis=0), strict=True)),
            chosen=chosen,
            split=split,
            knee=knee,
            baseline=baseline,
        ),
    )


def _leaving(section: Section, every: Answers, policy: ExitPolicy) -> None:
    if not policy.thresholds:
        return
    drawn: dict[str, Any] = {
        "scores": every.scores,
        "correct": every.correct,
        "policy": policy,
    }
    section.picture(
        "leaving",
        "The share of the images whose score is below a threshold, and the accuracy on "
        "them. The vertical line is the chosen threshold.",
        functools.partial(plots.leaving, **drawn),
    )
    section.picture(
        "scores",
        "Scores of correct and wrong answers. A lower score means a more confident exit.",
        functools.partial(plots.histograms, **drawn),
    )


def _exits(section: Section, every: Answers, logits: np.ndarray) -> None:
    section.picture(
        "reliability",
        "Accuracy against confidence. On the diagonal they agree; below it the exit is "
        "overconfident.",
        functools.partial(
            plots.reliability,
            before=answers(logits, every.labels).probabilities,
            after=every.probabilities,
            labels=every.labels,
        ),
    )


def _rows(
    section: Section,
    split: Split,
    exits: np.ndarray,
    given: np.ndarray,
    number: int,
    class_names: Sequence[str] | None,
) -> None:
    right = given == split.labels
    section.picture(
        "classes",
        "The exits that each class takes, and the accuracy on it.",
        functools.partial(
            plots.classes,
            exits=exits,
            right=right,
            labels=split.labels,
            class_names=class_names,
        ),
    )
    if not can_show(split.inputs):
        return
    for name, rows, words in (
        ("gallery", np.arange(len(split)), "Images by exit"),
        ("wrong", np.flatnonzero(~right), "Wrong answers, by exit"),
    ):
        section.picture(
            name,
            f"{words}, sampled at random. Above each image stands its class, and the "
            "answer if it is wrong; beside each exit, the number of such images.",
            functools.partial(
                plots.gallery,
                images=split.take(rows).images,
                exits=exits[rows],
                answers=given[rows],
                labels=split.labels[rows],
                number=number,
                title=words,
                class_names=class_names,
            ),
        )
