"""COCO's average precision and recall, computed by a library behind one function.

Two libraries implement the protocol: hotcoco (MIT) and pycocotools (BSD), the original. They have the same interface
and give the same numbers; hotcoco is much faster. This module prepares their input and reads their results. Neither
takes the overlap of oriented boxes that their networks are tuned and scored with (ProbIoU), so
:mod:`deploykit.runtime.scoring.average_precision` follows the protocol for these.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal, get_args

import numpy as np

from deploykit.errors import DataError, UsageError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.datasets.coco import CocoData, Image
from deploykit.runtime.options import MetricsLibrary
from deploykit.runtime.postprocess.rotated import corners_of, rectangle_around
from deploykit.runtime.postprocess.rotated_nms import overlaps
from deploykit.runtime.scoring.average_precision import ImageOverlaps, Scored, score

__all__ = [
    "BOX_KEYS",
    "KEYPOINT_KEYS",
    "LIBRARIES",
    "ClassScore",
    "CocoScores",
    "Curve",
    "Detections",
    "Kind",
    "coco_scores",
    "encoded_masks",
    "evaluator",
    "library",
]

LIBRARIES = get_args(MetricsLibrary)
BOX_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_KEYS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")

Kind = Literal["bbox", "keypoints", "oriented", "segm"]


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects of many images as parallel arrays; the objects of one image are sorted by score.

    ``image_ids (N,)`` and ``category_ids (N,)`` are the annotations' numbers, ``boxes (N, 4)`` float64 x, y, width,
    height in source pixels, ``scores (N,)``, ``keypoints (N, K, 3)`` x, y, visibility in source pixels, or None;
    ``masks``: run lengths of N masks of the source's size (:func:`encoded_masks`), or None. ``rotated (N, 5)`` float64
    cx, cy, w, h, angle, of which ``boxes`` are the upright ones around them, or None.
    """

    image_ids: Array
    category_ids: Array
    boxes: Array
    scores: Array
    keypoints: Array | None = None
    masks: tuple[dict[str, Any], ...] | None = None
    rotated: Array | None = None

    def entries(self) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format with all digits; with keypoints, without boxes, as COCO does.

        An oriented box is the upright box around it, and a polygon of its corners as ``segmentation``.

        (With a box in the entry, the libraries would take the size of a person from the box, not from the keypoints.)
        """
        columns = zip(self.image_ids.tolist(), self.category_ids.tolist(), self.scores.tolist(), strict=True)
        entries = [{"image_id": i, "category_id": c, "score": s} for i, c, s in columns]
        key, values = ("bbox", self.boxes.tolist())
        if self.masks is not None:
            key, values = "segmentation", list(self.masks)
        elif self.keypoints is not None:
            key, values = "keypoints", _flat(self.keypoints).tolist()
        for entry, value in zip(entries, values, strict=True):
            entry[key] = value
        if self.rotated is not None:
            for entry, corners in zip(entries, corners_of(self.rotated).reshape(-1, 8).tolist(), strict=True):
                entry["segmentation"] = [corners]
        return entries


@dataclass(frozen=True)
class ClassScore:
    """AP and AP50 of one category (-1: it has no object), and its numbers of objects and detections."""

    ap: float
    ap50: float
    objects: int
    detections: int


@dataclass(frozen=True, eq=False)
class Curve:
    """The precision of one category (-1: it has no object), and the score at which the recall is reached, ``(10, 101)``
    each: at ten IoU thresholds (0.50, 0.55, ... 0.95) and 101 recalls (0, 0.01, ... 1)."""

    precision: Array
    scores: Array


@dataclass(frozen=True)
class CocoScores:
    """``metrics`` by :data:`BOX_KEYS` or :data:`KEYPOINT_KEYS`, 0 to 1 (-1: no ground truth); the same per category."""

    metrics: dict[str, float]
    per_class: dict[int, ClassScore]
    curves: dict[int, Curve] = field(compare=False, repr=False)


def library(metrics: str) -> tuple[Any, Any, str]:
    """Return the classes COCO and COCOeval of a library, and its version.

    Raises:
        UsageError: there is no library of this name.
        MissingDependencyError: the library is not installed; the message names the extra.
    """
    if metrics not in LIBRARIES:
        raise UsageError(f"the library of the metrics must be {' or '.join(LIBRARIES)}, got {metrics!r}")
    if metrics == "hotcoco":
        module = import_extra("hotcoco", "eval")
        return module.COCO, module.COCOeval, metadata.version("hotcoco")
    coco, evaluation = import_extra("pycocotools.coco", "dev"), import_extra("pycocotools.cocoeval", "dev")
    return coco.COCO, evaluation.COCOeval, metadata.version("pycocotools")


def coco_scores(
    data: CocoData,
    found: Detections,
    *,
    kind: Kind,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    sigmas: tuple[float, ...] = (),
    metrics: str = "hotcoco",
) -> CocoScores:
    """Score detections against annotations by COCO's protocol.

    Args:
        data: the annotations.
        found: the detections; those of other images and categories do not count.
        kind: overlap of boxes, of oriented boxes (ProbIoU) or of masks, or similarity of keypoints (OKS).
        image_ids: the evaluated images.
        category_ids: the categories to average over.
        sigmas: the OKS constant of each keypoint.
        metrics: the library, one of :data:`LIBRARIES`; of no account for oriented boxes.
    """
    categories = sorted(set(category_ids))
    objects = Counter(data.objects(image_ids, categories, keypoints=kind == "keypoints"))
    if kind == "oriented":
        scored = oriented_scores(data, found, sorted(image_ids), categories)
        values = dict(zip(BOX_KEYS, scored.stats(), strict=True))
        curves = _curves(scored.precision, scored.scores, categories)
        return CocoScores(values, _per_class(scored.precision, objects, found, categories), curves)
    with _quiet():
        run = evaluator(
            data, found, kind=kind, image_ids=image_ids, category_ids=categories, sigmas=sigmas, metrics=metrics
        )
        run.accumulate()
        run.summarize()
    keys = KEYPOINT_KEYS if kind == "keypoints" else BOX_KEYS
    values = dict(zip(keys, (float(v) for v in run.stats), strict=True))
    per_class = _per_class(run.eval["precision"], objects, found, categories)
    return CocoScores(values, per_class, curves_of(run, categories))


def evaluator(
    data: CocoData,
    found: Detections,
    *,
    kind: Kind,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    sigmas: tuple[float, ...] = (),
    metrics: str = "hotcoco",
) -> Any:
    """Return the library's evaluation with the detections matched per image, before accumulation.

    The arguments are those of :func:`coco_scores`.
    """
    coco, evaluation, _ = library(metrics)
    points = len(sigmas) if kind == "keypoints" else 0
    with _quiet():
        truth = _dataset(coco, data, data.annotations, points)
        if len(found.scores):
            # Both libraries read an array fastest; an array cannot hold keypoints.
            results = truth.loadRes(_table(found) if kind == "bbox" else found.entries())
        else:
            results = _dataset(coco, data, (), points)  # one library refuses an empty list
        run = evaluation(truth, results, kind)
        run.params.imgIds = sorted(image_ids)
        run.params.catIds = sorted(set(category_ids))
        if kind == "keypoints":
            run.params.kpt_oks_sigmas = np.array(sigmas, np.float64)
        run.evaluate()
    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence both libraries: they print what they do, and one warns about sigmas, which the notes report."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*kpt_oks_sigmas")
        yield


def curves_of(run: Any, categories: Sequence[int]) -> dict[int, Curve]:
    """Return precision and score over recall per category, for objects of all sizes, from an accumulated evaluation."""
    return _curves(np.asarray(run.eval["precision"]), np.asarray(run.eval["scores"]), categories)


def _curves(precision: Array, scores: Array, categories: Sequence[int]) -> dict[int, Curve]:
    sides = (precision[:, :, :, 0, -1], scores[:, :, :, 0, -1])
    return {category: Curve(*(side[:, :, k] for side in sides)) for k, category in enumerate(categories)}


def oriented_scores(data: CocoData, found: Detections, image_ids: Sequence[int], category_ids: Sequence[int]) -> Scored:
    """Score oriented boxes by COCO's protocol, with ProbIoU as their overlap.

    An object is the smallest rectangle around the outline of its annotation, or its box if it has no outline. Areas are
    those of the rectangles.
    """
    assert found.rotated is not None
    truth: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for annotation in data.annotations:
        truth.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation)
    places: dict[tuple[int, int], list[int]] = {}
    for i, place in enumerate(zip(found.image_ids.tolist(), found.category_ids.tolist(), strict=True)):
        places.setdefault(place, []).append(i)
    categories = []
    for category in category_ids:
        images = []
        for image in image_ids:
            objects, own = truth.get((image, category), []), np.array(places.get((image, category), []), np.int64)
            if not objects and not len(own):
                continue
            own = own[np.argsort(-found.scores[own], kind="stable")]
            boxes, others = found.rotated[own], _rectangles(objects, data)
            crowd = np.array([a["iscrowd"] for a in objects], bool)
            area, object_area = (side[:, 2] * side[:, 3] for side in (boxes, others))
            images.append(ImageOverlaps(found.scores[own], area, object_area, crowd, overlaps(boxes, others)))
        categories.append(images)
    return score(categories)


def _rectangles(annotations: Sequence[dict[str, Any]], data: CocoData) -> Array:
    """Return the oriented boxes of annotations, ``(N, 5)`` cx, cy, w, h, angle.

    Raises:
        DataError: an outline is no list of points.
    """
    found = np.zeros((len(annotations), 5))
    for i, annotation in enumerate(annotations):
        x, y, w, h = annotation["bbox"]
        found[i, :4] = x + w / 2, y + h / 2, w, h
        outlines = annotation.get("segmentation")
        if isinstance(outlines, list):  # run lengths are a dictionary
            try:
                points = np.concatenate([np.asarray(outline, np.float64).reshape(-1, 2) for outline in outlines])
            except (TypeError, ValueError):
                points = np.empty((0, 2))
            if not len(points) or not np.isfinite(points).all():
                where = f"annotation {annotation['id']} of {data.path}"
                raise DataError(f"{where}: a segmentation must be outlines of [x1, y1, x2, y2, ...]")
            found[i] = rectangle_around(points)
    return found


def _dataset(coco: Any, data: CocoData, annotations: tuple[dict[str, Any], ...], points: int) -> Any:
    """Build the library's data set; an object without keypoints gets ``points`` unlabelled ones, so it is ignored."""
    unlabelled = {"keypoints": [0.0] * 3 * points, "num_keypoints": 0} if points else {}
    built = coco()
    built.dataset = {
        "info": {},
        "images": [{"id": p.id, "file_name": p.file_name, **_sides(p)} for p in data.images],
        "categories": [{"id": c.id, "name": c.name} for c in data.categories],
        "annotations": [{**unlabelled, **a} for a in annotations],  # copies: one library writes into them
    }
    built.createIndex()
    return built


