"""Resizing as Pillow does, byte for byte, and torchvision's evaluation crop on top of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.images import pillow_resize
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.pillow_resize import FILTERS, resample
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.spec import Fit, InputSpec

pillow = pytest.importorskip("PIL.Image", reason="the bytes are compared with those of Pillow")
CODES = {"bilinear": 2, "bicubic": 3, "lanczos": 1}
sides = st.integers(1, 150)


@pytest.mark.parametrize("kind", FILTERS)
@settings(max_examples=60)
@given(source=st.tuples(sides, sides), size=st.tuples(sides, sides), seed=st.integers(0, 99), hard=st.booleans())
def test_bytes_equal_those_of_pillow(
    kind: str, source: tuple[int, int], size: tuple[int, int], seed: int, hard: bool
) -> None:
    """Pillow 13 resizes columns first where that is cheaper, older versions never do; two calls fix the order."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*source, 3), np.uint8)
    if hard:  # black and white, where the filters leave the range and are clipped
        image = (image > 127).astype(np.uint8) * np.uint8(255)
    rows = pillow.fromarray(image).resize((size[1], source[0]), CODES[kind])
    expected = np.asarray(rows.resize((size[1], size[0]), CODES[kind]))
    np.testing.assert_array_equal(resample(image, size, kind), expected)


@pytest.mark.parametrize("kind", FILTERS)
def test_an_image_in_parts_has_the_same_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    whole = resample(image, (33, 41), kind)
    for most in (1, 700, 5000):  # one line, and parts that the sides are no multiples of
        monkeypatch.setattr(pillow_resize, "ALONE", most)
        np.testing.assert_array_equal(resample(image, (33, 41), kind), whole)


def test_a_product_wakes_no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads of a BLAS make small products slower by orders of magnitude where cores are busy."""
    sizes: list[int] = []

    class Counting(np.ndarray):
        def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: np.ndarray, **others: object) -> np.ndarray:
            first, second = (np.asarray(each) for each in inputs)
            if ufunc is np.matmul:
                sizes.append(first.size * second.shape[-1])
            found: np.ndarray = getattr(ufunc, method)(first, second)
            return found

    weights = pillow_resize._weights

    def counted(source: int, target: int, kind: str) -> list[tuple[int, int, int, int, np.ndarray]]:
        return [(*places, table.view(Counting)) for *places, table in weights(source, target, kind)]

    monkeypatch.setattr(pillow_resize, "_weights", counted)
    resample(np.zeros((480, 640, 3), np.uint8), (32, 43), "bilinear")
    assert sizes
    assert max(sizes) <= pillow_resize.ALONE


def test_channels_are_independent() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 5), np.uint8)
    found = resample(image, (17, 50), "bicubic")
    for i in range(5):
        np.testing.assert_array_equal(found[..., i], resample(image[..., i], (17, 50), "bicubic"))


def test_a_letterbox_can_resize_as_pillow_does() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    box = Letterbox.fit((60, 90), (64, 64), Fit(resample="bicubic"))
    np.testing.assert_array_equal(box.apply(image)[box.pad[1] : box.pad[1] + 43], resample(image, (43, 64), "bicubic"))


@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("source", [(300, 401), (401, 300), (224, 224), (50, 77), (333, 250), (249, 250)])
def test_a_crop_equals_that_of_torchvision(source: tuple[int, int], share: float) -> None:
    """Resize(floor(size / share)) on the shorter side, the longer one truncated to whole pixels, then CenterCrop."""
    image = np.random.default_rng(1).integers(0, 256, (*source, 3), np.uint8)
    short = int(224 / share)
    width, height = (short, int(short * source[0] / source[1])), (int(short * source[1] / source[0]), short)
    new = width if source[1] <= source[0] else height
    scaled = pillow.fromarray(image).resize(new, CODES["bicubic"])
    left, top = round((new[0] - 224) / 2.0), round((new[1] - 224) / 2.0)
    expected = np.asarray(scaled.crop((left, top, left + 224, top + 224)))
    canvas = InputSpec(size=(224, 224), fit=Fit("crop", crop_share=share, resample="bicubic"))
    placed = place_on_canvas(image, canvas)
    np.testing.assert_array_equal(placed.canvas, expected)
    assert placed.source == source
