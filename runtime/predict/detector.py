"""A network with its spec: images in, results out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.sources import Frame
from deploykit.runtime.images.to_tensor import blob
from deploykit.runtime.postprocess.detections import found_in, to_source
from deploykit.runtime.postprocess.masks import pasted
from deploykit.runtime.predict.base import SourcePredictor, checked_batch, input_as_said
from deploykit.runtime.results.detection import Result
from deploykit.runtime.session import Session, TensorInfo, spec_of
from deploykit.spec import DenseOutput, ModelSpec, NmsOutputs, PoseObjectRows, RawDetections, Thresholds

__all__ = ["Predictor"]

TASKS = ("detect", "instances", "keypoints")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A frame on its canvas."""

    frame: Frame
    letterbox: Letterbox
    canvas: Array
    ms: float


class Predictor(SourcePredictor[Result, _Prepared]):
    """Finds objects, and their keypoints, with one network. May be called from several threads.

    Args:
        session: the network; :func:`deploykit.open_session` opens one. Closed together with the predictor.
        spec: what it takes and gives; None reads it from the session's metadata.
        conf: keep scores above this instead of the spec's threshold.
        iou: suppress overlaps above this instead of the spec's.
        max_det: keep at most so many objects an image instead of the spec's number.
        batch: images in one call of a network with a dynamic batch; None takes the spec's preference.
        multi_label: an object of each class whose score is over ``conf``, not of the best class alone, as detectors
            are evaluated; a network with NMS inside has chosen already.

    Raises:
        SpecError: the spec is missing, is of a task without boxes, or does not fit the network.
        UsageError: a threshold is out of range, or is fixed inside the network.
    """

    def __init__(
        self,
        session: Session,
        spec: ModelSpec | None = None,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        batch: int | None = None,
        multi_label: bool = False,
    ) -> None:
        self.session = session
        self.spec = spec_of(session, "the model") if spec is None else spec
        self.thresholds = _thresholds(self.spec, conf, iou, max_det)
        info = _checked(session, self.spec)
        self._fixed_batch = info.shape[0] is not None
        self._auto = self.spec.input.fit.auto and self.spec.input.dynamic == "shape" and None in info.shape[2:]
        self._dtype = np.dtype(info.dtype)
        self.batch = checked_batch(info, self.spec.input.batch if batch is None else batch)
        self.multi_label = multi_label
        self._spare: list[Array] = []

    def close(self) -> None:
        """Close the session."""
        self._spare.clear()
        super().close()

    def _prepare(self, frame: Frame) -> _Prepared:
        start = time.perf_counter()
        height, width = frame.image.shape[:2]
        spec = self.spec.input
        letterbox = Letterbox.fit((height, width), spec.size, spec.fit, auto=self._auto)
        canvas = letterbox.apply(frame.image)
        return _Prepared(frame, letterbox, canvas, (time.perf_counter() - start) * 1e3)

    def _run(self, batch: list[_Prepared]) -> list[Result]:
        start = time.perf_counter()
        slots = self.batch if self._fixed_batch else len(batch)
        buffer = self._buffer((slots, 3, *batch[0].letterbox.canvas))
        images = blob([p.canvas for p in batch], self.spec.input, buffer).astype(self._dtype, copy=False)
        blobbed = time.perf_counter()
        outputs = self.session.run({self.spec.input.name: images})
        done = time.perf_counter()
        blob_ms, inference_ms = ((b - a) * 1e3 / len(batch) for a, b in ((start, blobbed), (blobbed, done)))
        results = [self._result(p, outputs, slot, p.ms + blob_ms, inference_ms) for slot, p in enumerate(batch)]
        self._spare.append(buffer)  # only now, because an output may be a view of the input
        return results

    def _buffer(self, shape: tuple[int, ...]) -> Array:
        """A float32 array that nobody else uses, an old one where it fits: fresh memory costs more than filling it."""
        with contextlib.suppress(IndexError):  # asking first would let another thread take it in between
            spare = self._spare.pop()
            if spare.shape == shape:
                return spare
        return np.empty(shape, np.float32)

    def _result(
        self, prepared: _Prepared, outputs: dict[str, Array], slot: int, letterbox_ms: float, inference_ms: float
    ) -> Result:
        start = time.perf_counter()
        size = prepared.letterbox.canvas
        found = found_in(outputs, slot, self.spec, self.thresholds, size, multi_label=self.multi_label)
        boxes, keypoints = to_source(found, prepared.letterbox)
        masks = None
        if found.masks is not None:  # laid over the boxes that they were computed of, which may reach into the border
            masks = pasted(found.masks, prepared.letterbox.to_source(found.boxes), prepared.letterbox.source)
        frame = prepared.frame
        return Result(
            boxes,
            found.scores,
            found.labels,
            prepared.letterbox.source,
            keypoints=keypoints,
            masks=masks,
            classes=self.spec.classes,
            keypoint_spec=self.spec.keypoints,
            keypoint_threshold=self.thresholds.keypoint,
            name=frame.name,
            frame=frame.number,
            timings={
                "read": frame.read_ms,
                "letterbox": letterbox_ms,
                "inference": inference_ms,
                "postprocess": (time.perf_counter() - start) * 1e3,
            },
            truncated=found.candidates > self.thresholds.pre_nms_topk,
            image=frame.image if frame.keep else None,
        )


