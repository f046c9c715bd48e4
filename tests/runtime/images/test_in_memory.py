"""Images of Pillow, torch and open files: the same pixels as the file gives."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.errors import ImageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.in_memory import is_image, name_of, read_any_image
from deploykit.runtime.images.reading import read_image


def _image(height: int, width: int, channels: int = 3) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def pillow() -> Any:
    return pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


BGRA = _image(20, 30, 4)
PNGS = {
    "RGB": BGRA[..., :3].copy(),
    "RGBA": BGRA,
    "L": BGRA[..., 0].copy(),
    "I;16": (BGRA[..., 0].astype(np.uint16) << 8) + 7,
}


@pytest.mark.parametrize("mode", PNGS)
def test_a_pillow_image_gives_what_its_file_gives(pillow: Any, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), PNGS[mode])
    with pillow.open(file) as image:
        assert image.mode == mode
        assert np.array_equal(read_any_image(image), read_image(file))


@pytest.mark.parametrize("mode", ["1", "P", "PA", "LA", "La", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_a_pillow_image_of_any_mode_is_converted(pillow: Any, mode: str) -> None:
    rgb = np.full((8, 9, 3), (200, 40, 90), np.uint8)
    rgb[:, 4:] = 255
    steps = {"PA": "P", "La": "LA", "LA": "L", "RGBa": "RGBA"}
    image = pillow.fromarray(rgb)
    for step in (steps.get(mode), mode):
        image = image if step is None else image.convert(step)
    assert image.mode == mode
    found = read_any_image(image)
    grey = mode in ("1", "LA", "La")
    expected = np.asarray(image.convert("LA").convert("L") if grey else image.convert("RGBA").convert("RGB"))
    assert np.array_equal(found, np.dstack([expected] * 3) if grey else expected[..., ::-1])
    assert (found[:, 4:] == 255).all()


def test_transparent_colours_are_dropped_with_a_note(pillow: Any, caplog: pytest.LogCaptureFixture) -> None:
    rgba = np.full((4, 5, 4), (250, 150, 50, 255), np.uint8)
    assert (read_any_image(pillow.fromarray(rgba)) == (50, 150, 250)).all()
    assert not caplog.messages
    rgba[0, 0, 3] = 0
    assert (read_any_image(pillow.fromarray(rgba), name="cat") == (50, 150, 250)).all()
    assert caplog.messages == [
        "cat has an alpha channel, which is dropped: its transparent pixels count as their colour"
    ]
    four = read_any_image(pillow.fromarray(rgba), channels=4)
    assert four.shape == (4, 5, 4)
    assert four[0, 0].tolist() == [50, 150, 250, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_of_a_pillow_image_is_obeyed(
    pillow: Any, tmp_path: Path, form: str, orientation: int
) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = (0, 0, 255)  # blue, top left
    pixels[8:, 16:] = (0, 255, 0)
    exif = pillow.Exif()
    exif[274] = orientation
    file = tmp_path / f"a.{form.lower()}"
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    pillow.fromarray(pixels).save(file, form, exif=exif, **options)
    stored = read_image(file)
    with pillow.open(file) as image:
        found = read_any_image(image)
    assert found.shape == stored.shape == ((24, 16, 3) if orientation > 4 else (16, 24, 3))
    assert np.abs(found.astype(int) - stored).max() <= (4 if form == "JPEG" else 0)  # of two JPEG decoders
    with pillow.open(file) as image:
        assert form == "TIFF" or read_any_image(image, turn=False).shape == (16, 24, 3)  # Pillow has turned a TIFF


def test_a_16_bit_file_that_pillow_opens_with_32_bits_is_read(pillow: Any, tmp_path: Path) -> None:
    values = np.arange(0, 60_000, 1000, np.uint16).reshape(6, 10)
    file = tmp_path / "a.pgm"
    cv2.imwrite(str(file), values)
    with pillow.open(file) as image:
        assert image.mode == "I"
        assert np.array_equal(read_any_image(image), read_image(file))


@pytest.mark.parametrize(
    ("mode", "said"), [("F", "floating-point.*scale them to 0 to 255"), ("I", "32 bits.*scale them")]
)
def test_a_pillow_image_whose_range_is_a_guess_is_refused(pillow: Any, mode: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read_any_image(pillow.new(mode, (4, 5)), name="image0")


def test_a_damaged_or_large_file_that_pillow_opened_is_refused(pillow: Any) -> None:
    whole = cv2.imencode(".jpg", _image(90, 120))[1].tobytes()
    with pytest.raises(ImageError, match=r"Pillow cannot decode a: .*truncated"):
        read_any_image(pillow.open(io.BytesIO(whole[:-500])), name="a")
    with pytest.raises(ImageError, match=r"a declares 120x90 pixels .* more than the 100"):
        read_any_image(pillow.open(io.BytesIO(whole)), name="a", max_pixels=100)


def test_a_tensor_is_rgb_with_its_channels_first(torch: Any) -> None:
    bgr = _image(20, 30)
    tensor = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1)))
    assert np.array_equal(read_any_image(tensor), bgr)
    for real in (tensor / 255, (tensor / 255).requires_grad_(), (tensor / 255).double()):
        assert np.array_equal(read_any_image(real), bgr)
    assert np.abs(read_any_image((tensor / 255).bfloat16()).astype(int) - bgr).max() <= 1
    assert np.array_equal(read_any_image(tensor[:1]), np.dstack([bgr[..., 2]] * 3))
    assert np.array_equal(read_any_image(tensor[0]), np.dstack([bgr[..., 2]] * 3))
    four = torch.cat([tensor, tensor[:1]])
    assert np.array_equal(read_any_image(four), bgr)
    assert np.array_equal(read_any_image(four, channels=4), np.dstack([bgr, bgr[..., 2]]))


@pytest.mark.parametrize(
    ("shape", "kind", "said"),
    [
        ((20, 30, 3), "uint8", r"has its channels last, .*tensor\.permute\(2, 0, 1\)"),
        ((3, 30, 3), "uint8", "may have its channels first or last"),
        ((20, 30, 40), "uint8", "has no axis of 1, 3 or 4 channels"),
        ((2, 3, 20, 30), "uint8", "is a batch: pass its images one by one"),
        ((30,), "uint8", "got a tensor of shape"),
        ((3, 0, 30), "uint8", "got a tensor of shape"),
        ((3, 20, 30), "int64", "must be uint8 .* int64"),
        ((3, 20, 30), "bool", "must be uint8 .* bool"),
    ],
)
def test_a_tensor_that_is_ambiguous_is_refused_in_words(
    torch: Any, shape: tuple[int, ...], kind: str, said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        read_any_image(torch.zeros(shape, dtype=getattr(torch, kind)))


@pytest.mark.parametrize(("value", "said"), [(255.0, "0 to 255"), (-2.1, "-2.1 to 0"), (float("nan"), "nan")])
def test_a_floating_point_tensor_that_is_not_0_to_1_is_refused(torch: Any, value: float, said: str) -> None:
    tensor = torch.zeros(3, 20, 30)
    tensor[1, 2, 3] = value
    with pytest.raises(ImageError, match=f"must have values from 0 to 1, but this one has .*{said}"):
        read_any_image(tensor)


def test_an_open_file_is_read_from_its_position(tmp_path: Path) -> None:
    image = _image(20, 30)
    data = cv2.imencode(".png", image)[1].tobytes()
    file = tmp_path / "a.png"
    file.write_bytes(b"head" + data)
    with file.open("rb") as opened:
        opened.seek(4)
        assert np.array_equal(read_any_image(opened), image)
        with pytest.raises(ImageError, match=r"a\.png gives no bytes: .*file\.seek\(0\)"):
            read_any_image(opened, name=name_of(opened, 0))
    with pytest.raises(ImageError, match="cannot read the open file"):
        read_any_image(opened)
    with file.open(encoding="latin-1") as text, pytest.raises(ImageError, match="open it with mode 'rb'"):
        read_any_image(text)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="more than the 67,108,944 bytes"):
        read_any_image(io.BytesIO(bytes(1 << 27)), max_pixels=10)


def test_names_are_those_of_files_or_numbers(pillow: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), _image(4, 5))
    with pillow.open(file) as image, file.open("rb") as opened:
        assert [name_of(each, 3) for each in (image, opened, file, str(file))] == [str(file)] * 4
        assert [name_of(each, 3) for each in (b"", pillow.new("L", (3, 3)), io.BytesIO())] == ["image3"] * 3
    with open(0, "rb", closefd=False) as unnamed:
        assert name_of(unnamed, 1) == "image1"


def test_what_is_no_image_by_its_type(torch: Any) -> None:
    assert all(
        map(is_image, ("a", Path(), b"", bytearray(), memoryview(b""), _image(3, 3), torch.zeros(3), io.BytesIO()))
    )
    assert not any(map(is_image, (3, 0.5, None, {}, [], ())))


def test_a_dark_image_of_16_bits_is_noted(pillow: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_any_image(pillow.fromarray(np.full((4, 5), 4000, np.uint16)), name="dark")
    assert "dark has 16 bits per channel, but no value above 4000" in caplog.text
