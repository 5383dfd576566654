from __future__ import annotations

from branchy_tf import versions


def test_versions_are_folders_named_by_a_number(tmp_path):
    for name in ("2", "010", "x1", "1.5", "-3", "²", str(2**63), ".writing-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert list(versions.version_folders(tmp_path)) == [2, 10]
    assert versions.version_folders(tmp_path)[10].name == "010"
    # A file in the way counts for the next.
    assert versions.next_version(tmp_path) == 12


def test_no_folder_has_no_versions(tmp_path):
    assert versions.version_folders(tmp_path / "none") == {}
    assert versions.next_version(tmp_path / "none") == 1
