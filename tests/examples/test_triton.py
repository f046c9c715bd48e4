"""The client of the guide on Triton gives what a local model gives, with a stand-in for Triton's own client."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.runtime.session import open_session
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.doc_blocks import blocks_of


def client_module(model: Path) -> ModuleType:
    """``tritonclient.http`` whose server is a local session."""
    module: Any = ModuleType("tritonclient.http")

    class InferInput:
        def __init__(self, name: str, shape: tuple[int, ...], kind: str) -> None:
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, value: np.ndarray) -> None:
            assert self.kind == "FP32"
            assert value.dtype == np.float32
            assert value.flags.c_contiguous
            assert value.shape == tuple(self.shape)
            self.value = value

    class InferenceServerClient:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8000"
            self.session = open_session(model)

        def infer(self, name: str, inputs: list[InferInput]) -> SimpleNamespace:
            assert name == "best_network"
            outputs = self.session.run({each.name: each.value for each in inputs})
            described = {"outputs": [{"name": each} for each in outputs]}
            return SimpleNamespace(as_numpy=outputs.__getitem__, get_response=lambda: described)

    module.InferInput, module.InferenceServerClient = InferInput, InferenceServerClient
    return module


def test_the_guides_session_gives_the_results_of_a_local_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_cell_model(tmp_path / "best.onnx", spec=cell_spec())
    cv2.imwrite("photo.jpg", planted((2, 3, RED), scale=8), [cv2.IMWRITE_JPEG_QUALITY, 100])
    module = client_module(model)
    package: Any = ModuleType("tritonclient")
    package.http = module
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)
    page = (root / "docs" / "guides" / "triton.md").read_text()
    (code,) = (block.text for block in blocks_of(page) if block.language == "python" and "class" in block.text)
    names: dict[str, Any] = {}
    exec(code, names)
    found = names["predictor"]("photo.jpg")
    with deploykit.load(model) as local:
        expected = local("photo.jpg")
    assert len(found) == len(expected) == 1
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    assert str(expected) == capsys.readouterr().out.strip()
