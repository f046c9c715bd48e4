"""JPEG files that are damaged inside are found, and whole ones never are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.errors import ImageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.decoder_messages import decoder_messages, jpeg_damage, listen_to_decoders
from deploykit.runtime.images.reading import decode_image, read_image

REFUSED = "is not a complete image, it is damaged: "


def photograph(size: tuple[int, int] = (200, 300)) -> Array:
    """Smooth shapes with a little noise: a few kilobytes as JPEG."""
    chance = np.random.default_rng(0)
    cells = cv2.resize(chance.integers(0, 256, (9, 12, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    noisy: Array = cv2.add(cells, chance.integers(0, 12, (*size, 3), np.uint8))
    return noisy


def jpeg(image: Array, **options: int) -> bytes:
    numbers = [n for name, value in options.items() for n in (getattr(cv2, f"IMWRITE_JPEG_{name.upper()}"), value)]
    done, data = cv2.imencode(".jpg", image, numbers)
    assert done
    return data.tobytes()


def flat(shade: int) -> Array:
    return np.full((203, 301, 3), shade, np.uint8)


def padded() -> Array:
    """A photograph on a grey canvas: the grey with which the decoder fills what is missing."""
    return np.vstack([photograph((96, 300)), np.full((105, 300, 3), 128, np.uint8)])


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("optimize", [0, 1])
@pytest.mark.parametrize("rst_interval", [0, 1, 4, 19])
@pytest.mark.parametrize("image", [photograph(), padded(), flat(128), flat(0), flat(255), photograph((5, 5))])
def test_a_whole_file_is_never_called_damaged(image: Array, progressive: int, optimize: int, rst_interval: int) -> None:
    for quality in (40, 95, 100):
        options = {"quality": quality, "progressive": progressive, "optimize": optimize, "rst_interval": rst_interval}
        for pixels in (image, image[..., 0]):
            assert decode_image(jpeg(pixels, **options)).shape == image.shape


def cut(data: bytes, share: float) -> bytes:
    """A file whose end is missing, with an end marker all the same."""
    return data[: int(len(data) * share)].rstrip(b"\xff") + b"\xff\xd9"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("options", [{}, {"optimize": 1}, {"quality": 40}, {"sampling_factor": 0x111111}])
def test_a_cut_file_with_an_end_marker_is_damaged(share: float, options: dict[str, int]) -> None:
    with pytest.raises(ImageError, match=REFUSED + r"its compressed data end early, so the image is grey from row \d+"):
        decode_image(cut(jpeg(photograph(), **options), share))
    with pytest.raises(ImageError, match="so the image is grey"):
        decode_image(cut(jpeg(padded(), **options), share / 4 + 0.2))


def test_restart_markers_that_are_missing_or_out_of_order_are_damage() -> None:
    data = jpeg(photograph(), rst_interval=4)
    with pytest.raises(ImageError, match=r"expected \d+ restart markers in order, found \d+"):
        decode_image(cut(data, 0.5))
    at = data.find(b"\xff\xd3")
    with pytest.raises(ImageError, match="or another order"):
        decode_image(data[:at] + b"\xff\xd6" + data[at + 2 :])


def test_one_segment_between_restart_markers_that_ends_early_is_damage() -> None:
    data = jpeg(photograph(), rst_interval=19)
    first, second = data.find(b"\xff\xd2"), data.find(b"\xff\xd3")
    with pytest.raises(ImageError, match="so the image is grey from row"):
        decode_image(data[: first + 2 + (second - first) // 3].rstrip(b"\xff") + data[second:])


def test_zero_bytes_are_damage_where_no_code_consists_of_zeros() -> None:
    data = bytearray(jpeg(photograph()))
    middle = len(data) // 2
    data[middle : middle + 128] = bytes(128)
    with pytest.raises(
        ImageError, match=r"a stretch of zero bytes at byte [\d,]+, which its Huffman codes cannot give"
    ):
        decode_image(bytes(data))


def test_a_marker_within_the_compressed_data_is_damage() -> None:
    data = bytearray(jpeg(photograph()))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\x41"
    with pytest.raises(ImageError, match=r"a marker that cannot be there at byte"):
        decode_image(bytes(data))


def test_a_progressive_file_whose_last_scans_are_missing_is_damaged() -> None:
    with pytest.raises(ImageError, match="its last scans are missing"):
        decode_image(cut(jpeg(photograph(), progressive=1), 0.3))


def test_the_messages_of_libjpeg_are_heard_and_those_of_others_pass(tmp_path: Path) -> None:
    """In a process of its own, because the error stream of the process is redirected while an image is decoded."""
    whole = jpeg(photograph(), quality=90, progressive=1)
    middle = len(whole) * 9 // 10
    (tmp_path / "damaged.jpg").write_bytes(whole[:middle] + bytes(300) + whole[middle + 300 :])
    code = f"""
