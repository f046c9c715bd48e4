"""Predictions: files for each image and about all of them, a run that goes on, and a video."""

from __future__ import annotations

from pathlib import Path

from tests.kills.kind import INPUTS, Kind
from tests.kills.kinds.inputs import CELLS, IMAGES, write_cells, write_cells_and_images

MODULES = ("cv2", "numpy", "onnxruntime", "deploykit.runtime.predict.predictor")


def write_video(folder: Path) -> None:
    """Sixteen frames."""
    from deploykit.runtime.images.video_writer import Mp4Writer
    from tests.cell_model import BLUE, RED, planted

    write_cells(folder)
    with Mp4Writer(folder / "video.mp4", 8) as video:
        for i in range(16):
            video.write(planted((i % 8, 2, RED), (3, i // 2, BLUE)))


def _images(old: bool) -> list[str]:
    files = ["--out", "out", "--coco", "out/all.json", "--csv", "out/all.csv", "--save-txt", "--labelme", "--crops"]
    return ["predict", CELLS, IMAGES, *files, *(["--classes", "red"] if old else [])]


def _resumed(old: bool) -> list[str]:
    return [*_images(False), "--resume"]


def _video(old: bool) -> list[str]:
    return ["predict", CELLS, f"{INPUTS}/video.mp4", "--out", "out", *(["--classes", "red"] if old else [])]


PREDICT = Kind("predict", write_cells_and_images, _images, imports=MODULES)
RESUME = Kind("predict --resume", write_cells_and_images, _resumed, growing=["predict.progress.jsonl"], imports=MODULES)
VIDEO = Kind("predict VIDEO", write_video, _video, imports=MODULES)
