"""deploykit: from a trained vision checkpoint to a verified ONNX file or engine, and the runtime that serves it.

Importing this package loads nothing heavy; each public name is imported on first use, so that an
application which only predicts never loads torch. What it warns of goes to the logger ``deploykit``.
It switches ONNX Runtime's telemetry off for the process, unless ``ORT_DISABLE_TELEMETRY`` is set already.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deploykit.errors import import_errors_explained
from deploykit.version import __version__ as __version__

if TYPE_CHECKING:
    from deploykit.errors import DeployError as DeployError
    from deploykit.export.engine.build import build_engine as build_engine
    from deploykit.export.foreign.quantize import quantize_onnx as quantize_onnx
    from deploykit.export.options import AccuracyGate as AccuracyGate
    from deploykit.export.options import Calibration as Calibration
    from deploykit.export.options import EngineOptions as EngineOptions
    from deploykit.export.options import ImagePreparation as ImagePreparation
    from deploykit.export.options import OnnxOptions as OnnxOptions
    from deploykit.export.options import PrecisionOptions as PrecisionOptions
    from deploykit.export.parity.compare import compare as compare
    from deploykit.export.to_onnx import export_onnx as export_onnx
    from deploykit.export.verify import VerifyReport as VerifyReport
    from deploykit.export.verify import verify as verify
    from deploykit.facade import evaluate as evaluate
    from deploykit.facade import evaluate_against as evaluate_against
    from deploykit.facade import load as load
    from deploykit.facade import open_session as open_session
    from deploykit.models.load_options import LoadOptions as LoadOptions
    from deploykit.progress import Progress as Progress
    from deploykit.runtime.options import EvalOptions as EvalOptions
    from deploykit.runtime.options import PredictOptions as PredictOptions
    from deploykit.runtime.predict.predictor import Predictor as Predictor
    from deploykit.runtime.results.base import ImageResult as ImageResult
    from deploykit.runtime.results.detection import Result as Result
    from deploykit.spec import ModelSpec as ModelSpec

_HOME = {
    "AccuracyGate": "deploykit.export.options",
    "Calibration": "deploykit.export.options",
    "DeployError": "deploykit.errors",
    "EngineOptions": "deploykit.export.options",
    "EvalOptions": "deploykit.runtime.options",
    "ImagePreparation": "deploykit.export.options",
    "ImageResult": "deploykit.runtime.results.base",
    "LoadOptions": "deploykit.models.load_options",
    "ModelSpec": "deploykit.spec",
    "OnnxOptions": "deploykit.export.options",
    "PrecisionOptions": "deploykit.export.options",
    "PredictOptions": "deploykit.runtime.options",
    "Predictor": "deploykit.runtime.predict.predictor",
    "Progress": "deploykit.progress",
    "Result": "deploykit.runtime.results.detection",
    "VerifyReport": "deploykit.export.verify",
    "build_engine": "deploykit.export.engine.build",
    "compare": "deploykit.export.parity.compare",
    "evaluate": "deploykit.facade",
    "evaluate_against": "deploykit.facade",
    "export_onnx": "deploykit.export.to_onnx",
    "load": "deploykit.facade",
    "open_session": "deploykit.facade",
    "quantize_onnx": "deploykit.export.foreign.quantize",
    "verify": "deploykit.export.verify",
}
logging.getLogger("deploykit").addHandler(logging.NullHandler())  # who runs it decides what becomes of its messages

# ONNX Runtime from 1.29 on keeps events of every session on the disk and sends them to its maker, by a thread that also
# keeps a forked process from ending. It reads this when it is imported; 0 lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = sorted(_HOME)  # noqa: PLE0605  (the table above is the one list of public names)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        meant = ": use deploykit.load(path)" if name in ("YOLO", "AutoBackend") else ""
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}{meant}", name=name)
    with import_errors_explained():
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
