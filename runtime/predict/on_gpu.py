"""Letterbox, network, decode and NMS on a GPU, one after the other: a frame costs one copy in and one small copy out.

The network is a session whose runs are bound to buffers on the GPU (:mod:`deploykit.runtime.backends.on_device`); the
kernels are those of ``cpp_plugins``. NMS means the same as elsewhere, bit for bit. The letterbox may differ from
OpenCV's by one grey level. The rows stay on the GPU, so that NaN in them is not reported as elsewhere: such rows are
left out.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deploykit.errors import BackendError, DeployError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.on_device import Buffer, DeviceTensor, NetworkOnDevice, RunsOnDevice
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.placing import CanvasImage
from deploykit.runtime.native.cuda_library import CudaLibrary, head_of, letterbox_plan, tables_of
from deploykit.runtime.native.library import nms_arrays
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.postprocess.nms import USUAL
from deploykit.runtime.predict.predictor import Predictor, PreparedImage, R_co
from deploykit.runtime.session import Session
from deploykit.runtime.sources.frames import Frame
from deploykit.spec import AnchorHeads, ModelSpec, NmsOutputs, RawDetections, Thresholds

__all__ = ["GpuPredictor", "GpuStages", "check_kernels", "predictor_on_gpu"]

LOG = logging.getLogger(__name__)

STAGES = ("copy in", "letterbox", "network", "decode and NMS", "copy out")
MOST_TOPK = 3840  # of the kernels: most_topk of nms_kpt/kernel.cuh
ALIGNED = 256  # bytes
UPLOADS = 2  # one computes, the next is copied


class _Upload:
    """Page-locked memory, memory on the device and a stream for the images of one batch.

    The stream is one of its own, so that copying need not wait for what another thread computes.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._buffer = gpu, Buffer(gpu)
        self._stream, self._events = gpu.new_stream(), [gpu.new_event(), gpu.new_event()]
        self.pointers: list[int] = []
        self.ms = 0.0

    def copy(self, images: Sequence[Array]) -> None:
        """Copy all images to the device in one piece, and wait until they are there."""
        gpu, stream = self._gpu, self._stream
        starts = np.cumsum([0, *(_aligned(image.size) for image in images)]).tolist()
        host = self._buffer.host((starts[-1],), np.dtype(np.uint8))
        for image, start in zip(images, starts, strict=False):
            np.copyto(host[start : start + image.size].reshape(image.shape), image)
        device = self._buffer.reserve(starts[-1])
        gpu.record(self._events[0], stream)
        gpu.to_device(device, host, stream)
        gpu.record(self._events[1], stream)
        gpu.synchronize(stream)
        self.ms = gpu.milliseconds(*self._events)
        self.pointers = [device + start for start in starts[:-1]]

    def close(self) -> None:
        """Free the memory, the events and the stream."""
        self._buffer.close()
        for event in self._events:
            self._gpu.close_event(event)
        self._gpu.close_stream(self._stream)


