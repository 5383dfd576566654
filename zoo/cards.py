"""The figures on the zoo's pages, from the evaluation.json of each set of weights."""

from __future__ import annotations

import csv
import pathlib
from typing import Any

from tabulate import tabulate

from branchy_tf import files, report
from branchy_tf.errors import BranchyError

BEGIN, END = "<!-- figures: written by a command -->", "<!-- end of figures -->"

# Batch size and threads of the one gain in time that the table shows.
TIMED = (32, 1)

# Table I of the paper: accuracy of the baseline and of the branchy network, gain
# in time on a CPU, share leaving before the last exit.
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
    """How much faster early exit was than plain Keras export; None if not measured.

    Args:
        path: a benchmark.csv.
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
            f"{path} has no keras_export and early_exit at batch {TIMED[0]} with "
            f"{TIMED[1]} thread. Run benchmark with its default --batch_sizes and "
            "--threads."
        ) from None


def zoo_table(
    evaluations: dict[tuple[str, str], dict[str, Any]],
    time_gains: dict[tuple[str, str], float | None],
) -> str:
    """One Markdown table over all sets of weights, beside the paper's numbers.

    Args:
        evaluations: `{(model, tag): content of its evaluation.json}`.
        time_gains: `{(model, tag): see time_gain}`.
    """
    rows = []
    for (model, tag), found in sorted(evaluations.items()):
        paper = _PAPER.get((model, tag))
        faster = time_gains[model, tag]
        rows.append(
            [
                f"[{model}]({model}/{tag}.md)",
                f"`{tag}`",
                f"{found['accuracy']:.2%}",
                f"{found['exit_accuracies'][-1]:.2%}",
                f"{found['baseline_accuracy']:.2%}",
                f"{1 - found['exit_rates'][-1]:.1%}",
                f"{found['macs'] / 1e6:.2f}",
                f"{found['gain']:.2f}x",
                "-"
                if faster is None
                else f"[{faster:.2f}x]({timings_file('', model, tag)})",
                "-"
                if paper is None
                else f"{paper[0]:.2%} → {paper[1]:.2%}, {paper[3]:.1%} leave, "
                f"{paper[2]}x in time",
            ]
        )
    head = [
        "network",
        "weights",
        "accuracy",
        "final exit",
        "trained baseline",
        "leave early",
        "M macs",
        "gain in macs",
        "gain in time",
        "the paper's",
    ]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def card_figures(found: dict[str, Any]) -> str:
    """The figures of one model card, in Markdown.

    Args:
        found: content of its evaluation.json.
    """
    head, rows = report.evaluation_table(found)
    low, high = found["accuracy_interval"]
    drop = report.points_from_final_exit(
        found["accuracy_drop"], found["accuracy_drop_interval"]
    )
    return "\n".join(
        [
            tabulate(rows, head, tablefmt="github", disable_numparse=True),
            "",
            f"Accuracy at these thresholds: **{found['accuracy']:.2%}** on "
            f"{found['num_examples']:,} test images (95 % interval {low:.2%} to "
            f"{high:.2%}), {drop}; the trained baseline has "
            f"{found['baseline_accuracy']:.2%}. {found['macs']:,.0f} expected "
            f"multiply-adds per image instead of {found['full_macs']:,}: a gain of "
            f"**{found['gain']:.2f}x** over the network without branches.",
        ]
    )


def with_figures(page: str, figures: str, source: files.Path) -> str:
    """The page with `figures` between its two markers.

    Raises:
        BranchyError: the page has no such markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BranchyError(
            f"{source} has no place for its figures. Give it the two lines {BEGIN} and "
            f"{END}."
        )
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def write_figures(page: pathlib.Path, figures: str) -> bool:
    """Writes `figures` into the page, if it is there; whether it is."""
    if not page.is_file():
        return False
    whole = page.read_text(encoding="utf-8")
    files.write_text(page, with_figures(whole, figures, page))
    return True


def pages(zoo_dir: files.Path, sets: dict[str, list[str]]) -> dict[pathlib.Path, str]:
    """What each page of the zoo should read, by its file.

    Args:
        zoo_dir: the folder `zoo`.
        sets: `{model: [tag, ...]}`.

    Raises:
        BranchyError: a page or an evaluation.json is missing.
    """
    found = {
        (model, tag): files.read_json(evaluation_file(zoo_dir, model, tag))
        for model, tags in sets.items()
        for tag in tags
    }
    timed = {key: time_gain(timings_file(zoo_dir, *key)) for key in found}
    wanted = {pathlib.Path(zoo_dir) / "README.md": zoo_table(found, timed)}
    for (model, tag), evaluation in found.items():
        wanted[card_file(zoo_dir, model, tag)] = card_figures(evaluation)
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise BranchyError(
            f"There is no {', no '.join(missing)}. Write the page, with the two lines "
            f"{BEGIN} and {END} where its figures go."
        )
    return {
        path: with_figures(path.read_text(encoding="utf-8"), figures, path)
        for path, figures in wanted.items()
    }
