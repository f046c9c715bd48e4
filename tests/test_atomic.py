"""Files that appear whole, what is never replaced, and what a killed process leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import cv2
import numpy as np
import pytest

from deploykit import atomic, partials
from deploykit.atomic import (
    alone_in,
    become_folder,
    check_replaceable,
    exchange,
    temporary_folder,
    write_atomic,
)
from deploykit.errors import DiskFullError, OutputError, os_errors_as_output_errors
from deploykit.partials import partial_file, partial_folder
from deploykit.runtime.images.video_writer import Mp4Writer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these locks nor these devices")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no folder had been cleaned by this process."""
    monkeypatch.setattr(partials, "_CLEANED", set())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    with pytest.raises(OutputError, match=r"m\.json: it is a folder; choose another path"):
        write_atomic(place, b"new")
    assert (place / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_the_partial_lies_beside_the_file_with_its_suffix_and_has_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with partial_file(tmp_path / "m.mp4") as partial:
            assert (partial.parent, partial.suffix) == (tmp_path, ".mp4")
            assert partial.name.startswith(".m.")
            assert stat.S_IMODE(partial.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["图" * 80 + ".json", "x" * 250 + ".json", "x." + "y" * 250, "é" * 120 + ".jpeg"])
def test_a_name_that_the_file_system_takes_is_written(name: str, tmp_path: Path) -> None:
    assert 200 < len(os.fsencode(name)) <= 255
    write_atomic(tmp_path / name, b"1")
    assert names(tmp_path) == [name]


def test_threads_may_write_one_path(tmp_path: Path) -> None:
    """Each reader sees one of the contents whole, and nothing is left."""
    file, contents = tmp_path / "same.bin", [bytes([i]) * 100_000 for i in range(4)]
    failed: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                write_atomic(file, content, durable=False)
                assert file.read_bytes() in contents
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(tmp_path) == ["same.bin"]


def test_two_containers_with_one_pid_write_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with partial_folder(tmp_path / "m.onnx", tmp_path) as one, partial_folder(tmp_path / "m.onnx", tmp_path) as two:
        assert one != two
    assert names(tmp_path) == []


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link, again = tmp_path / "data" / "v1.json", tmp_path / "latest.json", tmp_path / "again.json"
    target.write_bytes(b"old")
    link.symlink_to("data/v1.json")
    again.symlink_to(link)
    with target.open("rb") as old:
        for path, content in ((link, b"new"), (again, b"newer")):
            write_atomic(path, content)
            assert target.read_bytes() == content
        assert old.read() == b"old"  # replaced whole, and not written over
    assert (link.is_symlink(), again.is_symlink()) == (True, True)
    assert names(tmp_path / "data") == ["v1.json"]


def test_a_link_to_nothing_gets_its_target(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to("new.json")
    write_atomic(link, b"1")
    assert link.is_symlink()
    assert (tmp_path / "new.json").read_bytes() == b"1"
    link.unlink()
    link.symlink_to("no/folder.json")
    with pytest.raises(OutputError, match=r"link\.json: No such file or directory"):
        write_atomic(link, b"1")
    link.unlink()
    link.symlink_to("link.json")
    with pytest.raises(OutputError, match=r"link\.json: Too many levels of symbolic links"):
        write_atomic(link, b"1")
    assert link.is_symlink()


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, b"through")
    reader.join()
    assert read == [b"through"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device /dev/full")
def test_a_device_is_written_into_and_stays_a_device(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="/dev/full: No space left on device"):
        write_atomic(Path("/dev/full"), b"1")
    link = tmp_path / "link"
    link.symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        write_atomic(link, b"1")
    write_atomic(Path("/dev/null"), b"1")
    for device in ("full", "null"):
        assert Path("/dev", device).is_char_device()
    assert [n for n in names(Path("/dev")) if n.endswith(".partial")] == []


def test_a_socket_is_refused(tmp_path: Path) -> None:
    import socket

    with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as opened:  # its path must be short
        opened.bind("s")
        with pytest.raises(OutputError, match="it is a socket; choose another path"):
            write_atomic(Path("s"), b"1")
    assert (tmp_path / "s").is_socket()


WRITER = "import sys; from pathlib import Path; from deploykit.atomic import write_atomic; print('first'); "


@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_is_written_into_after_what_was_printed(to: str, tmp_path: Path) -> None:
    code = f"{WRITER}write_atomic(Path('/dev/stdout'), b'second\\n'); print('third')"
    out = tmp_path / "out.txt"
    with out.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE if to == "pipe" else file, check=True
        )
    assert (done.stdout if to == "pipe" else out.read_bytes()) == b"first\nsecond\nthird\n"


def test_a_reader_that_closed_the_pipe_is_no_error_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), os_errors_as_output_errors(tmp_path):
        raise BrokenPipeError


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_video_follows_a_link_and_needs_a_file(kind: str, tmp_path: Path) -> None:
    path, frame = tmp_path / "v.mp4", np.zeros((32, 32, 3), np.uint8)
    if kind == "pipe":
        os.mkfifo(path)
        with pytest.raises(OutputError, match="a video needs a file"), Mp4Writer(path, 10) as video:
            video.write(frame)
        assert names(tmp_path) == ["v.mp4"]
        return
    path.symlink_to("real.mp4")
    with Mp4Writer(path, 10) as video:
        video.write(frame)
    assert path.is_symlink()
    assert cv2.VideoCapture(str(tmp_path / "real.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 1
    assert names(tmp_path) == ["real.mp4", "v.mp4"]


KILLED = """
import os, sys
from pathlib import Path
from deploykit.partials import partial_file, partial_folder
place = Path(sys.argv[1])
with partial_file(place) as file, partial_folder(place, place.parent) as folder:
    file.write_bytes(b"1")
    (folder / "graph.onnx").write_bytes(b"1")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def writer(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a partial file and a partial folder for ``place`` until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    place = tmp_path / "m.bin"
    with writer(place) as living, writer(place) as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(names(tmp_path)) == 4
        write_atomic(tmp_path / "other.bin", b"1")
        left = names(tmp_path)
        assert left[-1] == "other.bin"
        assert len(left) == 3
        assert all(f"-{living.pid}-" in name for name in left[:-1])
        assert living.poll() is None
    partials._CLEANED.clear()
    write_atomic(tmp_path / "other.bin", b"2")
    assert names(tmp_path) == ["other.bin"]


def interrupted_at(number: int) -> Callable[[FrameType, str, object], object]:
    """A trace function that raises at one of the instructions of the writer, as Ctrl-C may."""
    left = number

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left
        if frame.f_code.co_filename not in (partials.__file__, contextlib.__file__):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("what", [partial_file, lambda place: partial_folder(place, place.parent)])
def test_an_interrupt_at_any_instruction_leaves_nothing_after_the_process(
    tmp_path: Path, what: Callable[[Path], contextlib.AbstractContextManager[Path]]
) -> None:
    before, number, whole = sys.gettrace(), 0, False
    while not whole:
        number += 1
        sys.settrace(interrupted_at(number))
        try:
            with what(tmp_path / "m.bin"):
                pass
            whole = True  # the interrupt was to come later than the last instruction
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        partials._remove_unfinished()
        assert names(tmp_path) == [], number
    assert number > 200


def test_the_end_of_a_process_removes_its_own_partials_and_a_forked_one_removes_none(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from deploykit import partials\n"
        "partial = partials._hidden(Path(sys.argv[1]), 'm')\n"
        "context = partials._removed_at_the_end(partial)\n"
        "context.__enter__(); partial.touch()\n"
        "if (child := os.fork()) == 0: sys.exit()\n"
        "os.waitpid(child, 0); print(partial.exists(), flush=True)\n"
        "os.kill(os.getpid(), 2)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr
    assert "KeyboardInterrupt" in run.stderr
    assert names(tmp_path) == []


def test_what_another_machine_left_is_removed_after_a_week_without_a_change(tmp_path: Path) -> None:
    old, new, folder = (tmp_path / f".{name}.0123abcd-1-89abcdef.partial" for name in ("old", "new", "folder"))
    for file in (old, new):
        file.write_bytes(b"1")
    folder.mkdir()
    (folder / "growing").write_bytes(b"1")
    long_ago = time.time() - 8 * 24 * 3600
    for path in (old, folder):
        os.utime(path, (long_ago, long_ago))
    write_atomic(tmp_path / "m", b"1")
    assert names(tmp_path) == [folder.name, new.name, "m"]
    os.utime(folder / "growing", (long_ago, long_ago))
    partials._CLEANED.clear()
    write_atomic(tmp_path / "m", b"1")
    assert names(tmp_path) == [new.name, "m"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    """Names that are not quite ours, a link of such a name, downloads that are continued."""
    long_ago = time.time() - 30 * 24 * 3600
    kept = [".m.pt.partial", ".m.pt.partial.json", ".m.123.partial.onnx", "m.0123abcd-1-89abcdef.partial", ".m.partial"]
    for name in kept:
        (tmp_path / name).write_bytes(b"1")
        os.utime(tmp_path / name, (long_ago, long_ago))
    link = tmp_path / ".link.0123abcd-1-89abcdef.partial"
    link.symlink_to(tmp_path / ".m.partial")
    os.utime(link, (long_ago, long_ago), follow_symlinks=False)
    write_atomic(tmp_path / "m", b"1")
    assert names(tmp_path) == sorted([*kept, link.name, "m"])


def test_without_locks_only_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system whose server has none."""

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(partials.fcntl, "flock", refuse)
    left = tmp_path / f".m.{partials._machine()}-1-89abcdef.partial"
    left.write_bytes(b"1")
    write_atomic(tmp_path / "m", b"1")
    assert names(tmp_path) == [left.name, "m"]


def test_a_partial_that_was_taken_for_abandoned_at_birth_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its creation and its lock another process may remove it."""
    lock, removed = partials.lock, []

    def late(descriptor: int) -> bool | None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        return lock(descriptor)

    monkeypatch.setattr(partials, "lock", late)
    write_atomic(tmp_path / "m", b"whole")
    assert (tmp_path / "m").read_bytes() == b"whole"
    assert len(removed) == 1
    assert names(tmp_path) == ["m"]


def test_work_files_of_a_killed_process_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with writer(tmp_path / "deploykit") as living, writer(tmp_path / "deploykit") as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with temporary_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert sum(f"-{living.pid}-" in name for name in names(tmp_path)) == 2
            assert len(names(tmp_path)) == 3
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match="No such file or directory"), temporary_folder():
        pass


@pytest.mark.parametrize("below", ["a", "a/b/c"])
def test_a_new_folder_appears_with_all_that_is_in_it(below: str, tmp_path: Path) -> None:
    with partial_folder(tmp_path / "m", tmp_path) as partial:
        (partial / "m.onnx").write_bytes(b"1")
        assert become_folder(partial, tmp_path / below) is None
        assert names(tmp_path) == ["a"]
    assert names(tmp_path / below) == ["m.onnx"]


@pytest.mark.parametrize("below", ["a", "a/b/c"])
def test_a_folder_that_another_process_makes_meanwhile_is_left_alone(below: str, tmp_path: Path) -> None:
    with partial_folder(tmp_path / "m", tmp_path) as partial:
        (partial / "m.onnx").write_bytes(b"1")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "other").write_bytes(b"2")
        left = become_folder(partial, tmp_path / below)
        assert left is not None
        assert names(left) == ["m.onnx"]
        assert names(tmp_path / "a") == ["other"]
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps two names in one step")
def test_two_folders_are_swapped(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"1")
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system has no such step")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])
    assert not exchange(tmp_path / "a", tmp_path / "missing")
    assert names(tmp_path / "a") == ["b"]


def test_one_at_a_time_moves_files_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def second() -> None:
        with alone_in(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone_in(tmp_path):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setattr(atomic, "PATIENCE", 0.01)
    with alone_in(tmp_path):
        second()  # it does not wait for ever
    assert order[-1] == "second"


def test_a_file_that_is_mounted_by_itself_is_written_in_place_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Docker mounts a file: it can be written, and neither replaced nor removed."""
    mounted, other = tmp_path / "mounted.txt", tmp_path / "other.txt"
    mounted.write_bytes(b"what was there before")
    place, replace = mounted.stat().st_ino, Path.replace

    def busy(self: Path, target: Path) -> Path:
        if Path(target) == mounted:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", busy)
    for data in (b"shorter", b"longer than what was there before", b""):
        write_atomic(mounted, data)
        write_atomic(other, data)
        assert mounted.read_bytes() == other.read_bytes() == data
    assert mounted.stat().st_ino == place
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mounted.txt", "other.txt"]
    assert (
        caplog.messages
        == [f"{mounted} is mounted by itself and is written in place: mount its folder, so that it appears whole"] * 3
    )
    mounted.unlink()
    with pytest.raises(OutputError, match=r"cannot write .*mounted\.txt: Device or resource busy"):
        write_atomic(mounted, b"a folder that is busy, and no file in it")


def test_an_export_refuses_a_file_that_is_mounted_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a b\\c.onnx"
    place.write_bytes(b"")
    name = os.fsencode(place).replace(b"\\", rb"\134").replace(b" ", rb"\040")
    (tmp_path / "mounts").write_bytes(
        b"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 24 8:1 /home/x " + name + b" rw,relatime - ext4 /dev/sda1 rw\n"
    )
    check_replaceable(place)
    monkeypatch.setattr(atomic, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(OutputError, match=r"it is mounted by itself, so that nothing can replace it; mount its folder"):
        check_replaceable(place)
    (tmp_path / "other.onnx").write_bytes(b"")
    check_replaceable(tmp_path / "other.onnx")
