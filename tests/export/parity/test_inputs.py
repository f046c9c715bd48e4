"""What a parity check feeds: every image is used, slots hold different images, and noise is always there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ImageError
from deploykit.export.parity.inputs import make_parity_inputs, sample_image
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.parity.expected import ParityInputs
from tests.cell_model import cell_spec

SMALL = cell_spec()


def feeds(images: list[Path] | None = None, **canvas: Any) -> ParityInputs:
    return make_parity_inputs(replace(SMALL, input=replace(SMALL.input, **canvas)), images or [])


def image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def test_the_shipped_sample_shows_something() -> None:
    image = read_image(sample_image())
    assert min(image.shape[:2]) > 300
    assert image.std() > 30


def test_the_image_and_noise_are_fed_as_the_runtime_would() -> None:
    found = feeds()
    assert list(found.images) == ["apollo11_crew.jpg", "noise (seed 0)"]
    for image in found.images.values():
        assert (image.shape, image.dtype) == ((1, 3, 64, 64), np.float32)
        assert image.min() >= 0
        assert 0.5 < image.max() <= 1
    assert [batch.images for batch in found.batches] == [(label,) for label in found.images]
    assert (feeds().first == found.first).all()


def test_two_images_of_one_name_are_both_fed(tmp_path: Path) -> None:
    images = [image(tmp_path / folder / "1.png", seed) for seed, folder in enumerate("ab")]
    found = feeds(images)
    assert list(found.images) == ["1.png", str(images[1]), "noise (seed 0)"]
    assert (found.images["1.png"] != found.images[str(images[1])]).any()


def test_a_free_shape_adds_the_rectangle(tmp_path: Path) -> None:
    found = feeds([image(tmp_path / "wide.png", size=(20, 40))], dynamic="shape")
    label = "wide.png as a 64x32 rectangle"
    assert found.images[label].shape == (1, 3, 32, 64)
    assert (label,) in [batch.images for batch in found.batches]
    assert label not in {name for batch in found.batches if len(batch.images) > 1 for name in batch.images}


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("five")
    return [image(folder / str(i), seed=i, size=(8, 8)) for i in range(5)]


@given(batch=st.integers(2, 9), count=st.integers(1, 5))
def test_fixed_slots_hold_different_images_and_every_image_has_a_slot(five: list[Path], batch: int, count: int) -> None:
    found = feeds(five[:count], size=(8, 8), batch=batch)
    assert len(found.images) == count + 2  # noise, and the first one upside down
    shuffled, repeated = found.batches[:-1], found.batches[-1]
    assert all(len(b.images) == batch for b in found.batches)
    assert {name for b in shuffled for name in b.images} == set(found.images)
    assert all(len(set(b.images)) == min(batch, len(found.images)) for b in shuffled)
    assert set(repeated.images) == {"0"}
    assert len({b.name for b in found.batches}) == len(found.batches)


def test_a_free_batch_gets_each_image_alone_and_three_slots() -> None:
    found = feeds(dynamic="batch")
    assert [len(batch.images) for batch in found.batches] == [1, 1, 1, 3, 3]
    shuffled = found.batches[3].images
    assert set(shuffled) == set(found.images)
    assert shuffled != tuple(found.images)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_a_sample_that_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        feeds([tmp_path / "broken.jpg"])