class GpuStages:
    """What runs on the GPU for a batch of decoded images.

    Several threads may call it. One computes on the GPU at a time, and while it does, another copies its images there.

    Args:
        runs: the network's runs.
        spec: its spec.
        thresholds: of NMS.
        library: the kernels, on the GPU of the runs.

    Attributes:
        stage_ms: milliseconds on the GPU of the last batch, by stage.

    Raises:
        UsageError: the kernels do not do what this network needs; the message is half a sentence.
    """

    def __init__(self, runs: RunsOnDevice, spec: ModelSpec, thresholds: Thresholds, library: CudaLibrary) -> None:
        self._kind = check_kernels(spec, thresholds)
        (info,) = runs.inputs
        self._runs, self._spec, self._thresholds, self._library = runs, spec, thresholds, library
        self._layout = self._kind.as_rows()
        self._input, self._dtype = info.name, np.dtype(info.dtype)
        self._fixed_batch = info.shape[0]
        self._tables = tables_of(spec.input, self._dtype)
        self._points = len(spec.keypoints.names) if spec.keypoints else 0
        self._buffers = {name: Buffer(runs.gpu) for name in ("rows", "workspace", "found")}
        self.stage_ms: dict[str, float] = {}
        with runs.gpu.current():
            self._events = [runs.gpu.new_event() for _ in range(len(STAGES))]
            self._uploads = [_Upload(runs.gpu) for _ in range(UPLOADS)]
        self._idle: queue.LifoQueue[_Upload] = queue.LifoQueue()
        for upload in self._uploads:
            self._idle.put(upload)

    def __call__(self, images: Sequence[Array], letterboxes: Sequence[Letterbox]) -> dict[str, Array]:
        """Return the outputs of the node NmsKpt (cpp_plugins/nms_kpt/README.md) for a batch.

        Args:
            images: ``uint8 (h, w, 3)`` BGR, any sizes.
            letterboxes: one an image, all onto canvases of one size.

        Raises:
            BackendError: CUDA, a kernel or the network failed.
        """
        runs, gpu, stream, events = self._runs, self._runs.gpu, self._runs.stream, self._events
        slots = len(images) if self._fixed_batch is None else self._fixed_batch
        plans = [letterbox_plan(letterbox, self._spec.input) for letterbox in letterboxes]
        with self._uploaded(images) as upload, runs.hold({self._input: (slots, 3, *letterboxes[0].canvas)}) as bound:
            handle, pointers = gpu.handle(stream), upload.pointers
            gpu.record(events[0], stream)
            steps, half = [3 * image.shape[1] for image in images], self._dtype == np.float16
            place = bound.inputs[self._input].pointer
            self._library.launch_letterbox(plans, pointers, steps, self._tables, half, place, handle)
            gpu.record(events[1], stream)
            bound.enqueue()
            gpu.record(events[2], stream)
            rows = self._rows(bound, handle)
            if len(rows.shape) != 3 or rows.shape[0] < len(images) or rows.shape[2] < self._layout.columns:
                raise BackendError(
                    f"the rows must be ({len(images)}, ?, {self._layout.columns}) as in the spec, got {rows.shape}"
                )
            views, found = self._suppressed(rows, len(images), handle)
            gpu.record(events[3], stream)
            gpu.to_host(found, self._buffers["found"].pointer, stream)
            gpu.record(events[4], stream)
            gpu.synchronize(stream)
            spans = zip(STAGES[1:], events, events[1:], strict=False)
            times = {stage: gpu.milliseconds(start, end) for stage, start, end in spans}
            self.stage_ms = {STAGES[0]: upload.ms, **times}
            return {name: view.copy() for name, view in views.items()}

    def close(self) -> None:
        """Free the buffers and events; the session is closed after this."""
        with self._runs.gpu.current():
            for buffer in self._buffers.values():
                buffer.close()
            while self._uploads:
                self._uploads.pop().close()
            while self._events:
                self._runs.gpu.close_event(self._events.pop())

    @contextlib.contextmanager
    def _uploaded(self, images: Sequence[Array]) -> Iterator[_Upload]:
        """Have the images on the device."""
        upload = self._idle.get()
        try:
            with self._runs.gpu.current():
                upload.copy(images)
            yield upload
        finally:
            self._idle.put(upload)

    def _rows(self, bound: NetworkOnDevice, handle: int) -> DeviceTensor:
        """Return the candidate rows of the whole batch, decoded on the device where the network does not."""
        outputs, kind = bound.outputs(), self._kind
        if not isinstance(kind, AnchorHeads):
            return outputs[kind.name]
        levels = [outputs[name] for name in kind.outputs]
        anchors = np.array(kind.anchors, np.float32).reshape(len(levels), -1, 2)
        count = sum(anchors.shape[1] * level.shape[2] * level.shape[3] for level in levels)
        rows = DeviceTensor(0, (levels[0].shape[0], count, kind.columns), np.dtype(np.float32))
        rows = replace(rows, pointer=self._buffers["rows"].reserve(rows.nbytes))
        head = head_of(kind.strides, anchors, kind.num_columns - 5)
        half, pointers = levels[0].dtype == np.float16, [level.pointer for level in levels]
        self._library.launch_decode(pointers, [level.shape for level in levels], half, head, rows.pointer, handle)
        return rows

    def _suppressed(self, rows: DeviceTensor, images: int, handle: int) -> tuple[dict[str, Array], Array]:
        """Queue NMS; return the outputs as parts of one piece of page-locked memory, and that memory."""
        empty = nms_arrays(images, self._thresholds.max_det, self._points)
        starts = np.cumsum([0, *(_aligned(array.nbytes) for array in empty.values())]).tolist()
        buffer = self._buffers["found"]
        device, host = buffer.reserve(starts[-1]), buffer.host((starts[-1],), np.dtype(np.uint8))
        views = {
            name: host[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            for (name, array), start in zip(empty.items(), starts, strict=False)
        }
        count = rows.shape[1]
        need = self._library.nms_workspace(images, count, self._thresholds)
        workspace = self._buffers["workspace"].reserve(need)
        half = rows.dtype == np.float16
        self._library.launch_nms(
            rows.pointer, (images, *rows.shape[1:]), half, self._layout, self._thresholds, self._points,
            [device + start for start in starts[:-1]], workspace, handle,
        )  # fmt: skip
        return views, host


def check_kernels(spec: ModelSpec, thresholds: Thresholds) -> RawDetections | AnchorHeads:
    """Return a network's output after checking that the kernels do what it needs.

    Raises:
        UsageError: they do not; the message says what is missing.
    """
    fit, kind = spec.input.fit, spec.output
    plain = isinstance(kind, RawDetections) and kind == kind.pixel_layout() and kind.angle is None
    raw = isinstance(kind, AnchorHeads) and not kind.sigmoid and len({len(level) for level in kind.anchors}) == 1
    problems = {
        "its images are placed by another fit than letterbox or resize": fit.kind not in ("letterbox", "resize"),
        "its images are resized as Pillow does, or by areas": fit.resample != "opencv" or fit.shrink == "area",
        "its border has a colour": fit.pad_colour is not None,
        "its images do not have 3 channels": spec.input.channels != 3,
        "its outputs are neither rows of boxes in pixels nor raw maps of anchors": not (plain or raw),
        f"NMS looks at more than {MOST_TOPK} candidates": thresholds.pre_nms_topk > MOST_TOPK,
    }
    for problem, there in problems.items():
        if there:
            raise UsageError(problem)
    assert isinstance(kind, (RawDetections, AnchorHeads))
    return kind


class GpuPredictor(Predictor[R_co]):
    """A predictor whose letterbox, decode and NMS run on the GPU too, with :class:`GpuStages`.

    Args:
        session: the network, opened on a GPU by ONNX Runtime or TensorRT.
        spec, options, name: as for :class:`Predictor`.
        library: the kernels; None: the library that ``deploykit plugins build`` made.

    Raises:
        UsageError, NotFoundError, BackendError: see :class:`GpuStages`, and what :class:`Predictor` raises.
    """

    def __init__(
        self,
        session: Session,
        spec: ModelSpec | None = None,
        options: PredictOptions | None = None,
        *,
        name: str = "",
        library: CudaLibrary | None = None,
    ) -> None:
        super().__init__(session, spec, options, name=name)
        runs: RunsOnDevice | None = getattr(session, "runs", None)
        if runs is None:
            raise UsageError("its session is not of ONNX Runtime or TensorRT on an NVIDIA GPU")
        own: Any = self.adapter
        if getattr(own, "choice", None) != USUAL:
            raise UsageError("only detections by their own classes, with one label each, are chosen by the kernels")
        self.stages = GpuStages(runs, self.spec, own.thresholds, library or CudaLibrary(runs.gpu))
        names = NmsOutputs(keypoints="keypoints" if self.spec.keypoints else None)
        inside = replace(self.spec, output=names, thresholds=own.thresholds)
        self.adapter = adapter_of(inside, replace(self.options, conf=None, iou=None, max_det=None))

    def close(self) -> None:
        """Free the buffers, and close the session."""
        self.stages.close()
        super().close()

    def _prepare(self, frame: Frame) -> PreparedImage:
        """Plan where the image lies on the canvas; the pixels follow on the GPU."""
        start = time.perf_counter()
        source, fit = (frame.image.shape[0], frame.image.shape[1]), self._canvas.fit
        box = Letterbox.fit(source, self._canvas.size, fit, auto=fit.auto and self._canvas.dynamic == "shape")
        canvas = np.broadcast_to(np.uint8(0), (*box.canvas, 3))  # its shape alone is read
        shown = CanvasImage(canvas, source, (*box.pad, box.resized[1], box.resized[0]), box)
        return PreparedImage(frame, shown, False, (time.perf_counter() - start) * 1e3)

    def _run(self, batch: list[PreparedImage]) -> list[R_co]:
        start = time.perf_counter()
        boxes = [prepared.shown.letterbox for prepared in batch]
        outputs = self.stages([prepared.frame.image for prepared in batch], [box for box in boxes if box is not None])
        self.adapter.check_values(outputs, len(batch))
        total, on_gpu = (time.perf_counter() - start) * 1e3, self.stages.stage_ms
        network, after = on_gpu["network"], on_gpu["decode and NMS"] + on_gpu["copy out"]
        each = tuple(ms / len(batch) for ms in (max(0.0, total - network - after), network, after))
        return [self._result(p, outputs, i, (p.ms + each[0], each[1], each[2])) for i, p in enumerate(batch)]


def predictor_on_gpu(session: Session, spec: ModelSpec, options: PredictOptions, *, name: str = "") -> Predictor[Any]:
    """Return a predictor with all stages on the GPU where the kernels do what the network needs; else an ordinary one.

    The reason for an ordinary one is logged as a warning.
    """
    try:
        return GpuPredictor(session, spec, options, name=name)
    except DeployError as e:
        LOG.warning("letterbox and NMS stay on the CPU: %s", e)
        return Predictor(session, spec, options, name=name)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
