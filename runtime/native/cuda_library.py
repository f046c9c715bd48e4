"""NMS, decoding and letterbox on a GPU by the CUDA library of ``cpp_plugins``, with host arrays in and out.

For checks and measurements: a network's output that already lies on the GPU is better served by the TensorRT plugin,
which runs the same kernels.

NMS has two routes, which give the same bits (cpp_plugins/nms_kpt/README.md): a thread block for each image, or each
image spread over the GPU. :attr:`CudaLibrary.nms_route` is the one that is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploykit.errors import BackendError, NotFoundError
from deploykit.runtime.arrays import Array
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import pixel_lookup_tables
from deploykit.runtime.native.library import ABI, Layout, Limits, abi_of, find_library, nms_arrays
from deploykit.spec import InputSpec, RawDetections, Thresholds

__all__ = ["NMS_ROUTES", "CudaLibrary", "Head", "NmsRoute", "Plan", "head_of", "letterbox_plan", "tables_of"]


NmsRoute = Literal["auto", "blocks", "spread"]

NMS_ROUTES: dict[NmsRoute, int] = {"auto": 0, "blocks": 1, "spread": 2}
"""The routes of NMS by their numbers in nms_kpt/launch_plan.h."""

MOST_LEVELS, MOST_ANCHORS = 8, 8  # most_levels and most_anchors of decode/kernel.cuh


class Head(ctypes.Structure):
    """``deploykit::decode::Head``."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("levels", "anchors", "num_classes", "num_keypoints")),
        ("stride", ctypes.c_float * MOST_LEVELS),
        ("anchor", ctypes.c_float * (2 * MOST_LEVELS * MOST_ANCHORS)),
    ]


class Grid(ctypes.Structure):
    """``deploykit::decode::Grid``."""

    _fields_ = [("height", ctypes.c_int32 * MOST_LEVELS), ("width", ctypes.c_int32 * MOST_LEVELS)]


