"""The CUDA kernels on a GPU against what PyTorch and OpenCV do there: NMS, and an image to the network's input.

    python benchmarks/kernels.py [--rounds 100]

Needs a GPU, PyTorch with CUDA, nvcc and CMake; torchvision's compiled NMS is used where it is installed. Every round
runs each variant once, in an order of its own, and waits for the GPU: printed are medians in milliseconds and, in
brackets, the ratio to ours. The rows lie on the GPU already, and so do the results afterwards; what the YOLO projects'
algorithm (see nms.py) has to ask of the GPU in between, such as how many rows are left, is part of its time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from interleaved import interleaved
from measured import Row, Table, medians, show
from pre_post import COCO, FULL_HD, POSE, _image, _rows
from yolo_nms import yolo_nms

from deploykit.export.plugins_check import expected_outputs
from deploykit.runtime.cuda import open_gpu
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native.build import build_libraries
from deploykit.runtime.native.cuda_library import NMS_ROUTES, CudaLibrary, NmsRoute, letterbox_plan, tables_of
from deploykit.runtime.native.library import nms_arrays
from deploykit.spec import Fit, InputSpec, RawDetections, Thresholds

PROBLEMS = {
    "pose, 57375 rows, 1 class, 17 keypoints": (57375, POSE),
    "COCO, 25200 rows, 80 classes": (25200, COCO),
    "COCO, 8400 rows, 80 classes": (8400, COCO),
}
CANDIDATES = (0, 50, 500, 3000)
BATCHES = (1, 16)
THRESHOLDS = Thresholds()
OURS = "ours"


def main() -> None:
    """Build the library for this GPU, check it, measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="how often each variant runs (default 100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    gpu = open_gpu()
    major, minor = gpu.compute_capability
    with tempfile.TemporaryDirectory() as folder:
        built = build_libraries(Path(folder), only=["cuda"], architectures=[major * 10 + minor]).built
        library = CudaLibrary(gpu, built["cuda"])
    lines = []
    for name, (count, layout) in PROBLEMS.items():
        for batch in BATCHES:
            for candidates in CANDIDATES:
                rows = np.stack([_rows(count, layout, candidates)] * batch)
                times = _medians(_nms_variants(library, rows, layout), args.rounds)
                lines.append(Row((name, str(batch), str(candidates)), times))
    frame = [Row(("one frame",), _medians(_letterbox_variants(library), args.rounds))]
    tables = [
        _table("NMS of rows on the GPU, ms", ("", "images", "candidates"), lines),
        _table("1080p frame in pinned memory to float32 576 x 960 on the GPU, ms", ("",), frame),
    ]
    how = f"Medians of {args.rounds} rounds; each time ends when the GPU is done."
    show(tables, "CUDA kernels", "kernels.py", how, args.json, f"{gpu.name} (driver for CUDA {gpu.driver})")


def _table(title: str, labels: tuple[str, ...], rows: list[Row]) -> Table:
    return Table(title, labels, dict.fromkeys(rows[0].values, "{:.3f}"), tuple(rows), OURS, ".1f")


def _medians(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    def waited(run: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            run()
            torch.cuda.synchronize()

        return both

    return medians(interleaved({name: waited(run) for name, run in variants.items()}, rounds, warmup=5))


def _nms_variants(library: CudaLibrary, rows: np.ndarray, layout: RawDetections) -> dict[str, Callable[[], object]]:
    points = (layout.keypoints[1] - layout.keypoints[0]) // layout.kpt_dims if layout.keypoints else 0
    there = torch.from_numpy(rows).cuda()
    outputs = [torch.from_numpy(a).cuda() for a in nms_arrays(len(rows), THRESHOLDS.max_det, points).values()]
    stream = torch.cuda.current_stream().cuda_stream
    pointers = [out.data_ptr() for out in outputs]
    rooms = {}
    for route in NMS_ROUTES:
        library.nms_route = route
        size = library.nms_workspace(rows.shape[0], rows.shape[1], THRESHOLDS)
        rooms[route] = torch.empty(size, dtype=torch.uint8, device="cuda")

    def by(route: NmsRoute) -> None:
        library.nms_route = route
        library.launch_nms(
            there.data_ptr(), there.shape, False, layout, THRESHOLDS, points, pointers, rooms[route].data_ptr(), stream
        )

    expected = expected_outputs(rows, layout, THRESHOLDS, points)
    for route in NMS_ROUTES:
        by(route)
        torch.cuda.synchronize()
        named = dict(zip(nms_arrays(1, 1, 1), outputs, strict=True))
        for name, values in expected.items():
            np.testing.assert_array_equal(named[name].cpu().numpy(), values, err_msg=f"{name}, {route}")
    return {
        OURS: lambda: by("auto"),
        "ours, a block an image": lambda: by("blocks"),
        "ours, spread": lambda: by("spread"),
        "YOLO's, torch": lambda: [yolo_nms(image, layout, THRESHOLDS, _suppressed) for image in there],
    }


def _suppressed(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import nms

    kept: torch.Tensor = nms(boxes, scores, THRESHOLDS.iou)
    return kept


def _letterbox_variants(library: CudaLibrary) -> dict[str, Callable[[], object]]:
    frame, spec = _image(), InputSpec(size=(576, 960))
    letterbox = Letterbox.fit(FULL_HD, spec.size, Fit())
    pinned = torch.from_numpy(frame).pin_memory()
    source = torch.empty_like(pinned, device="cuda")
    out = torch.empty((1, 3, *spec.size), device="cuda")
    ready = torch.empty((1, 3, *spec.size)).pin_memory()
    (height, width), (left, top) = letterbox.resized, letterbox.pad
    stream = torch.cuda.current_stream().cuda_stream
    plan, tables = [letterbox_plan(letterbox, spec)], tables_of(spec, np.float32)

    def ours() -> None:
        source.copy_(pinned, non_blocking=True)
        library.launch_letterbox(plan, [source.data_ptr()], [frame.strides[0]], tables, False, out.data_ptr(), stream)

    def opencv() -> None:
        to_nchw([letterbox.apply(frame)], spec, out=ready.numpy())
        out.copy_(ready, non_blocking=True)

    def in_torch() -> None:
        source.copy_(pinned, non_blocking=True)
        image = source.permute(2, 0, 1).flip(0)[None].float()
        image = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", align_corners=False)
        borders = (left, spec.size[1] - width - left, top, spec.size[0] - height - top)
        torch.mul(torch.nn.functional.pad(image.round_(), borders, value=114), 1 / 255, out=out)

    expected = to_nchw([letterbox.apply(frame)], spec)
    for run in (ours, in_torch):
        run()
        np.testing.assert_allclose(out.cpu().numpy(), expected, atol=1.01 / 255)
    return {OURS: ours, "OpenCV, then a copy": opencv, "torch": in_torch}


if __name__ == "__main__":
    main()
