"""Evaluation of detectors on annotated images by COCO's protocol (docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np

from deploykit.errors import DataError, ImageSizeError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.datasets.coco import CategoryMap, CocoData, Image, match_keypoints, match_labels
from deploykit.runtime.evaluate.coco_metrics import CocoScores, Detections, Kind, coco_scores, encoded_masks, library
from deploykit.runtime.evaluate.folders import unturned_images
from deploykit.runtime.evaluate.meter import Data, Finished, Meter
from deploykit.runtime.evaluate.report import (
    CONF,
    IOU,
    MAX_DET,
    Counts,
    DetectionEvaluation,
    ScoringInputs,
    Settings,
    comparability_notes,
)
from deploykit.runtime.evaluate.yolo_data import annotations_of
from deploykit.runtime.files import exists, is_folder
from deploykit.runtime.kinds.detection import DetectionAdapter
from deploykit.runtime.native.library import cpu_library
from deploykit.runtime.options import EvalOptions, PredictOptions, given_options
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.detection import Result
from deploykit.spec import COCO_KEYPOINTS, ModelSpec
from deploykit.version import __version__

__all__ = ["DetectionMeter", "as_upstream"]

KINDS: dict[str, Kind] = {"detect": "bbox", "instances": "segm", "keypoints": "keypoints", "oriented": "oriented"}
NEEDED = {"instances": "masks", "oriented": "oriented boxes"}
OWN = "deploykit"  # what computes the metrics of oriented boxes
TOPK = 30_000  # candidates per image that NMS considers: at worst hundreds of thousands score over 0.001
SCORED = {
    "detect": 100,
    "instances": 100,
    "keypoints": 20,
    "oriented": 100,
}  # COCO's own limit of detections per image and category


class DetectionMeter(Meter):
    """COCO's AP and AR for boxes, oriented boxes, masks or keypoints."""

    takes: ClassVar[frozenset[str]] = frozenset(
        {
            "conf",
            "iou",
            "max_det",
            "img",
            "rectangles",
            "allow_missing",
            "upstream",
            "metrics",
            "keep_detections",
            "sigmas",
            "split",
        }
    )
    metric: ClassVar[str] = "AP"
    stage: ClassVar[str] = ""

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """See :class:`deploykit.runtime.evaluate.meter.Meter`."""
        super().__init__(spec, task, data, options)
        _check_task(spec, task)
        self._kind = KINDS[task]
        self._metrics = _metrics_of(self._kind, options)
        self._truth, root = annotations_of(data, options.split)
        self._labels = match_labels(spec.classes, _classes(spec), self._truth.categories)
        points, self._sigmas, self._notes = _keypoints(spec, self._truth, self._labels, task, options.sigmas)
        self._files = _resolve_images(self._truth, root, limit=options.limit, allow_missing=options.allow_missing)
        self.paths = self._files.paths
        sizes = {path: image.size for path, image in zip(self.paths, self._files.images, strict=True)}
        self.unturned, turned = unturned_images(self.paths, lambda path: sizes[path], "annotations")
        self._notes = (*self._notes, *turned)
        fixed, inside = spec.output.thresholds_inside, spec.output.nms_inside
        prepared = as_upstream(spec) if options.upstream else spec
        rectangles = options.rectangles or (options.upstream and spec.input.dynamic == "shape")
        self.spec = _evaluated(prepared, options.img, rectangles)
        if options.upstream and not rectangles:
            self._notes = (
                *self._notes,
                "its shape is fixed, so these numbers include only area resampling from upstream's preprocessing",
            )
        self.options = PredictOptions(
            conf=CONF if options.conf is None and not fixed else options.conf,
            iou=IOU if options.iou is None and not inside else options.iou,
            max_det=MAX_DET if options.max_det is None and not fixed else options.max_det,
            batch=options.batch,
            max_pixels=options.max_pixels,
            multi_label=not inside and _classes(spec) > 1,
        )
        self._most = self.options.max_det or self.spec.thresholds.max_det
        masks_by = self._metrics if self._kind == "segm" else None
        self._collected = _DetectionCollector(self._files.images, self._labels, points, masks_by)

    def add(self, path: Path, result: ImageResult) -> None:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.add`."""
        assert isinstance(result, Result)
        self._collected.add(result, self._most)

    def evaluation(self, finished: Finished) -> DetectionEvaluation:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.evaluation`."""
        truth, labels = self._truth, self._labels
        found = self._collected.detections(self._kind)
        scored = ScoringInputs(
            truth, self._kind, tuple(p.id for p in self._files.images), tuple(labels.category_ids), self._sigmas
        )
        scores = _scores(scored, found, self._metrics)
        names = {c.id: c.name for c in truth.categories}
        settings = _settings(finished.predictor, self.task, labels, self._metrics, self._sigmas)
        counts = _counts(truth, self._files, labels, self._collected, self.task, len(found.scores))
        remarks = comparability_notes(settings, counts)
        about = finished.common(self.task, (*truth.notes, *labels.notes, *self._notes, *self._files.notes, *remarks))
        about["versions"] |= {self._metrics: __version__ if self._metrics == OWN else library(self._metrics)[2]}
        return DetectionEvaluation(
            metrics=scores.metrics,
            per_class={names[i]: score for i, score in scores.per_class.items()},
            counts=counts,
            settings=settings,
            detections=found,
            scored=scored,
            curves={names[i]: curve for i, curve in scores.curves.items()},
            **about,
        )


def _scores(scored: ScoringInputs, found: Detections, metrics: str) -> CocoScores:
    return coco_scores(
        scored.truth,
        found,
        kind=scored.kind,
        image_ids=scored.image_ids,
        category_ids=scored.category_ids,
        sigmas=scored.sigmas,
        metrics=metrics,
    )


def _metrics_of(kind: Kind, options: EvalOptions) -> str:
    """Return what computes the metrics of a kind of overlap, which fails if it is missing."""
    if kind != "oriented":
        library(options.metrics)
        return options.metrics
    if "metrics" in given_options(options):
        raise UsageError(
            "metrics: no library has the overlap of oriented boxes, so deploykit scores them: leave it out"
        )
    return OWN


def _check_task(spec: ModelSpec, task: str) -> None:
    """Check that the model has the outputs that this task scores."""
    if task == "keypoints" and spec.keypoints is None:
        raise UsageError("the task keypoints needs a model with keypoints, and this one has none: use --task detect")
    if task in NEEDED and spec.task != task:
        raise UsageError(f"the task {task} needs a model with {NEEDED[task]}, and this one has none: use --task detect")


def as_upstream(spec: ModelSpec) -> ModelSpec:
    """Return the spec with the preprocessing of the original projects' own evaluation (YOLOv5 v7.0, YOLOv7, YOLOv6).

    They shrink images by area averaging, round the size up (YOLOv5) or down, and pad each to a rectangle that is half a
    stride larger than necessary. The facts are from their loaders (utils/dataloaders.py, AGPL-3.0; utils/datasets.py,
    yolov6/data/datasets.py, GPL-3.0); the code is ours. Their batches share one rectangle; here each image has its own.

    Raises:
        UsageError: the model's project evaluates with the preprocessing of the spec, or with an unknown one.
    """
    fit = spec.input.fit
    if fit.kind != "letterbox" or fit.anchor != "centre":
        raise UsageError(
            f"--preprocess upstream is for models of the YOLOv5, YOLOv6 and YOLOv7 projects; "
            f"{spec.source.model or 'this model'} is evaluated with the preprocessing of its spec: leave it out"
        )
    rounding: Literal["floor", "ceil"] = "ceil" if spec.source.model.startswith("yolov5") else "floor"
    changed = dataclasses.replace(fit, shrink="area", rounding=rounding, margin=0.5)
    return dataclasses.replace(spec, input=dataclasses.replace(spec.input, fit=changed))


def _classes(spec: ModelSpec) -> int:
    """Return the number of classes of a model; 0: unknown."""
    return spec.output.num_classes(spec)


def _keypoints(
    spec: ModelSpec, truth: CocoData, labels: CategoryMap, task: str, given: tuple[float, ...] | None
) -> tuple[list[int], tuple[float, ...], tuple[str, ...]]:
    """Return the model's keypoints in the annotations' order, their OKS constants, and notes."""
    if task != "keypoints" or spec.keypoints is None:
        return [], (), ()
    order, notes = match_keypoints(spec.keypoints.names, truth, labels)
    sigmas = spec.keypoints.sigmas
    if given is not None:
        if len(given) not in (1, len(order)) or not all(0 < s < np.inf for s in given):
            raise UsageError(f"--sigmas takes one positive number, or one for each of {len(order)} keypoints: {given}")
        sigmas = given if len(given) == len(order) else given * len(order)
        return order, tuple(sigmas[i] for i in order), (*notes, "the OKS sigmas are those of --sigmas")
    if not sigmas and len(order) == len(COCO_KEYPOINTS.sigmas):
        sigmas, notes = (
            COCO_KEYPOINTS.sigmas,
            (*notes, "the spec has no OKS sigmas: those of COCO's 17 keypoints are used"),
        )
    if not sigmas:
        raise UsageError(
            f"OKS for {len(order)} keypoints needs {len(order)} sigmas, but the spec has none: "
            "pass --sigmas (COCO's are 0.025 to 0.107; the ultralytics package takes 1/K, here "
            f"{1 / len(order):.3g}), or write them into its keypoints.sigmas"
        )
    return order, tuple(sigmas[i] for i in order), notes


def _evaluated(spec: ModelSpec, img: int | Sequence[int] | None, rectangles: bool) -> ModelSpec:
    """Return the spec for the evaluation: one canvas for all images unless ``rectangles``, and every candidate.

    A checkpoint or a network with a dynamic shape then gets exactly the pixels that an export of fixed size gets.
    """
    own = spec.input
    size = own.size if img is None else (img, img) if isinstance(img, int) else (img[0], img[-1])
    if own.dynamic != "shape" and (rectangles or size != own.size):
        what = "rectangles" if rectangles else f"{size[0]}x{size[1]}"
        raise UsageError(
            f"this network takes only images of {own.size[0]}x{own.size[1]} (height x width), not {what}: "
            "export it with --dynamic shape, or evaluate the checkpoint"
        )
    if any(side < 1 or side % own.fit.stride for side in size):
        raise ImageSizeError(f"both sides must be multiples of the stride {own.fit.stride}, got {size[0]}x{size[1]}")
    fit = dataclasses.replace(own.fit, auto=rectangles)
    thresholds = spec.thresholds
    if not spec.output.nms_inside:
        thresholds = dataclasses.replace(thresholds, pre_nms_topk=TOPK)
    return dataclasses.replace(spec, input=dataclasses.replace(own, size=size, fit=fit), thresholds=thresholds)


@dataclass(frozen=True)
class _Files:
    """The evaluated images and their files, in the annotations' order."""

    images: list[Image]
    paths: list[Path]
    missing: int
    left_out: int
    notes: tuple[str, ...]


