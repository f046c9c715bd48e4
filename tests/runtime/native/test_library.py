"""The native library: how it is found, refused and switched off."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from deploykit.runtime.native import library as native_module
from deploykit.runtime.native.library import FOLDER, SWITCH, cpu_library, native_nms
from deploykit.runtime.postprocess.nms import nms, numpy_nms
from deploykit.spec import RawDetections, Thresholds

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


def test_the_folder_and_the_switch(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(ROWS) == [0, 2]
    monkeypatch.setenv(SWITCH, "0")
    assert taken(ROWS) is None
    monkeypatch.setenv(SWITCH, "1")
    assert taken(ROWS) == [0, 2]


def test_nms_takes_the_library_where_it_is_there(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.runtime.postprocess.nms.numpy_nms", lambda *_: pytest.fail("numpy was asked"))
    assert nms(ROWS, LAYOUT, Thresholds()).rows.tolist() == [0, 2]


def test_a_library_of_another_interface_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    source = tmp_path / "old.cpp"
    source.write_text('extern "C" int deploykit_abi() { return 999; }')
    library = tmp_path / "libdeploykit_cpu.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert taken(ROWS) is None
    assert taken(ROWS) is None
    (logged,) = caplog.records  # it is said once
    assert logged.levelname == "WARNING"
    assert re.search(r"has ABI 999, and this deploykit needs \d+: deploykit plugins build", logged.getMessage())


def test_a_file_that_is_no_library_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "libdeploykit_cpu.so").write_bytes(b"not a library")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert cpu_library() is None
    assert "does not load as a library of deploykit" in caplog.text


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("float64", ROWS.astype(np.float64)),
        ("rows upside down", ROWS[::-1]),
        ("columns apart", np.repeat(ROWS, 2, axis=1)[:, ::2]),
        ("another byte order", ROWS.astype(ROWS.dtype.newbyteorder())),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_that_it_does_not_take_go_to_numpy(native: Path, name: str, rows: np.ndarray) -> None:
    assert taken(rows) is None
    assert len(nms(rows, LAYOUT, Thresholds()).rows) == 2


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[::2],
        np.hstack((ROWS, ROWS))[:, :6],
        ROWS[:1].T.copy().T,
        np.asfortranarray(ROWS),
        np.asfortranarray(np.vstack((ROWS, ROWS)))[:3],
        np.asfortranarray(ROWS)[:1],
    ],
    ids=str,
)
def test_rows_or_columns_that_lie_apart_are_taken_as_they_are(native: Path, rows: np.ndarray) -> None:
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