import os, sys
from deploykit.errors import ImageError
from deploykit.runtime.images.decoder_messages import decoder_messages, listen_to_decoders
from deploykit.runtime.images.reading import read_image
with listen_to_decoders():
    try:
        read_image({str(tmp_path / "damaged.jpg")!r})
    except ImageError as e:
        print(e)
    with decoder_messages() as lines:
        os.write(2, b"another library\\n")
        os.write(2, b"deploykit: note: another thread is at b.JPEG\\n")
        os.write(2, b"Corrupt JPEG data: bad Huffman code\\n")
    print(lines)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    damaged, lines = done.stdout.splitlines()
    assert "libjpeg says: Corrupt JPEG data" in damaged or "libjpeg says: Premature end" in damaged
    assert lines == "['Corrupt JPEG data: bad Huffman code']"
    assert done.stderr == "another library\ndeploykit: note: another thread is at b.JPEG\n"


def test_nobody_listens_unless_the_program_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    data = cut(jpeg(photograph()), 0.5)
    with pytest.raises(ImageError, match="so the image is grey"):
        decode_image(data)
    assert "Corrupt JPEG data" in capfd.readouterr().err
    with listen_to_decoders(), listen_to_decoders(), pytest.raises(ImageError, match="so the image is grey"):
        decode_image(data)
    assert "Corrupt JPEG data" not in capfd.readouterr().err
    with decoder_messages() as lines:
        pass
    assert lines == []


@pytest.mark.parametrize(
    ("message", "damaged"),
    [
        ("Corrupt JPEG data: 2 extraneous bytes before marker 0xd9", False),  # padding that some cameras write
        ("Corrupt JPEG data: 59492 extraneous bytes before marker 0xd9", True),
        ("Corrupt JPEG data: premature end of data segment", True),
        ("Premature end of JPEG file", True),
        ("Unsupported JPEG process", False),
    ],
)
def test_a_few_bytes_before_a_marker_are_no_damage(message: str, damaged: bool) -> None:
    assert bool(jpeg_damage([message])) is damaged


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "said"),
    [("zeroed.jpg", "a stretch of zero bytes at byte 69,414"), ("trunc50eoi.jpg", "the image is grey from row 320")],
)
def test_damaged_photographs_are_refused(shared: Path, name: str, said: str) -> None:
    file = shared / "cases" / "runtime" / "corrupt" / name
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    with pytest.raises(ImageError, match=said):
        read_image(file)


@pytest.mark.data
def test_real_photographs_are_whole(shared: Path) -> None:
    folder = shared / "data" / "images"
    files: list[Any] = [f for f in sorted(folder.glob("*/*.jpg")) + sorted(folder.glob("*/*/*.jpg"))]
    assert len(files) > 50
    for file in files:
        assert read_image(file).ndim == 3


def test_a_file_with_very_many_scans_is_not_decoded() -> None:
    data = jpeg(photograph((16, 16)), progressive=1)
    last = data.rfind(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 500 scans"):
        decode_image(data[:last] + data[last:-2] * 600 + b"\xff\xd9")


def test_a_grey_file_that_is_kept_grey_is_looked_at_too() -> None:
    whole = jpeg(photograph()[..., 0])
    assert decode_image(whole, channels=None).shape == (200, 300)
    with pytest.raises(ImageError, match=f"{REFUSED}its compressed data end early, so the image is grey from row"):
        decode_image(cut(whole, 0.5), channels=None)