class Plan(ctypes.Structure):
    """``deploykit::letterbox::Plan``."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "source_height", "source_width", "resized_height", "resized_width", "canvas_height", "canvas_width",
            "top", "left", "pad_value", "swap",
        )
    ]  # fmt: skip


def letterbox_plan(letterbox: Letterbox, spec: InputSpec) -> Plan:
    """A letterbox as the native code wants it.

    Raises:
        BackendError: its border has a colour, or it resizes as Pillow does or by areas: the native code does none of
            these.
    """
    by_area = letterbox.shrink == "area" and letterbox.resized != letterbox.source
    if not isinstance(letterbox.pad_value, int) or letterbox.resample != "opencv" or by_area:
        raise BackendError(
            "the native letterbox has a grey border and resizes bilinearly as OpenCV does; this is another"
        )
    left, top = letterbox.pad
    sizes = (*letterbox.source, *letterbox.resized, *letterbox.canvas)
    return Plan(*sizes, top, left, letterbox.pad_value, spec.colour == "rgb")


def head_of(strides: Sequence[int], anchors: Array, classes: int, points: int = 0) -> Head:
    """An anchor head as the native code wants it; the arguments are those of :meth:`CudaLibrary.decode`."""
    count, each = anchors.shape[:2]
    room = np.zeros((MOST_LEVELS, MOST_ANCHORS, 2), np.float32)
    room[:count, :each] = anchors
    head = Head(count, each, classes, points, (ctypes.c_float * MOST_LEVELS)(*strides))
    head.anchor[:] = room.ravel().tolist()
    return head


def tables_of(spec: InputSpec, dtype: Any) -> Array:
    """``(3, 256)`` finished values of ``dtype``, one row a channel of the network."""
    return np.ascontiguousarray(np.stack(pixel_lookup_tables(spec)).astype(dtype))


class CudaLibrary:
    """The library on one GPU. Methods may be called from one thread at a time.

    Args:
        gpu: where the memory is and the kernels run.
        file: the library; None: the one that ``deploykit plugins build`` made.

    Attributes:
        nms_route: how NMS is put on the GPU: ``blocks`` gives each image a thread block, ``spread`` gives it the whole
            GPU, ``auto`` chooses by :meth:`spreads`. Launches take it, and so does the size of their workspace: a
            change asks for a new one.

    Raises:
        NotFoundError: it is not built. BackendError: it does not load, or is of another version.
    """

    def __init__(self, gpu: Gpu, file: Path | None = None) -> None:
        file = file or find_library("cuda")
        if file is None:
            raise NotFoundError("the CUDA library is needed here and is not built: deploykit plugins build")
        if (abi := abi_of(file)) != ABI:
            raise BackendError(f"{file} has ABI {abi}, and this deploykit needs {ABI}: deploykit plugins build")
        self._gpu = gpu
        self._library = ctypes.CDLL(str(file))
        self.nms_route: NmsRoute = "auto"
        sizes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int32]
        self._library.deploykit_nms_cuda_workspace.argtypes = [*sizes, ctypes.c_int32]
        self._library.deploykit_nms_cuda_spreads.argtypes = sizes
        self._library.deploykit_nms_cuda_workspace.restype = ctypes.c_int64

    def nms(self, rows: Array, layout: RawDetections, thresholds: Thresholds, points: int = 0) -> dict[str, Array]:
        """The outputs of the ONNX node NmsKpt (cpp_plugins/nms_kpt/README.md) for a batch.

        Args:
            rows: ``(B, N, columns)`` float32 or float16.
            layout: which columns hold what.
            thresholds: ``max_det`` is M; ``pre_nms_topk`` at most 3840.
            points: K.

        Raises:
            BackendError: the kernels do not start.
        """
        batch, count, _ = rows.shape
        outputs = nms_arrays(batch, thresholds.max_det, points)
        with _Device(self._gpu) as device:
            pointers = [device.room(array.nbytes) for array in outputs.values()]
            room = device.room(self.nms_workspace(batch, count, thresholds))
            half, handle = rows.dtype == np.float16, device.handle
            self.launch_nms(device.copy(rows), rows.shape, half, layout, thresholds, points, pointers, room, handle)
            for pointer, array in zip(pointers, outputs.values(), strict=True):
                if array.nbytes:
                    device.fetch(array, pointer)
        if not points:
            del outputs["keypoints"]
        return outputs

    def nms_workspace(self, batch: int, count: int, thresholds: Thresholds) -> int:
        """How many bytes on the device :meth:`launch_nms` needs beside its inputs and outputs.

        With the route ``auto`` they are enough for every batch of no more images and rows, too.
        """
        route = NMS_ROUTES[self.nms_route]
        return int(self._library.deploykit_nms_cuda_workspace(batch, count, thresholds.pre_nms_topk, route))

    def spreads(self, batch: int, count: int, multiprocessors: int) -> bool:
        """Whether the route ``auto`` spreads images of ``count`` rows over a GPU of so many multiprocessors."""
        return bool(self._library.deploykit_nms_cuda_spreads(batch, count, multiprocessors))

    def launch_nms(
        self, rows: int, shape: Sequence[int], half: bool, layout: RawDetections, thresholds: Thresholds, points: int,
        outputs: Sequence[int], workspace: int, stream: int,
    ) -> None:  # fmt: skip
        """Put :meth:`nms` on a stream, for rows that lie on the device already; it does not wait for the end.

        Args:
            rows: pointer to ``(B, N, columns)`` float32, or float16 where ``half``.
            shape: that.
            half: the type.
            layout, thresholds, points: as for :meth:`nms`.
            outputs: pointers to the six outputs of NmsKpt in its order; that of the keypoints is not used without.
            workspace: pointer to :meth:`nms_workspace` bytes.
            stream: the stream as CUDA's own handle.

        Raises:
            BackendError: the kernels do not start.
        """
        batch, count, columns = shape
        factor, classes = layout.score_spans
        described = Layout(
            columns, layout.box[0], -1 if factor is None else factor[0], classes[0],
            classes[1] - classes[0], layout.keypoints[0] if layout.keypoints else -1, points, layout.kpt_dims,
        )  # fmt: skip
        limits = Limits(thresholds.conf, thresholds.iou, thresholds.max_det, thresholds.pre_nms_topk)
        pointers = [0 if i == 4 and not points else pointer for i, pointer in enumerate(outputs)]
        code = self._library.deploykit_nms_cuda(
            ctypes.c_void_p(rows), half, batch, count, ctypes.byref(described), ctypes.byref(limits),
            (ctypes.c_void_p * 6)(*pointers), ctypes.c_void_p(workspace), NMS_ROUTES[self.nms_route],
            ctypes.c_void_p(stream),
        )  # fmt: skip
        _check(code, "NMS")

    def decode(
        self, levels: Sequence[Array], *, strides: Sequence[int], anchors: Array, classes: int, points: int = 0
    ) -> Array:
        """The output of the ONNX node DecodeRows (cpp_plugins/decode/README.md) for a batch: rows ``(B, N, columns)``.

        Args:
            levels: the raw values of an anchor head, each ``(B, A * columns, H, W)`` float32 or float16.
            strides: network pixels a cell, one a level.
            anchors: ``(levels, A, 2)`` width and height in pixels.
            classes: C.
            points: K.

        Raises:
            BackendError: the kernel does not start.
        """
        cells = sum(level.shape[2] * level.shape[3] for level in levels)
        out = np.empty((len(levels[0]), anchors.shape[1] * cells, 5 + classes + 3 * points), np.float32)
        with _Device(self._gpu) as device:
            pointers, shapes = [device.copy(level) for level in levels], [level.shape for level in levels]
            pointer, half = device.room(out.nbytes), levels[0].dtype == np.float16
            head = head_of(strides, anchors, classes, points)
            self.launch_decode(pointers, shapes, half, head, pointer, device.handle)
            if out.size:
                device.fetch(out, pointer)
        return out

    def launch_decode(
        self, levels: Sequence[int], shapes: Sequence[Sequence[int]], half: bool, head: Head, out: int, stream: int
    ) -> None:
        """Put :meth:`decode` on a stream, for values that lie on the device already; it does not wait for the end.

        Args:
            levels: pointers to the raw values, one a level.
            shapes: theirs, each ``(B, A * columns, H, W)``.
            half: whether they are float16; else float32.
            head: by :func:`head_of`.
            out: pointer to the rows ``(B, N, columns)`` float32.
            stream: the stream as CUDA's own handle.

        Raises:
            BackendError: the kernel does not start.
        """
        grid = Grid()
        for i, shape in enumerate(shapes):
            grid.height[i], grid.width[i] = shape[2:]
        code = self._library.deploykit_decode_cuda(
            (ctypes.c_void_p * len(levels))(*levels), half, shapes[0][0], ctypes.byref(head), ctypes.byref(grid),
            ctypes.c_void_p(out), ctypes.c_void_p(stream),
        )  # fmt: skip
        _check(code, "decoding")

    def letterbox(
        self, images: Sequence[Array], letterboxes: Sequence[Letterbox], spec: InputSpec, dtype: Any = np.float32
    ) -> Array:
        """Images, each with its letterbox onto canvases of one size, as ``(B, 3, H, W)``.

        Args:
            images: ``uint8 (h, w, 3)`` BGR; their rows may lie apart, and do so on the GPU then.
            letterboxes: one an image.
            spec: colour order, scale, mean and std.
            dtype: float32 or float16.

        Raises:
            BackendError: the canvases differ, or the kernel does not start.
        """
        out = np.empty((len(images), 3, *letterboxes[0].canvas), dtype)
        plans = [letterbox_plan(letterbox, spec) for letterbox in letterboxes]
        steps = [image.strides[0] for image in images]
        with _Device(self._gpu) as device:
            memory = [device.copy(_with_its_gaps(image)) for image in images]
            pointer = device.room(out.nbytes)
            half, handle = out.dtype == np.float16, device.handle
            self.launch_letterbox(plans, memory, steps, tables_of(spec, out.dtype), half, pointer, handle)
            device.fetch(out, pointer)
        return out

    def launch_letterbox(
        self, plans: Sequence[Plan], images: Sequence[int], steps: Sequence[int], tables: Array, half: bool, out: int,
        stream: int,
    ) -> None:  # fmt: skip
        """Put :meth:`letterbox` on a stream, for images that lie on the device already; it does not wait for the end.

        Args:
            plans: one an image, by :func:`letterbox_plan`.
            images: pointers to their first pixels.
            steps: bytes from one row of an image to its next.
            tables: by :func:`tables_of`, on the host.
            half: whether the output is float16.
            out: pointer to the output ``(B, 3, H, W)``.
            stream: the stream as CUDA's own handle.

        Raises:
            BackendError: the canvases differ, or the kernel does not start.
        """
        count = len(images)
        code = self._library.deploykit_letterbox_cuda(
            (Plan * count)(*plans), (ctypes.c_void_p * count)(*images), (ctypes.c_int64 * count)(*steps), count,
            ctypes.c_void_p(tables.ctypes.data), half, ctypes.c_void_p(out), ctypes.c_void_p(stream),
        )  # fmt: skip
        _check(code, "letterbox")


def _with_its_gaps(image: Array) -> Array:
    """The bytes from an image's first to its last pixel, with what lies between its rows."""
    size = (image.shape[0] - 1) * image.strides[0] + image.shape[1] * 3
    return np.lib.stride_tricks.as_strided(image, (size,), (1,), writeable=False)


