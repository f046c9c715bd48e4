"""The report of an evaluation: metrics, the settings they depend on, and notes for the reader."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from deploykit.runtime.datasets.coco import CocoData
from deploykit.runtime.evaluate.coco_metrics import ClassScore, Curve, Detections, Kind
from deploykit.spec import COCO_KEYPOINTS, json_safe

__all__ = [
    "CONF",
    "IOU",
    "MAX_DET",
    "Counts",
    "DetectionEvaluation",
    "Evaluation",
    "ImageEvaluation",
    "ScoringInputs",
    "Settings",
    "comparability_notes",
    "shown",
]

CONF, IOU, MAX_DET = 0.001, 0.65, 300  # the usual thresholds for evaluating detectors of the YOLO family


@dataclass(frozen=True)
class Settings:
    """The settings that the metrics depend on.

    ``nms``: where NMS ran, ``runtime``, ``graph`` (with the thresholds of the export), or ``none`` where the network
    chooses its detections itself and no file tells more. ``nms_by``: what did it in the runtime, ``native library`` or
    ``numpy``, which give the same detections; else empty. ``multi_label``: one object
    per class over ``conf``, not only of the best class. ``size``: (height, width) of the canvas. ``rectangles``: each
    image had its own smaller canvas. ``providers``: the execution providers. ``scored``: the number of detections per
    image and category that count. ``matched_by``: how classes were matched to categories. ``preprocessing``: the
    spec's or upstream's. ``sigmas``: the OKS constants.
    """

    conf: float
    iou: float
    max_det: int
    pre_nms_topk: int
    multi_label: bool
    nms: Literal["runtime", "graph", "none"]
    size: tuple[int, int]
    rectangles: bool
    batch: int
    providers: tuple[str, ...]
    scored: int
    matched_by: str
    metrics: str
    preprocessing: str = "spec"
    sigmas: tuple[float, ...] = ()
    nms_by: str = ""


@dataclass(frozen=True)
class Counts:
    """``images`` of ``listed`` were evaluated; ``missing`` are not in the folder, ``left_out`` exceed the limit.

    ``objects`` are those that count (for keypoints: with a labelled one); ``crowd`` regions are ignored. ``full``:
    images with as many detections as ``max_det`` allows. ``truncated``: images with more candidates than NMS considers.
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
class ScoringInputs:
    """The annotations that detections are scored against, the images and categories that count, and the OKS sigmas."""

    truth: CocoData
    kind: Kind
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(ABC):
    """The result of an evaluation.

    Attributes:
        task: the scored task.
        metrics: the metrics of all images together, by name.
        timings: mean milliseconds per image and stage, without the first image.
        workers: how many images were on their way at the same time; with several, each takes longer and all less.
        versions: versions of the libraries that computed the metrics.
        notes: what a reader of the numbers must know.
    """

    task: str
    metrics: dict[str, float]
    timings: dict[str, float]
    versions: dict[str, str]
    notes: tuple[str, ...]
    workers: int = 1

    @abstractmethod
    def _about(self) -> dict[str, Any]:
        """Return the entries that this kind adds to :meth:`to_dict`."""

    @abstractmethod
    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what a reader must know to judge the numbers: a name and a few words per fact."""

    @abstractmethod
    def details(self) -> list[list[str]]:
        """Return a table of the metrics per class or image, headings first; empty: no table."""

    @property
    def time(self) -> str:
        """Return the stages and their sum as text."""
        stages = " + ".join(f"{stage} {ms:.1f}" for stage, ms in self.timings.items())
        together = f", {self.workers} at the same time" if self.workers > 1 else ""
        return f"{stages} = {sum(self.timings.values()):.1f} ms per image{together}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the detections, ready for ``json.dumps``; infinity becomes a word, as JSON has none."""
        about = {
            "task": self.task,
            "metrics": self.metrics,
            **self._about(),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
            "workers": self.workers,
            "versions": self.versions,
            "notes": list(self.notes),
        }
        told: dict[str, Any] = json_safe(about)
        return told


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageEvaluation(Evaluation):
    """The evaluation of outputs for whole images; all metrics but PSNR are fractions of 1.

    ``metrics``: ``top1 top5`` (classify), ``mIoU mAcc aAcc fwIoU``, for two classes also ``Dice`` (segment), ``PSNR
    SSIM`` (restore; means over the images).

    Attributes:
        per_class: metrics of each class, by name; empty for restore.
        per_image: metrics of each image, by file name; only for restore.
        counts: how much was looked at.
        settings: what the numbers depend on.
    """

    per_class: dict[str, dict[str, float]]
    per_image: dict[str, dict[str, float]]
    counts: dict[str, int]
    settings: dict[str, Any]

    def _about(self) -> dict[str, Any]:
        return {
            "per_class": self.per_class,
            "per_image": self.per_image,
            "counts": self.counts,
            "settings": self.settings,
        }

    def facts(self) -> Iterator[tuple[str, str]]:
        """See :meth:`Evaluation.facts`."""
        yield "counts", ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        yield "canvas", f"{self.settings['fit']}, {self.settings['size']}"
        yield "computes", ", ".join(self.settings["providers"])
        yield "time", self.time

    def details(self) -> list[list[str]]:
        """See :meth:`Evaluation.details`."""
        rows = self.per_image or self.per_class
        if not rows:
            return []
        columns = list(next(iter(rows.values())))
        table = [["image" if self.per_image else "class", *columns]]
        for name, values in rows.items():
            table.append([name, *(f"{values[c]:.4f}" if c != "images" else f"{values[c]}" for c in columns)])
        return table


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionEvaluation(Evaluation):
    """The evaluation of detections by COCO's protocol.

    ``task`` is ``detect``, ``oriented``, ``instances`` (of masks) or ``keypoints``. ``metrics`` have COCO's names, and
    are 0 to 1; -1 where there is no ground truth: AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl for boxes,
    oriented boxes and masks; AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl for keypoints.

    Attributes:
        per_class: AP, AP50, objects and detections of each category, by name.
        counts: how much was looked at.
        settings: what the numbers depend on.
        detections: all detections as they were scored.
        scored: the annotations, and the part of them that counts.
        curves: precision and score over recall for each category, by name.
    """

    per_class: dict[str, ClassScore]
    counts: Counts
    settings: Settings
    detections: Detections = dataclasses.field(repr=False)
    scored: ScoringInputs = dataclasses.field(repr=False)
    curves: dict[str, Curve] = dataclasses.field(repr=False)

    def _about(self) -> dict[str, Any]:
        return {
            "per_class": {
                name: {"AP": s.ap, "AP50": s.ap50, "objects": s.objects, "detections": s.detections}
                for name, s in self.per_class.items()
            },
            "counts": dataclasses.asdict(self.counts),
            "settings": dataclasses.asdict(self.settings),
        }

    def facts(self) -> Iterator[tuple[str, str]]:
        """See :meth:`Evaluation.facts`."""
        counts, used = self.counts, self.settings
        parts = [f"{counts.images} of {counts.listed} listed"]
        parts += [f"{counts.missing} missing"] if counts.missing else []
        parts += [f"{counts.left_out} left out by --limit"] if counts.left_out else []
        yield "images", ", ".join(parts)
        crowd = f", {counts.crowd} crowd region{'s' * (counts.crowd != 1)} ignored" if counts.crowd else ""
        matched = f"(matched by {used.matched_by})"
        classes = f"{counts.categories} categor{'y' if counts.categories == 1 else 'ies'}"
        yield "truth", f"{counts.objects:,} objects of {classes} {matched}{crowd}"
        full = f", {counts.full} image{'s' * (counts.full != 1)} with as many as max_det allows" if counts.full else ""
        yield "found", f"{counts.detections:,} detections{full}"
        labels = "each class over conf" if used.multi_label else "the best class per box"
        where = " (inside the network)" if used.nms == "graph" else ""
        if used.nms == "none":
            yield "thresholds", f"conf {used.conf:g}, max_det {used.max_det}; the network chooses its detections itself"
        else:
            yield "thresholds", f"conf {used.conf:g}, iou {used.iou:g}, max_det {used.max_det}, {labels}{where}"
        upstream = "; prepared as the original project evaluates" if used.preprocessing == "upstream" else ""
        canvas = "each image's own rectangle within" if used.rectangles else "the whole canvas of"
        yield "pixels", f"{canvas} {used.size[0]}x{used.size[1]} (height x width), batch {used.batch}{upstream}"
        nms = f"; NMS by {used.nms_by}" if used.nms_by else ""
        metrics = f"; metrics by {used.metrics} {self.versions[used.metrics]}"
        yield "computes", f"{', '.join(used.providers)}{nms}{metrics}"
        yield "time", self.time

    def details(self) -> list[list[str]]:
        """See :meth:`Evaluation.details`."""
        table = [["class", "AP", "AP50", "objects", "detections"]]
        for name, score in self.per_class.items():
            numbers = [shown(score.ap), shown(score.ap50), f"{score.objects:,}", f"{score.detections:,}"]
            table.append([name, *numbers])
        return table


