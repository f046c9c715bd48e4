"""The kernels of gpu.py: achieved bandwidth against the device's copy rate, and the two routes of NMS."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from gpu_parts import Device, Step, photograph, rows_of, timed
from measured import Table
from pre_post import COCO, FULL_HD, POSE, _rows

from deploykit.export.plugins_check import expected_outputs
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.native.cuda_library import NmsRoute, head_of, letterbox_plan, tables_of
from deploykit.runtime.native.library import nms_arrays
from deploykit.spec import Fit, InputSpec, RawDetections, Thresholds

THRESHOLDS = Thresholds()
CANDIDATES = (0, 50, 500, 3000)
ROUTES: tuple[NmsRoute, ...] = ("blocks", "spread")
ANCHORS = np.array([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]], np.float32)
STRIDES = (8, 16, 32)


class _Memory:
    """Device memory and a stream for some launches, given back at the end."""

    def __init__(self, device: Device) -> None:
        self.gpu, self._stack = device.gpu, contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self) -> Iterator[_Memory]:
        """The device is current inside."""
        with self._stack, self.gpu.current():
            self.stream = self.gpu.new_stream()
            self._stack.callback(self.gpu.close_stream, self.stream)
            self.handle = self.gpu.handle(self.stream)
            self._stack.enter_context(self.gpu.current())
            self._stack.callback(lambda: self.gpu.synchronize(self.stream))
            yield self

    def room(self, size: int) -> int:
        """So many bytes."""
        pointer = self.gpu.allocate(max(size, 1))
        self._stack.callback(self.gpu.free, pointer)
        return pointer

    def put(self, array: Array) -> int:
        """The bytes of an array."""
        pinned = self.gpu.allocate_pinned(max(array.nbytes, 1))
        self._stack.callback(self.gpu.free_pinned, pinned)
        pinned[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        pointer = self.room(array.nbytes)
        self.gpu.to_device(pointer, pinned[: array.nbytes], self.stream)
        self.gpu.synchronize(self.stream)
        return pointer

    def get(self, pointer: int, like: Array) -> Array:
        """An array of the bytes that lie at a place."""
        pinned = self.gpu.allocate_pinned(max(like.nbytes, 1))
        self.gpu.to_host(pinned[: like.nbytes], pointer, self.stream)
        self.gpu.synchronize(self.stream)
        found = pinned[: like.nbytes].copy().view(like.dtype).reshape(like.shape)
        self.gpu.free_pinned(pinned)
        return found

    def milliseconds(self, launch: Callable[[], object], times: int) -> float:
        """The time of one launch by the device's clock: the median of five groups of launches."""
        start, end = self.gpu.new_event(), self.gpu.new_event()
        found = []
        for _ in range(6):
            self.gpu.record(start, self.stream)
            for _ in range(times):
                launch()
            self.gpu.record(end, self.stream)
            self.gpu.synchronize(self.stream)
            found.append(self.gpu.milliseconds(start, end) / times)
        self.gpu.close_event(start)
        self.gpu.close_event(end)
        return statistics.median(found[1:])


def copy_rate(device: Device) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    if not device.real:
        source, target = np.ones(1 << 26, np.uint8), np.empty(1 << 26, np.uint8)
        ms = timed({"copy": lambda: np.copyto(target, source)}, 0.2, 10)["copy"]
        return 2 * source.nbytes / ms * 1e3
    import torch

    there = torch.ones(1 << 30, dtype=torch.uint8, device=f"cuda:{device.gpu.index}")
    other = torch.empty_like(there)

    def copy() -> None:
        other.copy_(there)
        torch.cuda.synchronize(there.device)

    return 2 * there.nbytes / timed({"copy": copy}, 1.0, 50)["copy"] * 1e3


def kernel_tables(step: Step, device: Device, *, quick: bool) -> list[Table]:
    """Each kernel's time, and the bytes that it has to read and write over that, as a share of the copy rate."""
    device.kernels()
    rate = copy_rate(device)
    print(f"   the device copies {rate / 1e9:.0f} GB/s, read and written", flush=True)
    sizes = (1,) if quick else (1, 8, 32)
    wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {}
    for batch in sizes:
        for half in (True, False):
            kind = "fp16" if half else "fp32"
            wanted["letterbox, 1080p to 576 x 960", kind, str(batch)] = partial(_letterbox, device, batch, half, rate)
        wanted["decode, 640 px, 80 classes", "fp16", str(batch)] = partial(_decode, device, batch, rate)
        wanted["NMS, 25200 x 85, 50 candidates", "fp32", str(batch)] = partial(
            _nms_rate, device, COCO, 25200, batch, rate
        )
        wanted["NMS, 57375 x 57, 50 candidates", "fp32", str(batch)] = partial(
            _nms_rate, device, POSE, 57375, batch, rate
        )
    title = (
        f"Kernels: bytes that have to be read and written once, over the time; the device copies {rate / 1e9:.0f} GB/s"
    )
    columns = {"ms": "{:.4f}", "GB/s": "{:.4g}", "of copy": "{:.2f}"}
    return [Table(title, ("kernel", "type", "images"), columns, rows_of(step, wanted))]