def _check(code: int, what: str) -> None:
    if code:
        raise BackendError(f"{what} on the GPU failed with CUDA's code {code}: was it built for this GPU?")


class _Device:
    """Memory and a stream for one call, given back at its end."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._stack = contextlib.ExitStack()
        self._pinned: list[tuple[Array, Array]] = []

    def __enter__(self) -> _Device:
        self._stack.enter_context(self._gpu.current())
        self._stream = self._gpu.new_stream()
        self._stack.callback(self._gpu.close_stream, self._stream)
        self.handle = self._gpu.handle(self._stream)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._stack:
            self._gpu.synchronize(self._stream)
            for array, pinned in self._pinned:
                array.view(np.uint8).reshape(-1)[...] = pinned

    def room(self, size: int) -> int:
        pointer = self._gpu.allocate(max(size, 1))
        self._stack.callback(self._gpu.free, pointer)
        return pointer

    def pinned(self, size: int) -> Array:
        memory = self._gpu.allocate_pinned(max(size, 1))
        self._stack.callback(self._gpu.free_pinned, memory)
        return memory[:size]

    def copy(self, array: Array) -> int:
        """The array's bytes on the device."""
        pinned = self.pinned(array.nbytes)
        pinned[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        pointer = self.room(array.nbytes)
        if array.nbytes:
            self._gpu.to_device(pointer, pinned, self._stream)
        return pointer

    def fetch(self, array: Array, pointer: int) -> None:
        """Have the device's bytes in ``array`` when the call is over."""
        pinned = self.pinned(array.nbytes)
        self._gpu.to_host(pinned, pointer, self._stream)
        self._pinned.append((array, pinned))
