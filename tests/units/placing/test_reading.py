"""Mistakes in a topology.yaml are named in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_topology import TEXT

from branchy_tf.errors import BranchyError
from branchy_tf.units.placing import measured, reading


def load(folder, text):
    path = folder / "topology.yaml"
    path.write_text(text, encoding="utf-8")
    return reading.load(path)


def test_reads_a_topology(tmp_path):
    found = load(tmp_path, TEXT)
    # YAML takes 2e9 for text.
    assert found.sites["hall"].macs_per_s == 2e9
    assert [link.name for link in found.links] == ["camera -> hall", "hall -> camera"]
    assert found.cascades["digits"].points[0].exit_rates == (0.7, 0.3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sites:", "sitse:", r"Unknown key 'sitse' in the file. Did you mean sites\?"),
        ("cores: 8", "core: 8", r"Unknown key 'core' in site 'hall'. Did you mean cores"),
        ("hall: {", "camera: {", "'camera' occurs twice"),
        (
            "[camera, hall]",
            "[camera, hal]",
            r"Unknown site of link 1 'hal'. Did you mean",
        ),
        ("[camera, hall]", "[hall, hall]", "leads from 'hall' to itself"),
        ("[camera, hall]", "[hall]", "needs `between"),
        ("ms: {device", "ms: {devise", r"'devise'. Did you mean device\?"),
        ("units: [device, cloud]", "units: [device, claud]", "Did you mean cloud"),
        ("cascade: digits", "cascade: digit", "Did you mean digits"),
        ("per_second: 15", "per_second: -1", "above 0. Received -1"),
        ("per_second: 15", "per_second: 0", "above 0. Received 0"),
        ("per_second: 15", "per_second: .nan", "Received nan"),
        ("per_second: 15", "per_second: .inf", "finite"),
        ("watts: 3", "watts: -3", "watts of site 'camera'.*Received -3"),
        ("watts: 3", "watts: much", "Received 'much'"),
        ("latency_ms: 3", "latency_ms: -1", "latency_ms of link 1"),
        ("mbit_per_s: 20", "mbit_per_s: 0", "mbit_per_s of link 1.*above 0"),
        ("mbit_per_s: 20, ", "", "it needs mbit_per_s"),
        ("cores: 8", "cores: 0", "cores of site 'hall'.*from 1 to"),
        ("cores: 8", "cores: 1.5", "whole number"),
        ("[0.7, 0.3]", "[0.7, 0.2]", "must sum to 1.*Received a sum of 0.9"),
        ("[0.7, 0.3]", "[0.7, 0.2, 0.1]", "has 3 exit rates; expected 2"),
        ("[0.7, 0.3]", "[70, 30]", "70 % is 0.7"),
        ("macs: 4e5", "macs: .nan", "macs of unit 'device'"),
        ("demand:", "demand: []\nlinks2:", "Unknown key 'links2'"),
    ],
)
def test_names_the_mistake(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(BranchyError, match=message) as caught:
        load(tmp_path, TEXT.replace(old, new))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\x00"])
def test_refuses_what_is_no_topology(tmp_path, text):
    with pytest.raises(BranchyError):
        load(tmp_path, text)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(BranchyError, match="There is no file"):
        reading.load(tmp_path / "topology.yaml")


def test_two_links_or_demands_of_one_kind_are_a_mistake(tmp_path):
    link = "  - {between: [camera, hall], latency_ms: 3, mbit_per_s: 20}\n"
    with pytest.raises(BranchyError, match="Two links lead from 'camera' to 'hall'"):
        load(tmp_path, TEXT.replace("links:\n", "links:\n" + link))
    with pytest.raises(BranchyError, match="Two demands are of cascade 'digits'"):
        load(tmp_path, TEXT + "  - {cascade: digits, site: camera, per_second: 1}\n")


def test_exit_rates_come_from_a_thresholds_file(tmp_path):
    value = {
        "thresholds": [0.4],
        "validation": {"exit_rates": [0.6, 0.4], "accuracy": 0.9},
    }
    (tmp_path / "thresholds.json").write_text(json.dumps(value), encoding="utf-8")
    text = TEXT.replace("exit_rates: [0.7, 0.3]", "thresholds: thresholds.json")
    (point,) = load(tmp_path, text).cascades["digits"].points
    assert (point.exit_rates, point.thresholds) == ((0.6, 0.4), (0.4,))
    (tmp_path / "thresholds.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BranchyError, match=r"cannot be read as a thresholds\.json"):
        load(tmp_path, text)


def test_costs_come_from_exported_units(cut_dir):
    found = measured.of(cut_dir)
    assert found.chains == {"branchy_lenet": ("device", "cloud")}
    device, cloud = found.units["device"], found.units["cloud"]
    assert device.input_bytes == 28 * 28
    assert device.memory_mb > 0
    assert all(macs > 0 for macs in (*device.macs, *cloud.macs))
    # The codec uint8 sends one byte per number, and some for each channel.
    assert device.output_bytes == cloud.input_bytes
    assert 4500 <= device.output_bytes < 5000


def test_costs_of_exported_and_of_cut_units_agree(cut_dir, network):
    from branchy_tf import units

    exported = measured.of(cut_dir).units
    cut = measured.of(units.cut(network, ["exit_1"], ["device", "cloud"])).units
    for name, unit in cut.items():
        assert unit.macs == exported[name].macs
        assert np.isclose(unit.input_bytes, exported[name].input_bytes, rtol=0.05)
