"""The kernels against the reference: their algorithm on threads of the CPU, and the kernels themselves on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import BackendError, NotFoundError
from deploykit.export.plugins_check import expected_outputs
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native.cuda_library import CudaLibrary, NmsRoute
from deploykit.runtime.native.library import FOLDER
from deploykit.spec import Fit, InputSpec, RawDetections, Thresholds
from tests.cpu_tensorrt import CpuGpu
from tests.nms_corpus import Case, corpus

ROUTES: tuple[NmsRoute, ...] = ("blocks", "spread")
POSE = RawDetections(cls=(5, 6), keypoints=(6, 57))


def check(library: CudaLibrary, rows: Array, layout: RawDetections, thresholds: Thresholds, points: int = 0) -> None:
    with np.errstate(over="ignore"):
        expected = expected_outputs(rows, layout, thresholds, points)
    for route in ROUTES:
        library.nms_route = route
        found = library.nms(rows, layout, thresholds, points)
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
            np.testing.assert_array_equal(found[name], values, err_msg=f"{name}, {route}")


@pytest.mark.parametrize("case", corpus(), ids=lambda c: c.name)
def test_the_corpus(library: CudaLibrary, case: Case) -> None:
    width = case.layout.keypoints[1] - case.layout.keypoints[0] if case.layout.keypoints else 0
    check(library, case.rows[None], case.layout, case.thresholds, width // case.layout.kpt_dims)


def crowd(seed: int, batch: int, count: int, layout: RawDetections, dtype: type = np.float32) -> Array:
    """Boxes that overlap, scores that tie, and some rows that are broken."""
    rng = np.random.default_rng(seed)
    rows = rng.random((batch, count, layout.columns), np.float32)
    rows[..., :4] *= (200, 200, 60, 60)
    rows[..., 4 : layout.cls[1]] = np.round(rows[..., 4 : layout.cls[1]], 2)
    rows[..., -1][rng.random((batch, count)) < 0.02] = np.nan
    return rows.astype(dtype)


@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    count=st.integers(0, 200),
    classes=st.integers(1, 5),
    points=st.integers(0, 4),
    dims=st.sampled_from([2, 3]),
    objectness=st.booleans(),
    half=st.booleans(),
    thresholds=st.builds(
        Thresholds, st.just(0.2), st.just(0.3), max_det=st.integers(1, 40), pre_nms_topk=st.integers(1, 150)
    ),
)
@settings(max_examples=60)
def test_any_shape(
    library: CudaLibrary, seed: int, batch: int, count: int, classes: int, points: int, dims: int, objectness: bool,
    half: bool, thresholds: Thresholds,
) -> None:  # fmt: skip
    first = 5 if objectness else 4
    end = first + classes
    layout = RawDetections(
        obj=(4, 5) if objectness else None,
        cls=(first, end),
        keypoints=(end, end + points * dims) if points else None,
        kpt_dims=dims,
    )
    rows = crowd(seed, batch, count, layout, np.float16 if half else np.float32)
    check(library, rows, layout, thresholds, points)


@pytest.fixture
def small_team(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads: those that meet for every row cost more than the rows."""
    monkeypatch.setenv("TEAM_SIZE", "2")


@pytest.mark.usefixtures("small_team")
@pytest.mark.parametrize("topk", [1, 1000, 3840])
def test_more_candidates_than_can_be_sorted(library: CudaLibrary, topk: int) -> None:
    rows = crowd(topk, 1, 9000, POSE)
    check(library, rows, POSE, Thresholds(conf=0.01, iou=0.9, max_det=300, pre_nms_topk=topk), 17)


@pytest.mark.usefixtures("small_team")
def test_scores_that_all_tie(library: CudaLibrary) -> None:
    rows = crowd(0, 2, 5000, POSE)
    rows[..., 4:6] = 0.75
    check(library, rows, POSE, Thresholds(pre_nms_topk=777), 17)


