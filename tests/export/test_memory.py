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
from deploykit.export.parity import onnx_file


def test_the_folded_weights_are_gone_when_the_file_is_verified(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    gc.disable()  # what is collected by chance is none of the export's doing
    try:
        assert export_onnx(checkpoint, out=tmp_path / "m.onnx", img=64).parity
    finally:
        gc.enable()
    assert weights
    assert alive == [0]


def test_a_file_is_in_memory_once_while_it_is_verified(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NMS in the graph is run with its own thresholds and with open ones, which are two sessions."""
    opened, alive, most = onnx_file._opened, 0, []

    def counted(file: Path, **options: Any) -> Any:
        nonlocal alive
        session = opened(file, **options)
        alive += 1
        most.append(alive)
        close = session.close

        def closed() -> None:
            nonlocal alive
            alive -= 1
            close()

        monkeypatch.setattr(session, "close", closed)
        return session

    monkeypatch.setattr(onnx_file, "_opened", counted)
    report = export_onnx(checkpoint, out=tmp_path / "m.onnx", img=64, nms="graph")
    assert report.parity
    assert {m.what for m in report.parity.matchings} == {"detections", "best rows"}
    assert most == [1, 1]
