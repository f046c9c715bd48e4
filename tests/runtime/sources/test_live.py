"""Live streams of a local server (MJPEG over HTTP, HLS) and cameras: the newest frame, breaks, ends, secrets."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.errors import DeployError, FetchError, ImageError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.sources import live
from deploykit.runtime.sources.live import Live
from deploykit.runtime.sources.opening import open_sources
from deploykit.runtime.sources.video import Video
from tests.cell_model import cell_spec, write_cell_model
from tests.runtime.sources.camera_server import Server, number_of, write_segment
from tests.runtime.sources.rtsp_server import RtspServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.05)
    (tmp_path / "www").mkdir()
    with Server(tmp_path / "www") as running:
        yield running


def _opened(server: Server, path: str = "mjpeg") -> Live:
    (source,) = open_sources(server.address(path))
    assert isinstance(source, Live)
    return source


def test_a_slow_reader_gets_the_newest_frame(server: Server) -> None:
    source = _opened(server, "mjpeg?user=admin&password=secret")
    server.interval = 0.01
    numbers: list[int] = []
    shown: list[int] = []
    for frame in source.frames():
        assert frame.number is not None
        assert frame.time is not None
        assert abs(frame.time - time.time()) < 1
        numbers.append(frame.number)
        shown.append(number_of(frame.image))
        time.sleep(0.2)  # in which some 20 frames come
        if len(numbers) == 5:
            break
    assert min(b - a for a, b in pairwise(numbers)) >= 5
    assert [(b - a) % 25 for a, b in pairwise(shown)] == [(b - a) % 25 for a, b in pairwise(numbers)]
    assert numbers[-1] >= source.received - 40  # no delay grows
    assert (source.name, source.live, source.total) == (server.address("mjpeg"), True, None)
    assert source.dropped == source.received - 5 > 20


def test_a_stream_that_breaks_off_is_opened_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    source = _opened(server)
    server.length = 10  # frames per connection
    numbers = [frame.number for frame, _ in zip(source.frames(reconnect=2), range(25), strict=False)]
    assert numbers == sorted(set(numbers))
    assert source.received >= 25
    assert "broke off after 10 frames: it is opened again in 0.05 s (1 of 2)" in caplog.text
    assert server.address("mjpeg") in caplog.text


def test_a_server_that_is_away_for_a_while_is_waited_for(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    source = _opened(server)
    frames = source.frames(reconnect=8)
    next(frames)
    server.paused.set()
    threading.Timer(0.4, server.paused.clear).start()
    before = source.received
    while source.received < before + 20:
        next(frames)
    assert "(2 of 8)" in caplog.text  # the count starts again only with a frame


def test_a_stream_that_does_not_come_back_is_an_error_after_its_frames(server: Server) -> None:
    for reconnect, skipped in ((2, None), (1, [])):
        server.paused.clear()
        source = _opened(server)
        frames = source.frames(None if skipped is None else skipped.append, reconnect=reconnect)
        next(frames)
        server.paused.set()
        if skipped is None:
            with pytest.raises(ImageError, match=r"mjpeg broke off after \d+ frames and did not come back .* 2 times"):
                list(frames)
        else:
            list(frames)
            assert "did not come back when it was opened again 1 time:" in str(skipped[0])


def test_without_reconnecting_the_first_break_is_the_end(server: Server) -> None:
    source = _opened(server)
    server.length = 12
    numbers = [frame.number for frame in source.frames(reconnect=0)]
    assert numbers[-1] == 11  # what came last is not dropped
    assert server.sent <= 24  # one look at the stream, and one connection


def test_closing_ends_the_frames_and_the_thread(server: Server) -> None:
    source = _opened(server)
    frames = source.frames()
    next(frames)
    threading.Timer(0.1, source.close).start()
    assert len(list(frames)) < 100
    again = _opened(server).frames()
    next(again)
    again.close()  # as a loop that is left does
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader ")]


def _playlist(*names: str, ended: bool = False) -> str:
    parts = "".join(f"#EXTINF:0.4,\n{name}\n" for name in names)
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
    return f"{head}{parts}{'#EXT-X-ENDLIST' if ended else ''}\n"


def test_a_finished_hls_playlist_is_a_video(server: Server) -> None:
    names = [write_segment(server.folder / f"{i}.ts", 10 * i).name for i in range(2)]
    (server.folder / "part.m3u8").write_text(_playlist(*names, ended=True))
    (server.folder / "all.m3u8").write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=100000\npart.m3u8\n")
    (source,) = open_sources(server.address("file/all.m3u8"))
    assert type(source) is Video
    assert [number_of(frame.image) for frame in source.frames()] == list(range(20))


def test_a_live_hls_playlist_grows_and_ends(server: Server) -> None:
    names = [write_segment(server.folder / f"{i}.ts", 10 * i).name for i in range(2)]
    (server.folder / "live.m3u8").write_text(_playlist(names[0]))
    source = _opened(server, "file/live.m3u8")
    frames = source.frames()
    numbers = [number_of(next(frames).image)]
    (server.folder / "live.m3u8").write_text(_playlist(*names, ended=True))
    numbers += [number_of(frame.image) for frame in frames]
    assert source.received == 20
    assert numbers[-1] == 19
    assert numbers == sorted(set(numbers))


def test_rtsp_is_read_with_a_password_and_opened_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.05)
    with RtspServer(base64.b64encode(b"anna:p@ss").decode()) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        server.length = 15
        (source,) = open_sources(f"rtsp://anna:p%40ss@{host}/cam?key=1")
        assert isinstance(source, Live)
        shown = {}
        for frame in source.frames():
            shown[frame.number] = number_of(frame.image)
            if source.received >= 20:
                break
        assert frame.image.shape == (48, 64, 3)
        assert all(number_of_frame == number for number, number_of_frame in shown.items() if number and number < 15)
        assert source.name == f"rtsp://{host}/cam"
        assert f"rtsp://{host}/cam broke off after 15 frames: it is opened again in 0.05 s (1 of 5)" in caplog.text
        with pytest.raises(ImageError, match=f"cannot open the stream rtsp://{host}/cam: ") as refused:
            open_sources(f"rtsp://anna:wrong@{host}/cam")
        assert "wrong" not in str(refused.value) + caplog.text


def test_a_predictor_streams_and_the_options_reach_the_stream(server: Server, tmp_path: Path) -> None:
    file = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    with deploykit.load(file, reconnect=0) as model:
        server.length = 6
        found = list(model.stream(server.address("mjpeg")))
        assert found[-1].frame == 5
        assert all(abs((each.time or 0) - time.time()) < 10 for each in found)
        assert found[-1].to_dict()["time"] == pytest.approx(found[-1].time, abs=1e-3)
        assert "time" not in model(np.zeros((9, 9, 3), np.uint8)).to_dict()
        assert {each.name for each in found} == {server.address("mjpeg")}
        with pytest.raises(UsageError, match="is a stream"):
            model("rtsp://127.0.0.1/a")
    with pytest.raises(UsageError, match="reconnect must be at least 0, got -1"):
        deploykit.load(file, reconnect=-1)


def test_an_address_without_a_stream_says_why(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"nothing is at .*/missing/a\.m3u8"):
        open_sources(server.address("missing/a.m3u8"))
    server.paused.set()
    with pytest.raises(FetchError, match="answered 503"):
        open_sources(server.address("mjpeg"))
    (server.folder / "a.mjpg").write_text("nothing")
    with pytest.raises(ImageError, match=r"cannot open the stream http://.*a\.mjpg: there was no answer"):
        open_sources(server.address("file/a.mjpg"))


def test_a_password_is_printed_by_nobody(server: Server) -> None:
    code = f"""
