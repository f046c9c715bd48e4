"""RAW images: reading files, packing channels and back, and written files that another program can open."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError, ImageError, NotFoundError, UsageError
from deploykit.runtime.evaluate.restored import mosaic_scores
from deploykit.runtime.images.headers.tiff import tiff_tags
from deploykit.runtime.images.reading import decode_image
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import RawImage, is_raw, pack, read_raw, unpack

PATTERNS = {"RGGB": (0, 1, 1, 2), "BGGR": (2, 1, 1, 0), "GRBG": (1, 0, 2, 1), "GBRG": (1, 2, 0, 1)}


def image(height: int = 6, width: int = 8, pattern: str = "RGGB", **changes: Any) -> RawImage:
    black = changes.pop("black", (60, 64, 66, 70))
    white = changes.pop("white", 1023)
    values = np.random.default_rng(height).integers(max(black), white + 1, (height, width)).astype(np.uint16)
    return RawImage(values, PATTERNS[pattern], black, white, **changes)


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), pattern=st.sampled_from(sorted(PATTERNS)),
    black=st.tuples(*[st.integers(0, 4000)] * 4), room=st.integers(1, 60_000),
)  # fmt: skip
@settings(max_examples=200)
def test_unpacking_inverts_packing(
    height: int, width: int, pattern: str, black: tuple[int, int, int, int], room: int
) -> None:
    raw = image(height, width, pattern, black=black, white=max(black) + room)
    planes = pack(raw)
    assert planes.shape == (4, -(-height // 2), -(-width // 2))
    assert planes.dtype == np.float32
    assert -1e-6 <= planes.min() <= planes.max() <= 1
    again = unpack(planes, raw)
    np.testing.assert_array_equal(again.mosaic, raw.mosaic)
    assert (again.pattern, again.black, again.white) == (raw.pattern, raw.black, raw.white)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_channels_are_red_green_green_and_blue(pattern: str) -> None:
    raw = image(4, 4, pattern, black=(0, 0, 0, 0), white=100)
    colours = np.resize(np.array(PATTERNS[pattern]).reshape(2, 2), (2, 2))
    mosaic = np.tile(colours, (2, 2)).astype(np.uint16) * 10
    red_row = int(np.argwhere(colours == 0)[0, 0])
    mosaic[red_row::2][mosaic[red_row::2] == 10] = 15  # the green beside red
    planes = pack(raw.with_mosaic(mosaic))
    np.testing.assert_allclose(planes[:, 0, 0], [0.0, 0.15, 0.1, 0.2], atol=1e-7)


def test_each_colour_has_its_own_black_level() -> None:
    raw = image(2, 2, "GRBG", black=(10, 20, 30, 40), white=110)
    planes = pack(raw.with_mosaic(np.array([[10, 20], [30, 40]], np.uint16)))
    np.testing.assert_array_equal(planes, np.zeros((4, 1, 1)))
    assert unpack(np.ones((4, 1, 1), np.float32), raw).mosaic.tolist() == [[110, 110], [110, 110]]


def test_values_are_clipped_to_the_levels() -> None:
    raw = image(2, 2, black=(10, 10, 10, 10), white=110)
    planes = np.array([-0.5, 0.5, 1.5, np.nan], np.float32)[:, None, None]
    assert unpack(planes, raw).mosaic.tolist() == [[10, 60], [110, 10]]
    with pytest.raises(UsageError, match=r"channels of \(4, 1, 1\), got \(4, 2, 1\)"):
        unpack(np.zeros((4, 2, 1), np.float32), raw)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mosaic": np.zeros((2, 2))}, "a mosaic must be uint16"),
        ({"mosaic": np.zeros((2, 2, 3), np.uint16)}, "a mosaic must be uint16"),
        ({"pattern": (0, 1, 2, 1)}, "two greens on one diagonal"),
        ({"pattern": (0, 0, 2, 2)}, "two greens on one diagonal"),
        ({"black": (0, 0, 0, 2000)}, "must be below the white level"),
    ],
)
def test_an_invalid_raw_image_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        replace(image(), **changes)


def test_scores_are_those_of_packed_channels() -> None:
    raw = image(40, 40)
    assert mosaic_scores(raw, raw) == {"PSNR": float("inf"), "SSIM": 1.0}
    other = unpack(pack(raw) + np.float32(0.1), raw)
    assert 19 < mosaic_scores(other, raw)["PSNR"] < 25
    with pytest.raises(DataError, match="differ in their pattern"):
        mosaic_scores(raw, replace(raw, white=raw.white + 1))


def opened(path: Path) -> Any:
    rawpy = pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    return rawpy.imread(str(path))


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_written_file_reads_back_unchanged(tmp_path: Path, pattern: str, size: tuple[int, int]) -> None:
    matrix = ((0.9, -0.2, -0.1), (-0.4, 1.2, 0.2), (-0.1, 0.2, 0.6))
    raw = image(*size, pattern, white_balance=(2.0, 1.0, 1.5), matrix=matrix, flip=6)
    path = tmp_path / "x.dng"
    path.write_bytes(dng_bytes(raw))
    opened(path).close()
    again = read_raw(path)
    np.testing.assert_array_equal(again.mosaic, raw.mosaic)
    assert (again.pattern, again.black, again.white, again.flip) == (raw.pattern, raw.black, raw.white, 6)
    assert again.letters == pattern
    found = np.array(again.white_balance)
    np.testing.assert_allclose(found / found[1], (2.0, 1.0, 1.5), rtol=1e-5)
    second = tmp_path / "y.dng"
    second.write_bytes(dng_bytes(again))  # LibRaw reports no matrix for a camera that it does not know
    kind, count, values = tiff_tags(second.read_bytes())[50721]
    assert (kind, count) == (10, 9)
    pairs = np.frombuffer(values, "<i4").reshape(9, 2)
    np.testing.assert_allclose(pairs[:, 0] / pairs[:, 1], np.ravel(matrix), atol=1e-6)
    np.testing.assert_array_equal(read_raw(second).mosaic, raw.mosaic)


def test_a_file_of_an_unknown_camera_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.dng"
    path.write_bytes(dng_bytes(image(64, 64)))
    with opened(path) as raw:
        assert raw.postprocess(use_camera_wb=False).shape == (64, 64, 3)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "pattern", "size", "black", "white"),
    [
        ("colorchart.dng", "RGGB", (1156, 1734), 2056, 15000),
        ("RAW_KODAK_DC50.KDC", "GRBG", (512, 768), 0, 16383),
    ],
)
def test_camera_files_survive_a_round_trip(
    shared: Path, tmp_path: Path, name: str, pattern: str, size: tuple[int, int], black: int, white: int
) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    raw = read_raw(shared / "data" / "images" / "raw" / name)
    assert (raw.letters, raw.mosaic.shape, set(raw.black), raw.white) == (pattern, size, {black}, white)
    path = tmp_path / "x.dng"
    path.write_bytes(dng_bytes(raw))
    again = read_raw(path)
    np.testing.assert_array_equal(again.mosaic, raw.mosaic)
    assert (again.pattern, again.black, again.white) == (raw.pattern, raw.black, raw.white)
    if name == "colorchart.dng":
        np.testing.assert_allclose(again.white_balance, raw.white_balance, rtol=1e-3)
        with opened(path) as ours, opened(shared / "data" / "images" / "raw" / name) as theirs:
            np.testing.assert_allclose(ours.color_matrix, theirs.color_matrix, atol=2e-3)


@pytest.mark.data
def test_a_file_without_its_pixels_is_refused(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    with pytest.raises(ImageError, match=r"declares 8,185,248 pixels but holds only 22 bytes of them"):
        read_raw(shared / "data" / "images" / "raw" / "DNG.dng")
    whole = dng_bytes(image(64, 64))
    (tmp_path / "x.dng").write_bytes(whole[:-8150])
    with pytest.raises(ImageError, match="declares 4,096 pixels but holds only 42 bytes"):
        read_raw(tmp_path / "x.dng")


def test_a_file_whose_colours_have_no_names_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One flipped byte in a camera's file gives more colour numbers than names, and LibRaw reads it all the same."""
    rawpy = pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    (tmp_path / "x.dng").write_bytes(dng_bytes(image(64, 64)))

    class Nameless:
        raw_image_visible = np.zeros((4, 4), np.uint16)
        raw_colors_visible = np.tile(np.array([[0, 1], [3, 2]], np.uint8), (2, 2))
        color_desc = b"RG"
        sizes = SimpleNamespace(raw_height=4, raw_width=4)

        def __enter__(self) -> Nameless:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(rawpy, "imread", lambda path: Nameless())
    with pytest.raises(ImageError, match=r"expected a Bayer pattern.*another one \(RG\)"):
        read_raw(tmp_path / "x.dng")


