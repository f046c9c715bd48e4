"""How good a network with one dense output is: classification, segmentation, restoration (docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np

from deploykit.errors import DataError, NotFoundError, UsageError, require
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.metrics import WINDOW, psnr, ssim
from deploykit.runtime.images.placing import Placed, dense_blob, place
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.sources import IMAGE_SUFFIXES, images_in
from deploykit.runtime.machine import versions
from deploykit.runtime.postprocess.dense import DenseTask, dense_output, label_map, restored, top_classes
from deploykit.runtime.session import Session, input_of
from deploykit.spec import DenseOutput, ModelSpec, worded

__all__ = ["DenseEvaluation", "DenseTask", "evaluate_dense_session"]

TOP = 5
IGNORED = 255


@dataclass(frozen=True, eq=False)
class DenseEvaluation:
    """What an evaluation found; all but PSNR are fractions of 1.

    ``metrics``: ``top1 top5`` (classify), ``mIoU mAcc aAcc fwIoU`` and of two classes ``Dice`` (segment), ``PSNR SSIM``
    (restore; means over the images). ``per_class``: metrics of each class, by name; empty for restore.
    ``per_image``: of restore, by the file's name.
    """

    task: DenseTask
    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    per_image: dict[str, dict[str, float]]
    counts: dict[str, int]
    settings: dict[str, Any]
    timings: dict[str, float]
    versions: dict[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for ``json.dumps``; JSON has no infinity: the PSNR of equal images becomes the word."""
        data = dataclasses.asdict(self)
        data["timings_ms"] = {stage: round(ms, 3) for stage, ms in data.pop("timings").items()}
        told: dict[str, Any] = worded(data)
        return told


