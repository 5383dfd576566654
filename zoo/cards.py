"""Figures on the zoo's pages, from the evaluation.json of each set of weights."""

from __future__ import annotations

import csv
import pathlib
from typing import Any

from tabulate import tabulate

from branchy_tf import files, report
from branchy_tf.errors import BranchyError

BEGIN, END = "<!-- figures: written by a command -->", "<!-- end of figures -->"

# Batch size and threads of the gain in time that the table shows.
TIMED = (32, 1)

# Table I of the paper: accuracy of the baseline, accuracy of the branchy network, gain in
# time on a CPU, share of images that exit early.
_PAPER = {
    ("branchy_lenet", "mnist"): (0.9920, 0.9925, 5.4, 0.943),
    ("branchy_alexnet", "cifar10"): (0.7838, 0.7919, 1.5, 0.908),
    ("branchy_resnet", "cifar10_paper"): (0.8070, 0.7917, 1.9, 0.553),
}


def evaluation_file(zoo_dir: files.Path, model: str, tag: str) -> pathlib.Path:
    """Where the zoo keeps the evaluation.json of a set of weights."""
    return pathlib.Path(zoo_dir) / model / f"{tag}.evaluation.json"


def card_file(zoo_dir: files.Path, model: str, tag: str) -> pathlib.Path:
    """Where the zoo keeps the model card of a set of weights."""
    return pathlib.Path(zoo_dir) / model / f"{tag}.md"


def timings_file(zoo_dir: files.Path, model: str, tag: str) -> pathlib.Path:
    """Where the zoo keeps the benchmark.csv of a set of weights, if it has one."""
    return pathlib.Path(zoo_dir) / "results" / f"{model}_{tag}.csv"


def time_gain(path: files.Path) -> float | None:
    """Time of plain Keras export over that of early exit; None if not measured.

    Args:
        path: a benchmark.csv.

    Raises:
        BranchyError: the file lacks one of the two, at the batch size and threads of
            `TIMED`.
    """
    if not pathlib.Path(path).is_file():
        return None
    with open(path, encoding="utf-8") as file:
        ms = {
            row["contender"]: float(row["ms_per_image"])
            for row in csv.DictReader(file)
            if (int(row["batch"]), int(row["threads"])) == TIMED
        }
    try:
        return ms["keras_export"] / ms["early_exit"]
    except KeyError:
        raise BranchyError(
            f"{path} must time keras_export and early_exit at batch {TIMED[0]} with "
            f"{TIMED[1]} thread. Run benchmark with its default --batch_sizes and "
            "--threads."
        ) from None


def zoo_table(
    evaluations: dict[tuple[str, str], dict[str, Any]],
    time_gains: dict[tuple[str, str], float | None],
) -> str:
    """A Markdown table of all sets of weights, with the paper's figures.

    Args:
        evaluations: `{(model, tag): content of its evaluation.json}`.
        time_gains: `{(model, tag): gain from time_gain}`.
    """
    rows = []
    for (model, tag), evaluation in sorted(evaluations.items()):
        paper = _PAPER.get((model, tag))
        baseline = evaluation["baseline_accuracy"]
        gain_in_time = time_gains[model, tag]
        rows.append(
            [
                f"[{model}]({model}/{tag}.md)",
                f"`{tag}`",
                f"{evaluation['accuracy']:.2%}",
                f"{evaluation['exit_accuracies'][-1]:.2%}",
                "-" if baseline is None else f"{baseline:.2%}",
                f"{1 - evaluation['exit_rates'][-1]:.1%}",
                f"{evaluation['macs'] / 1e6:.2f}",
                f"{evaluation['gain']:.2f}x",
                "-"
                if gain_in_time is None
                else f"[{gain_in_time:.2f}x]({timings_file('', model, tag)})",
                "-"
                if paper is None
                else f"{paper[0]:.2%} → {paper[1]:.2%}, {paper[3]:.1%} exit early, "
                f"{paper[2]}x in time",
            ]
        )
    head = [
        "network",
        "weights",
        "accuracy",
        "final exit",
        "trained baseline",
        "exit early",
        "million multiply-adds",
        "gain in multiply-adds",
        "gain in time",
        "paper",
    ]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def card_figures(evaluation: dict[str, Any]) -> str:
    """The figures of a model card, in Markdown.

    Args:
        evaluation: content of its evaluation.json.
    """
    head, rows = report.evaluation_table(evaluation)
    low, high = evaluation["accuracy_interval"]
    drop = report.points_from_final_exit(
        evaluation["accuracy_drop"], evaluation["accuracy_drop_interval"]
    )
    baseline = evaluation["baseline_accuracy"]
    reached = "" if baseline is None else f"; the trained baseline reaches {baseline:.2%}"
    return "\n".join(
        [
            tabulate(rows, head, tablefmt="github", disable_numparse=True),
            "",
            f"Accuracy at these thresholds: **{evaluation['accuracy']:.2%}** on "
            f"{evaluation['num_examples']:,} test images (95 % interval {low:.2%} to "
            f"{high:.2%}), {drop}{reached}. {evaluation['macs']:,.0f} expected "
            f"multiply-adds per image instead of {evaluation['full_macs']:,}: a gain of "
            f"**{evaluation['gain']:.2f}x** over the network without branches.",
        ]
    )


def with_figures(page: str, figures: str, source: files.Path) -> str:
    """The page with `figures` between its two marker lines.

    Raises:
        BranchyError: the page has no marker lines.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BranchyError(
            f"{source} has no place for its figures. Add the two lines {BEGIN} and {END}."
        )
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def write_figures(page: pathlib.Path, figures: str) -> bool:
    """Writes `figures` into the page if it exists; returns whether it does."""
    if not page.is_file():
        return False
    text = page.read_text(encoding="utf-8")
    files.write_text(page, with_figures(text, figures, page))
    return True


def pages(zoo_dir: files.Path, sets: dict[str, list[str]]) -> dict[pathlib.Path, str]:
    """The text of each page of the zoo with current figures, by its file.

    Args:
        zoo_dir: the folder `zoo`.
        sets: `{model: [tag, ...]}`.

    Raises:
        BranchyError: a page or an evaluation.json is missing.
    """
    evaluations = {
        (model, tag): files.read_json(evaluation_file(zoo_dir, model, tag))
        for model, tags in sets.items()
        for tag in tags
    }
    gains = {key: time_gain(timings_file(zoo_dir, *key)) for key in evaluations}
    figures = {pathlib.Path(zoo_dir) / "README.md": zoo_table(evaluations, gains)}
    for (model, tag), evaluation in evaluations.items():
        figures[card_file(zoo_dir, model, tag)] = card_figures(evaluation)
    missing = [str(path) for path in figures if not path.is_file()]
    if missing:
        raise BranchyError(
            f"Missing: {', '.join(missing)}. Write each page with the two lines {BEGIN} "
            f"and {END} where its figures go."
        )
    return {
        page: with_figures(page.read_text(encoding="utf-8"), text, page)
        for page, text in figures.items()
    }
