"""``deploykit fetch``: what it says; what it does is in ``tests/test_fetch.py``."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli import main
from deploykit.errors import FetchError, NotFoundError, UsageError

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


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
def address(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "tiny.pt").write_bytes(BODY)
    with serving(folder) as server:
        yield f"{server}/tiny.pt"


def test_it_says_what_came_from_where_and_whose_it_is(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.pt"
    assert main(["fetch", "yolov7-tiny", "--url", address, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{out}: 7,000 bytes, SHA-256 {SHA256}",
        f"source: {address} (published by the YOLOv7 authors under GPL-3.0)",
        "the authors publish no SHA-256: compare this one with a copy that you trust, or pass --sha256",
    ]
    assert out.read_bytes() == BODY


def test_with_a_hash_nothing_is_left_to_compare(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fetch", "yolov7-tiny", "--url", address, "--out", str(tmp_path / "mine.pt"), "--sha256", SHA256]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["yolov9"], NotFoundError),
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
