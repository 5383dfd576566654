"""Fixtures that the tests of several studies share."""

from __future__ import annotations

import pathlib

import pytest
import small
from matplotlib.figure import Figure


@pytest.fixture(scope="session")
def digits_npz(tmp_path_factory, mnist_5k) -> pathlib.Path:
    """400 training and 100 test digits, as a file for --dataset."""
    return small.write_npz(tmp_path_factory.mktemp("digits") / "digits.npz", mnist_5k)


@pytest.fixture
def saved_figures(monkeypatch) -> list[Figure]:
    """Every matplotlib figure that is saved during the test."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def record(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures
