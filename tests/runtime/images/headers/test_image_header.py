"""Headers: size, orientation, bits, transparency and number of images, before a pixel is decoded."""

from __future__ import annotations

import io
import os
import resource
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.errors import ImageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.headers.image_header import ImageHeader, declared_size, read_header, size_at_once
from deploykit.runtime.images.headers.isobmff import avif_facts
from deploykit.runtime.images.headers.tiff import tiff_tags
from deploykit.runtime.images.reading import decode_image, encoded_image, read_image

CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[24:, 32:], CORNERS[:24, 32:] = (10, 10, 250), (10, 250, 10), (250, 10, 10)


def encoded(image: Array, suffix: str, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return data.tobytes()


def header(data: bytes) -> ImageHeader:
    found = read_header(data)
    assert found is not None
    return found


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one black byte, whatever it declares."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    packed = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png", ".ppm", ".sr", ".tiff", ".webp"])
@pytest.mark.parametrize("size", [(7, 9), (300, 2)])
def test_the_size_is_the_decoded_images(suffix: str, size: tuple[int, int]) -> None:
    found = header(encoded(np.zeros((*size, 3), np.uint8), suffix))
    assert (found.size, found.orientation, found.bits, found.alpha, found.images) == (size, 1, 8, False, 1)


@pytest.mark.parametrize(
    ("data", "size", "bits"),
    [
        (encoded(np.zeros((4, 5, 3), np.float32), ".hdr"), (4, 5), 8),
        (encoded(np.zeros((4, 5, 3), np.uint16), ".png"), (4, 5), 16),
        (encoded(np.zeros((4, 5), np.uint16), ".pgm"), (4, 5), 16),
        (encoded(np.zeros((4, 5, 3), np.uint16), ".tiff"), (4, 5), 16),
        (b"P5 # a comment\n# and another\n5 4\n255\n", (4, 5), 8),
        (b"P7\nWIDTH 5\nHEIGHT 4\nDEPTH 4\nMAXVAL 65535\nTUPLTYPE RGB_ALPHA\nENDHDR\n", (4, 5), 16),
        (b"\0\0\0\x0cjP  \r\n\x87\n\xff\x4f\xff\x51" + struct.pack(">HH8IHB", 41, 0, 5, 4, *[0] * 6, 3, 7), (4, 5), 8),
        (b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", 2) + struct.pack("<HHQQ", 256, 4, 1, 5)
         + struct.pack("<HHQQQ", 257, 4, 1, 4, 0), (4, 5), 1),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 5, -4) + bytes(20), (4, 5), 8),
    ],
    ids=["hdr", "png 16", "pgm 16", "tiff 16", "pgm with comments", "pam", "jp2", "bigtiff", "bmp from the top"],
)  # fmt: skip
def test_headers_that_opencv_cannot_write_or_that_are_rare(data: bytes, size: tuple[int, int], bits: int) -> None:
    found = header(data)
    assert (found.size, found.bits) == (size, bits)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_once_and_can_be_left(form: str, orientation: int) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow (the extra eval) is not installed")
    from PIL import ImageOps

    exif, data = pillow.Exif(), io.BytesIO()
    exif[0x112] = orientation
    try:
        pillow.fromarray(CORNERS).save(data, form, exif=exif, quality=95)
    except (KeyError, OSError) as e:
        pytest.skip(f"this Pillow writes no {form}: {e}")
    assert header(data.getvalue()).orientation == orientation
    upright = np.asarray(ImageOps.exif_transpose(pillow.open(data)).convert("RGB"))[..., ::-1]
    try:
        turned, stored = decode_image(data.getvalue()), decode_image(data.getvalue(), turn=False)
    except ImageError as e:
        pytest.skip(f"this OpenCV reads no {form}: {e}")
    for found, expected in ((turned, upright), (stored, CORNERS[..., ::-1])):
        assert found.shape == expected.shape
        assert (np.abs(found.astype(int) - expected) > 60).mean() < 0.02  # but for the borders of a lossy format


def test_the_boxes_of_an_avif_say_how_it_is_turned() -> None:
    """Rotation and mirror as in Pillow's files, without any library of AVIF."""

    def box(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), name) + body

    def avif(*turns: bytes) -> bytes:
        properties = [box(b"ispe", bytes(4) + struct.pack(">II", 640, 480)), *turns]
        order = bytes((len(properties), *range(1, len(properties) + 1)))
        ipma = bytes(4) + struct.pack(">IH", 1, 7) + order
        iprp = box(b"iprp", box(b"ipco", b"".join(properties)) + box(b"ipma", ipma))
        meta = box(b"meta", bytes(4) + box(b"pitm", bytes(4) + struct.pack(">H", 7)) + iprp)
        return box(b"ftyp", b"avif\0\0\0\0mif1") + meta + box(b"mdat", b"x" * 9)

    cases: list[tuple[dict[bytes, int], int]] = [
        ({}, 1), ({b"irot": 3}, 6), ({b"irot": 1}, 8), ({b"irot": 2}, 3), ({b"imir": 1}, 2), ({b"imir": 0}, 4),
        ({b"irot": 1, b"imir": 0}, 5), ({b"irot": 3, b"imir": 0}, 7),
    ]  # fmt: skip
    for turns, orientation in cases:
        facts = avif_facts(avif(*(box(name, bytes((value,))) for name, value in turns.items())))
        assert facts is not None
        assert (facts.size, facts.orientation) == ((480, 640), orientation)
    assert avif_facts(box(b"ftyp", b"heic\0\0\0\0mif1")) is None
    assert read_header(avif()[:40]) is None
    assert read_header(box(b"ftyp", b"avif\0\0\0\0") + struct.pack(">I4s", 3, b"meta")) is None


