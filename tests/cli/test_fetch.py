"""The output of ``deploykit fetch``; ``tests/releases/test_fetch.py`` tests the download itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli import main
from deploykit.errors import CheckpointError, FetchError, NotFoundError, UsageError
from deploykit.releases.table import RELEASED


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    def handler(*arguments: Any) -> Handler:
        return Handler(*arguments, directory=str(folder))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join(5)


@pytest.fixture
def served(tmp_path: Path, checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """The address of a folder, and the folder itself; its ``few.pt`` is a checkpoint."""
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copy(checkpoint, folder / "few.pt")
    with serving(folder) as server:
        yield server, folder


def fetch(*words: object) -> int:
    return main(["fetch", *map(str, words)])


def test_the_output_names_the_file_its_source_its_licence_and_its_content(
    served: tuple[str, Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, out = f"{served[0]}/few.pt", tmp_path / "mine.pt"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert fetch("yolov7-tiny", "--url", address, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"{out}: {checkpoint.stat().st_size:,} bytes, SHA-256 {digest}",
        f"source: {address} (published by the YOLOv7 authors under GPL-3.0)",
    ]
    assert lines[2].startswith("read safely: ")
    assert lines[2].endswith("keypoints, 2 classes, 3 keypoints, 640 px")
    assert lines[3:] == [
        "the publisher gives no SHA-256: compare this one with that of a copy you trust, or pass --sha256"
    ]
    assert out.read_bytes() == checkpoint.read_bytes()

    assert fetch("yolov7-tiny", "--url", address, "--out", out, "--sha256", digest) == 0
    again = capsys.readouterr().out.splitlines()
    message = "the file exists already and matches its record: nothing was downloaded (--force downloads it again)"
    assert again == [lines[0], message, *lines[1:3]]


def test_a_pose_file_is_compared_with_the_two_that_circulate(
    served: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("yolov7-w6-pose", "--url", f"{served[0]}/few.pt", "--out", tmp_path / "mine.pt") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("note: it is neither of the two files that circulate")


def test_a_checkpoint_that_no_family_can_build_is_kept_and_reported(
    served: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    torch.save({"fc.weight": torch.zeros(2, 3)}, served[1] / "other.pt")
    out = tmp_path / "mine.pt"
    assert fetch("yolov7-cls", "--url", f"{served[0]}/other.pt", "--out", out) == 0
    found = capsys.readouterr().out.splitlines()[2]
    assert found.startswith(f"read safely: 1 tensors; deploykit cannot build it: {out} is a checkpoint of a model that")


@pytest.mark.parametrize("content", [b"It was a dark and stormy night.", b"PK\x03\x04 cut", b"\x80\x02cos\nsystem\n."])
def test_a_file_that_is_not_a_checkpoint_is_not_kept(
    content: bytes, served: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (served[1] / "bad.pt").write_bytes(content)
    out = tmp_path / "mine.pt"
    status = fetch("yolov7-tiny", "--url", f"{served[0]}/bad.pt", "--out", out)
    assert status in {CheckpointError.exit_code, *(e.exit_code for e in CheckpointError.__subclasses__())}
    message = capsys.readouterr().err
    assert message.startswith(f"deploykit: {served[0]}/bad.pt was downloaded but not kept: ")
    assert message.count("\n") == 1
    assert ".partial" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["served"]


def test_without_torch_the_file_is_not_inspected(served: tuple[str, Path], tmp_path: Path, root: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None; from deploykit.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["fetch", "yolov7-tiny", "--url", f"{served[0]}/few.pt", "--out", str(tmp_path / "mine.pt")]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *words], cwd=root, env=os.environ, capture_output=True, text=True, check=True
    )
    assert "the content was not inspected: torch is required here but" in done.stdout
    assert "read safely" not in done.stdout


def test_the_list_describes_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines]
    assert listed[:-1] == [name for name in RELEASED if "@" not in name]
    assert all(RELEASED[name].what in line for name, line in zip(listed[:-1], lines[:-1], strict=True))
    assert {n for n, line in zip(listed, lines, strict=True) if line.endswith("; deploykit does not build it")} == {
        name for name, release in RELEASED.items() if not release.built
    }
    assert "yolov5s@v6.1" in lines[-1]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], UsageError),
        (["yolov9"], NotFoundError),
        (["yolov5s@v1.0"], NotFoundError),
        (["yolov7", "--url", "file:///etc/hostname"], UsageError),
        (["yolov7", "--url", "http://127.0.0.1:1/x.pt"], FetchError),
        (["yolov7", "--sha256", "abc"], UsageError),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    words: list[str], error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *words]) == error.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("deploykit: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