from deploykit.errors import DeployError
from deploykit.runtime.sources.opening import open_sources
for scheme in ("rtsp", "rtmp", "http"):
    try:
        open_sources(f"{{scheme}}://admin:secret@127.0.0.1:{server.server_port}/a.m3u8?password=secret")
    except DeployError as e:
        print(scheme, e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert "secret" not in done.stdout + done.stderr
    assert "admin" not in done.stdout + done.stderr


class _Camera:
    """A camera that gives so many frames and is then unplugged."""

    opened = 0

    def __init__(self, source: int) -> None:
        assert source == 3
        type(self).opened += 1
        self._left = 4 if self.opened == 1 else 0

    def isOpened(self) -> bool:  # noqa: N802  (OpenCV's name)
        return self.opened == 1

    def get(self, what: int) -> float:
        return 12.5 if what == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, Array | None]:
        self._left -= 1
        return (True, np.zeros((40, 50, 3), np.uint8)) if self._left >= 0 else (False, None)

    def release(self) -> None:
        pass


def test_a_camera_is_a_live_source_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", _Camera)
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.01)
    (camera,) = open_sources("3")
    assert (camera.name, camera.fps, camera.live) == ("camera 3", 12.5, True)
    skipped: list[DeployError] = []
    assert isinstance(camera, Live)
    assert [frame.number for frame in camera.frames(skipped.append, reconnect=2)][-1] == 3
    assert str(skipped[0]).startswith("camera 3 broke off after 4 frames and did not come back")
    assert _Camera.opened == 3
    _Camera.opened = 0
    with pytest.raises(ImageError, match=r"declares 50x40 pixels .* more than the 1,999"):
        next(Live(3).frames(max_pixels=1999))


EXIT = """
import sys
import deploykit
model = deploykit.load(sys.argv[1])
stream = model.stream(sys.argv[2])
next(stream)
print("a frame", flush=True)
if sys.argv[3]:
    raise SystemExit(3)
"""


@pytest.mark.parametrize("leaves", ["", "by an exit"])
def test_the_interpreter_ends_while_a_stream_is_open(server: Server, tmp_path: Path, leaves: str) -> None:
    model = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    words = [sys.executable, "-c", EXIT, str(model), server.address("mjpeg"), leaves]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3 if leaves else 0, "a frame\n", "")
