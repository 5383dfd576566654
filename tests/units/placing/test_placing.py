"""Placements are the best there are, and say what limits them."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import subprocess
import sys

import large
import numpy as np
import problems
import pytest

from branchy_tf import units
from branchy_tf.errors import BranchyError
from branchy_tf.units import placing
from branchy_tf.units.placing import queueing, reading, routes, solving
from branchy_tf.units.placing.topology import Topology
from branchy_tf.units.placing.ways import Network


def topology(**changes) -> Topology:
    """A camera and a hall; camera's power is tight."""
    value = {
        "units": {
            "device": {"macs": 4e5, "memory_mb": 2, "input_bytes": 784},
            "cloud": {"macs": 3e6, "memory_mb": 12, "input_bytes": 4500},
        },
        "cascades": {"digits": {"units": ["device", "cloud"], "exit_rates": [0.7, 0.3]}},
        "sites": {
            "camera": {"ms": {"device": 4.1, "cloud": 40}, "watts_per_core": 2.5},
            "hall": {"cores": 8, "macs_per_s": "2e9", "watts_per_core": 12},
        },
        "links": [{"between": ["camera", "hall"], "latency_ms": 3, "mbit_per_s": 20}],
        "demand": [{"cascade": "digits", "site": "camera", "per_second": 15}],
    }
    return reading.parse(value | changes)


@pytest.mark.parametrize("seed", range(12))
def test_equals_trying_all_placements(seed):
    found, best, _ = problems.compare(seed)
    assert problems.agree(found, best)


def test_column_generation_equals_trying_all_placements(monkeypatch):
    monkeypatch.setattr(solving, "_FEW", 0)
    solved = 0
    for seed in range(12, 20):
        problem = problems.random_topology(seed)
        best = problems.by_trying_all(problem)
        if math.isinf(best):
            with pytest.raises(BranchyError, match="No placement meets all limits"):
                placing.place(None, problem, gap=0)
            continue
        found = placing.place(None, problem, gap=0)
        assert found.bound_ms <= best * (1 + 1e-6)
        assert best * (1 - 1e-6) <= found.objective_ms <= best * 1.05
        solved += 1
    assert solved >= 5


def test_a_large_topology_is_close_to_the_bound():
    problem = large.topology(clouds=2, edges=4, cameras=30)
    found = placing.place(None, problem, seconds=20)
    # Memory must be scarce, or the problem is an easy one.
    assert any(gain.kind == "memory" and gain.binding for gain in found.gains)
    assert len(found.assignments) == 30
    assert found.bound_ms <= found.objective_ms <= found.latency_ms * (1 + 1e-9)
    assert found.gap < 0.01
    for name, site in found.sites.items():
        limits = problem.sites[name]
        assert site["watts"] <= limits.watts * (1 + 1e-6)
        assert site["memory_mb"] <= limits.memory_mb * (1 + 1e-6)
        assert site["utilisation"] <= problem.max_utilisation * (1 + 1e-6)


def test_the_memory_of_the_large_topology_is_the_one_asked_for():
    first, second = (
        large.topology(clouds=1, edges=3, cameras=3, memory=memory) for memory in (1, 2)
    )
    for i in range(3):
        edge = first.sites[f"edge_{i}"]
        assert 40 <= edge.memory_mb <= 120
        assert second.sites[f"edge_{i}"].memory_mb == 2 * edge.memory_mb


def test_a_placement_is_the_same_in_every_process():
    script = (
        f"import sys; sys.path.append({str(pathlib.Path(large.__file__).parent)!r});"
        "import large; from branchy_tf.units import placing;"
        "print(placing.place(None, large.topology(1, 3, 24)).assignments)"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    )  # fmt: skip
    assert "Assignment(" in first
    assert first == second


def test_more_watts_move_a_unit_and_the_price_says_what_they_gain():
    # The hall is much faster, but all sites together may take little.
    free = units.place(None, topology())
    assert set(free.assignments[0].units.values()) == {"camera", "hall"}
    used = free.watts
    tight = topology(watts=used * 0.9)
    first = units.place(None, tight)
    assert first.latency_ms > free.latency_ms
    gain = next(gain for gain in first.gains if gain.kind == "total_watts")
    assert gain.binding
    # The dual value is the slope of the relaxation, so of the bound.
    step = 0.001 * used
    second = units.place(None, dataclasses.replace(tight, watts=tight.watts + step))
    slope = (first.bound_ms - second.bound_ms) / step
    assert gain.ms_per_unit == pytest.approx(slope, rel=1e-3)


def test_the_price_of_bandwidth_is_the_slope_of_the_bound():
    def with_speed(speed):
        link = {"between": ["camera", "hall"], "latency_ms": 3, "mbit_per_s": speed}
        return units.place(None, topology(links=[link]))

    first, step = with_speed(2), 0.001
    second = with_speed(2 + step)
    gains = [gain.ms_per_unit for gain in first.gains if gain.kind == "bandwidth"]
    slope = (first.bound_ms - second.bound_ms) / step
    assert sum(gains) == pytest.approx(slope, rel=0.01)


