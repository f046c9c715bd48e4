"""Files, folders, lists, videos and cameras as frames, and the video writer."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.errors import DeployError, ImageError, NotFoundError, OutputError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.opening import kind_of, open_sources
from deploykit.runtime.sources.video import Video


def open_source(source: Any) -> Images | Video:
    """Open a source that is one object."""
    (opened,) = open_sources(source)
    return opened


def _frame(shade: int, size: tuple[int, int] = (48, 64)) -> Array:
    return np.full((*size, 3), shade, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "below").mkdir(parents=True)
    for name, shade in (("b.png", 20), ("a.JPG", 10), ("c.webp", 30), ("below/d.png", 40)):
        (tmp_path / "images" / name).write_bytes(cv2.imencode(Path(name).suffix, _frame(shade))[1].tobytes())
    (tmp_path / "images" / "notes.txt").write_text("x")
    return tmp_path / "images"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    with Mp4Writer(path, 12.5) as recorder:
        for shade in (10, 90, 170, 250):
            recorder.write(_frame(shade))
    return path


def test_a_folder_provides_its_own_images_by_name(folder: Path) -> None:
    source = open_source(folder)
    frames = list(source.frames())
    assert source.total == 3
    assert [Path(f.name).name for f in frames] == ["a.JPG", "b.png", "c.webp"]
    assert all(f.number is None and f.read_ms > 0 for f in frames)


def test_the_error_for_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no file at all"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageError, match="only 1 other file"):
        open_source(tmp_path)


def test_an_unreadable_image_is_an_error_or_skipped(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"b\.png"):
        list(open_source(folder).frames())
    skipped: list[DeployError] = []
    assert [Path(f.name).name for f in open_source(folder).frames(skipped.append)] == ["a.JPG", "c.webp"]
    assert len(skipped) == 1
    assert "b.png" in str(skipped[0])


def test_a_list_may_mix_files_bytes_and_arrays(folder: Path) -> None:
    source = open_source([folder / "b.png", (folder / "b.png").read_bytes(), _frame(20)])
    frames = list(source.frames())
    assert all(np.array_equal(f.image, _frame(20)) for f in frames)
    assert [f.keep for f in frames] == [False, True, True]  # a file can be read again
    assert [Path(f.name).name for f in frames] == ["b.png", "image1", "image2"]


def test_a_video_provides_its_frames_in_order(film: Path) -> None:
    source = open_source(str(film))
    assert isinstance(source, Video)
    assert (source.total, source.fps, source.live) == (4, 12.5, False)
    frames = list(source.frames())
    assert [f.number for f in frames] == [0, 1, 2, 3]
    assert [round(f.image.mean() / 10) * 10 for f in frames] == [10, 90, 170, 250]


def test_a_broken_video_is_an_image_error(film: Path) -> None:
    film.write_bytes(film.read_bytes()[:200])
    with pytest.raises(ImageError, match="not a video that OpenCV can read"):
        open_source(film)


open_capture = cv2.VideoCapture  # OpenCV's own, whatever a test puts in its place


class _Damaged:
    """A capture whose frames are decoded (True) or not, one after the other, as OpenCV gives them."""

    def __init__(self, film: cv2.VideoCapture, reads: str, declared: int) -> None:
        self._film, self._reads, self._declared = film, iter(reads), declared
        self.attempts = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._film, name)

    def get(self, number: int) -> float:
        return self._declared if number == cv2.CAP_PROP_FRAME_COUNT else self._film.get(number)

    def read(self) -> tuple[bool, Array | None]:
        self.attempts += 1
        return (True, _frame(9)) if next(self._reads, "0") == "1" else (False, None)


def damaged(monkeypatch: pytest.MonkeyPatch, film: Path, reads: str, declared: int) -> tuple[Video, _Damaged]:
    capture = _Damaged(open_capture(str(film)), reads, declared)
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: capture)
    return Video(film), capture


def test_a_video_goes_on_after_frames_that_cannot_be_decoded(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, _ = damaged(monkeypatch, film, "1" * 19 + "0" * 6 + "1" * 15, 40)
    skipped: list[DeployError] = []
    assert [f.number for f in video.frames(skipped.append)] == list(range(34))
    assert str(skipped[0]).startswith(f"{film} declares 40 frames, of which 34 could be decoded: ")
    video, _ = damaged(monkeypatch, film, "1" * 30 + "0" + "1" * 9, 40)  # one frame, but in the middle
    frames = video.frames()
    assert len([next(frames) for _ in range(39)]) == 39  # all come before the error
    with pytest.raises(ImageError, match="declares 40 frames, of which 39"):
        next(frames)


def test_a_video_that_ends_early_is_reported_and_reading_it_ends(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, capture = damaged(monkeypatch, film, "1" * 20, 40)
    with pytest.raises(ImageError, match="declares 40 frames, of which 20 could be decoded"):
        list(video.frames())
    assert capture.attempts == 20 + 21
    video, capture = damaged(monkeypatch, film, "1" * 20, 2_000_000_000)
    with pytest.raises(ImageError, match="declares 2,000,000,000 frames"):
        list(video.frames())
    assert capture.attempts == 20 + 1001


@pytest.mark.parametrize(("read", "declared"), [(38, 40), (40, 40), (42, 40), (980, 1000)])
def test_a_count_that_is_off_by_a_little_is_no_damage(
    film: Path, monkeypatch: pytest.MonkeyPatch, read: int, declared: int
) -> None:
    video, _ = damaged(monkeypatch, film, "1" * read, declared)
    assert len(list(video.frames())) == read


def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ImageError, match=r"pipe\.mp4 is a pipe or a device"):
        open_source(tmp_path / "pipe.mp4")


def test_a_count_by_the_duration_is_only_a_note(
    film: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    video, _ = damaged(monkeypatch, film.rename(film.with_suffix(".webm")), "1" * 20, 40)
    assert len(list(video.frames())) == 20
    (said,) = caplog.messages
    assert said.endswith("film.webm declares 40 frames, of which 20 could be decoded: its declared length may be an "
                         "estimate, or its end is missing")  # fmt: skip


def test_a_video_without_a_count_ends_at_the_first_failure(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, capture = damaged(monkeypatch, film, "1" * 5, 0)
    assert len(list(video.frames())) == 5
    assert capture.attempts == 6


def test_a_video_of_too_many_pixels_is_refused_before_a_frame_is_decoded(film: Path) -> None:
    with pytest.raises(ImageError, match=r"film\.mp4 declares 64x48 pixels .* more than the 3,071"):
        next(Video(film).frames(max_pixels=3071))
    assert next(Video(film).frames(max_pixels=3072)).image.shape == (48, 64, 3)


@pytest.mark.data
@pytest.mark.parametrize(("name", "frames"), [("cut_noisy.mp4", 20), ("corrupt_mid.mp4", 34)])
def test_damaged_videos_give_every_frame_that_can_be_decoded(shared: Path, name: str, frames: int) -> None:
    file = shared / "cases" / "runtime" / "video" / name
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    skipped: list[DeployError] = []
    assert len(list(Video(file).frames(skipped.append))) == frames
    assert f"declares 40 frames, of which {frames} could be decoded" in str(skipped[0])


def test_the_kind_of_a_source_follows_from_its_name(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [kind_of(s) for s in (0, "0", folder, "a.MP4", "a.jpg", "a")] == [
        "camera", "camera", "folder", "video", "image", "image",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("0").write_bytes(b"")
    assert kind_of("0") == "image"


def test_missing_sources_are_named(folder: Path) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean b\.png"):
        open_source(folder / "bb.png")
    with pytest.raises(NotFoundError, match="cannot open camera 63"):
        open_source("63")
    with pytest.raises(NotFoundError, match="does not exist"):
        open_source("a" * 5000)  # longer than the system allows
    with pytest.raises(UsageError, match="got float"):
        open_source(1.5)


def test_a_single_array_is_one_image() -> None:
    source = open_source(_frame(7))
    assert isinstance(source, Images)
    assert [f.image.max() for f in source.frames()] == [7]


@pytest.mark.parametrize("fps", [1.0, 24.0, 29.97, 60.0])
@pytest.mark.parametrize("size", [(48, 64), (33, 57)])
def test_a_recording_has_every_frame(tmp_path: Path, fps: float, size: tuple[int, int]) -> None:
    path = tmp_path / "new" / "drawn.mp4"
    with Mp4Writer(path, fps) as recorder:
        for i in range(3):
            recorder.write(_frame(i * 60, size))
    assert [p.name for p in path.parent.iterdir()] == ["drawn.mp4"]
    video = Video(path)
    assert video.fps == pytest.approx(fps, rel=1e-3)
    assert len(list(video.frames())) == 3


def _record(path: Path, frames: list[Array], end: BaseException | None = None) -> None:
    with Mp4Writer(path, 25) as recorder:
        for frame in frames:
            recorder.write(frame)
        if end is not None:
            raise end


def test_a_recording_that_fails_or_is_empty_leaves_nothing_and_one_that_is_stopped_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\(64, 48\).*\(10, 10\)"):
        _record(tmp_path / "a.mp4", [_frame(0), _frame(0, (10, 10))])
    _record(tmp_path / "c.mp4", [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        _record(tmp_path / "b.mp4", [_frame(0), _frame(1)], KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]
    assert cv2.VideoCapture(str(tmp_path / "b.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        _record(tmp_path / "file" / "d.mp4", [_frame(0)])


def test_a_disk_that_fills_up_while_recording_is_noticed(tmp_path: Path) -> None:
    code = f"""
import numpy as np, resource
from pathlib import Path
from deploykit.errors import OutputError
from deploykit.runtime.images.video_writer import Mp4Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, {resource.RLIM_INFINITY}))
rng = np.random.default_rng(0)
try:
    with Mp4Writer(Path({str(tmp_path / "a.mp4")!r}), 25) as recorder:
        for _ in range(40):
            recorder.write(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
except OutputError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert os.strerror(errno.EFBIG) in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_frame_on_which_opencv_fails_is_one_that_cannot_be_decoded(tmp_path: Path) -> None:
    """A stream's header that FFmpeg does not read leaves the file to OpenCV's own reader, which raises."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for shade in (10, 90, 170, 250, 30):
        writer.write(np.full((24, 32, 3), shade, np.uint8))
    writer.release()
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFF0000)
    index = data.index(b"idx1") + 8
    frame = data.index(b"movi") + 4
    for place in (index + 16 + 12, data.index(b"00dc", frame + 8) + 4):  # the second frame, in the index and itself
        data[place : place + 4] = struct.pack("<I", 0x7FFFFFF0)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"film\.avi (declares 5 frames, of which|was opened, but none)"):
        list(Video(path).frames())
