"""Images and videos at addresses of a local server, and what goes wrong with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit.errors import DeployError, FetchError, ImageError, NotFoundError, UsageError
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.sources import web
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.opening import kind_of, open_sources
from deploykit.runtime.sources.video import Video
from deploykit.runtime.sources.web import fetch_image
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.runtime.sources.camera_server import Server, frame, jpeg, number_of


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a b.jpg").write_bytes(jpeg(3))
    (tmp_path / "www" / "image").write_bytes(jpeg(4))
    with Server(tmp_path / "www") as running:
        yield running


def test_an_image_at_an_address_is_read_and_named_without_its_query(server: Server) -> None:
    address = server.address("file/a b.jpg?token=secret&n=1")
    (source,) = open_sources(address)
    (found,) = source.frames()
    assert found.name == server.address("file/a b.jpg")
    assert number_of(found.image) == 3
    assert found.keep
    assert server.requests[-1][0] == "/file/a%20b.jpg?token=secret&n=1"
    assert "secret" not in repr(source)


def test_without_a_suffix_the_first_bytes_decide(server: Server, tmp_path: Path) -> None:
    with Mp4Writer(server.folder / "film.mp4", 25) as recorder:
        for number in range(5):
            recorder.write(frame(number))
    assert open_sources(server.address("file/film.mp4"))[0].total == 5
    (server.folder / "film.mp4").rename(server.folder / "film")
    image, film = (open_sources(server.address(f"file/{name}"))[0] for name in ("image", "film"))
    assert isinstance(image, Images)
    assert [number_of(found.image) for found in image.frames()] == [4]
    assert isinstance(film, Video)
    assert (film.live, film.total) == (False, 5)
    assert [number_of(found.image) for found in film.frames()] == list(range(5))


def test_a_call_and_a_list_take_addresses(server: Server, tmp_path: Path) -> None:
    with deploykit.load(write_cell_model(tmp_path / "m.onnx", spec=cell_spec())) as model:
        assert model(server.address("file/image")).size == (48, 64)
        both = model([server.address("file/image?n=1"), server.address("file/image?n=2"), planted((1, 1, RED))])
        assert [found.name for found in both] == [
            server.address("file/image"),
            server.address("file/image#2"),
            "image2",
        ]
        assert both[0].draw().shape == (48, 64, 3)  # which cannot be read again without its query
        with pytest.raises(UsageError, match="is a video"):
            model(server.address("file/film.mp4"))
        (server.folder / "list.txt").write_text(f"{server.address('file/image')}\na b.jpg\n")
        streamed = list(model.stream(server.folder / "list.txt"))
        assert [Path(found.name).name for found in streamed] == ["image", "a b.jpg"]


def test_a_user_and_a_password_are_sent_and_never_shown(server: Server) -> None:
    address = server.address("private/a.jpg", user="anna:p%40ss@")
    (found,) = open_sources(address)[0].frames()
    assert found.name == server.address("private/a.jpg")
    with pytest.raises(FetchError, match=r"answered 401 Unauthorized: give https://user:password@") as refused:
        list(open_sources(server.address("private/a.jpg", user="anna:wrong@"))[0].frames())
    assert "anna" not in str(refused.value)
    assert "wrong" not in str(refused.value)
    server.target = server.address("file/image")  # on another path: the password is for the address that was given
    assert fetch_image(Address(server.address("moved", user="anna:p%40ss@"))) == jpeg(4)
    assert "Authorization" in server.requests[-2][1]
    assert "Authorization" not in server.requests[-1][1]


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("missing/a.jpg", NotFoundError, r"nothing is at http://.*/missing/a\.jpg \(404 Not Found\)"),
        ("cut/a.jpg", FetchError, r"broke off after 300 of 5,000 bytes"),
        ("large/a.jpg", FetchError, r"sends more than 268\.4 MB"),
        ("endless/a.jpg", FetchError, r"sends more than 1\.0 MB"),
        ("page/a.jpg", ImageError, r"but it is a web page: check the address"),
        ("mjpeg/a.jpg", ImageError, r"but it is a stream: iterate over model\.stream"),
        ("error/a.jpg", FetchError, r"answered 503 Service Unavailable"),
        ("stalled/a.jpg", FetchError, r"broke off after 0 bytes: timed out"),
    ],
)
def test_what_goes_wrong_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(web, "QUIET", 0.5)
    if path.startswith("endless"):
        monkeypatch.setattr(web, "LARGEST_IMAGE", 1_000_000)
    (source,) = open_sources(server.address(path))
    start = time.monotonic()
    with pytest.raises(error, match=said):
        list(source.frames())
    assert time.monotonic() - start < 5
    skipped: list[DeployError] = []
    assert list(source.frames(skipped.append)) == []
    assert len(skipped) == 1


def test_a_file_that_is_no_image_is_a_decoding_error(server: Server) -> None:
    (server.folder / "text.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.jpg is not a complete image that OpenCV can read"):
        list(open_sources(server.address("file/text.jpg"))[0].frames())


def test_an_answer_that_takes_too_long_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LONGEST_IMAGE", 0.0)
    with pytest.raises(FetchError, match="took longer than 0 s"):
        fetch_image(Address(server.address("file/image")))


def test_a_redirect_leads_only_to_the_web(server: Server) -> None:
    server.target = server.address("file/image")
    assert fetch_image(Address(server.address("moved"))) == jpeg(4)
    server.target = "file:///etc/passwd?key=1"
    with pytest.raises(FetchError, match=r"redirects to what is neither http nor https") as refused:
        fetch_image(Address(server.address("moved?key=2")))
    assert "key" not in str(refused.value)


def test_a_server_that_is_not_there_is_an_error(server: Server) -> None:
    address = Address(server.address("file/image", user="anna:secret@"))
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match=r"cannot fetch http://127\.0\.0\.1:\d+/file/image: .*refused"):
        fetch_image(address)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("https://host/a.JPG?x=1", "image"),
        ("https://host/a", "image"),
        ("HTTP://host/a.mp4", "video"),
        ("https://host/live/index.m3u8", "stream"),
        ("rtsp://user:p@host:554/a.mp4", "stream"),
        ("rtmp://host/app", "stream"),
    ],
)
def test_the_kind_of_an_address_follows_from_its_scheme_and_suffix(address: str, kind: str) -> None:
    assert kind_of(address) == kind


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://user:secret@host/a.jpg", r"must begin with http://, https://, rtsp://, rtmp://, but ftp://host/a\.jpg"),
        ("http:///a.jpg", "has no host"),
        ("http://host:99999/a.jpg", "Port out of range"),
        ("file:///etc/passwd", "give a file by its path"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        open_sources(address)
    assert "secret" not in str(refused.value)


def test_names_of_addresses_hold_no_secret() -> None:
    found = Address("rtsp://admin:p%40:ss@10.0.0.7:554/ch1?user=admin&password=x#y")
    assert found.name == "rtsp://10.0.0.7:554/ch1"
    assert repr(found) == "Address(name='rtsp://10.0.0.7:554/ch1')"


def test_an_image_of_an_address_is_that_of_its_file(server: Server) -> None:
    (found,) = open_sources(server.address("file/image"))[0].frames()
    assert np.array_equal(found.image, next(Images((server.folder / "image",)).frames()).image)
