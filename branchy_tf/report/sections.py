"""What the page says of a calibration and of an evaluation."""

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
) -> Section:
    """How the thresholds were chosen.

    Args:
        folder: where its pictures go.
        calibrated: what was found.
        calibration: the content of thresholds.json.
        logits: float32 [n, N, classes], of every exit.
        split: the rows.
        macs: [N] cumulative multiply-adds.
        baseline: `(multiply-adds, accuracy)` of the trained baseline.
    """
    section = Section("Choosing thresholds: validation split", folder, "validation")
    chosen, known = calibrated.chosen, calibration.validation
    asked = ", ".join(f"{k} {v}" for k, v in calibration.budget.items())
    section.paragraph(
        f"{len(split):,} images. Criterion: {calibrated.criterion}. Asked for: "
        f"{asked or 'the cheapest thresholds that are no less accurate than the end'}."
    )
    low, high = known["accuracy_interval"]
    section.paragraph(
        f"Chosen: accuracy {chosen.accuracy:.2%} (95 % bootstrap interval {low:.2%} to "
        f"{high:.2%}; the full network {known['final_exit_accuracy']:.2%}), "
        f"{chosen.cost:,.0f} multiply-adds of {known['full_macs']:,}, gain "
        f"{known['gain']:.2f} times. Chosen on these images, so a little flattered; the "
        "test split says what it is worth."
    )
    if calibrated.guarantee is not None:
        section.paragraph(guarantee_in_words(calibrated.guarantee), note=True)
    correct = calibrated.answers.correct
    section.table(EXIT_HEAD, exit_rows(calibration.exits, macs, calibrated))
    if calibrated.compared:
        section.paragraph("Criteria, at equal cost; the first with the best is taken.")
        head, rows = criteria_table(calibrated.compared)
        section.table(head, rows)
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
    _rows(section, split, exits, given, len(macs))
    return section


def test_section(
    folder: files.Path,
    policy: ExitPolicy,
    evaluation: Evaluation,
    split: Split,
    frontier: Sequence[dict[str, Any]],
) -> Section:
    """What the thresholds do on rows that nothing was chosen on.

    Args:
        folder: where its pictures go.
        policy: who leaves where.
        evaluation: what was measured.
        split: the rows.
        frontier: of the thresholds.json; its thresholds are counted on these rows.
    """
    section = Section("What they do: test split", folder, "test")
    result, every = evaluation.result, evaluation.answers
    low, high = result["accuracy_interval"]
    down, up = result["accuracy_drop_interval"]
    section.paragraph(
        f"{result['num_examples']:,} images of {result['dataset']}, really routed. "
        f"Accuracy {result['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}); "
        f"{100 * result['accuracy_drop']:+.2f} points below the full network "
        f"({100 * down:+.2f} to {100 * up:+.2f}). {result['macs']:,.0f} multiply-adds of "
        f"{result['full_macs']:,}, gain {result['gain']:.2f} times."
    )
    macs = result["exit_macs"]
    points = [
        thresholds.evaluate(every.scores, every.correct, macs, point["thresholds"])
        for point in frontier
    ]
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
    _rows(section, split, routed.exits, routed.labels, len(macs))
    return section


def guarantee_in_words(promised: thresholds.Guarantee) -> str:
    """One sentence that says what is promised, and from how many rows."""
    rows = (
        f"{promised.num_tuning:,} images made the path, {promised.num_test:,} others "
        f"tested it and lost {promised.risk:.2%}"
    )
    if promised.level == thresholds.EXPECTATION:
        return (
            f"Promised: in expectation the risk is at most {promised.max_risk}. {rows}."
        )
    return (
        f"Promised: with probability {promised.level} the risk is at most "
        f"{promised.max_risk}. {rows} (p-value {promised.p_value:.3g})."
    )


def criteria_table(
    compared: Sequence[dict[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """`(head, rows)`: what each criterion reaches at equal cost, and its choice."""
    measure = compared[0]["measure"]
    costs = [point["cost"] for point in compared[0]["at_equal_cost"]]
    head = ["criterion", *(f"{measure} at {cost:,.4g}" for cost in costs)]
    head += [f"its choice: {measure}", "cost"]
    rows = [
        [row["criterion"]]
        + [f"{point['accuracy']:.2%}" for point in row["at_equal_cost"]]
        + [f"{row['accuracy']:.2%}", f"{row['cost']:,.4g}"]
        for row in compared
    ]
    return head, rows


EXIT_HEAD = [
    "exit",
    "multiply-adds",
    "alone right",
    "temperature",
    "threshold",
    "leave here",
]


def exit_rows(
    names: Sequence[str], macs: Sequence[int], calibrated: Calibrated
) -> list[list[str]]:
    """Rows of a table under `EXIT_HEAD`, one for each exit."""
    chosen = calibrated.chosen
    return [
        [name, f"{total:,}", f"{right:.2%}", f"{temperature:.3f}", limit, f"{rate:.1%}"]
        for name, total, right, temperature, limit, rate in zip(
            names,
            macs,
            calibrated.answers.correct.mean(axis=0),
            calibrated.temperatures or (),
            [*(f"{t:.4g}" for t in chosen.thresholds), "-"],
            chosen.exit_rates,
            strict=True,
        )
    ]


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
        "What thresholds can reach: accuracy against the multiply-adds of a mean image. "
        "A square is an exit that all images leave at.",
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
        "Share of the images below a threshold, and how many of these are answered "
        "rightly. The upright line is the threshold.",
        functools.partial(plots.leaving, **drawn),
    )
    section.picture(
        "scores",
        "How sure an exit is of what it answers rightly and wrongly; sure is left.",
        functools.partial(plots.histograms, **drawn),
    )


def _exits(section: Section, every: Answers, logits: np.ndarray) -> None:
    section.picture(
        "reliability",
        "How often an exit is right, against how sure it calls itself. On the line they "
        "agree; below it the exit is too sure.",
        functools.partial(
            plots.reliability,
            before=answers(logits, every.labels).probabilities,
            after=every.probabilities,
            labels=every.labels,
        ),
    )


def _rows(
    section: Section, split: Split, exits: np.ndarray, given: np.ndarray, number: int
) -> None:
    right = given == split.labels
    section.picture(
        "classes",
        "Which classes leave where, and how many of each class are answered rightly.",
        functools.partial(plots.classes, exits=exits, right=right, labels=split.labels),
    )
    if not can_show(split.images):
        return
    for name, rows, words in (
        ("gallery", np.arange(len(split)), "Images that leave at each exit"),
        ("wrong", np.flatnonzero(~right), "Wrong answers, by exit"),
    ):
        section.picture(
            name,
            f"{words}, drawn by lot; above an image its class, and the answer where it "
            "is another. Beside the exit the number of such images.",
            functools.partial(
                plots.gallery,
                images=split.images[rows],
                exits=exits[rows],
                answers=given[rows],
                labels=split.labels[rows],
                number=number,
                title=words,
            ),
        )
