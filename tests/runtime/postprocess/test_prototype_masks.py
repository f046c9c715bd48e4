"""Masks assembled from prototypes: the definition once more in torch, and masks that the original projects made."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.postprocess.masks import assembled
from deploykit.spec import Fit

Array = NDArray[np.float32]
SIDE = st.floats(-40, 160).map(lambda v: round(v, 2))


def published(coefficients: Array, prototypes: Array, boxes: Array, source: tuple[int, int]) -> tuple[Array, Array]:
    """Logits ``(N, height, width)`` and masks of images in the middle of a canvas of 4 times the prototypes, float64.

    The equations are those of the published description: the refinement follows from the pads by bits.
    """
    (mh, mw), (height, width) = prototypes.shape[1:], source
    gain = min(4 * mh / height, 4 * mw / width)
    pads = (4 * mh - max(round(height * gain), 1)) | (4 * mw - max(round(width * gain), 1))
    factor = 4 // math.gcd(4, pads | pads // 2)
    logits = torch.from_numpy(np.tensordot(coefficients.astype(np.float64), prototypes.astype(np.float64), 1))[None]
    if factor > 1:
        logits = interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
    rows, columns = mh * factor, mw * factor
    gain = min(rows / height, columns / width)
    inner = max(round(height * gain), 1), max(round(width * gain), 1)
    top, left = (round((whole - part) / 2 - 0.1) for whole, part in zip((rows, columns), inner, strict=True))
    logits = logits[:, :, top : top + inner[0], left : left + inner[1]]
    found = interpolate(logits, size=source, mode="bilinear", align_corners=False)[0].numpy()
    y, x = np.arange(height)[:, None], np.arange(width)
    inside = np.array([(y >= y1) & (y < y2) & (x >= x1) & (x < x2) for x1, y1, x2, y2 in boxes.tolist()])
    return found, (found > 0) & inside


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.tuples(st.sampled_from((32, 64, 96, 128)), st.sampled_from((32, 64, 96, 128))),
    st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_it_is_the_published_definition(
    source: tuple[int, int], canvas: tuple[int, int], corners: list[tuple[float, ...]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    prototypes = random.normal(size=(3, canvas[0] // 4, canvas[1] // 4)).astype(np.float32)
    coefficients = random.normal(size=(len(corners), 3)).astype(np.float32)
    boxes = np.array(corners)
    logits, expected = published(coefficients, prototypes, boxes, source)
    letterbox = Letterbox.fit(source, canvas, Fit(), auto=False)
    found, kept = assembled(coefficients, prototypes, boxes, letterbox)
    whole = np.zeros_like(expected)
    whole[kept] = found
    assert not ((whole != expected) & (np.abs(logits) > 1e-4)).any()
    assert (kept == whole.any((1, 2))).all()


def test_objects_without_a_pixel_are_left_out() -> None:
    letterbox = Letterbox((64, 64), (64, 64), (64, 64), (0, 0))
    boxes = np.array([[0, 0, 9, 9], [3.2, 3, 3.9, 9], [70, 0, 90, 9], [9, 9, 0, 0], [-9, -9, 90, 90]], np.float32)
    positive = np.ones((5, 1), np.float32)
    found, kept = assembled(positive, np.ones((1, 16, 16), np.float32), boxes, letterbox)
    assert kept.tolist() == [True, False, False, False, True]  # the second lies between two columns of pixels
    assert [int(mask.sum()) for mask in found] == [81, 64 * 64]
    found, kept = assembled(-positive, np.ones((1, 16, 16), np.float32), boxes, letterbox)
    assert found.shape == (0, 64, 64)
    assert not kept.any()
    assert assembled(positive[:0], np.ones((1, 16, 16), np.float32), boxes[:0], letterbox)[0].shape == (0, 64, 64)


def test_the_edges_of_a_box_are_numbers_of_pixels() -> None:
    letterbox = Letterbox((64, 64), (64, 64), (64, 64), (0, 0))
    box = np.array([[2.0, 3.1, 5.0, 6.1]], np.float32)
    (mask,), _ = assembled(np.ones((1, 1), np.float32), np.ones((1, 16, 16), np.float32), box, letterbox)
    expected = np.zeros((64, 64), np.bool_)
    expected[4:7, 2:5] = True
    assert (mask == expected).all()


@pytest.mark.parametrize(
    ("letterbox", "cells"),
    [
        pytest.param(Letterbox.fit((90, 120), (64, 96), Fit(anchor="top-left"), auto=False), (16, 24), id="top left"),
        pytest.param(Letterbox.fit((90, 120), (64, 96), Fit(kind="resize")), (16, 24), id="resize"),
        pytest.param(Letterbox.fit((90, 120), (64, 96), Fit(), auto=False), (8, 12), id="an eighth"),
        pytest.param(Letterbox.fit((90, 120), (64, 96), Fit(), auto=False), (64, 96), id="the canvas' pixels"),
        pytest.param(Letterbox.fit((90, 120), (64, 96), Fit(), auto=False), (24, 20), id="no whole share"),
        pytest.param(Letterbox.fit((300, 1), (64, 96), Fit(), auto=False), (16, 24), id="one column"),
    ],
)
def test_a_line_across_the_canvas_is_one_across_the_image(letterbox: Letterbox, cells: tuple[int, int]) -> None:
    """Logits that rise evenly over the canvas change their sign where the image shows the canvas' middle."""
    for axis in (0, 1):
        places = (np.arange(cells[axis]) + 0.5) / cells[axis] * letterbox.canvas[axis]
        rising = places - letterbox.canvas[axis] / 2
        prototypes = np.broadcast_to(rising[:, None] if axis == 0 else rising, (1, *cells)).astype(np.float32)
        height, width = letterbox.source
        box = np.array([[0, 0, width, height]], np.float32)
        found, _ = assembled(np.ones((1, 1), np.float32), prototypes, box, letterbox)
        centres = (np.arange((height, width)[axis]) + 0.5) * letterbox.scale[1 - axis] + letterbox.pad[1 - axis]
        line = centres > letterbox.canvas[axis] / 2
        expected = np.broadcast_to(line[:, None] if axis == 0 else line, (height, width))
        if not line.any():
            assert not len(found)
            continue
        wrong = (found[0] != expected).any(1 - axis)
        near = np.abs(centres - letterbox.canvas[axis] / 2) < 1e-3 * letterbox.canvas[axis]
        assert not (wrong & ~near).any()