def test_picks_the_thresholds_that_keep_the_accuracy():
    points = [
        {"exit_rates": [0.95, 0.05], "accuracy": 0.90, "thresholds": [0.9]},
        {"exit_rates": [0.8, 0.2], "accuracy": 0.97, "thresholds": [0.5]},
        {"exit_rates": [0.4, 0.6], "accuracy": 0.98, "thresholds": [0.1]},
    ]
    cascade = {"units": ["device", "cloud"], "points": points, "min_accuracy": 0.96}
    found = units.place(None, topology(cascades={"digits": cascade}))
    assert found.assignments[0].thresholds == (0.5,)


def test_memory_that_two_cascades_share_is_counted_once():
    cascades = {
        name: {"units": ["device", "cloud"], "exit_rates": [0.7, 0.3]}
        for name in ("one", "other")
    }
    demand = [{"cascade": name, "site": "camera", "per_second": 5} for name in cascades]
    sites = {"camera": {"cores": 1, "ms": {"device": 4, "cloud": 9}, "memory_mb": 14}}
    shared = topology(cascades=cascades, demand=demand, sites=sites, links=[])
    assert units.place(None, shared).sites["camera"]["memory_mb"] == 14


def test_says_which_limits_cannot_be_met():
    demand = [{"cascade": "digits", "site": "camera", "per_second": 300}]
    sites = {"camera": {"cores": 1, "ms": {"device": 4.1, "cloud": 40}}}
    with pytest.raises(BranchyError, match=r"Lacking .* busy cores at site 'camera'"):
        units.place(None, topology(demand=demand, sites=sites, links=[]))
    with pytest.raises(BranchyError, match=r"W for all sites together \(most 0.001\)"):
        units.place(None, topology(watts=0.001))
    sites = {"camera": {"cores": 4, "ms": {"device": 1, "cloud": 2}, "memory_mb": 13}}
    with pytest.raises(BranchyError, match=r"1 MB of memory at site 'camera' \(has 13\)"):
        units.place(None, topology(sites=sites, links=[]))


def test_says_which_unit_has_no_site():
    sites = {"camera": {"ms": {"device": 4}}, "hall": {"ms": {"cloud": 2}}}
    with pytest.raises(BranchyError, match=r"'cloud' has no site .* a way to and from"):
        units.place(None, topology(sites=sites, links=[]))
    sites["hall"]["memory_mb"] = 11
    with pytest.raises(BranchyError, match=r"'cloud' has no site .* 12 MB of memory"):
        units.place(None, topology(sites=sites))


def test_waiting_is_that_of_the_textbooks():
    # M/M/1: rho^2 / (1 - rho); M/D/1: half of it.
    assert queueing.waiting(1, 0.5, 1) == pytest.approx(0.5)
    assert queueing.waiting(1, 0.5, 0) == pytest.approx(0.25)
    # M/M/2 with rho = 0.75: 2 rho^3 / (1 - rho^2).
    assert queueing.waiting(2, 1.5, 1) == pytest.approx(2 * 0.75**3 / (1 - 0.75**2))
    assert math.isinf(queueing.waiting(2, 2, 1))


@pytest.mark.parametrize("servers", [1, 4, 64])
def test_tangents_bound_the_waiting_closely(servers):
    most = 0.8 * servers
    for load in np.linspace(0, most, 50):
        exact = queueing.waiting(servers, load, 1)
        bounded = queueing.bounded_waiting(servers, 1, most, load)
        assert bounded <= exact + 1e-6
        assert exact - bounded <= 0.02 * (load + exact)


def test_routes_take_the_least_latency():
    links = [
        {"from": "camera", "to": "hall", "latency_ms": 9},
        {"from": "camera", "to": "mast", "latency_ms": 2},
        {"from": "mast", "to": "hall", "latency_ms": 3},
        {"from": "hall", "to": "camera", "latency_ms": 1},
    ]
    sites = {"camera": {}, "hall": {"macs_per_s": 1e9}, "mast": {}}
    given = topology(links=links, sites=sites)
    found = routes.find(given)
    names = list(given.sites)
    camera, hall = names.index("camera"), names.index("hall")
    assert found.latency[camera, hall] == pytest.approx(0.005)
    used = {given.links[i].name for i in found.of(camera, hall)}
    assert used == {"camera -> mast", "mast -> hall"}
    assert not len(found.of(hall, hall))


def test_exit_rates_by_exit_are_summed_by_unit():
    given = topology()
    two = dataclasses.replace(given.units["device"], macs=(1e5, 2e5))
    cascade = {"units": ["device", "cloud"], "exit_rates": [0.5, 0.2, 0.3]}
    value = topology(
        units={
            "device": {"macs": list(two.macs), "input_bytes": 784},
            "cloud": {"macs": 1e6, "input_bytes": 100},
        },
        cascades={"digits": cascade},
        sites={"camera": {"macs_per_s": 1e8}},
        links=[],
    )
    flow = Network(value).flows["digits"][0]
    assert flow.leave == pytest.approx([0.7, 0.3])
    # Half of the rows compute the second stage.
    assert flow.service[:, 0] == pytest.approx([2e-3, 1e-2])


def test_a_placement_survives_its_file(tmp_path):
    placement = units.place(None, topology())
    placement.save(tmp_path / "placement.json")
    assert placing.load_placement(tmp_path / "placement.json") == placement
