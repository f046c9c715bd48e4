"""Downloads break off, are continued, and never leave a partial file under the final name."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.connection import BrokenOffError, Redirects, opener
from deploykit.errors import FetchError, UsageError
from deploykit.releases import download as module
from deploykit.releases.fetch import Fetched, fetch
from tests.releases.web_server import BODY, Handler, QuietServer, Script, serving

NAME, KEPT = "yolov7-tiny", {".weights.pt.partial", ".weights.pt.partial.json"}
WHOLE = {"weights.pt", "weights.pt.source.json"}


@pytest.fixture(scope="module")
def server() -> Iterator[QuietServer]:
    with serving() as web:
        yield web


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0,) * 4)


@dataclass
class Download:
    """``fetch`` of the scripted file into a folder, and the content of the folder afterwards."""

    server: QuietServer
    folder: Path

    def __call__(self, kind: str = "file", **options: Any) -> Fetched:
        return fetch(NAME, url=f"{self.server.address}/{kind}/weights.pt", out=self.folder / "weights.pt", **options)

    def script(self, **answers: Any) -> Script:
        self.server.script = Script(**answers)
        return self.server.script

    @property
    def names(self) -> set[str]:
        return {p.name for p in self.folder.iterdir()}

    @property
    def body(self) -> bytes:
        return (self.folder / "weights.pt").read_bytes()


@pytest.fixture
def download(server: QuietServer, tmp_path: Path) -> Download:
    return Download(server, tmp_path)


def give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", ())


def test_a_broken_connection_is_continued_within_one_call(download: Download) -> None:
    script = download.script(cuts=[1000, 0, 70_000])
    got = download()
    assert (got.size, download.body, download.names) == (len(BODY), BODY, WHOLE)
    ranges = [request.get("Range") for request in script.requests]
    assert ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=71000-"]
    assert [request.get("If-Range") for request in script.requests] == [None, *['"one"'] * 3]


def test_received_bytes_are_kept_reported_and_continued_by_the_next_call(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(monkeypatch)
    script = download.script(cuts=[123_456])
    with pytest.raises(FetchError) as failed:
        download()
    kept = download.folder / ".weights.pt.partial"
    assert str(failed.value) == (
        f"{download.server.address}/file/weights.pt broke off after 123,456 of 3,072,000 bytes; "
        f"123,456 bytes are kept in {kept}: run it again to continue at 123,456"
    )
    assert download.names == KEPT
    assert kept.read_bytes() == BODY[:123_456]
    progress: list[tuple[int, int | None]] = []
    download(on_bytes=lambda done, of: progress.append((done, of)))
    assert script.requests[-1]["Range"] == "bytes=123456-"
    assert progress[0][0] > 123_456
    assert progress[-1] == (len(BODY), len(BODY))
    assert (download.body, download.names) == (BODY, WHOLE)


def test_last_modified_names_a_version_but_a_weak_etag_does_not(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(monkeypatch)
    then = "Wed, 21 Oct 2015 07:28:00 GMT"
    script = download.script(cuts=[5000], headers={"ETag": 'W/"weak"', "Last-Modified": then})
    with pytest.raises(FetchError, match="run it again to continue at 5,000"):
        download()
    download()
    assert script.requests[-1]["If-Range"] == then
    assert download.body == BODY


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": "bare"}, {"Last-Modified": "yesterday"}, {"Last-Modified": "now"}]
)
def test_bytes_without_a_version_are_not_kept(
    headers: dict[str, str], download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(monkeypatch)
    if headers.get("Last-Modified") == "now":  # the file may change again within this second
        headers = {"Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 5))}
    download.script(cuts=[5000], headers=headers)
    with pytest.raises(FetchError, match="broke off after 5,000 of 3,072,000 bytes; check the network and run it agai"):
        download()
    assert download.names == set()


def test_a_server_that_ignores_ranges_sends_the_whole_file_again(download: Download) -> None:
    script = download.script(cuts=[2000, 10], ranges=False)
    download()
    assert [request.get("Range") for request in script.requests] == [None, "bytes=2000-", "bytes=10-"]
    assert (download.body, download.names) == (BODY, WHOLE)


def test_a_new_version_replaces_the_bytes_of_the_old_one(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up(monkeypatch)
    download.script(cuts=[2_000_000])
    with pytest.raises(FetchError):
        download()
    download.script(body=BODY[::-1], headers={"ETag": '"two"'})
    download()
    assert download.body == BODY[::-1]


def test_a_shorter_new_version_is_fetched_whole(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up(monkeypatch)
    download.script(cuts=[2_000_000])
    with pytest.raises(FetchError):
        download()
    script = download.script(body=BODY[:1000])  # under the same ETag: nothing from 2,000,000 on
    download()
    assert [request.get("Range") for request in script.requests] == ["bytes=2000000-", None]
    assert download.body == BODY[:1000]


def begun(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that broke off after 1000 bytes."""
    with monkeypatch.context() as patch:
        give_up(patch)
        download.script(cuts=[1000])
        with pytest.raises(FetchError):
            download()
    assert download.names == KEPT


