"""What an export no longer needs is freed before the file is verified."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from deploykit import export_onnx
from deploykit.export import to_onnx
from deploykit.models.create.random_weights import create_checkpoint


def test_the_folded_weights_are_gone_when_the_file_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, verify = to_onnx.fuse_model, to_onnx.verify_file
    weights: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def folded(module: nn.Module) -> nn.Module:
        own = {p.data_ptr() for p in module.parameters()}
        made = fold(module)
        weights.extend(weakref.ref(p) for p in made.parameters() if p.data_ptr() not in own)
        return made

    def verified(*given: Any) -> Any:
        alive.append(sum(ref() is not None for ref in weights))
        return verify(*given)

    monkeypatch.setattr(to_onnx, "fuse_model", folded)
    monkeypatch.setattr(to_onnx, "verify_file", verified)
    monkeypatch.setattr(to_onnx, "COLLECTED", 0)
    checkpoint = create_checkpoint("yolov5n", tmp_path / "m.pt")
    gc.disable()  # what is collected by chance is none of the export's doing
    try:
        assert export_onnx(checkpoint, img=64).parity
    finally:
        gc.enable()
    assert weights
    assert alive == [0]
