"""Reading pictures, laying them on a canvas and back, and the blob."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import BackendError, ImageError, NotFoundError, SpecError
from deploykit.runtime.image import Letterbox, as_bgr, blob, decode_image, read_image
from deploykit.runtime.native_cuda import plan_of
from deploykit.runtime.session import Array
from deploykit.spec import Fit, InputSpec


def _picture(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encoded(image: Array, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_a_file_whose_name_is_not_ascii_is_read(tmp_path: Path) -> None:
    image = _picture(20, 30)
    path = tmp_path / "Zürich 写真.png"
    path.write_bytes(_encoded(image))
    assert np.array_equal(read_image(path), image)
    assert np.array_equal(read_image(str(path)), image)
    assert np.array_equal(read_image(path.read_bytes()), image)


def test_exif_orientation_turns_the_picture_upright() -> None:
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
def test_every_kind_of_png_becomes_bgr_of_8_bits(image: Array, expected: int) -> None:
    decoded = decode_image(_encoded(image))
    assert (decoded.shape, decoded.dtype) == ((4, 5, 3), np.uint8)
    assert (decoded == expected).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_uint8_arrays_of_every_usual_shape_become_bgr(shape: tuple[int, ...]) -> None:
    assert np.array_equal(as_bgr(np.full(shape, 9, np.uint8)), np.full((4, 5, 3), 9, np.uint8))


def test_a_slice_of_an_array_becomes_contiguous() -> None:
    image = _picture(8, 9)
    turned = as_bgr(image[::-1, ::2])
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, image[::-1, ::2])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), "uint8.*float32"),
        (np.zeros((4, 5, 3), np.uint16), "uint8.*uint16"),
        (np.zeros((1, 3, 4, 5), np.uint8), r"\(1, 3, 4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
    ],
)
def test_an_array_that_is_no_bgr_picture_is_refused_with_what_it_is(array: Array, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        as_bgr(array)


def test_bytes_that_are_no_whole_picture_are_refused() -> None:
    for suffix in (".png", ".jpg"):
        whole = _encoded(_picture(90, 120), suffix)
        with pytest.raises(ImageError, match="not a whole picture"):
            decode_image(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"11 bytes, starting 68 65 6c 6c"):
        decode_image(b"hello world")
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"")


def test_a_jpeg_without_its_end_is_refused_even_with_a_whole_thumbnail_inside() -> None:
    thumbnail = _encoded(_picture(8, 8), ".jpg")
    plain = _encoded(_picture(90, 120), ".jpg")
    whole = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + plain[2:]
    assert decode_image(whole + b"what some cameras append").shape == (90, 120, 3)
    with pytest.raises(ImageError, match="not a whole picture"):
        decode_image(whole[:-2])


def test_unreadable_files_say_why(tmp_path: Path) -> None:
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
    with pytest.raises(ImageError, match="raw file"):
        read_image(tmp_path / "shot.NEF")


@pytest.mark.parametrize(
    ("source", "size", "fit", "resized", "canvas", "pad"),
    [
        ((1080, 1920), (960, 960), Fit(stride=64), (540, 960), (960, 960), (0, 210)),
        ((1080, 1920), (960, 960), Fit(stride=64, auto=True), (540, 960), (576, 960), (0, 18)),
        ((427, 640), (640, 640), Fit(), (427, 640), (640, 640), (0, 106)),  # the odd row goes below
        ((640, 427), (640, 640), Fit(anchor="top-left"), (640, 427), (640, 640), (0, 0)),
        ((640, 5), (320, 320), Fit(), (320, 2), (320, 320), (159, 0)),  # 2.5 rounds to even
        ((640, 7), (320, 320), Fit(), (320, 4), (320, 320), (158, 0)),
        ((640, 7), (320, 320), Fit(rounding="floor"), (320, 3), (320, 320), (158, 0)),
        ((4000, 1), (320, 320), Fit(), (320, 1), (320, 320), (159, 0)),  # never without a pixel
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


def test_fits_that_need_more_than_one_canvas_are_refused() -> None:
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
)
SIDES = st.integers(1, 4000)
SIZES = st.tuples(st.integers(5, 20), st.integers(5, 20)).map(lambda t: (t[0] * 64, t[1] * 64))


@given(source=st.tuples(SIDES, SIDES), size=SIZES, fit=FITS, where=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_points_come_back_within_a_thousandth_of_a_pixel_and_the_picture_stays_on_the_canvas(
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
    image = _picture(*source)
    letterbox = Letterbox.fit(source, (128, 192), fit)
    (height, width), (left, top) = letterbox.resized, letterbox.pad
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    below, right = letterbox.canvas[0] - height - top, letterbox.canvas[1] - width - left
    value = (fit.pad_value,) * 3
    expected = cv2.copyMakeBorder(small, top, below, left, right, cv2.BORDER_CONSTANT, value=value)
    assert np.array_equal(letterbox.apply(image), expected)


def top_left(image: Array, size: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """YOLOX's preprocessing, written down again: one ratio, sizes cut to integers, the rest filled with 114."""
    ratio = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = int(image.shape[0] * ratio), int(image.shape[1] * ratio)
    canvas = np.full((*size, 3), 114, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, (height, width)


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from(((64, 64), (32, 96), (96, 64))), st.integers(0, 9))
def test_top_left_and_floor_is_the_preprocessing_of_yolox(
    height: int, width: int, size: tuple[int, int], seed: int
) -> None:
    image = _picture(height, width, seed)
    expected, (h, w) = top_left(image, size)
    letterbox = Letterbox.fit((height, width), size, Fit(anchor="top-left", rounding="floor"))
    assert (letterbox.resized, letterbox.pad) == ((h, w), (0, 0))
    canvas = letterbox.apply(image)
    assert np.array_equal(canvas, expected)
    # One axis fits the canvas, and no more than a pixel is lost to the cut on the other one.
    assert size[0] - h <= 1 or size[1] - w <= 1
    # The inverse is that of what was done: the picture's corners come back exactly, not as the one ratio has them.
    corners = np.array([[0.0, 0.0], [w, h]])
    assert np.allclose(letterbox.to_source(corners), [[0, 0], [width, height]], rtol=0, atol=1e-12 * max(height, width))
    points = np.random.default_rng(seed).uniform(0, 60, (5, 4))
    assert np.allclose(letterbox.to_source(letterbox.to_network(points)), points, rtol=0, atol=1e-9)
    assert np.allclose(letterbox.to_source(points), points / np.array([w / width, h / height] * 2), rtol=1e-12)
    # The network's input: these very bytes, blue first.
    fed = blob([canvas], InputSpec(size=size, colour="bgr", scale=1.0))
    assert np.array_equal(fed[0], expected.transpose(2, 0, 1).astype(np.float32))


