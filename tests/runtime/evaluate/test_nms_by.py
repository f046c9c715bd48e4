"""What does NMS in an evaluation: the native library where it is there, and the result says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.runtime.native.library import SWITCH
from deploykit.runtime.postprocess import nms as nms_module
from tests.cell_model import cell_spec, write_cell_model
from tests.coco_folder import write_folder

pytest.importorskip("hotcoco", reason="the extra eval is not installed")


def test_several_labels_a_row_are_suppressed_by_the_library_where_it_is_there(
    tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "cells")
    model = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    usual, calls = nms_module.native_nms, []

    def counted(*words: Any, **choice: Any) -> object:
        calls.append((choice["multi_label"], usual(*words, **choice)))
        return calls[-1][1]

    monkeypatch.setattr(nms_module, "native_nms", counted)
    found = {}
    for switch, by in (("1", "native library"), ("0", "numpy")):
        monkeypatch.setenv(SWITCH, switch)
        calls.clear()
        found[by] = deploykit.evaluate(model, folder.data, images=folder.images, task="detect")
        assert found[by].settings.nms_by == by
        assert f"; NMS by {by}; metrics by " in dict(found[by].facts())["computes"]
        assert [multi_label for multi_label, _ in calls] == [True] * found[by].counts.images
        assert all((taken is not None) == (by == "native library") for _, taken in calls)
    assert found["numpy"].metrics == found["native library"].metrics