def evaluate_dense_session(
    session: Session,
    spec: ModelSpec,
    data: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    task: str | None = None,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> DenseEvaluation:
    """Evaluate a network that is open already; see :func:`deploykit.evaluate_dense` for the arguments."""
    chosen = _task(spec, task)
    cases, notes = _cases(chosen, spec, data, images, limit)
    meter = _METERS[chosen](spec)
    times: list[dict[str, float]] = []
    for number, case in enumerate(cases, start=1):
        start = time.perf_counter()
        image = read_image(case.image)
        read = time.perf_counter()
        placed = place(image, spec.input)
        fed = dense_blob([placed.canvas], spec.input)
        info = session.inputs[0]
        fed = np.repeat(fed, info.shape[0] or 1, 0)
        ready = time.perf_counter()
        output = dense_output(session.run(input_of(info, fed)), spec, str(case.image))
        done = time.perf_counter()
        meter.take(case, output[0].astype(np.float32, copy=False), placed)
        end = time.perf_counter()
        marks = (start, read, ready, done, end)
        stages = ("read", "prepare", "inference", "score")
        times.append({s: 1e3 * (b - a) for s, a, b in zip(stages, marks, marks[1:], strict=False)})
        on_progress(number, len(cases))
    counted = times[1:] or times
    canvas = spec.input
    return DenseEvaluation(
        task=chosen,
        metrics=meter.metrics(),
        per_class=meter.per_class(),
        per_image=meter.per_image(),
        counts={"images": len(cases), **meter.counts()},
        settings={
            "fit": canvas.fit.kind,
            "size": "each image's own" if canvas.fit.kind == "pad" and canvas.dynamic == "shape" else list(canvas.size),
            "providers": list(session.providers),
        },
        timings={stage: sum(t[stage] for t in counted) / len(counted) for stage in counted[0]},
        versions=versions() | meter.versions(),
        notes=(*session.notes, *notes),
    )


# What is evaluated on.


@dataclass(frozen=True)
class _Case:
    """An image and its truth: a class's number, or the file of a label map or of the target."""

    image: Path
    label: int = -1
    truth: Path = Path()


def _task(spec: ModelSpec, asked: str | None) -> DenseTask:
    task = spec.task if asked is None else asked
    if task == spec.task == "features":
        raise UsageError("this model gives features of an image, and there is no truth that those are scored by")
    if task not in _METERS or spec.task != task or not isinstance(spec.output, DenseOutput):
        raise UsageError(
            f"the task {task!r} was asked for, but this model's is {spec.task!r}, with an output of kind "
            f"{spec.output.kind!r}"
        )
    return task


def _cases(
    task: DenseTask,
    spec: ModelSpec,
    data: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    limit: int | None,
) -> tuple[list[_Case], tuple[str, ...]]:
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1 image, got {limit}")
    if task == "classify":
        if images is not None:
            raise UsageError(
                "classification takes one folder, with a folder of images for each class: leave --images out"
            )
        cases = _class_folders(_folder(data, "folders of classes"), spec.classes)
    else:
        if images is None:
            what = "label maps" if task == "segment" else "targets"
            raise UsageError(
                f"the task {task} takes --images, a folder of images, beside --data, the folder of their {what}"
            )
        cases = _pairs(_folder(images, "images"), _folder(data, "label maps or targets"))
    chosen = cases[:limit]
    notes = (
        () if len(chosen) == len(cases) else (f"only the first {len(chosen)} of {len(cases)} images were evaluated",)
    )
    return chosen, notes


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise NotFoundError(f"a folder with {what} was expected at {folder}, which is none")
    return folder


def _class_folders(root: Path, classes: tuple[str, ...]) -> list[_Case]:
    """Every image of every class's folder; folders are named as the classes, or by their numbers."""
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    if not folders:
        raise DataError(f"{root} has no folder: classification takes a folder of images for each class")
    names = {_plain(name): number for number, name in enumerate(classes)}
    numbered = all(p.name.isdecimal() and int(p.name) < max(len(classes), 1) for p in folders)
    labels = {p: int(p.name) if numbered else names.get(_plain(p.name)) for p in folders}
    unknown = [p.name for p, label in labels.items() if label is None]
    if unknown:
        raise DataError(
            f"the folder {unknown[0]!r} ({len(unknown)} of {len(folders)} in {root}) is none of the model's "
            f"{len(classes)} classes ({', '.join(classes[:3])}, ...)"
        )
    return [_Case(image, cast(int, labels[p])) for p in folders for image in images_in(p)]


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ")


def _pairs(images: Path, truths: Path) -> list[_Case]:
    """Each image with the file of the same stem."""
    known: dict[str, Path] = {p.stem: p for p in truths.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
    cases, missing = [], []
    for image in images_in(images):
        truth = known.get(image.stem)
        if truth is None:
            missing.append(image.name)
        else:
            cases.append(_Case(image, truth=truth))
    if missing:
        told = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{truths} has no file of the same name for {len(missing)} of the images in {images}: {told}")
    return cases


# Metrics.


class _Meter(Protocol):
    def __init__(self, spec: ModelSpec) -> None: ...
    def take(self, case: _Case, output: Array, placed: Placed) -> None: ...
    def metrics(self) -> dict[str, float]: ...
    def per_class(self) -> dict[str, dict[str, float]]: ...
    def per_image(self) -> dict[str, dict[str, float]]: ...
    def counts(self) -> dict[str, int]: ...
    def versions(self) -> dict[str, str]: ...


class _Classes:
    """Top-1 and top-5: the share of the images whose class is the best one, or among the best five."""

    def __init__(self, spec: ModelSpec) -> None:
        self._names = spec.classes
        self._seen: list[tuple[int, bool, bool]] = []

    def take(self, case: _Case, output: Array, placed: Placed) -> None:
        if case.label >= len(output):
            raise DataError(f"{case.image} is of class {case.label}, the network knows {len(output)} (0 and up)")
        order, _ = top_classes(output, TOP)
        self._seen.append((case.label, bool(order[0] == case.label), bool((order == case.label).any())))

    def metrics(self) -> dict[str, float]:
        return _shares(self._seen)

    def per_class(self) -> dict[str, dict[str, float]]:
        labels = sorted({label for label, _, _ in self._seen})
        return {
            self._names[label] if label < len(self._names) else str(label): {
                **_shares([s for s in self._seen if s[0] == label]),
                "images": sum(s[0] == label for s in self._seen),
            }
            for label in labels
        }

    def per_image(self) -> dict[str, dict[str, float]]:
        return {}

    def counts(self) -> dict[str, int]:
        return {"classes": len({label for label, _, _ in self._seen})}

    def versions(self) -> dict[str, str]:
        return {}


def _shares(seen: list[tuple[int, bool, bool]]) -> dict[str, float]:
    return {"top1": sum(s[1] for s in seen) / len(seen), "top5": sum(s[2] for s in seen) / len(seen)}


class _Pixels:
    """Intersection over union of label maps, by hotcoco; pixels whose truth is 255 do not count."""

    def __init__(self, spec: ModelSpec) -> None:
        self._semantic = require("hotcoco.semantic", "eval")
        self._names = spec.classes
        self._evaluation: Any = None

    def take(self, case: _Case, output: Array, placed: Placed) -> None:
        classes = max(len(output), 2)
        if self._evaluation is None:
            names = list(self._names) if len(self._names) == classes else classes
            self._evaluation = self._semantic.SemanticEval(names, ignore_index=IGNORED)
        truth = _labels_in(case.truth)
        if truth.shape != placed.source:
            raise DataError(f"{case.truth} has {truth.shape} (height, width), its image {placed.source}")
        beyond = truth[(truth >= classes) & (truth != IGNORED)]
        if beyond.size:
            raise DataError(
                f"{case.truth} has the label {int(beyond[0])}, the network {classes} classes; 255 is ignored"
            )
        self._evaluation.update(truth.astype(np.int64), label_map(output, placed).astype(np.int64))

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = self._evaluation.report()
        return report

    def metrics(self) -> dict[str, float]:
        found = {name: float(value) for name, value in self._report()["metrics"].items()}
        confusion = np.asarray(self._evaluation.confusion(), np.float64)
        if len(confusion) == 2:
            found["Dice"] = float(2 * confusion[1, 1] / max(confusion[1].sum() + confusion[:, 1].sum(), 1.0))
        return found

    def per_class(self) -> dict[str, dict[str, float]]:
        return {name: {k: float(v) for k, v in values.items()} for name, values in self._report()["per_class"].items()}

    def per_image(self) -> dict[str, dict[str, float]]:
        return {}

    def counts(self) -> dict[str, int]:
        return {"pixels": int(np.asarray(self._evaluation.confusion()).sum())}

    def versions(self) -> dict[str, str]:
        from importlib import metadata

        return {"hotcoco": metadata.version("hotcoco")}


class _Restored:
    """PSNR and SSIM of restored images, on the 8-bit pixels that are written."""

    def __init__(self, spec: ModelSpec) -> None:
        self._canvas = spec.input
        self._seen: dict[str, dict[str, float]] = {}

    def take(self, case: _Case, output: Array, placed: Placed) -> None:
        target = read_image(case.truth)
        found = restored(output, placed, self._canvas)
        if found.shape != target.shape:
            raise DataError(f"{case.truth} has {target.shape[:2]} (height, width), what is restored {found.shape[:2]}")
        values = {"PSNR": psnr(found, target)}
        values["SSIM"] = ssim(found, target) if min(target.shape[:2]) >= WINDOW else math.nan
        self._seen[case.image.name] = values

    def metrics(self) -> dict[str, float]:
        return {name: float(np.mean([v[name] for v in self._seen.values()])) for name in ("PSNR", "SSIM")}

    def per_class(self) -> dict[str, dict[str, float]]:
        return {}

    def per_image(self) -> dict[str, dict[str, float]]:
        return self._seen

    def counts(self) -> dict[str, int]:
        return {}

    def versions(self) -> dict[str, str]:
        return {"opencv": cv2.__version__}


_METERS: dict[DenseTask, type[_Meter]] = {"classify": _Classes, "segment": _Pixels, "restore": _Restored}


def _labels_in(file: Path) -> Array:
    """A label map: grey values, or of a palette its indices, ``(H, W)``.

    OpenCV turns a palette into colours, so that is undone where the file has one: Pillow keeps indices.
    """
    image = require("PIL.Image", "eval")
    try:
        with image.open(file) as opened:
            if opened.mode not in ("L", "P", "I", "I;16", "1"):
                raise DataError(f"a label map has one channel or a palette, but {file} is {opened.mode}")
            return np.array(opened).astype(np.int64)
    except OSError as e:
        raise DataError(f"cannot read the label map {file}: {e}") from e