def _thresholds(spec: ModelSpec, conf: float | None, iou: float | None, max_det: int | None) -> Thresholds:
    """The spec's thresholds with what the caller changed."""
    asked: dict[str, Any] = {
        name: value for name, value in (("conf", conf), ("iou", iou), ("max_det", max_det)) if value is not None
    }
    own = spec.thresholds
    try:
        changed = dataclasses.replace(own, **asked)
    except SpecError as e:
        raise UsageError(str(e)) from e
    if isinstance(spec.output, NmsOutputs):
        for name, possible in (("conf", changed.conf >= own.conf), ("max_det", changed.max_det <= own.max_det)):
            if not possible:
                fixed, wanted = getattr(own, name), getattr(changed, name)
                raise UsageError(
                    f"NMS is inside this network with {name} {fixed}, which {wanted} cannot undo: export again"
                )
        if changed.iou != own.iou:
            raise UsageError(f"NMS is inside this network with iou {own.iou}, got {changed.iou}: export it again")
    return changed


def _checked(session: Session, spec: ModelSpec) -> TensorInfo:
    """The network's one input, if the spec is of a task with boxes and fits the network's tensors."""
    if spec.task not in TASKS or isinstance(spec.output, DenseOutput):
        raise SpecError(f"a Predictor runs the tasks {', '.join(TASKS)}; this spec's task is {spec.task!r}")
    want = spec.input
    if want.channels != 3 or len(want.mean) != 3 or len(want.std) != 3:
        counts = f"channels {want.channels}, {len(want.mean)} means, {len(want.std)} stds"
        raise SpecError(f"a Predictor feeds images of 3 channels with 3 means and stds; the spec says {counts}")
    info = input_as_said(session, want)
    outputs = {output.name: output for output in session.outputs}
    layout = spec.output
    if isinstance(layout, (RawDetections, PoseObjectRows)):
        names = [layout.name]
    else:
        names = [layout.num_dets, layout.boxes, layout.scores, layout.labels, layout.num_candidates]
        names += [layout.keypoints] if layout.keypoints is not None else []
    missing = [name for name in names if outputs and name not in outputs]
    if missing:
        raise SpecError(f"the spec names the output {missing[0]!r}, the network has {', '.join(map(repr, outputs))}")
    if isinstance(layout, (RawDetections, PoseObjectRows)) and layout.name in outputs:
        shape = outputs[layout.name].shape
        if len(shape) != 3 or (shape[2] is not None and shape[2] < layout.columns):
            raise SpecError(
                f"the spec says that output {layout.name!r} is (batch, rows, {layout.columns}), "
                f"the network gives {outputs[layout.name]}"
            )
    return info