def _resolve_images(truth: CocoData, root: Path, *, limit: int | None, allow_missing: bool) -> _Files:
    """Find every listed image in the folder.

    Raises:
        NotFoundError: the folder is missing, an image is missing without ``allow_missing``, or all are.
        UsageError: ``root`` is not a folder.
    """
    if not is_folder(root):
        if exists(root):
            raise UsageError(f"the images must be in a folder, but {root} is a file")
        raise NotFoundError(f"expected a folder of images at {root}, which does not exist")
    there = {p.id: exists(root / p.file_name) for p in truth.images}
    missing = [p.file_name for p in truth.images if not there[p.id]]
    told = f"{len(missing)} of {len(truth.images)} listed images are not in {root} ({_first(missing)})"
    if missing and (len(missing) == len(truth.images) or (limit is None and not allow_missing)):
        raise NotFoundError(f"{told}: pass the right folder, or --allow-missing to evaluate only the others")
    present = [p for p in truth.images if there[p.id]]
    images = present[:limit]
    left_out = len(present) - len(images)
    notes = [f"{told}; they were left out"] if missing else []
    if left_out:
        notes.append(f"only the first {len(images)} of {len(present)} images were evaluated (--limit)")
    paths = [root / p.file_name for p in images]
    return _Files(images, paths, len(missing), left_out, tuple(notes))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class _DetectionCollector:
    """Collects the results of all images in the form that the metrics need."""

    def __init__(self, images: list[Image], labels: CategoryMap, order: list[int], masks_by: str | None) -> None:
        """``masks_by``: the library that encodes masks as run lengths; None: masks are not kept."""
        self.full = self.truncated = 0
        self._images = iter(images)
        self._known = np.array([i is not None for i in labels.ids], bool)
        self._ids = np.array([0 if i is None else i for i in labels.ids], np.int64)
        self._order, self._masks_by = order, masks_by
        self._parts: list[Detections] = []

    def add(self, result: Result, max_det: int) -> None:
        """Add the result of the next image."""
        image = next(self._images)
        if image.size is not None and image.size != result.size:
            raise DataError(
                f"{result.name} is {result.size[1]}x{result.size[0]} (width x height, upright by its EXIF "
                f"orientation), but the annotations say {image.size[1]}x{image.size[0]}: the boxes do not fit it"
            )
        self.full += len(result) >= max_det
        self.truncated += result.truncated
        use = self._known[result.labels]
        boxes = result.boxes[use].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        keypoints = None if result.keypoints is None else result.keypoints[use][:, self._order]
        ids = np.full(len(boxes), image.id, np.int64)
        scores = result.scores[use].astype(np.float64)
        masks = None
        if self._masks_by is not None and result.masks is not None:  # as run lengths: masks have the size of the image
            masks = encoded_masks(result.masks[use], self._masks_by)
        rotated = None if result.rotated is None else result.rotated[use].astype(np.float64)
        self._parts.append(Detections(ids, self._ids[result.labels[use]], boxes, scores, keypoints, masks, rotated))

    def detections(self, kind: Kind) -> Detections:
        """Return all detections in the order of the images, with what this kind of overlap is of."""

        def joined(arrays: list[Array]) -> Array:
            return np.concatenate(arrays)

        parts = self._parts
        keypoints = joined([p.keypoints for p in parts if p.keypoints is not None]) if kind == "keypoints" else None
        rotated = joined([p.rotated for p in parts if p.rotated is not None]) if kind == "oriented" else None
        return Detections(
            joined([p.image_ids for p in parts]),
            joined([p.category_ids for p in parts]),
            joined([p.boxes for p in parts]),
            joined([p.scores for p in parts]),
            keypoints,
            None if self._masks_by is None else tuple(mask for p in parts for mask in p.masks or ()),
            rotated,
        )


