"""Files of a package are written whole, and others stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import OutputError
from deploykit.runtime.package.writing import write_file, write_tree


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_entries_appear_and_what_else_the_folder_holds_stays(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_text("numbers")
    folder = tmp_path / "new" / "folder"
    assert write_tree(folder, {"a/1/x": "X", "a/y": source, "b": "B"}) == [folder / "a", folder / "b"]
    (folder / "mine").write_text("mine")
    assert content(folder) == {"a/1/x": "X", "a/y": "numbers", "b": "B", "mine": "mine"}
    assert {path.name for path in folder.iterdir()} == {"a", "b", "mine"}


def test_an_entry_that_exists_is_replaced_as_a_whole_and_only_on_request(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/x": "old", "a/gone": "old"})
    with pytest.raises(OutputError, match="a exists: choose another folder, or pass --force to replace it"):
        write_tree(tmp_path, {"b": "new", "a/x": "new"})
    assert content(tmp_path) == {"a/x": "old", "a/gone": "old"}
    write_tree(tmp_path, {"b": "new", "a/x": "new"}, replace=True)
    assert content(tmp_path) == {"a/x": "new", "b": "new"}


def test_a_link_is_not_replaced_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "place")
    with pytest.raises(OutputError, match="a: it is a link"):
        write_tree(tmp_path, {"a/x": "new"}, replace=True)
    write_tree(tmp_path, {"b/x": "old"})
    with pytest.raises(OutputError):
        write_tree(tmp_path, {"b/x": "new", "c": tmp_path / "missing"}, replace=True)
    assert content(tmp_path) == {"b/x": "old"}


def test_one_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "old")
    with pytest.raises(OutputError, match="f exists: choose another path, or pass --force to replace it"):
        write_file(tmp_path / "f", "new")
    write_file(tmp_path / "f", "new", replace=True)
    assert (tmp_path / "f").read_text() == "new"
