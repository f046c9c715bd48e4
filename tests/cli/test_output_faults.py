"""Disks that are full, quotas, read-only places and folders that vanish: every command says so, with its exit code.

No file is left, whole or not. One fault of the quick commands is in every test run; the others are marked ``slow``.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from deploykit import partials
from deploykit.cli import main
from deploykit.errors import DiskFullError, NoPermissionError, OutputError
from deploykit.runtime.images.video_writer import Mp4Writer
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.coco_folder import write_folder
from tests.narrow import few_layers, write_checkpoint
from tests.releases.web_server import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these faults are made as Linux has them")

COMMANDS = {
    "bench --report": "bench {cells} --runs 1 --warmup 0 --report {out}/b.html",
    "cluster run": "cluster run {cells} {images} --out {out}/run --workers 1",
    "create": "create yolox-nano --out {out}/c.pt",
    "eval --detections": "eval {cells} --data {data} --images {images} --task detect --detections {out}/d.json",
    "eval --plots": "eval {cells} --data {data} --images {images} --task detect --plots {out}/p",
    "fetch": "fetch yolov7-tiny --url {url} --out {out}/f.pt",
    "package --kserve": "package {cells} --kserve {out}/k.yaml --image registry.example/k:1",
    "package --triton": "package {cells} --triton {out}/t",
    "predict --coco": "predict {cells} {images} --coco {out}/c.json",
    "predict --csv": "predict {cells} {images} --csv {out}/c.csv",
    "predict --labelme": "predict {cells} {images} --out {out}/l --labelme",
    "predict --out": "predict {cells} {images} --out {out}/o",
    "predict VIDEO": "predict {cells} {video} --out {out}/v",
    "verify --junit": "verify {cells} {again} --junit {out}/j.xml",
}
LONG = {
    "build": "export {cells} --format tensorrt-rtx --out {out}/m.trt",
    "export": "export {few} --img 32 --out {out}/m.onnx",
    "int8": "export {few} --img 32 --precision int8 --calib {images} --calib-size 2 --out {out}/m.onnx",
    "plugins build": "plugins build --only cpu --out {out}/lib",
}
FILLER = "filler"  # takes all the room of a small file system
NEEDS = {"build": "tensorrt_rtx", "eval --plots": "matplotlib"}
EARLY = ("plugins build",)  # which compile in a temporary folder, and so meet a limit of files there


class Fault(NamedTuple):
    """A fault, the error that says so, and words of its message."""

    make: Callable[[Path, pytest.MonkeyPatch], object]
    error: type[OutputError]
    words: str


@contextmanager
def no_byte_fits() -> Iterator[None]:
    """The system itself refuses every byte of a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def over_the_quota(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Quotas cannot be set in a test: the system's answer is given in its place."""

    def refused(*_: object) -> Path:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    patch.setattr(partials, "_hidden", refused)


def vanishing(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Somebody removes the folder at the moment when a file is to be written into it."""
    clean = partials._remove_abandoned

    def vanish(place: Path) -> None:
        clean(place)
        if place == folder or folder in place.parents:
            shutil.rmtree(folder, ignore_errors=True)

    patch.setattr(partials, "_remove_abandoned", vanish)


def mounted(*options: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    """A small file system of its own, or one that is read-only; only root can make one."""

    def mount(folder: Path, _: pytest.MonkeyPatch) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        if "ro" not in options:
            with (folder / FILLER).open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(bytes(512)):
                    pass

    return mount


FULL = Fault(lambda folder, patch: None, DiskFullError, "File too large; free some space")
QUOTA = Fault(over_the_quota, DiskFullError, "Disk quota exceeded; free some space")
OTHERS = {
    "vanished": Fault(vanishing, OutputError, "No such file or directory"),
    "full": FULL,
    "no room": Fault(mounted("size=4k,nr_inodes=8"), DiskFullError, "No space left on device; free some space"),
    "read-only": Fault(mounted("ro"), NoPermissionError, "no permission (Read-only file system)"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path | str]]:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("read")
    data = write_folder(folder / "coco", scale=1)
    with Mp4Writer(folder / "video.mp4", 8) as video:
        video.write(planted((1, 2, RED)))
    few = write_checkpoint(folder / "few.pt", few_layers())
    cells = write_cell_model(folder / "cells.onnx", spec=cell_spec())
    with serving() as web:
        web.script.body = few.read_bytes()
        yield {
            "cells": cells, "few": few, "images": data.images, "data": data.data, "video": folder / "video.mp4",
            "again": write_cell_model(folder / "again.onnx", spec=cell_spec()), "url": f"{web.address}/file/f.pt",
        }  # fmt: skip


def code_and_line(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(command.split())
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deploykit: ")]
    return code, errors[-1] if errors else ""


def check(
    name: str, command: str, fault: Fault, folder: Path, places: dict[str, Path | str],
    patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Run a command under a fault."""
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    if fault is FULL and name in EARLY:
        pytest.skip("it compiles in a temporary folder, which the limit meets first")
    out = folder / "out"
    out.mkdir()
    patch.setattr(partials, "_CLEANED", set())
    if name in LONG:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    words = command.format(out=out, **places)
    try:
        with patch.context() as inner:
            fault.make(out, inner)
            if fault is FULL:
                with no_byte_fits():
                    code, line = code_and_line(words, capsys)
            else:
                code, line = code_and_line(words, capsys)
        left = (
            sorted(path.name for path in out.rglob("*") if path.is_file() and path.name != FILLER)
            if out.exists()
            else []
        )
    finally:
        subprocess.run(["umount", str(out)], capture_output=True, check=False)
    assert (code, left) == (fault.error.exit_code, []), line
    assert fault.words in line
    assert line.startswith("deploykit: cannot write ")
    assert line.endswith(f"[deploykit help {code}]")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_why_it_cannot_write(
    name: str, tmp_path: Path, places: dict[str, Path | str], one_thread: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    check(name, COMMANDS[name], QUOTA, tmp_path, places, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("fault", OTHERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_why_it_cannot_write_otherwise(
    name: str, fault: str, tmp_path: Path, places: dict[str, Path | str], one_thread: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    check(name, COMMANDS[name], OTHERS[fault], tmp_path, places, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("fault", {"quota": QUOTA, **OTHERS})
@pytest.mark.parametrize("name", LONG)
def test_a_long_command_says_why_it_cannot_write(
    name: str, fault: str, tmp_path: Path, places: dict[str, Path | str], one_thread: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    check(name, LONG[name], {"quota": QUOTA, **OTHERS}[fault], tmp_path, places, monkeypatch, capsys)
