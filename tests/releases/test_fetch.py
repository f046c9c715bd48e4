"""Downloads from a local server that behaves well, badly, or does not answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import CheckpointError, DiskFullError, FetchError, NotFoundError, OutputError, UsageError
from deploykit.releases import download as download_module
from deploykit.releases import table as releases
from deploykit.releases.fetch import RELEASED, Fetched, fetch
from tests.narrow_free import group_of
from tests.releases.web_server import BODY, serving

SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "yolov7-tiny"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as web:
        yield web.address


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSES", (0.0,) * 4)


@dataclass
class Download:
    """``fetch`` of one kind of answer into a folder, and the content of the folder afterwards."""

    server: str
    folder: Path

    def __call__(self, kind: str, **options: Any) -> Fetched:
        return fetch(NAME, url=f"{self.server}/{kind}/weights.pt", out=self.folder / "weights.pt", **options)

    @property
    def files(self) -> dict[str, bytes]:
        """All files except the record, which is tested by itself."""
        return {p.name: p.read_bytes() for p in self.folder.iterdir() if p != self.record_path}

    @property
    def record_path(self) -> Path:
        return self.folder / "weights.pt.source.json"

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record_path.read_text())
        return found


@pytest.fixture
def download(server: str, tmp_path: Path) -> Download:
    return Download(server, tmp_path)


@pytest.mark.parametrize("kind", ["whole", "unsized", "chunked", "moved", "misnumbered"])
def test_a_file_arrives_complete(kind: str, download: Download) -> None:
    got = download(kind, sha256=SHA256.upper())
    assert (got.path, got.size, got.sha256) == (download.folder / "weights.pt", len(BODY), SHA256)
    assert got.url == f"{download.server}/{kind}/weights.pt"
    assert "GPL-3.0" in got.licence
    assert download.files == {"weights.pt": BODY}


def test_a_record_says_where_the_file_came_from(download: Download) -> None:
    download("moved")
    assert download.record == {
        "name": NAME,
        "asked": f"{download.server}/moved/weights.pt",
        "final": f"{download.server}/whole/other-name.pt",  # without the signature
        "size": len(BODY),
        "sha256": SHA256,
        "sha256_compared_with": "nothing",
        "licence": RELEASED[NAME].licence,
    }
    download("moved", sha256=SHA256, force=True)
    assert download.record["sha256_compared_with"] == "given"


def test_an_existing_file_is_not_downloaded_again(download: Download) -> None:
    first = download("whole")
    progress: list[int] = []
    again = download("whole", on_bytes=lambda done, _: progress.append(done), sha256=SHA256)
    assert (again.already_there, first.already_there, progress) == (True, False, [])
    assert dataclasses.replace(again, already_there=False, checked="nothing") == first
    with pytest.raises(FetchError, match=rf"weights.pt has SHA-256 {SHA256}, expected 0+: pass --force"):
        download("whole", sha256="0" * 64)
    assert download("whole", force=True, on_bytes=lambda done, _: progress.append(done)).already_there is False
    assert progress[-1] == len(BODY)


def test_a_link_or_a_pipe_is_not_replaced(download: Download, tmp_path: Path) -> None:
    place = download.folder / "weights.pt"
    place.symlink_to("elsewhere.pt")
    with pytest.raises(OutputError, match=r"weights\.pt: it is a link to elsewhere\.pt; give that path"):
        download("whole", force=True)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(OutputError, match=r"weights\.pt: it is a pipe; choose another path"):
        download("whole", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]
    assert place.is_fifo()


def test_an_unknown_file_is_replaced_only_by_force(download: Download) -> None:
    mine = download.folder / "weights.pt"
    mine.write_bytes(b"trained for weeks")
    with pytest.raises(OutputError, match=r"exists, but no weights\.pt\.source\.json says .*: choose another --out"):
        download("whole")
    for damaged in (b"", b"[]", b"\xff"):
        download.record_path.write_bytes(damaged)
        with pytest.raises(OutputError, match="says where it came from"):
            download("whole")
    assert mine.read_bytes() == b"trained for weeks"
    download("whole", force=True)
    with pytest.raises(
        OutputError, match=r"exists, but it came from .*/whole/weights\.pt, not from .*/chunked/weights\.pt: "
    ):
        download("chunked")
    mine.write_bytes(b"trained on")
    with pytest.raises(OutputError, match=r"does not match weights\.pt\.source\.json: .* pass --force"):
        download("whole")
    download("whole", force=True)
    assert download.files == {"weights.pt": BODY}


def test_the_publishers_digest_is_compared_where_there_is_one(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = (dataclasses.replace(RELEASED[NAME], sha256=digest) for digest in (SHA256, "0" * 64))
    monkeypatch.setitem(RELEASED, NAME, right)
    assert download("whole").checked == download.record["sha256_compared_with"] == "publisher"
    assert download("whole", sha256=SHA256, force=True).checked == "given"
    monkeypatch.setitem(RELEASED, NAME, wrong)
    with pytest.raises(FetchError, match=f"has SHA-256 {SHA256}, expected 0+: the file was not kept"):
        download("whole", force=True)
    assert download.files == {"weights.pt": BODY}


@pytest.mark.parametrize(("size", "digest", "which"), [(0, "", "neither"), (len(BODY), SHA256[:12], "one")])
def test_two_files_with_one_name_are_told_apart_but_not_judged(
    size: int, digest: str, which: str, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = releases.CIRCULATING["yolov7-w6-pose"]
    monkeypatch.setitem(releases.CIRCULATING, "yolov7-w6-pose", ((size, digest), known[1]) if size else known)
    address, out = f"{download.server}/whole/weights.pt", download.folder / "weights.pt"
    for _ in range(2):  # the second time it is there already
        note = fetch("yolov7_w6_pose", url=address, out=out).note
        assert note.startswith(f"it is {which} of the two files that circulate under this name")
        assert "161,114,789 bytes with SHA-256 8394a97f5a52..." in note
        assert note.endswith("the right one is unknown")
    assert download("whole").note == ""


def test_a_file_that_the_reader_refuses_is_not_kept(download: Download) -> None:
    seen = []

    def look(path: Path) -> None:
        seen.append(path.read_bytes())
        raise CheckpointError(f"{path}: it is a poem")

    with pytest.raises(CheckpointError) as refused:
        download("whole", look=look)
    assert str(refused.value) == f"{download.server}/whole/weights.pt was downloaded but not kept: it is a poem"
    assert seen == [BODY]
    assert list(download.folder.iterdir()) == []


FAILURES: dict[str, str] = {
    "missing": r"/missing/weights.pt answered 404 .*; check the address",
    "angry": "answered 503",
    "short": "broke off",
    "brokenchunks": "broke off",
    "stalled": "timed out",
    "silent": "timed out",
    "garbage": "I am not a web server",
    "circle": "infinite loop",
    "tofile": "answered 302 .* is not allowed",
    "page": "sent a web page instead of a checkpoint; it was not kept",
    "empty": "sent nothing instead of a checkpoint; it was not kept",
    "compressed": r"sends the file compressed \(gzip\); pass another --url",
    "coloured": r"answered 404 \[31mNo; check",
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_download_leaves_the_old_file(kind: str, download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT", 0.1)
    (download.folder / "weights.pt").write_bytes(b"old")
    with pytest.raises(FetchError, match=FAILURES[kind]) as failed:
        download(kind, force=True)
    assert download.server in str(failed.value)
    assert str(failed.value).isprintable()
    assert download.files == {"weights.pt": b"old"}


def test_the_error_for_a_broken_download_counts_the_bytes(download: Download) -> None:
    with pytest.raises(FetchError, match=f"broke off after {len(BODY):,} of {len(BODY) + 1000:,} bytes"):
        download("short")
    assert download.files == {}


def test_another_hash_is_refused(download: Download) -> None:
    (download.folder / "weights.pt").write_bytes(b"old")
    with pytest.raises(FetchError, match=f"has SHA-256 {SHA256}, expected {'0' * 64}: the file was not kept"):
        download("whole", sha256="0" * 64, force=True)
    assert download.files == {"weights.pt": b"old"}


def test_an_unreachable_server_is_reported(download: Download) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        download.server = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FetchError, match=r"cannot fetch .*refused.*; check the network, or pass a mirror"):
            download("whole")
    assert download.files == {}


@pytest.mark.parametrize(("kind", "total"), [("whole", len(BODY)), ("unsized", None), ("chunked", None)])
def test_progress_only_grows_and_ends_with_the_size(kind: str, total: int | None, download: Download) -> None:
    progress: list[tuple[int, int | None]] = []
    download(kind, on_bytes=lambda done, of: progress.append((done, of)))
    done = [d for d, _ in progress]
    assert len(done) > 1
    assert done == sorted(set(done))
    assert done[-1] == len(BODY)
    assert {of for _, of in progress} == {total}


def test_the_default_file_name_comes_from_the_address(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch(NAME, url=f"{server}/whole/a%20b.pt?token=x/y").path == Path("a%20b.pt")
    assert fetch("yolov7_tiny", url=f"{server}/whole/").path == Path("whole")
    assert fetch(NAME, out="sub/folder/mine.pt", url=f"{server}/whole/a.pt").path == Path("sub/folder/mine.pt")
    assert (tmp_path / "sub" / "folder" / "mine.pt").read_bytes() == BODY


def test_an_unknown_name_brings_the_closest_ones(download: Download) -> None:
    with pytest.raises(NotFoundError, match=r"named 'yolov9': did you mean yolov9t or .*\? deploykit fetch --list"):
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
def test_an_invalid_address_is_refused(address: str, download: Download) -> None:
    with pytest.raises(UsageError, match="must be an http or https address") as refused:
        fetch(NAME, url=address, out=download.folder / "x.pt")
    assert address in str(refused.value)
    assert download.files == {}


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "name with spaces"])
def test_an_impossible_host_is_an_unreachable_one(host: str, download: Download) -> None:
    with pytest.raises(FetchError, match="cannot fetch"):
        fetch(NAME, url=f"http://{host}/x.pt", out=download.folder / "x.pt")
    assert download.files == {}


@pytest.mark.parametrize("digest", ["", "abc", SHA256 + "0"])
def test_a_hash_of_another_length_is_refused_before_anything_is_fetched(digest: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"64 hexadecimal digits, got {len(digest)}"):
        fetch(NAME, url="http://127.0.0.1:1/x.pt", out=tmp_path / "x.pt", sha256=digest)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; name the file in it with --out"):
        fetch(NAME, url="http://127.0.0.1:1/x.pt", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_reported_as_a_network_problem(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    (download.folder / "weights.pt").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"cannot write .*weights\.pt: File too large"):
            download("whole", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert download.files == {"weights.pt": b"old"}


def test_ctrl_c_leaves_only_what_can_be_continued(download: Download) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    stop: Callable[..., None] = interrupt
    with pytest.raises(KeyboardInterrupt):
        download("whole", on_bytes=stop)
    assert download.files == {}


def test_every_release_has_an_https_address_and_a_licence() -> None:
    assert len({release.url for release in RELEASED.values()}) == len(RELEASED)
    for name, release in RELEASED.items():
        base, _, tag = name.partition("@")
        assert release.url.startswith("https://github.com/")
        called = {"yolox-tiny@0.0.1": "yolox-tiny-32dot8", "yolox-darknet53": "yolox-darknet"}.get(name, base)
        assert release.url.replace("_", "-").removesuffix("h").endswith(f"/{called}.pt")
        assert release.what
        assert ("Apache-2.0" if base.startswith("yolox") else "GPL-3.0") in release.licence
        if base.startswith("yolox"):
            assert f"/{tag or '0.1.1rc0'}/" in release.url
            assert ("--preprocessing legacy" in release.what) == bool(tag)
        package = "/ultralytics/assets/" in release.url
        if base.startswith("yolov5") and not package:
            assert f"/{tag or 'v7.0'}/" in release.url
        assert package == release.licence.endswith("by Ultralytics under AGPL-3.0") == ("AGPL-3.0" in release.notice)


def test_files_of_the_ultralytics_package_are_those_of_its_assets() -> None:
    ours = {name: release for name, release in RELEASED.items() if "/ultralytics/assets/" in release.url}
    assert set(ours) <= set(group_of())
    assets = "https://github.com/ultralytics/assets/releases/download"
    assert ours["yolo11n-pose"].url == f"{assets}/v8.3.0/yolo11n-pose.pt"
    assert ours["yolo26n-seg"].url == f"{assets}/v8.4.0/yolo26n-seg.pt"
    assert ours["yolo11n-pose"].what == "COCO persons with 17 keypoints"
    assert all(release.built and release.sha256 is None for release in ours.values())
    task = {"-seg": "segmentation", "-pose": "keypoints", "-obb": "oriented", "-cls": "classifier"}
    assert all(word in release.what for name, release in ours.items() for end, word in task.items() if end in name)


@pytest.mark.parametrize("name", ["yolo11n-pose", NAME])
def test_the_licence_is_said_before_the_download_where_it_has_a_notice(
    name: str, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [f"{name}: {RELEASED[name].notice}"] if name == "yolo11n-pose" else []
    heard: list[list[str]] = []
    got = fetch(
        name, url=f"{server}/whole/weights.pt", out=tmp_path / "m.pt",
        on_bytes=lambda done, total: heard.append(list(caplog.messages)),
    )  # fmt: skip
    assert heard[0] == expected
    assert ("AGPL-3.0" in got.licence) == bool(expected)
    fetch(name, url=f"{server}/whole/weights.pt", out=tmp_path / "m.pt")  # it is there: nothing is downloaded
    assert caplog.messages == expected


def test_models_that_can_be_built_by_name_can_be_fetched() -> None:
    from deploykit.models.registry import list_models

    assert {name for name in list_models() if name.startswith("yolov7")} <= {n for n, r in RELEASED.items() if r.built}
