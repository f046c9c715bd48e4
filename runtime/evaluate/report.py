"""What an evaluation gives: metrics, what they depend on, and what a reader of them must know."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from deploykit.runtime.evaluate.coco_data import CocoData
from deploykit.runtime.evaluate.coco_metrics import ClassScore, Curve, Detections, Kind
from deploykit.spec import COCO_KEYPOINTS

__all__ = ["CONF", "IOU", "MAX_DET", "Counts", "Evaluation", "Scored", "Settings", "Task", "remarks"]

CONF, IOU, MAX_DET = 0.001, 0.65, 300  # what detectors of the YOLO family are evaluated with

Task = Literal["detect", "instances", "keypoints"]


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    ``nms`` is where overlaps were suppressed: ``runtime``, or ``graph`` with the thresholds of the export.
    ``multi_label``: an object of each class over ``conf``, not of the best alone. ``size`` is the canvas' (height,
    width); ``rectangles``: each image had its own smaller one. ``providers``: what computed. ``scored``: the best so
    many of an image and category count. ``matched_by``: how classes met categories. ``preprocessing``:
    the spec's, or upstream's. ``sigmas``: OKS' constants.
    """

    conf: float
    iou: float
    max_det: int
    pre_nms_topk: int
    multi_label: bool
    nms: Literal["runtime", "graph"]
    size: tuple[int, int]
    rectangles: bool
    batch: int
    providers: tuple[str, ...]
    scored: int
    matched_by: str
    engine: str
    preprocessing: str = "spec"
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Counts:
    """``images`` were evaluated of ``listed``; ``missing`` are not in the folder, ``left_out`` by the limit.

    ``objects`` are those that count (for keypoints: with a labelled one), ``crowd`` regions are ignored. ``full``:
    images with as many detections as ``max_det`` allows; ``truncated``: with more candidates than NMS looks at.
    """

    images: int
    listed: int
    missing: int
    left_out: int
    categories: int
    objects: int
    crowd: int
    detections: int
    full: int
    truncated: int


@dataclass(frozen=True, eq=False)
class Scored:
    """What detections were held against: annotations, the images and categories of them that count, OKS' sigmas."""

    truth: CocoData
    kind: Kind
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        task: ``detect``, ``instances`` (of masks) or ``keypoints``.
        metrics: by COCO's names, 0 to 1; -1 where there is no ground truth. AP AP50 AP75 APs APm APl AR1 AR10 AR100
            ARs ARm ARl for boxes and masks; AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl for keypoints.
        per_class: AP, AP50, objects and detections of each category, by name.
        counts: how much was looked at.
        settings: what the numbers depend on.
        timings: mean milliseconds an image and stage, without the first image.
        versions: of what computed.
        notes: what a reader of the numbers must know.
        detections: everything that was found, as it was scored.
        scored: the annotations, and what of them it was held against.
        curves: precision and score over recall of each category, by name.
    """

    task: Task
    metrics: dict[str, float]
    per_class: dict[str, ClassScore]
    counts: Counts
    settings: Settings
    timings: dict[str, float]
    versions: dict[str, str]
    notes: tuple[str, ...]
    detections: Detections = dataclasses.field(repr=False)
    scored: Scored = dataclasses.field(repr=False)
    curves: dict[str, Curve] = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the detections, ready for ``json.dumps``."""
        return {
            "task": self.task,
            "metrics": self.metrics,
            "per_class": {
                name: {"AP": s.ap, "AP50": s.ap50, "objects": s.objects, "detections": s.detections}
                for name, s in self.per_class.items()
            },
            "counts": dataclasses.asdict(self.counts),
            "settings": dataclasses.asdict(self.settings),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
            "versions": self.versions,
            "notes": list(self.notes),
        }


def remarks(settings: Settings, counts: Counts) -> list[str]:
    """What makes these numbers others than those of an evaluation with its usual thresholds."""
    notes = []
    thresholds = f"conf {settings.conf:g}, iou {settings.iou:g}, max_det {settings.max_det}"
    if settings.nms == "graph" and not settings.multi_label:  # else a detector in two stages, which is not without
        notes.append(
            f"NMS is inside this network: {thresholds}, pre_nms_topk {settings.pre_nms_topk} and one class a box are "
            f"the graph's; with the thresholds of an evaluation (conf {CONF:g}, iou {IOU:g}, max_det {MAX_DET}) AP is "
            "higher: evaluate the export without NMS"
        )
    elif settings.conf > CONF:
        notes.append(f"conf {settings.conf:g} leaves out weak detections: AP and AR are lower than with {CONF:g}")
    if settings.sigmas and settings.sigmas != COCO_KEYPOINTS.sigmas:
        notes.append("the OKS sigmas are not those of COCO's 17 keypoints: this is not COCO's keypoint AP")
    if settings.max_det < settings.scored:
        notes.append(f"max_det {settings.max_det} is below the {settings.scored} an image that COCO counts")
    if counts.truncated:
        notes.append(
            f"more candidates than NMS looks at ({settings.pre_nms_topk}) in {counts.truncated} of {counts.images} "
            "images: the weakest were left out"
        )
    return notes