def _settings(
    predictor: Predictor[ImageResult], task: str, labels: CategoryMap, metrics: str, sigmas: tuple[float, ...]
) -> Settings:
    spec, used = predictor.spec, cast(DetectionAdapter[Any], predictor.adapter).thresholds
    return Settings(
        conf=used.conf,
        iou=used.iou,
        max_det=used.max_det,
        pre_nms_topk=used.pre_nms_topk,
        multi_label=predictor.options.multi_label or spec.output.two_stages,
        nms="graph" if spec.output.thresholds_inside else "none" if spec.output.nms_inside else "runtime",
        size=spec.input.size,
        rectangles=spec.input.fit.auto,
        batch=predictor.batch,
        providers=predictor.session.providers,
        scored=SCORED[task],
        matched_by=labels.by,
        metrics=metrics,
        preprocessing="spec" if spec.input.fit.shrink == "linear" else "upstream",
        sigmas=sigmas,
        nms_by="" if spec.output.nms_inside else "numpy" if cpu_library() is None else "native library",
    )


def _counts(
    truth: CocoData, files: _Files, labels: CategoryMap, collected: _DetectionCollector, task: str, detections: int
) -> Counts:
    images, categories = {p.id for p in files.images}, set(labels.category_ids)
    crowds = (a["iscrowd"] for a in truth.annotations if a["image_id"] in images and a["category_id"] in categories)
    return Counts(
        images=len(images),
        listed=len(truth.images),
        missing=files.missing,
        left_out=files.left_out,
        categories=len(categories),
        objects=len(truth.objects(images, categories, keypoints=task == "keypoints")),
        crowd=sum(crowds),
        detections=detections,
        full=collected.full,
        truncated=collected.truncated,
    )
