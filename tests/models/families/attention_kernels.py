"""How many attentions TensorRT for RTX computes as one kernel, by what its builder says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploykit.export.engine.build import build_engine
from deploykit.export.options import EngineOptions
from deploykit.runtime.engine_record import build_log_path


def attention_kernels(file: Path, folder: Path) -> int:
    """Build an engine; skip where TensorRT for RTX is not installed."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    report = build_engine(file, flavour="tensorrt-rtx", out=folder, options=EngineOptions(verbose=True))
    return len(set(re.findall(r"_gemm_mha_v\d_myl\d+_\d+", build_log_path(report.path).read_text())))
