"""The native library: how it is found, refused and switched off; and its letterbox."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import BackendError
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native import library as native_module
from deploykit.runtime.native.library import FOLDER, SWITCH, cpu_library, letterbox_blob, native_nms
from deploykit.runtime.postprocess.nms import nms, numpy_nms
from deploykit.spec import Fit, InputSpec, RawDetections, Thresholds

ROWS = np.array([[5, 5, 10, 10, 0.9, 1], [5, 5, 10, 10, 0.8, 1], [50, 5, 10, 10, 0.7, 1]], np.float32)
LAYOUT = RawDetections()


def taken(rows: np.ndarray) -> list[int] | None:
    found = native_nms(rows, LAYOUT, Thresholds())
    return None if found is None else found[0].tolist()


def test_without_a_library_numpy_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    assert cpu_library() is None
    assert taken(ROWS) is None
    assert nms(ROWS, LAYOUT, Thresholds()).rows.tolist() == [0, 2]
    out = np.zeros((3, 32, 32), np.float32)
    letterbox = Letterbox.fit((10, 10), (32, 32), Fit())
    assert not letterbox_blob(np.zeros((10, 10, 3), np.uint8), letterbox, InputSpec(), out)


def test_the_folder_and_the_switch(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(ROWS) == [0, 2]
    monkeypatch.setenv(SWITCH, "0")
    assert taken(ROWS) is None
    monkeypatch.setenv(SWITCH, "1")
    assert taken(ROWS) == [0, 2]


def test_nms_takes_the_library_where_it_is_there(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.runtime.postprocess.nms.numpy_nms", lambda *_: pytest.fail("numpy was asked"))
    assert nms(ROWS, LAYOUT, Thresholds()).rows.tolist() == [0, 2]


def test_a_library_of_another_interface_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    source = tmp_path / "old.cpp"
    source.write_text('extern "C" int deploykit_abi() { return 999; }')
    library = tmp_path / "libdeploykit_cpu.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.warns(RuntimeWarning, match=r"has ABI 999, and this deploykit needs \d+: deploykit plugins build"):
        assert taken(ROWS) is None
    assert taken(ROWS) is None  # and it is said once


def test_a_file_that_is_no_library_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libdeploykit_cpu.so").write_bytes(b"not a library")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.warns(RuntimeWarning, match="does not load as a library of deploykit"):
        assert cpu_library() is None


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("float64", ROWS.astype(np.float64)),
        ("rows upside down", ROWS[::-1]),
        ("columns apart", np.repeat(ROWS, 2, axis=1)[:, ::2]),
        ("by columns", np.asfortranarray(ROWS)),
        ("another byte order", ROWS.astype(ROWS.dtype.newbyteorder())),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_that_it_does_not_take_go_to_numpy(native: Path, name: str, rows: np.ndarray) -> None:
    assert taken(rows) is None
    assert len(nms(rows, LAYOUT, Thresholds()).rows) == 2


@pytest.mark.parametrize("rows", [ROWS[::2], np.hstack((ROWS, ROWS))[:, :6], ROWS[:1].T.copy().T], ids=str)
def test_rows_that_lie_apart_are_taken_as_they_are(native: Path, rows: np.ndarray) -> None:
    found = taken(rows)
    assert found is not None
    assert found == numpy_nms(rows, LAYOUT, Thresholds()).rows.tolist()


def test_columns_that_the_layout_lacks_are_numpys_business(native: Path) -> None:
    assert native_nms(ROWS, RawDetections(cls=(5, 7)), Thresholds()) is None


def test_results_are_not_overwritten_by_the_next_call(native: Path) -> None:
    first = native_nms(ROWS, LAYOUT, Thresholds())
    native_nms(ROWS[::-1].copy() * np.float32(0.9), LAYOUT, Thresholds())
    assert first is not None
    assert first[0].tolist() == [0, 2]
    assert first[2].tolist() == ROWS[[0, 2], 4].tolist()


def test_memory_is_kept_from_call_to_call(native: Path) -> None:
    native_nms(np.tile(ROWS, (50, 1)), LAYOUT, Thresholds())
    before = native_module._workspace.memory
    for count in (1, 0, 20, 50):
        native_nms(np.tile(ROWS, (count, 1)), LAYOUT, Thresholds())
        assert native_module._workspace.memory is before


def test_threads_do_not_meet(native: Path) -> None:
    rng = np.random.default_rng(0)
    problems = []
    for _ in range(4):
        rows = rng.random((3000, 6), np.float32) * (200, 200, 40, 40, 1, 1)
        problems.append(rows.astype(np.float32))
    expected = [numpy_nms(rows, LAYOUT, Thresholds()).rows.tolist() for rows in problems]
    wrong = []

    def work(index: int) -> None:
        for _ in range(30):
            if taken(problems[index]) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(data=st.data())
def test_letterbox_is_opencvs_within_one_grey_level(native: Path, data: st.DataObject) -> None:
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
    out = np.full((3, *size), np.nan, np.float32)
    assert letterbox_blob(image, letterbox, spec, out)
    expected = to_nchw([letterbox.apply(image)], spec)[0]
    assert np.abs(out - expected).max() <= 1
    inside = np.zeros(size, bool)
    (left, top), (rows, columns) = letterbox.pad, letterbox.resized
    inside[top : top + rows, left : left + columns] = True
    np.testing.assert_array_equal(out[:, ~inside], expected[:, ~inside])
    if letterbox.resized == letterbox.source:
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("source", [(1080, 1920), (721, 1283), (240, 320), (3000, 17)])
def test_most_pixels_are_opencvs_exactly(native: Path, source: tuple[int, int]) -> None:
    """A wrong tap or weight would move most of them; rounding moves few."""
    image = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    spec = InputSpec(size=(320, 320), scale=1.0)
    letterbox = Letterbox.fit(source, spec.size, Fit())
    out = np.empty((3, 320, 320), np.float32)
    letterbox_blob(image, letterbox, spec, out)
    difference = np.abs(out - to_nchw([letterbox.apply(image)], spec)[0])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1


def test_scale_mean_and_std_are_blobs_in_both_precisions(native: Path) -> None:
    spec = InputSpec(size=(64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = np.random.default_rng(2).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    letterbox = Letterbox.fit((64, 48), spec.size, Fit())
    expected = to_nchw([letterbox.apply(image)], spec)[0]
    for dtype in (np.float32, np.float16):
        out = np.empty((3, 64, 64), dtype)
        letterbox_blob(image, letterbox, spec, out)
        np.testing.assert_array_equal(out, expected.astype(dtype))


def test_threads_share_a_image_by_its_rows(native: Path) -> None:
    spec = InputSpec(size=(64, 64))
    image = np.random.default_rng(3).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    letterbox = Letterbox.fit((50, 100), spec.size, Fit())
    whole, parts = np.empty((3, 64, 64), np.float32), np.full((3, 64, 64), -1, np.float32)
    letterbox_blob(image, letterbox, spec, whole)
    letterbox_blob(image, letterbox, spec, parts, rows=(0, 30))
    assert (parts[:, 30:] == -1).all()
    letterbox_blob(image, letterbox, spec, parts, rows=(30, 64))
    np.testing.assert_array_equal(parts, whole)
    with pytest.raises(BackendError, match="the native letterbox refuses rows 30 to 65"):
        letterbox_blob(image, letterbox, spec, parts, rows=(30, 65))


def test_arrays_that_do_not_fit_are_refused(native: Path) -> None:
    letterbox = Letterbox.fit((10, 10), (32, 32), Fit())
    image, out = np.zeros((10, 10, 3), np.uint8), np.zeros((3, 32, 32), np.float32)
    with pytest.raises(BackendError, match=r"takes uint8 \(10, 10, 3\)"):
        letterbox_blob(image[:9], letterbox, InputSpec(), out)
    with pytest.raises(BackendError, match="contiguous"):
        letterbox_blob(image, letterbox, InputSpec(), out[:, ::-1])