@pytest.mark.parametrize(
    ("form", "count"), [("GIF", "3 images"), ("TIFF", "3 images"), ("WEBP", "3 images"), ("PNG", "3 images")]
)
def test_only_the_first_image_of_several_is_read_and_that_is_said(
    form: str, count: str, caplog: pytest.LogCaptureFixture
) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow (the extra eval) is not installed")
    frames, data = [pillow.fromarray(np.full((20, 30, 3), shade, np.uint8)) for shade in (40, 90, 140)], io.BytesIO()
    frames[0].save(data, form, save_all=True, append_images=frames[1:], lossless=True)
    assert header(data.getvalue()).images == 3
    try:
        found = decode_image(data.getvalue(), "many")
    except ImageError as e:
        pytest.skip(f"this OpenCV reads no animated {form}: {e}")
    assert abs(int(found.mean()) - 40) < 3
    assert f"many holds {count} (pages, or frames of an animation): only the first one is read" in caplog.messages


def test_transparency_is_said_where_it_is_dropped_and_only_there(caplog: pytest.LogCaptureFixture) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 4), dtype=np.uint8)
    for suffix, options in ((".png", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)), (".tiff", ())):
        caplog.clear()
        data = encoded(image, suffix, *options)
        assert np.array_equal(decode_image(data, suffix), cv2.imdecode(np.frombuffer(data, np.uint8), 1))
        assert [m for m in caplog.messages if f"{suffix} has an alpha channel, which is dropped" in m]
        caplog.clear()
        assert np.array_equal(decode_image(data, channels=4), cv2.imdecode(np.frombuffer(data, np.uint8), -1))
        assert not caplog.messages
    image[..., 3] = 255
    assert np.array_equal(decode_image(encoded(image, ".png")), image[..., :3])
    assert not caplog.messages  # nothing is lost


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_are_scaled_from_full_scale_with_any_number_of_channels(suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    values[0, 0] = 65535
    assert (decode_image(encoded(values[..., :3], suffix))[0, 0] == 255).all()
    assert np.array_equal(decode_image(encoded(values[..., :3], suffix)), values[..., :3] >> 8)
    assert np.array_equal(decode_image(encoded(values, suffix), channels=4), values >> 8)
    assert np.array_equal(decode_image(encoded(values[..., 0], suffix))[..., 1], values[..., 0] >> 8)


def test_12_bits_in_16_are_said_and_a_declared_full_scale_is_used(caplog: pytest.LogCaptureFixture) -> None:
    values = np.full((4, 5, 3), 4080, np.uint16)
    assert (decode_image(encoded(values, ".png"), "dark.png") == 15).all()
    (said,) = caplog.messages
    assert said.startswith("dark.png has 16 bits per channel, but no value above 4080 of 65535")
    assert said.endswith("if its values have 12 bits, multiply them by 16")
    caplog.clear()
    data = b"P5\n2 2\n4095\n" + np.array([4095, 2048, 0, 4095], ">u2").tobytes()
    assert decode_image(data)[..., 0].tolist() == [[255, 127], [0, 255]]
    assert not caplog.messages


@pytest.mark.parametrize("suffix", [".tiff", ".pfm"])
def test_floating_point_values_are_refused(suffix: str) -> None:
    with pytest.raises(ImageError, match="floating-point values, whose range would be a guess"):
        decode_image(encoded(np.full((4, 5, 3), 0.5, np.float32), suffix))


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    jpeg = bytearray(encoded(np.zeros((40, 60, 3), np.uint8), ".jpg"))
    at = jpeg.find(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 16_000, 65_000)
    gif = b"GIF89a" + struct.pack("<HHB", 10, 10, 0) + bytes(2) + b"," + struct.pack("<HHHHB", 0, 0, 65_000, 65_000, 0)
    lossless = b"RIFF\0\0\0\0WEBPVP8L" + struct.pack("<IBI", 5, 0x2F, 16_383 | 16_383 << 14) + b"\0"
    for data, size in (
        (bytes(jpeg), "65,000x16,000"),
        (png(60_000, 60_000), "60,000x60,000"),
        (gif, "65,000x65,000"),
        (b"P6\n99999 99999\n255\n", "99,999x99,999"),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 70_000, 70_000) + bytes(20), "70,000x70,000"),
        (b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIIHHIII", 256, 4, 1, 90_000, 257, 4, 1, 90_000, 0),
         "90,000x90,000"),
    ):  # fmt: skip
        (tmp_path / "bomb").write_bytes(data)
        with pytest.raises(ImageError, match=rf"bomb declares {size} pixels .* more than the 268,435,456"):
            read_image(tmp_path / "bomb")
    with pytest.raises(ImageError, match="16,384x16,384"):
        decode_image(lossless, max_pixels=2**28 - 1)
    image = encoded(np.zeros((40, 60, 3), np.uint8), ".png")
    assert decode_image(image, max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(ImageError, match=r"60x40 .* the 2,399 that are allowed"):
        decode_image(image, max_pixels=2399)
    with pytest.raises(ImageError, match="declares 0x5 pixels"):
        decode_image(png(0, 5))


def test_a_jpeg_that_is_too_small_for_its_blocks_is_not_decoded() -> None:
    jpeg = bytearray(encoded(np.zeros((40, 60, 3), np.uint8), ".jpg"))
    at = jpeg.find(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 8000, 8000)
    with pytest.raises(ImageError, match=r"bytes cannot hold 1,500,000 blocks"):
        decode_image(bytes(jpeg))


def test_a_chunk_that_is_longer_than_its_file_is_refused_before_opencv_takes_that_much_memory() -> None:
    data = bytearray(encoded(np.zeros((4, 5, 3), np.uint8), ".png"))
    at = data.find(b"IDAT")
    data[at - 4 : at] = struct.pack(">I", 0xF0000000)
    assert read_header(bytes(data)) is None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="not a complete image"):
        decode_image(bytes(data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # kB


def test_what_is_no_file_or_too_large_a_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with pytest.raises(ImageError, match=r"pipe\.jpg is a pipe"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"zero\.jpg is a device"):
        read_image(tmp_path / "zero.jpg")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match=r"sparse\.png has 1099511\.6 MB, more than an image of 268,435,456 pixels"):
        encoded_image(tmp_path / "sparse.png")


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png", ".ppm", ".tiff", ".webp", ".hdr"])
def test_no_beginning_of_a_file_is_more_than_an_image_error(suffix: str) -> None:
    image: Any = np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    whole = encoded(image.astype(np.float32) if suffix == ".hdr" else image, suffix)
    chance = np.random.default_rng(2)
    for length in range(0, len(whole), max(1, len(whole) // 97)):
        damaged = bytearray(whole[: max(length, 16)])
        damaged[int(chance.integers(len(damaged)))] ^= int(chance.integers(1, 256))
        for data in (whole[:length], bytes(damaged)):
            try:
                decode_image(data, max_pixels=2**20)
            except ImageError:
                continue


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png", ".webp"])
def test_the_size_alone_is_that_of_the_header_for_any_beginning_of_a_file_and_any_wrong_byte(suffix: str) -> None:
    chance = np.random.default_rng(3)
    whole = encoded(chance.integers(0, 256, (9, 11, 3), dtype=np.uint8), suffix)
    assert declared_size(whole) == (9, 11)
    for length in range(0, len(whole), max(1, len(whole) // 97)):
        damaged = bytearray(whole)
        damaged[int(chance.integers(min(len(damaged), 700)))] ^= int(chance.integers(1, 256))
        for data in (whole[:length], bytes(damaged)):
            found = read_header(data)
            assert declared_size(data) == (None if found is None else found.size)


def test_the_size_of_a_jpeg_is_known_at_once_unless_much_is_before_it() -> None:
    whole = encoded(np.zeros((9, 11, 3), np.uint8), ".jpg")
    assert size_at_once(whole) == declared_size(whole) == (9, 11)
    behind = whole[:2] + b"\xff\xfe\x00\x02" * 2000 + whole[2:]
    assert size_at_once(behind) is None
    assert declared_size(behind) == (9, 11)
    assert size_at_once(encoded(np.zeros((9, 11, 3), np.uint8), ".png")) is None


def test_tags_that_name_the_same_bytes_take_no_more_memory_than_the_file() -> None:
    """Of a megabyte they would make a gigabyte, before any limit is asked."""
    size, tags, pages = 1 << 18, 1000, 20
    length = 6 + 12 * tags
    end = 8 + pages * length
    own = b"".join(struct.pack("<HHII", 300 + i, 1, size, end) for i in range(tags))
    chain = (struct.pack("<H", tags) + own + struct.pack("<I", 8 + i * length) for i in range(1, pages))
    data = b"II*\0\x08\0\0\0" + b"".join(chain) + struct.pack("<H", tags) + own + bytes(4 + size)
    png = encoded(np.zeros((9, 11, 3), np.uint8), ".png")
    exif = png[:33] + struct.pack(">I4s", len(data), b"eXIf") + data + bytes(4) + png[33:]
    tracemalloc.start()
    try:
        for found, images in ((header(data), pages), (header(exif), 1)):
            assert found.images == images
        assert len(tiff_tags(data)) < tags
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()