def test_legacy_weights_of_yolox_get_normalised_rgb() -> None:
    image = _picture(40, 56)
    canvas, _ = top_left(image, (32, 64))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((canvas[..., ::-1] / 255 - mean) / std).transpose(2, 0, 1)
    spec = InputSpec(size=(32, 64), scale=1 / 255, mean=tuple(mean), std=tuple(std))
    assert np.allclose(blob([canvas], spec)[0], expected, rtol=0, atol=1e-6)


def test_edges_of_the_picture_are_edges_of_what_lies_on_the_canvas() -> None:
    letterbox = Letterbox.fit((427, 641), (320, 320), Fit())
    canvas = letterbox.apply(np.full((427, 641, 3), 255, np.uint8))
    rows, columns = np.nonzero(canvas[:, :, 0] == 255)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    assert np.allclose(letterbox.to_source(seen), [0, 0, 641, 427], atol=1e-3)


def test_keypoints_map_like_boxes() -> None:
    letterbox = Letterbox.fit((100, 200), (640, 640), Fit())
    points = np.array([[[10.0, 20.0], [199.0, 99.0]]])
    assert np.allclose(letterbox.to_network(points).reshape(1, 4), letterbox.to_network(points.reshape(1, 4)))


def test_a_letterbox_takes_only_the_size_that_it_was_made_for() -> None:
    with pytest.raises(ImageError, match=r"\(10, 20\).*\(20, 10\)"):
        Letterbox.fit((10, 20), (64, 64), Fit()).apply(_picture(20, 10))


def test_a_blob_is_rgb_planes_of_exact_quotients() -> None:
    canvases = [_picture(32, 64, seed) for seed in range(3)]
    expected = np.stack(canvases)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal(blob(canvases, InputSpec()), expected)


def test_a_blob_can_keep_bgr_and_normalise() -> None:
    canvas = _picture(32, 64)
    spec = InputSpec(colour="bgr", scale=1.0, mean=(103.5, 116.25, 123.0), std=(57.0, 58.0, 59.0))
    expected = ((canvas.astype(np.float64) - spec.mean) / spec.std).transpose(2, 0, 1)[None]
    assert np.array_equal(blob([canvas], spec), expected.astype(np.float32))


def test_a_blob_fills_the_slots_that_no_picture_takes_with_zeros() -> None:
    canvas = _picture(32, 64)
    out = np.full((3, 3, 32, 64), 9, np.float32)
    assert blob([canvas], InputSpec(), out) is out
    assert np.array_equal(out[:1], blob([canvas], InputSpec()))
    assert not out[1:].any()


def test_blobs_of_several_threads_do_not_mix() -> None:
    canvases = [_picture(64, 64, seed) for seed in range(40)]
    expected = [blob([c], InputSpec()) for c in canvases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda c: blob([c], InputSpec()), canvases))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_border_may_have_a_colour() -> None:
    fit = Fit(anchor="top-left", pad_colour=(1, 2, 3))
    letterbox = Letterbox.fit((10, 20), (32, 32), fit)
    canvas = letterbox.apply(np.full((10, 20, 3), 9, np.uint8))
    assert (canvas[:16] == 9).all()
    assert (canvas[16:] == (1, 2, 3)).all()
    spec = InputSpec(size=(32, 32), scale=1.0, fit=fit)
    with pytest.raises(BackendError, match="the native letterbox has a grey border"):
        plan_of(letterbox, spec)