def test_a_hundred_objects_of_a_large_image_need_little_more_than_their_masks() -> None:
    random = np.random.default_rng(0)
    prototypes = cv2.resize(random.normal(size=(40, 40, 32)), (160, 160)).transpose(2, 0, 1).astype(np.float32)
    letterbox = Letterbox.fit((1080, 1920), (640, 640), Fit(), auto=False)
    boxes = np.tile(np.array([[0, 0, 1920, 1080]], np.float32), (100, 1))
    coefficients = random.normal(size=(100, 32)).astype(np.float32)
    tracemalloc.start()
    try:
        masks, _ = assembled(coefficients, prototypes, boxes, letterbox)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert masks.nbytes == 100 * 1080 * 1920
    assert peak < masks.nbytes + (32 << 20)


def golden_masks(shared: Path, name: str, image: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The rows after NMS, the prototypes, and the original's masks in network pixels."""
    with np.load(shared / "golden" / f"{name}.npz") as golden:
        rows = golden["nms"][image][: golden["nms_count"][image]]
        width = golden["images"].shape[-1]
        bits = np.unpackbits(golden[f"nms_masks{image}"], axis=-1)[..., :width]
        return rows, golden["protos"][image], bits.astype(np.bool_)


@pytest.mark.data
@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("name", ["yolov8n-seg-narrow", "yolo26n-seg-narrow"])
def test_they_are_the_originals_masks(name: str, image: int, shared: Path) -> None:
    rows, prototypes, expected = golden_masks(shared, name, image)
    size = expected.shape[1:]
    found, kept = assembled(rows[:, 6:], prototypes, rows[:, :4], Letterbox(size, size, size, (0, 0)))
    assert 0 < kept.sum() < len(kept)
    assert (found == expected[kept]).all()
    assert not expected[~kept].any()


@pytest.mark.data
@pytest.mark.parametrize("image", [0, 1])
def test_those_of_yolov5_differ_at_borders_alone(image: int, shared: Path) -> None:
    """It interpolates probabilities, and crops the map before: cells whose neighbours are all alike are the same."""
    rows, prototypes, expected = golden_masks(shared, "yolov5n-seg-narrow", image)
    size = expected.shape[1:]
    found, kept = assembled(rows[:, 6:], prototypes, rows[:, :4], Letterbox(size, size, size, (0, 0)))
    whole = np.zeros_like(expected)
    whole[kept] = found
    y, x = (np.arange(cells) * 4.0 for cells in prototypes.shape[1:])
    logits = np.tensordot(rows[:, 6:], prototypes, 1)
    same = 0
    for mask, theirs, values, (x1, y1, x2, y2) in zip(whole, expected, logits, rows[:, :4].tolist(), strict=True):
        inside = ((y >= y1) & (y + 4 <= y2))[:, None] & ((x >= x1) & (x + 4 <= x2))
        outside = ((y + 4 <= y1) | (y >= y2))[:, None] | ((x + 4 <= x1) | (x >= x2))
        yes, no = (inside & (values > 0), outside | (inside & (values <= 0)))
        alike = sum(cv2.erode(part.astype(np.uint8), np.ones((3, 3))) for part in (yes, no)).repeat(4, 0).repeat(4, 1)
        assert (mask == theirs)[alike > 0].all()
        same += int((mask & (alike > 0)).sum())
    assert same > 1000
    assert (whole & expected).sum() > 0.85 * (whole | expected).sum()
