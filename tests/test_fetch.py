"""Downloads from a server on this machine that behaves well, badly, or not at all."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploykit import fetch as module
from deploykit.errors import DiskFullError, FetchError, NotFoundError, OutputError, UsageError
from deploykit.fetch import RELEASED, fetch

BODY = bytes(range(256)) * 12_000  # three chunks, the last one not full
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "yolov7-tiny"


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path, for example ``/whole/weights.pt``."""

    protocol_version = "HTTP/1.1"
    released = threading.Event()  # a stalled answer waits for this

    def do_GET(self) -> None:
        getattr(self, f"send_{self.path.split('/')[1]}", self.send_missing)()

    def log_message(self, *_: Any) -> None:
        pass

    def _start(self, status: int, **headers: object) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def send_whole(self) -> None:
        self._start(200, Content_Length=len(BODY))
        self.wfile.write(BODY)

    def send_empty(self) -> None:
        self._start(200, Content_Length=0)

    def send_unsized(self) -> None:
        self._start(200)
        self.wfile.write(BODY)

    def send_misnumbered(self) -> None:
        self._start(200, Content_Length="²")
        self.wfile.write(BODY)

    def send_short(self) -> None:
        self._start(200, Content_Length=len(BODY) + 1000)
        self.wfile.write(BODY)

    def send_chunked(self) -> None:
        self._start(200, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))

    def send_brokenchunks(self) -> None:
        self._start(200, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%b" % (len(BODY) + 5, BODY))

    def send_stalled(self) -> None:
        self._start(200, Content_Length=len(BODY))
        self.wfile.write(BODY[:5000])
        self.wfile.flush()
        self.released.wait(10)

    def send_silent(self) -> None:
        self.close_connection = True
        self.released.wait(10)

    def send_garbage(self) -> None:
        self.close_connection = True
        self.wfile.write(b"I am not a web server\r\n\r\n")

    def send_moved(self) -> None:
        self._start(302, Location="/whole/other-name.pt", Content_Length=0)

    def send_tofile(self) -> None:
        self._start(302, Location="file:///etc/hostname", Content_Length=0)

    def send_circle(self) -> None:
        self._start(302, Location=self.path, Content_Length=0)

    def send_coloured(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 404 \x1b[31mNo\r\nContent-Length: 0\r\n\r\n")

    def send_missing(self) -> None:
        self._start(404, Content_Length=0)

    def send_angry(self) -> None:
        self._start(503, Content_Length=0)


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up on us is what some tests are about."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with QuietServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        Handler.released.set()
        web.shutdown()
        thread.join(5)
        assert not thread.is_alive()


@dataclass
class Download:
    """``fetch`` of one kind of answer into a folder, and what is in the folder afterwards."""

    server: str
    folder: Path

    def __call__(self, kind: str, **options: Any) -> module.Fetched:
        return fetch(NAME, url=f"{self.server}/{kind}/weights.pt", out=self.folder / "weights.pt", **options)

    @property
    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self.folder.iterdir()}


@pytest.fixture
def download(server: str, tmp_path: Path) -> Download:
    return Download(server, tmp_path)


@pytest.mark.parametrize("kind", ["whole", "unsized", "chunked", "moved", "misnumbered"])
def test_a_file_arrives_whole(kind: str, download: Download) -> None:
    got = download(kind, sha256=SHA256.upper())
    assert (got.path, got.size, got.sha256) == (download.folder / "weights.pt", len(BODY), SHA256)
    assert got.url == f"{download.server}/{kind}/weights.pt"
    assert "GPL-3.0" in got.licence
    assert download.files == {"weights.pt": BODY}


def test_an_existing_file_is_replaced(download: Download) -> None:
    (download.folder / "weights.pt").write_bytes(b"old")
    download("whole")
    assert download.files == {"weights.pt": BODY}


FAILURES: dict[str, str] = {
    "missing": r"/missing/weights.pt answered 404 .*: check the address",
    "angry": "answered 503",
    "short": "broke off",
    "brokenchunks": "broke off",
    "stalled": "timed out",
    "silent": "timed out",
    "garbage": "I am not a web server",
    "circle": "infinite loop",
    "tofile": "answered 302 .* is not allowed",
    "coloured": r"answered 404 \[31mNo: check",
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_file_that_does_not_arrive_leaves_the_old_one(
    kind: str, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    (download.folder / "weights.pt").write_bytes(b"old")
    with pytest.raises(FetchError, match=FAILURES[kind]) as failed:
        download(kind)
    assert download.server in str(failed.value)
    assert str(failed.value).isprintable()
    assert download.files == {"weights.pt": b"old"}


def test_what_broke_off_is_counted(download: Download) -> None:
    with pytest.raises(FetchError, match=f"broke off after {len(BODY):,} of {len(BODY) + 1000:,} bytes"):
        download("short")
    assert download.files == {}


def test_another_hash_is_refused(download: Download) -> None:
    (download.folder / "weights.pt").write_bytes(b"old")
    with pytest.raises(FetchError, match=f"has SHA-256 {SHA256}, expected {'0' * 64}: the file was not kept"):
        download("whole", sha256="0" * 64)
    assert download.files == {"weights.pt": b"old"}


def test_nobody_at_the_door(download: Download) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        download.server = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FetchError, match=r"cannot fetch .*refused.*; check the network, or pass a mirror"):
            download("whole")
    assert download.files == {}


@pytest.mark.parametrize(("kind", "total"), [("whole", len(BODY)), ("unsized", None), ("chunked", None)])
def test_progress_only_grows_and_ends_with_the_size(kind: str, total: int | None, download: Download) -> None:
    told: list[tuple[int, int | None]] = []
    download(kind, on_bytes=lambda done, of: told.append((done, of)))
    done = [d for d, _ in told]
    assert len(done) > 1
    assert done == sorted(set(done))
    assert done[-1] == len(BODY)
    assert {of for _, of in told} == {total}


def test_the_name_comes_from_the_address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch(NAME, url=f"{server}/whole/a%20b.pt?token=x/y").path == Path("a%20b.pt")
    assert fetch("yolov7_tiny", url=f"{server}/whole/").path == Path("whole")
    assert fetch(NAME, out="sub/folder/mine.pt", url=f"{server}/whole/a.pt").path == Path("sub/folder/mine.pt")
    assert (tmp_path / "sub" / "folder" / "mine.pt").read_bytes() == BODY


def test_an_empty_answer_is_an_empty_file_with_its_hash(download: Download) -> None:
    got = download("empty")
    assert (got.size, got.sha256) == (0, hashlib.sha256(b"").hexdigest())


def test_an_unknown_name_lists_the_known_ones(download: Download) -> None:
    with pytest.raises(NotFoundError, match=r"'yolov9' are known; there are yolov7-tiny, yolov7, .*yolov7-w6-pose"):
        fetch("yolov9", out=download.folder / "x.pt")
    assert download.files == {}


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/x.pt",
        "weights.pt",
        "http://",
        "http:///x.pt",
        "http://[::1/x.pt",
        "http://127.0.0.1:99999/x.pt",
        "http://127.0.0.1:port/x.pt",
        "http://127.0.0.1/gewichte-für-alle.pt",
    ],
)
def test_an_address_that_is_none_is_refused(address: str, download: Download) -> None:
    with pytest.raises(UsageError, match="must be an http or https address") as refused:
        fetch(NAME, url=address, out=download.folder / "x.pt")
    assert address in str(refused.value)
    assert download.files == {}


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "name with spaces"])
def test_a_host_that_cannot_be_is_one_that_cannot_be_reached(host: str, download: Download) -> None:
    with pytest.raises(FetchError, match="cannot fetch"):
        fetch(NAME, url=f"http://{host}/x.pt", out=download.folder / "x.pt")
    assert download.files == {}


@pytest.mark.parametrize("digest", ["", "abc", SHA256 + "0"])
def test_a_hash_of_another_length_is_refused_before_anything_is_fetched(digest: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"64 hexadecimal digits, got {len(digest)}"):
        fetch(NAME, url="http://127.0.0.1:1/x.pt", out=tmp_path / "x.pt", sha256=digest)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten_and_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; name the file in it with --out"):
        fetch(NAME, url="http://127.0.0.1:1/x.pt", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_called_a_network_problem(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    (download.folder / "weights.pt").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"cannot write .*weights\.pt: File too large"):
            download("whole")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert download.files == {"weights.pt": b"old"}


def test_ctrl_c_leaves_nothing_half_done(download: Download) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    stop: Callable[..., None] = interrupt
    with pytest.raises(KeyboardInterrupt):
        download("whole", on_bytes=stop)
    assert download.files == {}


def test_every_released_address_is_secure_and_says_its_licence() -> None:
    assert NAME in RELEASED
    for name, release in RELEASED.items():
        assert release.url.startswith("https://")
        assert release.url.endswith(f"/{name}.pt")
        assert release.licence