REST = BODY[1000:]
LIES: dict[str, tuple[dict[str, str], bytes, str]] = {
    "another start": ({"Content-Range": "bytes 500-3071999/3072000"}, BODY[500:], "sent bytes 500-3071999/3072000"),
    "no range": ({}, REST, "sent an unnamed part"),
    "another total": ({"Content-Range": "bytes 1000-3071999/3072001"}, REST, "3,072,001 bytes instead of 3,072,000"),
    "another length": ({"Content-Range": "bytes 1000-3071999/3072000"}, REST[:-1], "with 3,070,999 bytes"),
    "beyond the end": ({"Content-Range": "bytes 1000-3072000/3072000"}, REST + b"x", "sent bytes 1000-3072000"),
    "backwards": ({"Content-Range": "bytes 1000-999/3072000"}, b"", "sent bytes 1000-999"),
    "not a number": ({"Content-Range": "bytes 1000-\x1b[31m²/*"}, REST, "sent bytes 1000-"),
    "another version": (
        {"Content-Range": "bytes 1000-3071999/3072000", "ETag": '"two"'}, REST, 'another version ("two", not "one")'
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_part_that_does_not_fit_is_refused_and_nothing_is_kept(
    lie: str, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(download, monkeypatch)
    headers, body, message = LIES[lie]
    download.script(replies=[(206, headers, body)])
    with pytest.raises(FetchError) as failed:
        download()
    assert message in str(failed.value)
    assert str(failed.value).isprintable()
    assert "the received bytes were not kept" in str(failed.value)
    assert download.names == set()


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (503, 5)])
def test_a_refusal_does_not_lose_the_received_bytes(
    status: int, attempts: int, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(download, monkeypatch)
    script = download.script(replies=[(status, {}, b"")] * attempts)
    with pytest.raises(
        FetchError, match=rf"answered {status} .*; 1,000 bytes are kept in .*: run it again to continue"
    ):
        download()
    assert len(script.requests) == attempts
    download()
    assert download.body == BODY


@pytest.mark.parametrize("status", [204, 206])
def test_an_answer_that_does_not_fit_the_request_is_refused(status: int, download: Download) -> None:
    download.script(replies=[(status, {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}, b"")])
    with pytest.raises(FetchError, match=f"answered {status}, which does not fit the request; check the address"):
        download()
    assert download.names == set()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"address": 5, "final": "", "validator": "", "total": 1}',
        b'{"address": "%s"}',
        b"\xff",
    ],
)
def test_a_damaged_record_restarts_the_download(
    record: bytes, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(download, monkeypatch)
    (download.folder / ".weights.pt.partial.json").write_bytes(record)
    script = download.script()
    download()
    assert "Range" not in script.requests[0]
    assert (download.body, download.names) == (BODY, WHOLE)


def test_a_download_from_another_address_is_not_continued(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(download, monkeypatch)
    script = download.script(body=BODY[::-1])
    download("movedfile")
    assert "Range" not in script.requests[0]
    assert download.body == BODY[::-1]


def test_a_continued_download_follows_redirects_too(download: Download) -> None:
    script = download.script(cuts=[50])
    got = download("movedfile")
    assert [request.get("Range") for request in script.requests] == [None, "bytes=50-"]
    assert got.url == f"{download.server.address}/movedfile/weights.pt"
    assert got.final == f"{download.server.address}/file/other-name.pt"  # without the signature
    assert "secret" not in "".join(p.read_text(errors="replace") for p in download.folder.glob("*.json"))


def test_a_complete_file_that_only_lacks_its_name_is_not_requested(download: Download) -> None:
    record = {"address": f"{download.server.address}/file/weights.pt", "final": "f", "validator": '"one"'}
    (download.folder / ".weights.pt.partial").write_bytes(BODY)
    (download.folder / ".weights.pt.partial.json").write_text(json.dumps({**record, "total": len(BODY)}))
    script = download.script()
    assert download().final == "f"
    assert script.requests == []
    assert (download.body, download.names) == (BODY, WHOLE)


def test_ctrl_c_keeps_the_received_bytes_and_reports_it(download: Download) -> None:
    def interrupt(done: int, _: object) -> None:
        if done > 10_000:
            raise KeyboardInterrupt

    script = download.script()
    with pytest.raises(KeyboardInterrupt) as stopped:
        download(on_bytes=interrupt)
    assert "run it again to continue at " in str(stopped.value)
    assert download.names == KEPT
    download()
    assert int(script.requests[-1]["Range"][6:-1]) > 10_000
    assert download.body == BODY


CHILD = "import sys; from deploykit.releases.fetch import fetch; fetch('yolov7-tiny', url=sys.argv[1], out=sys.argv[2])"


def test_two_processes_do_not_interfere_and_a_killed_one_is_continued(download: Download, root: Path) -> None:
    script = download.script()
    address, out = f"{download.server.address}/slow/weights.pt", download.folder / "weights.pt"
    child = subprocess.Popen([sys.executable, "-c", CHILD, address, str(out)], cwd=root)
    try:
        partial = download.folder / ".weights.pt.partial"
        deadline = time.monotonic() + 20
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(FetchError, match=r"another process is downloading to .*: wait for it, or choose another"):
            download("slow")
        assert len(script.requests) == 1
    finally:
        child.kill()
        child.wait(10)
        Handler.released.set()
    size = partial.stat().st_size
    assert partial.read_bytes() == BODY[:size]
    record = download.folder / ".weights.pt.partial.json"
    record.write_text(record.read_text().replace("/slow/", "/file/"))
    download()
    assert script.requests[-1]["Range"] == f"bytes={size}-"
    assert (download.body, download.names) == (BODY, WHOLE)


def test_a_process_that_waited_does_not_write_into_the_renamed_file(download: Download) -> None:
    partial = module.Partial(download.folder / "weights.pt")
    with partial.held() as file:
        file.write(b"whole")
        file.flush()
        late = partial.path.open("ab+")  # another process opens it now and gets the lock when we are done
        partial.become(download.folder / "weights.pt", file)
    assert not partial._is(late)
    late.close()
    with partial.held() as file:
        assert module._size(file) == 0
    assert download.body == b"whole"


def test_redirects_from_https_to_http_are_refused() -> None:
    def redirect(start: str, to: str) -> urllib.request.Request | None:
        request = urllib.request.Request(start, headers={"Range": "bytes=5-"})
        return Redirects().redirect_request(request, BytesIO(), 302, "Found", {}, to)  # type: ignore[arg-type]  # a message

    redirects = Redirects()
    assert redirects in opener(redirects, 1.0).handlers
    for start in ("http://a/x", "https://a/x"):
        followed = redirect(start, "https://b/y")
        assert followed is not None
        assert (followed.full_url, followed.headers) == ("https://b/y", {"Range": "bytes=5-"})
    with pytest.raises(BrokenOffError, match="https://a/x redirects from https to http://b/y"):
        redirect("https://a/x", "http://b/y")
    for other in ("ftp://b/y", "FTP://b/y", "file:///y", "data:,y", "gopher://b/y"):
        with pytest.raises(BrokenOffError, match=f"http://a/x redirects to {other}, which is neither http nor https"):
            redirect("http://a/x", other)


def test_a_redirect_to_ftp_is_refused_by_its_address(download: Download) -> None:
    with pytest.raises(
        FetchError, match=r"toftp/weights\.pt redirects to ftp://127.* neither http nor https; pass ano"
    ):
        download("toftp")
    assert not download.names


def test_the_error_names_the_address_that_refused(download: Download) -> None:
    with pytest.raises(
        FetchError, match=r"cannot fetch http.*/tonobody/weights\.pt \(redirected to http://127\.0\.0\.1:1/w"
    ):
        download("tonobody")
    with pytest.raises(
        FetchError, match=r"/tomissing/.* \(redirected to http.*/missing/weights\.pt\) answered 404"
    ) as e:
        download("tomissing")
    assert "secret" not in str(e.value)


def test_what_comes_with_a_redirect_is_not_read(download: Download) -> None:
    assert download("movedendless").size == len(BODY)


@pytest.mark.parametrize("kind", ["endless", "endlesslie", "huge", "whole"])
def test_a_file_over_the_largest_size_is_refused(download: Download, kind: str) -> None:
    with pytest.raises(FetchError, match=r"sends more than 3,000,000 bytes.*not kept.* raise --max-size"):
        download(kind, max_size=3_000_000)
    assert not download.names


def test_a_file_of_the_largest_size_is_kept(download: Download) -> None:
    assert download("whole", max_size=len(BODY)).size == len(BODY)
    with pytest.raises(UsageError, match="at least 1 byte, got 0"):
        download("whole", max_size=0, force=True)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "drip",
            r"is too slow after \d+ bytes: the file did not come \(60,000 bytes in 0\.3 s a.*; \d+ bytes are kept",
        ),
        ("dripchunk", "is too slow after 0 bytes: the file did not come"),
        ("dripheader", r"cannot fetch .*/dripheader/weights\.pt: the headers did not come in 0\.3 s"),
    ],
)
def test_an_answer_that_drips_is_given_up(
    download: Download, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 0.3)
    start = time.monotonic()
    with pytest.raises(FetchError, match=message):
        download(kind)
    assert time.monotonic() - start < 10
    assert "weights.pt" not in download.names


