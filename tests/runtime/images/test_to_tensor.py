"""Canvases as a network's input tensor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.spec import InputSpec


def _image(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_tensor_holds_rgb_planes_of_exact_quotients() -> None:
    canvases = [_image(32, 64, seed) for seed in range(3)]
    expected = np.stack(canvases)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal(to_nchw(canvases, InputSpec()), expected)


def test_the_tensor_can_keep_bgr_and_normalise() -> None:
    canvas = _image(32, 64)
    spec = InputSpec(colour="bgr", scale=1.0, mean=(103.5, 116.25, 123.0), std=(57.0, 58.0, 59.0))
    expected = ((canvas.astype(np.float64) - spec.mean) / spec.std).transpose(2, 0, 1)[None]
    assert np.array_equal(to_nchw([canvas], spec), expected.astype(np.float32))


def test_unused_slots_of_the_batch_are_zeros() -> None:
    canvas = _image(32, 64)
    out = np.full((3, 3, 32, 64), 9, np.float32)
    assert to_nchw([canvas], InputSpec(), out) is out
    assert np.array_equal(out[:1], to_nchw([canvas], InputSpec()))
    assert not out[1:].any()


def test_threads_do_not_share_scratch_memory() -> None:
    canvases = [_image(64, 64, seed) for seed in range(40)]
    expected = [to_nchw([c], InputSpec()) for c in canvases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda c: to_nchw([c], InputSpec()), canvases))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
