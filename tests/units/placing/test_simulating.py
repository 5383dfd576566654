"""The simulation keeps to the formulas where there are any."""

from __future__ import annotations

import dataclasses

import problems
import pytest

from branchy_tf import units
from branchy_tf.errors import BranchyError
from branchy_tf.units.placing import reading, simulating
from branchy_tf.units.placing.ways import Network


def queue(servers: int, cv: float, load: float = 0.7):
    """One site, one unit of 10 ms: M/M/c with cv 1, M/D/c with cv 0."""
    return reading.parse(
        {
            "service_cv": cv,
            "units": {"only": {}},
            "cascades": {"c": {"units": ["only"], "exit_rates": [1]}},
            "sites": {"site": {"cores": servers, "ms": {"only": 10}}},
            "demand": [
                {"cascade": "c", "site": "site", "per_second": 100 * servers * load}
            ],
        }
    )


@pytest.mark.parametrize(
    ("servers", "cv", "expected"),
    [
        # M/M/1: s / (1 - rho).
        (1, 1, 10 / 0.3),
        # M/D/1: s + rho s / (2 (1 - rho)).
        (1, 0, 10 + 0.7 * 10 / 0.6),
        # M/M/2: s / (1 - rho^2).
        (2, 1, 10 / (1 - 0.49)),
    ],
)
def test_mean_latency_is_that_of_the_textbooks(servers, cv, expected):
    topology = queue(servers, cv)
    placement = units.place(None, topology)
    assert placement.latency_ms == pytest.approx(expected)
    found = simulating.simulate(placement, topology, rows=30_000, seed=1)
    assert found.mean_ms == pytest.approx(expected, rel=0.06)
    assert found.sites["site"]["utilisation"] == pytest.approx(0.7, rel=0.03)
    assert found.p50_ms < found.mean_ms < found.p99_ms


@pytest.mark.parametrize("relay", ["gateway", "direct"])
def test_latency_bytes_and_watts_are_the_expected_ones(relay):
    topology = dataclasses.replace(problems.random_topology(7), relay=relay)
    placement = units.place(None, topology)
    found = simulating.simulate(placement, topology, rows=20_000)
    assert found.mean_ms == pytest.approx(placement.latency_ms, rel=0.1)
    assert found.watts == pytest.approx(placement.watts, rel=0.05)
    for name, link in placement.links.items():
        sent = found.links[name]["bytes"] * 8e-6 / found.seconds
        assert sent == pytest.approx(link["mbit_per_s"], rel=0.06, abs=1e-3)


def test_the_seed_decides():
    topology = queue(1, 1)
    placement = units.place(None, topology)
    first, again, other = (
        simulating.simulate(placement, topology, rows=500, seed=seed)
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_refuses_the_placement_of_another_topology():
    topology = queue(1, 1)
    placement = units.place(None, topology)
    (entry,) = placement.assignments
    for change, message in (
        ({"units": {"only": "moon"}}, "Unknown site of unit 'only' 'moon'"),
        ({"units": {"other": "site"}}, "has other units or exit rates"),
        ({"cascade": "d"}, "lacks the demand of cascade 'c'"),
    ):
        wrong = dataclasses.replace(
            placement, assignments=(dataclasses.replace(entry, **change),)
        )
        with pytest.raises(BranchyError, match=message):
            simulating.simulate(wrong, topology)
    with pytest.raises(BranchyError, match="rows"):
        simulating.simulate(placement, topology, rows=5)
    assert Network(topology).stations == 1