def test_a_download_that_is_fast_enough_is_not_ended(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 0.3)
    monkeypatch.setattr(module, "LEAST", 5)
    with pytest.raises(FetchError, match="sends more than 40 bytes"):  # which it reaches
        download("drip", max_size=40)


CONTENT = bytes(range(256)) * 8
VERSIONS = [CONTENT, CONTENT[::-1][:1500]]
CUTS = st.lists(st.one_of(st.none(), st.integers(0, len(CONTENT))), max_size=12)


@settings(max_examples=60)
@given(
    cuts=CUTS,
    changes_after=st.integers(0, 12),
    header=st.sampled_from(["ETag", "Last-Modified", "none"]),
    ranges=st.booleans(),
    sized=st.booleans(),
    lies=st.lists(st.sampled_from([None, 416, 503]), max_size=6),
)
def test_the_file_is_always_complete_or_absent(
    server: QuietServer, cuts: list[int | None], changes_after: int, header: str, ranges: bool, sized: bool,
    lies: list[int | None],
) -> None:  # fmt: skip
    tags = {"ETag": ['"one"', '"two"'], "Last-Modified": [f"Wed, 21 Oct 2015 07:2{i}:00 GMT" for i in range(2)]}
    headers = [{header: tag} for tag in tags[header]] if header in tags else [{}, {}]
    with tempfile.TemporaryDirectory() as folder:
        download, calls = Download(server, Path(folder)), 0
        replies = [None if status is None else (status, {}, b"") for status in lies]
        script = download.script(body=VERSIONS[0], headers=headers[0], ranges=ranges, sized=sized, replies=replies)
        script.cuts = cuts[:changes_after]
        while True:
            try:
                download()
                break
            except FetchError:
                assert download.names in (set(), KEPT)
                calls += 1
                assert calls < 40
                if not script.cuts and not script.replies:
                    script.body, script.headers, script.cuts = VERSIONS[1], headers[1], cuts[changes_after:]
                    changes_after = len(cuts)
        assert download.body == script.body
        assert download.names == WHOLE
