"""Patterns, lists of files, folders with sub-folders, standard input, and sources that are mixed."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.errors import ImageError, NotFoundError, UsageError
from deploykit.runtime.images.folders import natural_order, passed_over
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.sources.content import content_of
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.opening import joined, kind_of, open_sources
from deploykit.runtime.sources.standard_input import open_stdin
from deploykit.runtime.sources.video import Video

IMAGE = np.full((20, 30, 3), 90, np.uint8)
PNG = cv2.imencode(".png", IMAGE)[1].tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of images, which is the current folder."""
    for name in ("a10.png", "a2.png", "a[1].png", "sub/b1.png", "sub/deep/b1.png", ".hidden/c.png", "sub/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    with Mp4Writer(tmp_path / "film.mp4", 25) as recorder:
        recorder.write(IMAGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _names(sources: list[Images | Video]) -> list[str | tuple[str, ...]]:
    return [source.names if isinstance(source, Images) else source.name for source in sources]


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    names = ["b/1.png", "a/10.png", "a/2.png", "a/2x.png", "a/010.png", "a.png", "9/a", "10/a"]
    assert [str(path) for path in sorted(map(Path, names), key=natural_order)] == [
        "9/a", "10/a", "a/2.png", "a/2x.png", "a/010.png", "a/10.png", "a.png", "b/1.png",
    ]  # fmt: skip


def test_a_pattern_gives_its_images_and_videos_in_natural_order(folder: Path) -> None:
    assert _names(open_sources("a*.png")) == [("a2.png", "a10.png", "a[1].png")]
    assert _names(open_sources("*")) == [("a2.png", "a10.png", "a[1].png"), "film.mp4"]
    assert _names(open_sources(f"{folder}/a?.png")) == [(f"{folder}/a2.png",)]
    assert _names(open_sources(Path("sub") / "*.png")) == [("sub/b1.png",)]
    (found,) = open_sources("sub/**/*.png")
    assert isinstance(found, Images)
    assert found.names == ("sub/b1.png", "sub/deep/b1.png")
    assert found.root == Path("sub")


def test_a_file_whose_name_has_brackets_wins(folder: Path) -> None:
    assert kind_of("a[1].png") == "image"
    assert _names(open_sources("a[1].png")) == [("a[1].png",)]
    assert kind_of("a[2].png") == "pattern"
    assert _names(open_sources("a[2].png")) == [("a2.png",)]


def test_a_pattern_without_an_image_is_one_error(folder: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^no file matches the pattern \*\.jpg$"):
        open_sources("*.jpg")
    with pytest.raises(ImageError, match=r"pattern sub/\*\.txt matches 1 file, but no image .* and no video"):
        open_sources("sub/*.txt")


def test_a_list_names_files_relative_to_its_folder(folder: Path) -> None:
    listed = folder / "sub" / "list.txt"
    listed.write_bytes(
        b"\xef\xbb\xbf# two images\nb1.png\r\n\n  ../a2.png\n../film.mp4\n" + str(folder / "a10.png").encode()
    )
    (first, film, last) = open_sources("sub/list.txt")
    assert _names([first, film, last]) == [("sub/b1.png", "sub/../a2.png"), "sub/../film.mp4", (f"{folder}/a10.png",)]
    assert all(np.array_equal(frame.image, IMAGE) for frame in first.frames())


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("a2.png\n#\nb9.png\n", NotFoundError, r"list\.txt, line 3: an image or a video was expected at .*b9\.png"),
        ("sub\n", ImageError, r"line 1: a list names images, videos and addresses, but .*sub is a folder"),
        ("# nothing\n\n", ImageError, r"names no image: expected one path or address per line"),
        ("0 0.5 0.5 0.1 0.1\n", NotFoundError, "line 1"),
        ("file:///etc/passwd\n", UsageError, r"must begin with http://"),
    ],
)
def test_a_list_that_cannot_be_used_says_which_line(folder: Path, text: str, error: type[Exception], said: str) -> None:
    (folder / "list.txt").write_text(text)
    with pytest.raises(error, match=said):
        open_sources("list.txt")


def test_a_folder_and_its_sub_folders(folder: Path) -> None:
    (only,) = open_sources(folder)
    (deep,) = open_sources(folder, recursive=True)
    assert isinstance(only, Images)
    assert isinstance(deep, Images)
    names = [Path(name).relative_to(folder).as_posix() for name in deep.names]
    assert names == ["a2.png", "a10.png", "a[1].png", "sub/b1.png", "sub/deep/b1.png"]
    assert (only.total, only.root, deep.root) == (3, None, folder)
    assert passed_over(folder, only.items) == "1 sub-folder (sub), 1 video (film.mp4)"
    assert passed_over(folder, deep.items, recursive=True) == "1 video (film.mp4), 1 other file (sub/notes.txt)"


def test_sources_of_several_kinds_are_read_in_their_order(folder: Path) -> None:
    mixed = open_sources(["a2.png", PNG, IMAGE, "film.mp4", "sub", "a10.png"])
    assert _names(mixed) == [("a2.png", "image1", "image2"), "film.mp4", ("sub/b1.png",), ("a10.png",)]
    words = joined(source for word in ("a2.png", "a10.png", "sub", "a2.png") for source in open_sources(word))
    assert _names(words) == [("a2.png", "a10.png"), ("sub/b1.png",), ("a2.png",)]


def test_standard_input_is_an_image_a_video_or_a_list(folder: Path) -> None:
    (image,) = open_stdin(io.BytesIO(PNG))
    assert [(frame.name, frame.image.shape) for frame in image.frames()] == [("stdin", (20, 30, 3))]
    (film,) = open_stdin(io.BytesIO((folder / "film.mp4").read_bytes()))
    assert [(frame.name, frame.number) for frame in film.frames()] == [("stdin", 0)]
    assert _names(open_stdin(io.BytesIO(b"sub/b1.png\na2.png"))) == [("sub/b1.png", "a2.png")]
    with pytest.raises(NotFoundError, match="stdin, line 1"):
        open_stdin(io.BytesIO(b"b1.png\n"))
    with pytest.raises(ImageError, match=r"stdin is empty|the list stdin names no image"):
        list(open_stdin(io.BytesIO(b""))[0].frames())


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (PNG[:99], "image"),
        (b"P6\n64 48\n255\n", "image"),
        (b"#?RADIANCE\n", "image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"\0\0\0\x1cftypavif", "image"),
        (b"\0\0\0\x1cftypisom", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\x1aE\xdf\xa3\1\2", "video"),
        ((b"G\x40\0" + bytes(185)) * 2, "video"),
        (b"#EXTM3U\n", "playlist"),
        (b"\n<!DOCTYPE html>", "page"),
        (b"Photos/a.jpg\n", "text"),
        (b"BMW.jpg\n", "text"),
        ("Zürich/ü".encode()[:-1], "text"),
        (b"BM\x10\0\0\0", "image"),
        (b"\x7fELF\2", "other"),
        (b"", "other"),
    ],
)
def test_the_first_bytes_tell_what_something_is(head: bytes, content: str) -> None:
    assert content_of(head) == content