@pytest.mark.parametrize("batch", [1, pytest.param(32, marks=pytest.mark.gpu)])
def test_the_rows_of_a_pose_network(library: CudaLibrary, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_SIZE", "1")
    rows = crowd(1, batch, 57375, POSE)
    rows[..., 4] **= 8  # some hundreds of candidates, as in a crowded image
    check(library, rows, POSE, Thresholds(), 17)
    check(library, rows[:1].astype(np.float16), POSE, Thresholds(), 17)


@pytest.mark.parametrize(
    ("batch", "rows", "multiprocessors", "expected"),
    [
        (1, 57375, 132, True),
        (32, 57375, 132, True),
        (33, 57375, 132, False),  # more than a quarter of the multiprocessors have a block
        (33, 57375, 10_000, False),  # the workspace is no larger than for 32
        (1, 1023, 132, False),
        (1, 1024, 132, True),
        (2, 8400, 8, True),
        (3, 8400, 8, False),
    ],
)
def test_a_few_images_of_many_rows_are_spread(
    library: CudaLibrary, batch: int, rows: int, multiprocessors: int, expected: bool
) -> None:
    assert library.spreads(batch, rows, multiprocessors) is expected


@given(st.integers(1, 200), st.integers(1, 60_000), st.integers(1, 3840), st.integers(1, 400), st.data())
def test_the_workspace_of_auto_is_enough_for_every_smaller_batch_on_any_gpu(
    library: CudaLibrary, batch: int, count: int, topk: int, multiprocessors: int, data: st.DataObject
) -> None:
    thresholds = Thresholds(pre_nms_topk=topk)
    library.nms_route = "auto"
    room = library.nms_workspace(batch, count, thresholds)
    fewer, shorter = data.draw(st.integers(1, batch)), data.draw(st.integers(1, count))
    library.nms_route = "spread" if library.spreads(fewer, shorter, multiprocessors) else "blocks"
    assert library.nms_workspace(fewer, shorter, thresholds) <= room


def test_auto_gives_what_both_routes_give(library: CudaLibrary) -> None:
    rows = crowd(3, 1, 1500, POSE)
    library.nms_route = "auto"
    found = library.nms(rows, POSE, Thresholds(conf=0.5, max_det=20, pre_nms_topk=90), 17)
    expected = expected_outputs(rows, POSE, Thresholds(conf=0.5, max_det=20, pre_nms_topk=90), 17)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_more_than_3840_candidates_cannot_be_asked_for(library: CudaLibrary) -> None:
    with pytest.raises(BackendError, match="NMS on the GPU failed with CUDA's code 1"):
        library.nms(crowd(0, 1, 10, POSE), POSE, Thresholds(pre_nms_topk=3841), 17)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_letterbox_of_images_of_many_sizes(library: CudaLibrary, dtype: type) -> None:
    rng = np.random.default_rng(0)
    spec = InputSpec(size=(160, 192), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    sizes = [(160, 192), (80, 96), (301, 200), (17, 400), (1, 1), (640, 480), (33, 64), (500, 500), (90, 91), (2, 300)]
    images = [rng.integers(0, 256, (h + 2, w + 3, 3), dtype=np.uint8)[1:-1, 1:-2] for h, w in sizes]
    letterboxes = [Letterbox.fit(size, spec.size, Fit()) for size in sizes]
    found = library.letterbox(images, letterboxes, spec, dtype)
    expected = to_nchw([box.apply(image) for box, image in zip(letterboxes, images, strict=True)], spec)
    level = 1.01 * np.float32(1 / 255 / 0.2)  # the largest step that a grey level makes
    np.testing.assert_allclose(found, expected, rtol=0 if dtype == np.float32 else 1e-3, atol=level)
    np.testing.assert_array_equal(found[0], expected[0].astype(dtype))


@given(data=st.data())
def test_letterbox_is_opencvs_within_one_grey_level(library: CudaLibrary, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    size = 32 * data.draw(st.integers(1, 8)), 32 * data.draw(st.integers(1, 8))
    fit = Fit(
        kind=data.draw(st.sampled_from(["letterbox", "resize"])),
        anchor=data.draw(st.sampled_from(["centre", "top-left"])),
        scale_up=data.draw(st.booleans()),
        pad_value=data.draw(st.sampled_from([0, 114, 255])),
    )
    spec = InputSpec(size=size, scale=1.0, colour=data.draw(st.sampled_from(["rgb", "bgr"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    larger = rng.integers(0, 256, (height + 3, width + 5, 3), dtype=np.uint8)
    image = larger[1 : 1 + height, 2 : 2 + width]
    letterbox = Letterbox.fit((height, width), size, fit)
    found = library.letterbox([image], [letterbox], spec)[0]
    expected = to_nchw([letterbox.apply(image)], spec)[0]
    assert np.abs(found - expected).max() <= 1
    inside = np.zeros(size, bool)
    (left, top), (rows, columns) = letterbox.pad, letterbox.resized
    inside[top : top + rows, left : left + columns] = True
    np.testing.assert_array_equal(found[:, ~inside], expected[:, ~inside])
    if letterbox.resized == letterbox.source:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("source", [(1080, 1920), (721, 1283), (240, 320), (3000, 17)])
def test_most_pixels_are_opencvs_exactly(library: CudaLibrary, source: tuple[int, int]) -> None:
    """A wrong tap or weight would move most of them; rounding moves few."""
    image = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    spec = InputSpec(size=(320, 320), scale=1.0)
    letterbox = Letterbox.fit(source, spec.size, Fit())
    found = library.letterbox([image], [letterbox], spec)
    difference = np.abs(found - to_nchw([letterbox.apply(image)], spec))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1


def test_scale_mean_and_std_are_blobs_in_both_precisions(library: CudaLibrary) -> None:
    spec = InputSpec(size=(64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = np.random.default_rng(2).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    letterbox = Letterbox.fit((64, 48), spec.size, Fit())
    expected = to_nchw([letterbox.apply(image)], spec)
    for dtype in (np.float32, np.float16):
        found = library.letterbox([image], [letterbox], spec, dtype)
        np.testing.assert_array_equal(found, expected.astype(dtype))


def test_canvases_of_a_batch_have_one_size(library: CudaLibrary, request: pytest.FixtureRequest) -> None:
    if "threads" in request.node.name:
        pytest.skip("the stand-in does not look")
    image = np.zeros((10, 10, 3), np.uint8)
    boxes = [Letterbox.fit((10, 10), (size, size), Fit()) for size in (32, 64)]
    with pytest.raises(BackendError, match="letterbox on the GPU failed"):
        library.letterbox([image, image], boxes, InputSpec())


def test_a_library_that_is_not_built_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(NotFoundError, match="is not built: deploykit plugins build"):
        CudaLibrary(CpuGpu())
