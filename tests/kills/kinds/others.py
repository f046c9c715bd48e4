"""Commands that write files of one kind each: checkpoints, plots, packages, libraries, parts of a run."""

from __future__ import annotations

from tests.kills.kind import INPUTS, Kind
from tests.kills.kinds.inputs import CELLS, IMAGES, write_cells, write_cells_and_images

RUNTIME = ("cv2", "numpy", "onnxruntime", "deploykit.runtime.predict.predictor")


def _create(old: bool) -> list[str]:
    return ["create", "yolox-nano", "--out", "out/new.pt", "--force", "--seed", str(int(old))]


def _eval(old: bool) -> list[str]:
    files = ["--plots", "out/plots", "--detections", "out/detections.json"]
    data = ["--data", f"{INPUTS}/coco/annotations.json", "--images", IMAGES, "--task", "detect"]
    return ["eval", CELLS, *data, *files, *(["--limit", "2"] if old else [])]


def _package(old: bool) -> list[str]:
    return ["package", CELLS, "--triton", "out/repository", "--force"]


def _plugins(old: bool) -> list[str]:
    return ["plugins", "build", "--out", "out", "--only", "cpu"]


def _cluster(old: bool) -> list[str]:
    return ["cluster", "run", CELLS, IMAGES, "--out", "out", "--workers", "1", "--per-part", "1", "--join"]


CREATE = Kind("create", lambda folder: None, _create, imports=("torch", "deploykit.models.create.random_weights"))
EVAL = Kind(
    "eval", write_cells_and_images, _eval,
    imports=(*RUNTIME, "hotcoco", "matplotlib.figure", "deploykit.runtime.evaluate.evaluate"),
)  # fmt: skip
PACKAGE = Kind("package", write_cells, _package, imports=RUNTIME)
PLUGINS = Kind("plugins build", lambda folder: None, _plugins, removed_first=["SHA256SUMS"], weight=0.5)
CLUSTER = Kind("cluster run", write_cells_and_images, _cluster, imports=RUNTIME)
