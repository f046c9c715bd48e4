"""Images on a canvas, and points mapped to it and back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import BackendError, ImageError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native.cuda_library import letterbox_plan
from deploykit.spec import Fit, InputSpec


def _image(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "size", "fit", "resized", "canvas", "pad"),
    [
        ((1080, 1920), (960, 960), Fit(stride=64), (540, 960), (960, 960), (0, 210)),
        ((1080, 1920), (960, 960), Fit(stride=64, auto=True), (540, 960), (576, 960), (0, 18)),
        ((427, 640), (640, 640), Fit(), (427, 640), (640, 640), (0, 106)),  # the odd row is added below
        ((640, 427), (640, 640), Fit(anchor="top-left"), (640, 427), (640, 640), (0, 0)),
        ((640, 5), (320, 320), Fit(), (320, 2), (320, 320), (159, 0)),  # 2.5 rounds to even
        ((640, 7), (320, 320), Fit(), (320, 4), (320, 320), (158, 0)),
        ((640, 7), (320, 320), Fit(rounding="floor"), (320, 3), (320, 320), (158, 0)),
        ((4000, 1), (320, 320), Fit(), (320, 1), (320, 320), (159, 0)),  # at least one pixel
        ((100, 50), (640, 640), Fit(), (640, 320), (640, 640), (160, 0)),
        ((100, 50), (640, 640), Fit(scale_up=False), (100, 50), (640, 640), (295, 270)),
        ((100, 50), (640, 640), Fit(scale_up=False, auto=True), (100, 50), (128, 64), (7, 14)),
        ((100, 50), (640, 320), Fit(kind="resize"), (640, 320), (640, 320), (0, 0)),
    ],
)
def test_letterbox_sizes_and_pads(
    source: tuple[int, int],
    size: tuple[int, int],
    fit: Fit,
    resized: tuple[int, int],
    canvas: tuple[int, int],
    pad: tuple[int, int],
) -> None:
    letterbox = Letterbox.fit(source, size, fit)
    assert (letterbox.resized, letterbox.canvas, letterbox.pad) == (resized, canvas, pad)


def test_a_fixed_shape_overrides_auto() -> None:
    assert Letterbox.fit((1080, 1920), (960, 960), Fit(auto=True), auto=False).canvas == (960, 960)


def test_a_fit_in_tiles_is_refused() -> None:
    with pytest.raises(SpecError, match="'tile'"):
        Letterbox.fit((10, 10), (32, 32), Fit(kind="tile"))


FITS = st.builds(
    Fit,
    stride=st.sampled_from([32, 64]),
    auto=st.booleans(),
    anchor=st.sampled_from(["centre", "top-left"]),
    scale_up=st.booleans(),
    rounding=st.sampled_from(["round", "floor"]),
    pad_value=st.integers(0, 255),
    shrink=st.sampled_from(["linear", "area"]),
)
SIDES = st.integers(1, 4000)
SIZES = st.tuples(st.integers(5, 20), st.integers(5, 20)).map(lambda t: (t[0] * 64, t[1] * 64))


@given(source=st.tuples(SIDES, SIDES), size=SIZES, fit=FITS, where=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_points_map_back_within_a_thousandth_of_a_pixel_and_the_image_stays_on_the_canvas(
    source: tuple[int, int], size: tuple[int, int], fit: Fit, where: tuple[float, float]
) -> None:
    letterbox = Letterbox.fit(source, size, fit)
    for side, most, resized in zip(letterbox.canvas, size, letterbox.resized, strict=True):
        assert 1 <= resized <= side <= most
        assert side == most or (fit.auto and side % fit.stride == 0 and side - resized < fit.stride)
    x, y = where[0] * source[1], where[1] * source[0]
    boxes = np.array([[0, 0, source[1], source[0]], [x, y, x, y]], np.float32)
    network = letterbox.to_network(boxes)
    assert network.min() >= 0
    assert (network[0, 2:] <= np.array(letterbox.canvas[::-1]) + 1e-3).all()
    assert np.abs(letterbox.to_source(network) - boxes).max() <= 1e-3


@given(source=st.tuples(st.integers(1, 90), st.integers(1, 90)), fit=FITS)
def test_the_canvas_is_opencvs_resize_with_opencvs_border(source: tuple[int, int], fit: Fit) -> None:
    image = _image(*source)
    letterbox = Letterbox.fit(source, (128, 192), fit)
    (height, width), (left, top) = letterbox.resized, letterbox.pad
    smaller = height < source[0] or width < source[1]
    area = fit.shrink == "area" and smaller
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    below, right = letterbox.canvas[0] - height - top, letterbox.canvas[1] - width - left
    value = (fit.pad_value,) * 3
    expected = cv2.copyMakeBorder(small, top, below, left, right, cv2.BORDER_CONSTANT, value=value)
    assert np.array_equal(letterbox.apply(image), expected)


def top_left(image: Array, size: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """YOLOX's preprocessing, written again: one ratio, sizes truncated to integers, a border of 114."""
    ratio = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = int(image.shape[0] * ratio), int(image.shape[1] * ratio)
    canvas = np.full((*size, 3), 114, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, (height, width)


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from(((64, 64), (32, 96), (96, 64))), st.integers(0, 9))
def test_top_left_with_floor_is_the_preprocessing_of_yolox(
    height: int, width: int, size: tuple[int, int], seed: int
) -> None:
    image = _image(height, width, seed)
    expected, (h, w) = top_left(image, size)
    letterbox = Letterbox.fit((height, width), size, Fit(anchor="top-left", rounding="floor"))
    assert (letterbox.resized, letterbox.pad) == ((h, w), (0, 0))
    canvas = letterbox.apply(image)
    assert np.array_equal(canvas, expected)
    # One axis fills the canvas, and truncation costs the other at most one pixel.
    assert size[0] - h <= 1 or size[1] - w <= 1
    # The inverse is exact: the image's corners map back to themselves, which one ratio would not achieve.
    corners = np.array([[0.0, 0.0], [w, h]])
    assert np.allclose(letterbox.to_source(corners), [[0, 0], [width, height]], rtol=0, atol=1e-12 * max(height, width))
    points = np.random.default_rng(seed).uniform(0, 60, (5, 4))
    assert np.allclose(letterbox.to_source(letterbox.to_network(points)), points, rtol=0, atol=1e-9)
    assert np.allclose(letterbox.to_source(points), points / np.array([w / width, h / height] * 2), rtol=1e-12)
    # The network's input holds these bytes, blue first.
    fed = to_nchw([canvas], InputSpec(size=size, colour="bgr", scale=1.0))
    assert np.array_equal(fed[0], expected.transpose(2, 0, 1).astype(np.float32))