def _sides(image: Image) -> dict[str, int]:
    """Return the size of an image, which polygons need to become masks."""
    return {} if image.size is None else {"height": image.size[0], "width": image.size[1]}


def encoded_masks(masks: Array, metrics: str = "hotcoco") -> tuple[dict[str, Any], ...]:
    """Encode masks ``(N, H, W)`` bool as COCO's run lengths, ``{"size": [H, W], "counts": text}`` each.

    Raises:
        MissingDependencyError: the library is not installed.
    """
    mask = import_extra("hotcoco.mask", "eval") if metrics == "hotcoco" else import_extra("pycocotools.mask", "dev")
    encoded = [mask.encode(np.asfortranarray(each.astype(np.uint8))) for each in masks]
    return tuple(
        {
            "size": [int(s) for s in e["size"]],
            "counts": e["counts"].decode() if isinstance(e["counts"], bytes) else e["counts"],
        }
        for e in encoded
    )


def _table(found: Detections) -> Array:
    """Return ``(N, 7)``: image, x, y, width, height, score, category."""
    columns = (found.image_ids[:, None], found.boxes, found.scores[:, None], found.category_ids[:, None])
    return np.concatenate(columns, axis=1, dtype=np.float64)


def _flat(keypoints: Array) -> Array:
    return keypoints.reshape(len(keypoints), -1).astype(np.float64)


def _per_class(
    precision: Array, objects: Counter[int], found: Detections, categories: list[int]
) -> dict[int, ClassScore]:
    """Score each category from precisions ``(10, 101, categories, sizes, limits)``: all sizes, the last limit."""
    scores = {}
    for k, category in enumerate(categories):
        values = np.asarray(precision)[:, :, k, 0, -1]
        detections = int((found.category_ids == category).sum())
        scores[category] = ClassScore(_mean(values), _mean(values[0]), objects[category], detections)
    return scores


def _mean(values: Array) -> float:
    """Return the mean of the valid values; -1 if there was no object."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
