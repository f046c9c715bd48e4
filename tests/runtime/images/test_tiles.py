"""Tiles keep every pixel once, far enough from artificial edges; seams appear only where the overlap is too small."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import BackendError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.tiles import Tiling, plan_tiles, run_tiled


@given(
    side=st.integers(1, 2000),
    steps=st.integers(1, 200),
    overlap=st.integers(0, 149),
    step=st.sampled_from([1, 2, 3, 16]),
)
@settings(max_examples=400)
def test_each_pixel_is_kept_once_and_far_enough_from_artificial_edges(
    side: int, steps: int, overlap: int, step: int
) -> None:
    tile = max(steps // step, 1) * step
    overlap = min(overlap, (tile - step) // 2)
    tiling = Tiling((tile, tile), overlap, step=step)
    spans = plan_tiles(side, tile, overlap, step)
    assert len(tiling.places((side, 1))) == len(spans)
    assert [s.first for s in spans] == [0, *(s.last for s in spans[:-1])]
    assert spans[-1].last == side
    for span in spans:
        assert span.first < span.last
        end = span.start + tile
        assert span.start % step == 0
        if side > tile:
            assert 0 <= span.start <= span.first
            assert span.last <= end <= side + -side % step
        if span.start > 0:
            assert span.first - span.start >= overlap
        if end < side:
            assert end - span.last >= overlap
    fewest = 1 if side <= tile else -(-(side - 2 * overlap) // (tile - 2 * overlap))
    assert len(spans) == fewest or step > 1


@given(side=st.integers(1, 200), tile=st.integers(9, 60), overlap=st.integers(0, 4))
def test_neighbours_share_their_overlap_evenly(side: int, tile: int, overlap: int) -> None:
    """Each keeps what is nearer to its middle: also where tiles overlap more than they must."""
    for left, right in pairwise(plan_tiles(side, tile, overlap)):
        assert 0 <= (left.start + tile - left.last) - (right.first - right.start) <= 1


def blur(images: Array, rounds: int) -> Array:
    """Repeated 3 x 3 mean filters with zero padding: a convolution whose receptive field is ``rounds``."""
    for _ in range(rounds):
        padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = images.shape[2:]
        images = sum(padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    return images


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), tile=st.integers(9, 40), rounds=st.integers(0, 4),
    batch=st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=60)
def test_no_seam_where_the_overlap_covers_the_receptive_field(
    height: int, width: int, tile: int, rounds: int, batch: int
) -> None:
    image = np.random.default_rng(0).random((2, height, width))
    found = run_tiled(lambda x: blur(x, rounds), image, Tiling((tile, tile + 3), rounds, batch))
    whole = blur(image[None], rounds)[0]
    inside = found[:, : height if height >= tile else 0, : width if width >= tile + 3 else 0]
    np.testing.assert_allclose(inside, whole[:, : inside.shape[1], : inside.shape[2]], atol=1e-12)
    assert found.shape == image.shape


def test_a_seam_where_the_overlap_does_not_cover_the_receptive_field() -> None:
    errors = []
    for overlap in range(6):
        side = 32 + 3 * (32 - 2 * overlap)  # no tile overlaps more than it must
        image = np.random.default_rng(0).random((1, side, side))
        whole = blur(image[None], 4)[0]
        found = run_tiled(lambda x: blur(x, 4), image, Tiling((32, 32), overlap))
        errors.append(float(np.abs(found - whole).max()))
    assert errors[0] > errors[1] > errors[2] > errors[3] > 1e-4
    assert max(errors[4:]) < 1e-12


def test_a_network_may_enlarge_its_input() -> None:
    image = np.random.default_rng(0).random((3, 20, 31), np.float32)
    found = run_tiled(lambda x: x.repeat(2, 2).repeat(2, 3), image, Tiling((16, 16), 3, 2))
    np.testing.assert_array_equal(found, image.repeat(2, 1).repeat(2, 2))
    assert found.dtype == np.float32


def test_a_fixed_batch_is_always_full() -> None:
    shapes: list[tuple[int, ...]] = []

    def run(x: Array) -> Array:
        shapes.append(x.shape)
        return x

    image = np.random.default_rng(0).random((1, 10, 50))
    tiling = Tiling((10, 20), 2, 4)
    found = run_tiled(run, image, tiling, full_batches_only=True)
    np.testing.assert_array_equal(found, image)
    assert shapes == [(4, 1, 10, 20)]
    run_tiled(run, image, tiling)
    assert shapes[-1] == (3, 1, 10, 20)


def test_images_smaller_than_a_tile_are_mirrored() -> None:
    seen: list[Array] = []

    def run(x: Array) -> Array:
        seen.append(x)
        return x

    image = np.arange(6.0).reshape(1, 2, 3)
    np.testing.assert_array_equal(run_tiled(run, image, Tiling((5, 7), 0)), image)
    np.testing.assert_array_equal(seen[0][0, 0, 0], [0, 1, 2, 1, 0, 1, 2])
    np.testing.assert_array_equal(seen[0][0, 0, :, 0], [0, 3, 0, 3, 0])
    np.testing.assert_array_equal(run_tiled(run, np.ones((1, 1, 1)), Tiling((3, 3), 0)), [[[1]]])


@pytest.mark.parametrize("step", [1, 16])
def test_memory_is_limited_to_the_tiles_of_a_batch(step: int) -> None:
    image = np.zeros((4, 1501, 1499), np.float32)
    tiling = Tiling((128, 128), 16, 2, step)
    run_tiled(lambda x: x * 2, image[:, :256, :256], tiling)
    tracemalloc.start()
    found = run_tiled(lambda x: x * 2, image, tiling)
    peak = tracemalloc.get_traced_memory()[1] - found.nbytes
    tracemalloc.stop()
    assert peak < 8 * 2 * 4 * 128 * 128 * 4 < image.nbytes / 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((64, 64), 32), "keep nothing: choose larger tiles"),
        (((64, 64), -1), "the overlap at least 0"),
        (((0, 64), 0), "tile sides, batch and step must be at least 1"),
        (((64, 64), 0, 0), "tile sides, batch and step must be at least 1"),
        (((64, 60), 0, 1, 16), "multiples of 16 pixels"),
        (((64, 64), 25, 1, 16), "keep nothing"),
    ],
)
def test_impossible_tilings_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Tiling(*arguments)  # type: ignore[arg-type]  # invalid on purpose


@pytest.mark.parametrize("crop", [(slice(None), slice(None), slice(1)), (slice(1),)])
def test_a_network_whose_output_has_another_size_is_refused(crop: tuple[slice, ...]) -> None:
    with pytest.raises(BackendError, match="an integer multiple"):
        run_tiled(lambda x: x[crop], np.zeros((1, 30, 30)), Tiling((8, 8), 1, 2))