def shown(value: float) -> str:
    """Return a metric as text; -1 means that there is nothing to score."""
    return "none" if value == -1 else f"{value:.4f}"


def comparability_notes(settings: Settings, counts: Counts) -> list[str]:
    """Return notes on what makes these numbers differ from those with the usual thresholds."""
    notes = []
    thresholds = f"conf {settings.conf:g}, iou {settings.iou:g}, max_det {settings.max_det}"
    if settings.nms == "graph" and not settings.multi_label:  # a two-stage detector always has NMS inside
        notes.append(
            f"NMS is inside this network: {thresholds}, pre_nms_topk {settings.pre_nms_topk} and one class per box are "
            f"the graph's; with the thresholds of an evaluation (conf {CONF:g}, iou {IOU:g}, max_det {MAX_DET}) AP is "
            "higher: evaluate the export without NMS"
        )
    elif settings.conf > CONF:
        notes.append(f"conf {settings.conf:g} leaves out weak detections: AP and AR are lower than with {CONF:g}")
    if settings.sigmas and settings.sigmas != COCO_KEYPOINTS.sigmas:
        notes.append("the OKS sigmas are not those of COCO's 17 keypoints: this is not COCO's keypoint AP")
    if settings.max_det < settings.scored:
        notes.append(f"max_det {settings.max_det} is below the {settings.scored} per image that COCO counts")
    if counts.truncated:
        notes.append(
            f"more candidates than NMS considers ({settings.pre_nms_topk}) in {counts.truncated} of {counts.images} "
            "images: the weakest were left out"
        )
    return notes