@pytest.mark.data
def test_one_changed_byte_of_a_camera_file_is_an_image_error(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    damaged = bytearray((shared / "data" / "images" / "raw" / "colorchart.dng").read_bytes())
    damaged[269] = 103
    (tmp_path / "x.dng").write_bytes(damaged)
    with pytest.raises(ImageError, match="expected a Bayer pattern"):
        read_raw(tmp_path / "x.dng")


def test_the_number_of_pixels_of_a_raw_file_is_bounded(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    (tmp_path / "x.dng").write_bytes(dng_bytes(image(64, 64)))
    assert read_raw(tmp_path / "x.dng", max_pixels=4096).mosaic.shape == (64, 64)
    with pytest.raises(ImageError, match=r"declares 4,096 pixels, more than the 4,095"):
        read_raw(tmp_path / "x.dng", max_pixels=4095)
    os.mkfifo(tmp_path / "pipe.dng")
    with pytest.raises(ImageError, match="is a pipe"):
        read_raw(tmp_path / "pipe.dng")


def test_files_that_libraw_cannot_read_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    path = tmp_path / "x.dng"
    path.write_bytes(b"II*\0" + bytes(200))
    with pytest.raises(ImageError, match="is not a RAW image that LibRaw can read"):
        read_raw(path)
    with pytest.raises(NotFoundError, match="a RAW image was expected"):
        read_raw(tmp_path / "y.dng")
    assert is_raw("A.DNG")
    assert not is_raw("a.jpg")


def tiff(order: str, entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """A TIFF with one directory; values of more than four bytes follow it."""
    mark = b"II" if order == "<" else b"MM"
    place = 10 + 12 * len(entries) + 4
    directory, behind = b"", b""
    for number, kind, count, data in entries:
        value = data.ljust(4, b"\0")
        if len(data) > 4:
            value = struct.pack(f"{order}I", place + len(behind))
            behind += data
        directory += struct.pack(f"{order}HHI", number, kind, count) + value
    return struct.pack(f"{order}2sHIH", mark, 42, 8, len(entries)) + directory + bytes(4) + behind


@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_are_read_in_either_byte_order(order: str) -> None:
    numbers = struct.pack(f"{order}4I", 1, 2, 3, 4)
    entries = [(272, 2, 6, b"model\0"), (258, 3, 1, struct.pack(f"{order}H", 16)), (50728, 5, 2, numbers)]
    assert tiff_tags(tiff(order, entries)) == {
        272: (2, 6, b"model\0"), 258: (3, 1, b"\x10\0"), 50728: (5, 2, struct.pack("<4I", 1, 2, 3, 4)),
    }  # fmt: skip


@given(st.binary(max_size=400), st.integers(0, 400))
@settings(max_examples=300)
def test_damaged_tags_are_skipped(noise: bytes, cut: int) -> None:
    whole = tiff("<", [(272, 2, 6, b"model\0"), (330, 4, 1, struct.pack("<I", 8)), (50728, 5, 1, bytes(8))])
    for data in (b"II*\0\x08\0\0\0" + noise, whole[:cut] + noise, noise):
        tags = tiff_tags(data)
        assert all(len(values) > 0 for _, _, values in tags.values())


def test_a_pattern_that_rawpy_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the tag of the pattern LibRaw makes one up, and it depends on its memory which one."""
    rawpy = pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    (tmp_path / "x.dng").write_bytes(dng_bytes(image(64, 64)))
    opened = rawpy.imread

    class Unknown:
        def __init__(self, path: str) -> None:
            self.inner = opened(path)
            self.sizes, self.raw_image_visible = self.inner.sizes, self.inner.raw_image_visible

        @property
        def raw_colors_visible(self) -> None:
            raise NotImplementedError("filters: 148")

        def __enter__(self) -> Unknown:
            return self

        def __exit__(self, *_: object) -> None:
            self.inner.close()

    monkeypatch.setattr(rawpy, "imread", Unknown)
    with pytest.raises(ImageError, match=r"a pattern that is not known \(filters: 148\)"):
        read_raw(tmp_path / "x.dng")


def test_bytes_of_a_camera_are_told_from_an_image() -> None:
    """OpenCV would find the thumbnail of some, on which a network would be run without a word."""
    within = tiff("<", [(330, 4, 1, struct.pack("<I", 32))])
    nef = within.ljust(32, b"\0") + struct.pack("<HHHIII", 1, 262, 3, 1, 32803, 0)
    box = b"\0\0\0\x18ftyp"
    for data in (dng_bytes(image(16, 16)), nef, b"FUJIFILMCCD-RAW 0201", b"IIU\0" + bytes(40), box + b"crx \0\0\0\1"):
        with pytest.raises(ImageError, match=r"it is a camera's RAW file, but a developed image is expected: convert"):
            decode_image(data, "it")
    with pytest.raises(ImageError, match=r"it is a HEIC image, which OpenCV does not read: convert it to JPEG or PNG"):
        decode_image(box + b"heic\0\0\0\0mif1heic", "it")
    done, plain = cv2.imencode(".tiff", np.zeros((9, 11, 3), np.uint8))
    assert done
    assert decode_image(plain.tobytes()).shape == (9, 11, 3)