def _numbers(ms: float, size: int, rate: float) -> dict[str, float]:
    return {"ms": ms, "GB/s": size / ms / 1e6, "of copy": size / ms * 1e3 / rate}


def _letterbox(device: Device, batch: int, half: bool, rate: float) -> dict[str, float]:
    spec, kind = InputSpec(size=(576, 960)), np.float16 if half else np.float32
    plan = letterbox_plan(Letterbox.fit(FULL_HD, spec.size, Fit()), spec)
    size = batch * 3 * spec.size[0] * spec.size[1] * np.dtype(kind).itemsize
    with _Memory(device).held() as memory:
        images, out = [memory.put(photograph(FULL_HD, i)) for i in range(batch)], memory.room(size)
        launch = partial(
            device.kernels().launch_letterbox, [plan] * batch, images, [3 * FULL_HD[1]] * batch, tables_of(spec, kind),
            half, out, memory.handle,
        )  # fmt: skip
        ms = memory.milliseconds(launch, 50 if device.real else 1)
    return _numbers(ms, size + batch * 3 * FULL_HD[0] * FULL_HD[1], rate)


def _decode(device: Device, batch: int, rate: float) -> dict[str, float]:
    shapes = [(batch, 3 * 85, 640 // stride, 640 // stride) for stride in STRIDES]
    rng, head = np.random.default_rng(0), head_of(STRIDES, ANCHORS.reshape(3, 3, 2), 80)
    rows = batch * 3 * sum(shape[2] * shape[3] for shape in shapes) * 85
    with _Memory(device).held() as memory:
        levels = [memory.put(rng.standard_normal(shape, np.float32).astype(np.float16)) for shape in shapes]
        out = memory.room(4 * rows)
        launch = partial(device.kernels().launch_decode, levels, shapes, True, head, out, memory.handle)
        ms = memory.milliseconds(launch, 50 if device.real else 1)
    return _numbers(ms, (2 + 4) * rows, rate)


def _nms_rate(device: Device, layout: RawDetections, count: int, batch: int, rate: float) -> dict[str, float]:
    ms = _nms(device, _rows(count, layout, 50), layout, batch)
    return _numbers(ms, batch * count * layout.columns * 4, rate)


def _nms(device: Device, image: Array, layout: RawDetections, batch: int) -> float:
    """The time of NMS of a batch of one image, after its outputs were compared with the definition's."""
    points = (layout.keypoints[1] - layout.keypoints[0]) // layout.kpt_dims if layout.keypoints else 0
    rows, library = np.stack([image] * batch), device.kernels()
    with _Memory(device).held() as memory:
        there, empty = memory.put(rows), nms_arrays(batch, THRESHOLDS.max_det, points)
        places = [memory.room(array.nbytes) for array in empty.values()]
        work = memory.room(library.nms_workspace(batch, len(image), THRESHOLDS))
        launch = partial(
            library.launch_nms, there, rows.shape, False, layout, THRESHOLDS, points, places, work, memory.handle
        )
        launch()
        for place, (name, array) in zip(places, empty.items(), strict=True):
            expected = expected_outputs(image[None], layout, THRESHOLDS, points).get(name)
            if expected is not None and not np.array_equal(memory.get(place, array)[-1:], expected):
                raise RuntimeError(f"the output {name!r} of NMS is not that of its definition")
        return memory.milliseconds(launch, 20 if device.real else 1)


def nms_route_table(step: Step, device: Device, *, quick: bool) -> Table:
    """One block for each image against one image spread over the device."""
    library = device.kernels()
    before = library.nms_route

    def measure(layout: RawDetections, count: int, batch: int, candidates: int) -> dict[str, float]:
        image, found = _rows(count, layout, candidates), {}
        for route in ROUTES:
            library.nms_route = route
            found[str(route)] = _nms(device, image, layout, batch)
        return found

    problems = {"pose, 57375 x 57": (POSE, 57375), "COCO, 25200 x 85": (COCO, 25200), "COCO, 8400 x 85": (COCO, 8400)}
    wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {
        (name, str(batch), str(candidates)): partial(measure, layout, count, batch, candidates)
        for name, (layout, count) in list(problems.items())[2 if quick else 0 :]
        for batch in ((1,) if quick else (1, 16))
        for candidates in (CANDIDATES[1:3] if quick else CANDIDATES)
    }
    try:
        rows = rows_of(step, wanted)
    finally:
        library.nms_route = before
    columns = {str(route): "{:.4f}" for route in ROUTES}
    return Table("NMS of rows on the device, ms", ("rows", "images", "candidates"), columns, rows, "blocks")
