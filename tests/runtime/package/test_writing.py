"""Files of a package are written whole, and others stay as they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ArtefactError, OutputError
from deploykit.runtime.package.sums import SUMS, read_sums, text_of_sums
from deploykit.runtime.package.writing import write_file, write_tree


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def named(folder: Path) -> dict[str, str]:
    """The content without the lists of hashes."""
    return {file: text for file, text in content(folder).items() if not file.endswith(SUMS)}


def test_entries_appear_and_what_else_the_folder_holds_stays(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_text("numbers")
    folder = tmp_path / "new" / "folder"
    assert write_tree(folder, {"a/1/x": "X", "a/y": source, "b": "B"}) == [folder / "a", folder / "b"]
    (folder / "mine").write_text("mine")
    sums = (folder / "a" / SUMS).read_text()
    assert content(folder) == {"a/1/x": "X", "a/y": "numbers", "b": "B", "mine": "mine", "a/SHA256SUMS": sums}
    assert list(read_sums(folder / "a" / SUMS)) == ["1/x", "y"]
    command = ["sha256sum", "--check", "--strict", SUMS]
    assert subprocess.run(command, cwd=folder / "a", capture_output=True, check=True).stdout == b"1/x: OK\ny: OK\n"
    assert {path.name for path in folder.iterdir()} == {"a", "b", "mine"}


def test_an_entry_that_exists_is_replaced_as_a_whole_and_only_on_request(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/x": "old", "a/gone": "old"})
    with pytest.raises(OutputError, match="a exists: choose another folder, or pass --force to replace it"):
        write_tree(tmp_path, {"b": "new", "a/x": "new"})
    assert named(tmp_path) == {"a/x": "old", "a/gone": "old"}
    write_tree(tmp_path, {"b": "new", "a/x": "new"}, replace=True)
    assert named(tmp_path) == {"a/x": "new", "b": "new"}


def test_a_link_is_not_replaced_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "place")
    with pytest.raises(OutputError, match="a: it is a link"):
        write_tree(tmp_path, {"a/x": "new"}, replace=True)
    write_tree(tmp_path, {"b/x": "old"})
    with pytest.raises(OutputError):
        write_tree(tmp_path, {"b/x": "new", "c": tmp_path / "missing"}, replace=True)
    assert named(tmp_path) == {"b/x": "old"}


def test_one_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "old")
    with pytest.raises(OutputError, match="f exists: choose another path, or pass --force to replace it"):
        write_file(tmp_path / "f", "new")
    write_file(tmp_path / "f", "new", replace=True)
    assert (tmp_path / "f").read_text() == "new"


PART = st.text("aZ0 .-_\u00e9", min_size=1, max_size=8).filter(
    lambda part: part.strip() == part and part not in (".", "..")
)


@settings(max_examples=30)
@given(
    digests=st.dictionaries(
        st.lists(PART, min_size=1, max_size=3).map("/".join), st.text("0123456789abcdef", min_size=64, max_size=64)
    )
)
def test_a_list_of_hashes_reads_as_it_was_written(
    digests: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("sums") / SUMS
    file.write_text(text_of_sums(digests), encoding="utf-8")
    assert read_sums(file) == digests


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "expected a list of SHA-256 and paths"),
        (f"{'0' * 63}g  a", "expected a list of SHA-256 and paths"),
        (f"{'0' * 64}  ../a", "names '../a', which does not lie below it"),
        (f"{'0' * 64}  /a", "names '/a', which does not lie below it"),
        (f"{'0' * 64}  b\\..\\a", "which does not lie below it"),
        (f"{'0' * 64}  a\n" * 20_000, "expected a list"),
    ],
)
def test_what_is_no_list_of_hashes_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(text)
    with pytest.raises(ArtefactError) as refused:
        read_sums(tmp_path / SUMS)
    assert said in str(refused.value)
