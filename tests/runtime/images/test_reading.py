"""Images from files, encoded bytes and arrays."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.errors import ImageError, NotFoundError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.pixels import as_bgr
from deploykit.runtime.images.reading import decode_image, read_image


def _image(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encoded(image: Array, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_a_file_whose_name_is_not_ascii_is_read(tmp_path: Path) -> None:
    image = _image(20, 30)
    path = tmp_path / "Zürich 写真.png"
    path.write_bytes(_encoded(image))
    assert np.array_equal(read_image(path), image)
    assert np.array_equal(read_image(str(path)), image)
    assert np.array_equal(read_image(path.read_bytes()), image)


def test_exif_orientation_turns_the_image_upright() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = 255  # the left half is white
    plain = _encoded(image, ".jpg")
    turn_clockwise = 6
    tiff = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, turn_clockwise) + b"\0" * 4
    exif = b"Exif\0\0" + tiff
    turned = decode_image(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    assert turned.shape == (60, 40, 3)
    assert turned[:25].min() > 200
    assert turned[35:].max() < 50


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((4, 5), 100, np.uint8), 100),
        (np.full((4, 5, 3), 100, np.uint8), 100),
        (np.full((4, 5, 4), 100, np.uint8), 100),
        (np.full((4, 5, 3), 100 * 256 + 7, np.uint16), 100),
    ],
    ids=["grey", "colour", "alpha", "16 bits"],
)
def test_every_kind_of_png_becomes_8_bit_bgr(image: Array, expected: int) -> None:
    decoded = decode_image(_encoded(image))
    assert (decoded.shape, decoded.dtype) == ((4, 5, 3), np.uint8)
    assert (decoded == expected).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_uint8_arrays_of_every_supported_shape_become_bgr(shape: tuple[int, ...]) -> None:
    assert np.array_equal(as_bgr(np.full(shape, 9, np.uint8)), np.full((4, 5, 3), 9, np.uint8))


def test_a_slice_of_an_array_becomes_contiguous() -> None:
    image = _image(8, 9)
    turned = as_bgr(image[::-1, ::2])
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, image[::-1, ::2])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), r"uint8.*float32: scale it.*255 \* image.*BGR order"),
        (np.zeros((4, 5, 3), np.uint16), "uint8.*uint16"),
        (np.zeros((1, 3, 4, 5), np.uint8), r"\(1, 3, 4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
    ],
)
def test_an_array_that_is_not_a_bgr_image_is_refused_and_described(array: Array, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        as_bgr(array)


def test_bytes_that_are_not_a_complete_image_are_refused() -> None:
    for suffix in (".png", ".jpg"):
        whole = _encoded(_image(90, 120), suffix)
        with pytest.raises(ImageError, match="not a complete image"):
            decode_image(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"11 bytes, starting 68 65 6c 6c"):
        decode_image(b"hello world")
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"")


def test_a_truncated_jpeg_is_refused_even_with_a_complete_thumbnail_inside() -> None:
    thumbnail = _encoded(_image(8, 8), ".jpg")
    plain = _encoded(_image(90, 120), ".jpg")
    whole = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + plain[2:]
    assert decode_image(whole + b"what some cameras append").shape == (90, 120, 3)
    with pytest.raises(ImageError, match="not a complete image"):
        decode_image(whole[:-2])


def test_the_error_for_an_unreadable_file_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "people.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"people\.jpg is empty"):
        read_image(tmp_path / "people.jpg")
    with pytest.raises(NotFoundError, match=r"did you mean people\.jpg"):
        read_image(tmp_path / "peple.jpg")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="or a BGR array, got int"):
        read_image(5)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="null byte"):
        read_image("a\0.jpg")
    (tmp_path / "shot.NEF").write_bytes(b"II*\0")
    with pytest.raises(ImageError, match="RAW file"):
        read_image(tmp_path / "shot.NEF")


@pytest.mark.parametrize("suffix", [".hdr", ".tiff"])
def test_values_that_are_no_grey_levels_are_refused_however_they_are_asked_for(suffix: str) -> None:
    data = _encoded(np.full((4, 5, 3), 0.5, np.float32), suffix)
    with pytest.raises(ImageError, match=r"floating-point values|values of type float32"):
        decode_image(data, channels=None)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tiff", ".webp"])
def test_a_bomb_is_refused_by_its_header_and_no_pixel_is_decoded(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(_encoded(_image(20, 30), suffix))
    side = 60_000
    if suffix == ".jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif suffix == ".png":
        data[16:24] = struct.pack(">II", side, side)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<ii", side, side)
    elif suffix == ".webp":
        at = data.index(b"VP8L") + 9 if b"VP8L" in data else data.index(b"\x9d\x01\x2a") + 3
        data[at : at + 4] = struct.pack("<HH", 0x3FFF, 0x3FFF) if b"VP8L" not in data else struct.pack("<I", 0xFFFFFFF)
    else:
        (start,) = struct.unpack("<I", data[4:8])
        (count,) = struct.unpack("<H", data[start : start + 2])
        for at in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack("<H", data[at : at + 2])[0] in (256, 257):
                data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"declares .* pixels .*, more than the 100,000,000"):
        decode_image(bytes(data), max_pixels=100_000_000)
