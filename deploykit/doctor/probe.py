"""The process that tries things which may end a process: imports, drivers, native libraries, a run of a network.

``python -m deploykit.doctor.probe JOB...`` prints two lines of JSON for each job: ``{"begins": JOB}`` and what came of
it. The caller (:mod:`deploykit.doctor.probing`) knows from the last line which job a crash belongs to. A job is
``import:MODULE``, ``provider:NAME``, ``plugin:NAME``, ``gpu`` or ``self-test``.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["SELF_TEST", "main"]

SELF_TEST = "self_test.onnx"
SILENT = 4  # log severity of ONNX Runtime


def main(jobs: list[str]) -> int:
    """Do the jobs one after the other."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what a library prints must not be between our lines
    os.dup2(2, 1)
    for job in jobs:
        print(json.dumps({"begins": job}), file=out, flush=True)
        kind, _, what = job.partition(":")
        try:
            told = JOBS[kind](what)
        except BaseException as e:  # whatever a broken package raises is the finding
            told = {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"}
        print(json.dumps({"ends": job, **told}), file=out, flush=True)
    return 0


def _import(module: str) -> dict[str, Any]:
    found = importlib.import_module(module)
    told: dict[str, Any] = {"version": str(getattr(found, "__version__", ""))}
    if module == "torch":
        told["cuda"] = str(found.version.cuda or "")
        told["cuda_works"] = bool(found.cuda.is_available())
    elif module == "onnxruntime":
        told["providers"] = list(found.get_available_providers())
    elif module == "cv2":
        told["works"] = _opencv_works(found)
    return told


def _opencv_works(cv2: Any) -> bool:
    """Whether it encodes and decodes an image without loss."""
    import numpy as np

    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    ok, data = cv2.imencode(".png", image)
    return bool(ok and (cv2.imdecode(data, cv2.IMREAD_COLOR) == image).all())


def _provider(name: str) -> dict[str, Any]:
    """Make a session of the tiny network with a provider; ONNX Runtime falls back to the CPU without an error."""
    import onnxruntime as ort

    from deploykit.runtime.backends.ort_providers import CUDA, preload_cuda
    from deploykit.runtime.session import open_session

    if name == "webgpu":  # a plugin, which has to be registered
        with open_session(model_file(), device=name) as opened:
            return {"loaded": opened.providers[0] != "CPUExecutionProvider", "missing": ""}
    if name == CUDA:
        preload_cuda(ort)  # as before a model is opened
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    session = ort.InferenceSession(_model_bytes(), options, providers=[name])
    loaded = name in session.get_providers()
    return {"loaded": loaded, "missing": "" if loaded else _missing_library(Path(ort.__file__).parent, name)}


def _missing_library(folder: Path, provider: str) -> str:
    """Return what the loader says of the provider's library, which names the first one that it lacks."""
    short = provider.removesuffix("ExecutionProvider").lower()
    for file in (folder / "capi").glob(f"*onnxruntime_providers_{short}*"):
        try:
            ctypes.CDLL(str(file))
        except OSError as e:
            return str(e)
    return ""


def _plugin(name: str) -> dict[str, Any]:
    from deploykit.runtime.native.build import library_info

    info = library_info(name)
    return {
        "file": str(info.file) if info.file else "",
        "problem": info.problem,
        "says": f"ABI {info.abi}, {info.built_with}",
    }


def _gpu(_: str) -> dict[str, Any]:
    from deploykit.runtime.cuda import gpu_unavailable_reason

    return {"reason": gpu_unavailable_reason() or ""}


def _self_test(_: str) -> dict[str, Any]:
    """Letterbox, network and NMS against known values: two coloured cells in an image twice as wide as high.

    The network is 64 x 64 in cells of 8 x 8; the image 128 x 64, so that it is halved and gets a border of 16 rows.
    """
    import numpy as np

    from deploykit.facade import load

    image = np.zeros((64, 128, 3), np.uint8)
    image[16:32, 32:48] = (0, 0, 255)  # red, in BGR
    image[32:48, 96:112] = (255, 0, 0)  # blue
    with load(model_file()) as predictor:
        found: Any = predictor(image)
    order = np.argsort(found.labels)
    boxes, labels, scores = found.boxes[order], found.labels[order].tolist(), found.scores[order]
    expected = np.array([[32, 16, 48, 32], [96, 32, 112, 48]], np.float32)
    right = labels == [0, 1] and boxes.shape == (2, 4) and np.abs(boxes - expected).max() <= 1e-3
    right = right and np.abs(scores - 1).max() <= 1e-6
    return {"right": bool(right), "found": f"boxes {boxes.tolist()}, labels {labels}, scores {scores.tolist()}"}


def model_file() -> Path:
    """The path of the tiny network that ships with deploykit."""
    return Path(str(resources.files("deploykit") / "assets" / SELF_TEST))


def _model_bytes() -> bytes:
    return model_file().read_bytes()


JOBS: dict[str, Callable[[str], dict[str, Any]]] = {
    "import": _import,
    "provider": _provider,
    "plugin": _plugin,
    "gpu": _gpu,
    "self-test": _self_test,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
