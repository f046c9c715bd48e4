"""Files that are written whole: under a name that no other process writes, in the same folder, of the same suffix."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploykit.errors import OutputError
from deploykit.runtime.files import temporary_path, write_atomic


def test_two_processes_write_the_same_file_under_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("somewhere", "m.onnx")
    names = set()
    for process in (101, 102):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        partial = temporary_path(file)
        assert (partial.parent, partial.suffix) == (file.parent, ".onnx")
        assert partial.name.startswith(".")
        names.add(partial)
    assert len({*names, file}) == 3


def test_a_file_appears_with_its_folder_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "m.json"
    for content in (b"first", b"second"):
        write_atomic(file, content)
        assert file.read_bytes() == content
        assert list(file.parent.iterdir()) == [file]


def test_what_cannot_be_renamed_leaves_what_stood_there(tmp_path: Path) -> None:
    place = tmp_path / "m.json"
    place.mkdir()
    (place / "old").write_text("old")
    with pytest.raises(OutputError):
        write_atomic(place, b"new")
    assert (place / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]
