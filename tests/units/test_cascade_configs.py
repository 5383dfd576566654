"""cascade.yaml: what it says, and mistakes in it."""

from __future__ import annotations

import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.units import configs

GOOD = """
model: net
on_failure: error
units:
  device: {path: units/device, next: edge}
  edge:
    servers: [edge-1:8500, edge-2:8500]
    next: cloud
    label: stable
    timeout: 0.5
    tls: {ca: ca.pem, server_name: edge}
  cloud: {servers: "cloud:8500", model: tail, version: 3, concurrency: 2}
"""


def load(tmp_path, text: str) -> configs.CascadeConfig:
    path = tmp_path / "cascade.yaml"
    path.write_text(text)
    return configs.load(path)


def test_reads_where_units_run(tmp_path):
    found = load(tmp_path, GOOD)
    assert found.on_failure == "error"
    assert found.chains == {"net": ("device", "edge", "cloud")}
    device, edge, cloud = found.units.values()
    assert device.path == tmp_path / "units/device"
    assert [target.server for target in edge.targets] == ["edge-1:8500", "edge-2:8500"]
    assert {(t.model, t.label, t.version) for t in edge.targets} == {
        ("edge", "stable", None)
    }
    assert edge.timeout == 0.5
    assert edge.tls is not None
    assert edge.tls.ca == tmp_path / "ca.pem"
    assert edge.tls.server_name == "edge"
    assert (cloud.targets[0].model, cloud.targets[0].version) == ("tail", 3)
    assert cloud.concurrency == 2


def test_several_entries_share_what_comes_later(tmp_path):
    found = load(
        tmp_path,
        "units:\n"
        "  airport: {path: a, next: tail}\n"
        "  road: {path: r, next: tail}\n"
        "  tail: {path: t}\n",
    )
    assert found.chains == {"airport": ("airport", "tail"), "road": ("road", "tail")}


UNITS = "units:\n  a: {path: a, next: b}\n  b: {path: b}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expected the file to be a mapping"),
        ("units: [a]", "`units` must be a mapping"),
        ("units: {}", "`units` must be a mapping"),
        ("units: {a: [", "cannot be read as a cascade.yaml"),
        (
            UNITS + "on_failur: answer",
            "'on_failur' in the file. Did you mean",
        ),
        (UNITS + "on_failure: retry", "Unknown on_failure 'retry'. Known: answer, error"),
        (UNITS.replace("path: b", "pth: b"), "'pth' in unit 'b'. Did you mean path?"),
        (UNITS.replace("path: b", ""), "needs either `path`"),
        (UNITS.replace("path: b", "path: b, servers: c:1"), "needs either `path`"),
        (UNITS.replace("path: b", "servers: []"), "must be a list of addresses"),
        (UNITS.replace("path: b", "servers: http://c:1"), "not a URL"),
        (UNITS.replace("path: b", "path: b, label: x"), "which only `servers` take"),
        (UNITS.replace("path: b", "path: b, timeout: -1"), "`timeout` must be"),
        (
            UNITS.replace("path: b", "servers: c:1, compression: lz4"),
            "Unknown compression 'lz4'. Known: none, gzip, zstd",
        ),
        (UNITS.replace("path: b", "path: b, thresholds: [1]"), "do not enter there"),
        (UNITS.replace("path: a", "path: a, thresholds: 1"), "must be a list of numbers"),
        (UNITS.replace("path: b", "path: b, concurrency: 0"), "`concurrency` must be"),
        (
            UNITS.replace("path: b", "servers: c:1, tls: {cert: x}"),
            "'cert' in `tls` of unit 'b'",
        ),
        (
            UNITS.replace("path: b", "servers: c:1, label: x, version: 1"),
            "expected only one",
        ),
        (
            UNITS.replace("next: b", "next: bb"),
            "names 'bb' as next, which is no unit. Did you mean b?",
        ),
        (
            UNITS.replace("path: b", "path: b, next: a"),
            "in a circle: a -> b -> a",
        ),
        (
            UNITS.replace("path: b", "path: b, next: b"),
            "in a circle: b -> b",
        ),
        ("units:\n  a: {path: a}\n  a: {path: c}\n", "The key 'a' occurs twice"),
        (
            "model: m\nunits:\n  a: {path: a}\n  b: {path: b}\n",
            "requests enter at 2 units: a, b",
        ),
    ],
)
def test_names_mistakes_in_one_line(tmp_path, text, said):
    with pytest.raises(BranchyError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "cascade.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BranchyError, match="There is no file"):
        configs.load(tmp_path / "cascade.yaml")
