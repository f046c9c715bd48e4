"""Images whose EXIF orientation turns them against their annotations are used as the annotations see them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.errors import DataError
from deploykit.runtime.arrays import Array
from deploykit.runtime.evaluate.folders import unturned_images
from tests.cell_model import write_cell_model
from tests.coco_folder import Folder, pose_spec, write_folder
from tests.dense_networks import brightener, segmenter

pytest.importorskip("hotcoco", reason="hotcoco (the extra eval) is not installed")
QUARTER, HALF = 6, 3  # orientations of EXIF: a quarter turn, half a turn


def with_exif(png: bytes, orientation: int) -> bytes:
    """The PNG with an EXIF chunk."""
    import zlib

    body = b"eXIf" + b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, orientation) + b"\0" * 4
    return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


def add_exif(path: Path, orientation: int) -> None:
    path.write_bytes(with_exif(path.read_bytes(), orientation))


def save(path: Path, image: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def wide(tmp_path: Path) -> Folder:
    """Images that are twice as wide as high, whose annotations are for the pixels as stored."""
    return write_folder(tmp_path / "cells", [((1, 1, (0, 0, 255)), (5, 2, (255, 0, 0)))] * 3, wide=2)


def evaluated(tmp_path: Path, folder: Folder) -> Any:
    model = write_cell_model(tmp_path / "cells.onnx", spec=pose_spec())
    return deploykit.evaluate(model, folder.data, images=folder.images, task="detect")


def test_annotations_of_the_stored_pixels_are_noticed(tmp_path: Path, wide: Folder) -> None:
    before = evaluated(tmp_path, wide)
    first, second, _ = sorted(wide.images.iterdir())
    add_exif(first, QUARTER)
    add_exif(second, HALF)  # no size tells: it is as the other one is
    found = evaluated(tmp_path, wide)
    assert found.metrics == before.metrics
    assert found.metrics["AP"] == pytest.approx(1)
    (note,) = (note for note in found.notes if "EXIF" in note)
    assert note == (
        f"the annotations of 1 image ({first.name}) fit the pixels as stored and not as turned by EXIF: they are "
        "evaluated as stored, and so are 1 others whose orientation no size tells"
    )


def test_annotations_of_the_upright_pixels_stay_the_rule(tmp_path: Path, wide: Folder) -> None:
    before = evaluated(tmp_path, wide)
    for path in sorted(wide.images.iterdir()):
        image = cv2.imread(str(path))
        save(path, cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE))
        add_exif(path, QUARTER)
    found = evaluated(tmp_path, wide)
    assert found.metrics == before.metrics
    assert not [note for note in found.notes if "EXIF" in note]


def test_sizes_that_fit_neither_are_still_refused(tmp_path: Path, wide: Folder) -> None:
    add_exif(sorted(wide.images.iterdir())[0], QUARTER)
    for image in wide.coco["images"]:
        image["height"] += 1
    wide.save()
    with pytest.raises(DataError, match="the boxes do not fit it"):
        evaluated(tmp_path, wide)


def test_label_maps_and_targets_tell_it_too(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 190, (32, 48, 3), np.uint8)
    source = save(tmp_path / "images" / "a.png", image)
    with deploykit.load(segmenter(tmp_path / "s.onnx"), task="segment") as predict:
        save(tmp_path / "labels" / "a.png", predict(image).labels.astype(np.uint8))
    with deploykit.load(brightener(tmp_path / "b.onnx"), task="restore") as predict:
        save(tmp_path / "targets" / "a.png", predict(image).pixels)
    add_exif(source, QUARTER)
    found = deploykit.evaluate(tmp_path / "s.onnx", tmp_path / "labels", images=tmp_path / "images")
    assert found.metrics["mIoU"] == 1.0
    assert "the label maps of 1 image (a.png) fit the pixels as stored" in found.notes[0]
    found = deploykit.evaluate(tmp_path / "b.onnx", tmp_path / "targets", images=tmp_path / "images")
    assert found.metrics["PSNR"] == float("inf")
    assert "the targets of 1 image (a.png) fit the pixels as stored" in found.notes[0]


def test_mixed_images_are_decided_one_by_one(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, np.zeros((8, 12, 3), np.uint8)) for name in ("a.png", "b.png", "c.png")]
    for path, orientation in zip(paths, (QUARTER, QUARTER, HALF), strict=True):
        add_exif(path, orientation)
    sizes = dict(zip(paths, ((8, 12), (12, 8), (8, 12)), strict=True))
    assert unturned_images(paths, sizes.get, "annotations")[0] == {paths[0]}
    sizes[paths[1]] = (8, 12)
    assert unturned_images(paths, sizes.get, "annotations")[0] == set(paths)
    assert unturned_images(paths, lambda path: None, "annotations") == (frozenset(), ())
    assert unturned_images([tmp_path / "none.png", tmp_path], sizes.get, "annotations") == (frozenset(), ())
