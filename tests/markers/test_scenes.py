"""Rendered scenes: what is annotated is where it says, and a seed is a scene."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.markers.dataset import scenes, write_coco
from scripts.markers.desk import desk, seen
from scripts.markers.prints import ARUCO_MARKER, DICTIONARIES, DISTRACTORS, QR_CODE, code
from scripts.markers.scenes import annotated, in_image_order, pasted
from scripts.markers.surfaces import SURFACES

SQUARE = np.array([[10, 10], [50, 10], [50, 50], [10, 50]], np.float32)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    angle, centre = np.deg2rad(degrees), points.mean(0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((points - centre) @ rotation.T + centre).astype(np.float32)


@pytest.mark.parametrize(("degrees", "first"), [(0, 0), (40, 0), (50, 3), (90, 3), (180, 2), (-80, 1)])
def test_corners_are_named_by_where_they_lie_in_the_image(degrees: float, first: int) -> None:
    corners = turned(SQUARE, degrees)
    assert np.array_equal(in_image_order(corners), np.roll(corners, -first, axis=0))


def test_a_seed_is_a_scene() -> None:
    one, same, other = (next(scenes(seed, 1)) for seed in (1, 1, 2))
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.corners, same.corners)
    assert not np.array_equal(one.image, other.image)


def test_a_pasted_marker_is_found_by_its_own_decoder_where_it_is_annotated() -> None:
    """OpenCV's detector knows nothing of our renderer: its corners say whether the annotations are right."""
    detectors = [
        cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(number))
        for number in (cv2.aruco.DICT_4X4_250, cv2.aruco.DICT_5X5_250, cv2.aruco.DICT_6X6_250, cv2.aruco.DICT_7X7_250)
    ]
    off = []
    for seed in range(12):
        scene = pasted(np.random.default_rng(seed), np.full((480, 640, 3), 128, np.uint8), quality=95)
        assert len(scene.labels) == len(scene.corners)
        for detector in detectors:
            for found in detector.detectMarkers(scene.image)[0]:
                ours = scene.corners[scene.labels == ARUCO_MARKER][..., :2]
                # OpenCV's coordinates are pixel centres, and ours are edges
                away = [np.abs(in_image_order(found[0] + 0.5) - points).max() for points in ours]
                off.append(min(away, default=np.inf))
    assert len(off) >= 5
    assert np.median(off) < 1.0


def test_what_hides_a_corner_or_most_of_a_code_is_annotated_so() -> None:
    image, hidden = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    hidden[10:50, 10:50] = 1
    hidden[8:20, 8:20] = 0
    assert annotated(image, [(QR_CODE, SQUARE)], hidden).corners[0, :, 2].tolist() == [1, 2, 2, 2]
    hidden[:32] = 0
    assert len(annotated(image, [(QR_CODE, SQUARE)], hidden).labels) == 0


def test_a_code_outside_of_the_image_has_corners_that_do_not_count() -> None:
    hidden = np.zeros((64, 64), np.uint8)
    hidden[10:50, :40] = 1
    moved = SQUARE - np.array([12, 0], np.float32)
    assert annotated(np.zeros((64, 64, 3), np.uint8), [(QR_CODE, moved)], hidden).corners[0, :, 2].tolist() == [
        0,
        2,
        2,
        0,
    ]


def test_a_print_holds_a_code_that_opencv_reads() -> None:
    read = 0
    for seed in range(8):
        flat = code(np.random.default_rng(seed), QR_CODE)
        wide = cv2.copyMakeBorder(flat.image, *[40] * 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        read += bool(cv2.QRCodeDetector().detectAndDecode(wide)[0])
    assert read >= 4  # light codes on dark and codes with little around them are not read


@pytest.mark.parametrize("surface", sorted(set(SURFACES), key=lambda f: f.__name__), ids=lambda f: f.__name__)
def test_every_surface_fills_its_image_and_is_not_of_one_grey(surface: Callable[..., np.ndarray]) -> None:
    one, same = (surface(np.random.default_rng(5), 96) for _ in range(2))
    assert one.shape in ((96, 96), (96, 96, 3))
    assert one.dtype == np.uint8
    assert one.std() > 2
    assert np.array_equal(one, same)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("make", sorted(set(DISTRACTORS), key=lambda f: f.__name__), ids=lambda f: f.__name__)
def test_no_distractor_holds_a_code(make: Callable[[np.random.Generator], np.ndarray], seed: int) -> None:
    dictionaries = [cv2.aruco.getPredefinedDictionary(number) for number in DICTIONARIES]
    image = cv2.copyMakeBorder(make(np.random.default_rng(seed)), *[20] * 4, cv2.BORDER_CONSTANT, value=255)
    assert image.std() > 2
    assert not cv2.QRCodeDetector().detectAndDecode(image)[0]
    assert all(cv2.aruco.ArucoDetector(known).detectMarkers(image)[1] is None for known in dictionaries)


def test_a_coco_data_set_has_boxes_around_the_corners(tmp_path: Path) -> None:
    file = write_coco(tmp_path, scenes(3, 4))
    data = json.loads(file.read_text())
    assert [image["file_name"] for image in data["images"]] == ["0001.jpg", "0002.jpg", "0003.jpg", "0004.jpg"]
    assert data["annotations"]
    for annotation in data["annotations"]:
        points = np.array(annotation["keypoints"]).reshape(4, 3)
        x, y, w, h = annotation["bbox"]
        for px, py, v in points:
            assert v == 0 or (x - 0.02 <= px <= x + w + 0.02 and y - 0.02 <= py <= y + h + 0.02)


def test_the_image_that_ships_is_the_desk(root: Path) -> None:
    shipped = cv2.imread(str(root / "deploykit" / "assets" / "markers.jpg"))
    drawn = seen(desk())
    assert shipped.shape == drawn.shape
    assert np.abs(shipped.astype(int) - drawn).mean() < 4  # JPEG and the version of OpenCV