def test_legacy_weights_of_yolox_get_normalised_rgb() -> None:
    image = _image(40, 56)
    canvas, _ = top_left(image, (32, 64))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((canvas[..., ::-1] / 255 - mean) / std).transpose(2, 0, 1)
    spec = InputSpec(size=(32, 64), scale=1 / 255, mean=tuple(mean), std=tuple(std))
    assert np.allclose(to_nchw([canvas], spec)[0], expected, rtol=0, atol=1e-6)


def test_edges_of_the_image_map_to_its_edges_on_the_canvas() -> None:
    letterbox = Letterbox.fit((427, 641), (320, 320), Fit())
    canvas = letterbox.apply(np.full((427, 641, 3), 255, np.uint8))
    rows, columns = np.nonzero(canvas[:, :, 0] == 255)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    assert np.allclose(letterbox.to_source(seen), [0, 0, 641, 427], atol=1e-3)


def test_keypoints_map_like_boxes() -> None:
    letterbox = Letterbox.fit((100, 200), (640, 640), Fit())
    points = np.array([[[10.0, 20.0], [199.0, 99.0]]])
    assert np.allclose(letterbox.to_network(points).reshape(1, 4), letterbox.to_network(points.reshape(1, 4)))


def test_a_letterbox_refuses_images_of_another_size() -> None:
    with pytest.raises(ImageError, match=r"\(10, 20\).*\(20, 10\)"):
        Letterbox.fit((10, 20), (64, 64), Fit()).apply(_image(20, 10))


def test_a_border_may_have_a_colour() -> None:
    fit = Fit(anchor="top-left", pad_colour=(1, 2, 3))
    letterbox = Letterbox.fit((10, 20), (32, 32), fit)
    canvas = letterbox.apply(np.full((10, 20, 3), 9, np.uint8))
    assert (canvas[:16] == 9).all()
    assert (canvas[16:] == (1, 2, 3)).all()
    spec = InputSpec(size=(32, 32), scale=1.0, fit=fit)
    with pytest.raises(BackendError, match="the native letterbox has a grey border"):
        letterbox_plan(letterbox, spec)
