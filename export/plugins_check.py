"""Quick checks of the native libraries against the numpy reference, which ``deploykit plugins test`` runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np

from deploykit.atomic import temporary_folder
from deploykit.errors import DeployError, installing
from deploykit.runtime.arrays import Array
from deploykit.runtime.cuda import gpu_unavailable_reason, open_gpu
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native.build import library_info
from deploykit.runtime.native.cuda_library import CudaLibrary, NmsRoute
from deploykit.runtime.native.library import LIBRARIES, native_nms, native_suppressed, nms_arrays
from deploykit.runtime.postprocess.nms import USUAL, Choice, Kept, numpy_nms
from deploykit.runtime.postprocess.rotated_nms import limit_of, numpy_removed, shapes_of
from deploykit.runtime.session import open_session
from deploykit.spec import Fit, InputSpec, RawDetections, Thresholds

__all__ = ["Check", "check_libraries", "decode_rows_model", "decoded_rows", "expected_outputs", "nms_kpt_model"]

POINTS = 3
LAYOUTS = (
    RawDetections(cls=(5, 7), keypoints=(7, 16)),
    RawDetections(cls=(5, 6), keypoints=(6, 15), cls_counts=False),
    RawDetections(obj=None, cls=(4, 6), keypoints=(6, 15)),
)
"""One for each meaning of a score."""

THRESHOLDS = Thresholds(conf=0.2, iou=0.4, max_det=50, pre_nms_topk=200)


CHOICES = (USUAL, Choice(multi_label=True), Choice(classes=(0,), agnostic=True))


@dataclass(frozen=True)
class Check:
    """The result for one library: ``ok`` is None where it was not run; ``says`` gives the reason or the comparison."""

    library: str
    ok: bool | None
    says: str


def check_libraries() -> Iterator[Check]:
    """Check each library that is built, in the order of :data:`deploykit.runtime.native.library.LIBRARIES`."""
    for name, check in zip(LIBRARIES, (_cpu, _onnxruntime, _cuda, _tensorrt), strict=True):
        info = library_info(name)
        if info.problem:
            yield Check(name, None if info.file is None else False, info.problem)
            continue
        try:
            yield check(name)
        except DeployError as e:
            yield Check(name, False, " ".join(str(e).split()))


def _problems() -> Iterator[tuple[Array, RawDetections]]:
    """Rows ``(2, N, columns)`` of each layout: crowds with ties, broken rows, more candidates than fit, no rows."""
    for layout, count in product(LAYOUTS, (0, 1, 40, 3000)):
        rng = np.random.default_rng(count)
        rows = rng.random((2, count, layout.columns), np.float32)
        rows[..., :4] *= (300, 300, 60, 60)
        rows[..., 4 : layout.cls[1]] = np.round(rows[..., 4 : layout.cls[1]], 2)
        rows[..., -1][rng.random((2, count)) < 0.05] = np.nan
        yield rows, layout
        yield rows.astype(np.float16), layout


def expected_outputs(rows: Array, layout: RawDetections, thresholds: Thresholds, points: int) -> dict[str, Array]:
    """Reference outputs of the node NmsKpt for rows ``(B, N, columns)``, by the numpy definition."""
    batch, most = len(rows), thresholds.max_det
    out = nms_arrays(batch, most, points)
    for i, image in enumerate(rows):
        kept = numpy_nms(image, layout, thresholds)
        n = len(kept.rows)
        out["num_dets"][i], out["num_candidates"][i] = n, kept.candidates
        out["boxes"][i, :n], out["scores"][i, :n], out["labels"][i, :n] = kept.boxes, kept.scores, kept.labels
        if layout.keypoints:
            values = image[kept.rows, slice(*layout.keypoints)].reshape(n, points, layout.kpt_dims)
            out["keypoints"][i, :n] = 1
            out["keypoints"][i, :n, :, : layout.kpt_dims] = values
    if not points:
        del out["keypoints"]
    return out


def decoded_rows(levels: Sequence[Array], strides: Sequence[int], anchors: Array, classes: int, points: int) -> Array:
    """Reference output of the node DecodeRows in float64, ``(B, N, 5 + classes + 3 * points)``.

    ``levels`` are ``(B, A * columns, H, W)``, ``anchors`` ``(levels, A, 2)`` in pixels.
    """
    rows = []
    for level, stride, sides in zip(levels, strides, anchors, strict=True):
        batch, _, height, width = level.shape
        raw = level.astype(np.float64).reshape(batch, len(sides), -1, height, width).transpose(0, 1, 3, 4, 2)
        y, x = np.mgrid[:height, :width]
        corner = (np.stack((x, y), -1) - 0.5) * stride
        sure = 1 / (1 + np.exp(-raw))
        its_points = raw[..., 5 + classes :].reshape(*raw.shape[:4], points, 3).copy()
        its_points[..., :2] = its_points[..., :2] * 2 * stride + corner[:, :, None]
        its_points[..., 2] = 1 / (1 + np.exp(-its_points[..., 2]))
        box = sure[..., :2] * 2 * stride + corner, 4 * sure[..., 2:4] ** 2 * sides[:, None, None]
        parts = (*box, sure[..., 4 : 5 + classes], its_points.reshape(*raw.shape[:4], -1))
        rows.append(np.concatenate(parts, -1).reshape(batch, -1, raw.shape[-1]))
    return np.concatenate(rows, 1)


HEAD: dict[str, Any] = {
    "strides": (8, 16),
    "anchors": np.array([[[10, 13], [16, 30]], [[62, 45], [59, 119]]], np.float32),
    "classes": 2,
    "points": 3,
}


def _levels() -> Iterator[list[Array]]:
    """Raw values for the two levels of :data:`HEAD`, near 0 and far from it."""
    for scale in (1, 20):
        rng = np.random.default_rng(scale)
        levels = [(scale * rng.standard_normal((2, 32, *size))).astype(np.float32) for size in ((5, 7), (3, 4))]
        yield levels
        yield [level.astype(np.float16) for level in levels]


def _is_decoded(found: Array, levels: Sequence[Array]) -> bool:
    expected = decoded_rows(levels, **HEAD)
    return found.shape == expected.shape and bool((np.abs(found - expected) <= 1e-5 + 1e-6 * np.abs(expected)).all())


def _differences(found: dict[str, Array], expected: dict[str, Array]) -> list[str]:
    names = [n for n, e in expected.items() if n not in found or found[n].shape != e.shape or (found[n] != e).any()]
    return names + [name for name in found if name not in expected]


def _compared(name: str, runs: int, wrong: list[str]) -> Check:
    if wrong:
        return Check(name, False, f"{', '.join(sorted(set(wrong)))} differ from the numpy reference: build it again")
    return Check(name, True, f"{runs} comparisons with the numpy reference, all agree")


def _cpu(name: str) -> Check:
    wrong, runs = [], 0
    for rows, layout in _problems():
        for image, choice in product(rows, CHOICES):
            shown = np.asfortranarray(image) if choice.multi_label else image
            found = native_nms(shown, layout, THRESHOLDS, **asdict(choice))
            if found is None:
                return Check(name, None, "it is switched off: unset DEPLOYKIT_NATIVE")
            kept, runs = numpy_nms(image, layout, THRESHOLDS, choice), runs + 1
            equal = all(np.array_equal(a, b) for a, b in zip(found[:4], _arrays(kept), strict=True))
            wrong += ["NMS"] * (not equal or found[4] != kept.candidates)
    for shapes, labels, limit in _oriented():
        gone, runs = native_suppressed(shapes, labels, limit), runs + 1
        if gone is None or (gone != numpy_removed(shapes, labels, limit)).any():
            wrong.append("NMS of oriented boxes")
    return _compared(name, runs, wrong)


def _oriented() -> Iterator[tuple[Array, Array, float]]:
    """Oriented boxes of two classes as :func:`shapes_of` has them, and limits: crowds, boxes without area, none."""
    for count, iou in product((0, 1, 40, 500), (0.3, 0.7)):
        rng = np.random.default_rng(count)
        boxes = rng.random((count, 5)) * (300, 300, 60, 60, 4)
        boxes[rng.random(count) < 0.05, 2] = 0
        yield shapes_of(boxes), rng.integers(0, 2, count), limit_of(iou)


def _arrays(kept: Kept) -> tuple[Array, ...]:
    return kept.rows, kept.boxes, kept.scores, kept.labels


def _onnxruntime(name: str) -> Check:
    if missing := [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]:
        return Check(name, None, f"not run: {missing[0]} is not installed ({installing('cpu,export')})")
    wrong, runs = [], 0
    with temporary_folder() as folder:
        for rows, layout in _problems():
            file = folder / f"{rows.dtype}.onnx"
            file.write_bytes(nms_kpt_model(rows.dtype, layout, THRESHOLDS, POINTS))
            with open_session(file, provider="cpu") as session:
                found = session.run({"rows": rows})
            wrong += _differences(found, expected_outputs(rows, layout, THRESHOLDS, POINTS))
            runs += 1
        for levels in _levels():
            file = folder / f"decode_{levels[0].dtype}.onnx"
            file.write_bytes(decode_rows_model(levels[0].dtype, **HEAD))
            with open_session(file, provider="cpu") as session:
                found = session.run({f"level_{i}": level for i, level in enumerate(levels)})
            wrong += ["decoded rows"] * (not _is_decoded(found["rows"], levels))
            runs += 1
    return _compared(name, runs, wrong)


def _cuda(name: str) -> Check:
    if reason := gpu_unavailable_reason():
        return Check(name, None, f"it loads, but was not run: {reason}")
    library = CudaLibrary(open_gpu())
    wrong, runs = [], 0
    routes: tuple[NmsRoute, ...] = ("blocks", "spread")
    for (rows, layout), route in product(_problems(), routes):
        library.nms_route = route
        found = library.nms(rows, layout, THRESHOLDS, POINTS)
        wrong += _differences(found, expected_outputs(rows, layout, THRESHOLDS, POINTS))
        runs += 1
    for levels in _levels():
        wrong += ["decoded rows"] * (not _is_decoded(library.decode(levels, **HEAD), levels))
        runs += 1
    for image, letterbox, spec in _images():
        found_blob = library.letterbox([image], [letterbox], spec)
        wrong += ["letterbox"] * (not _near(found_blob, to_nchw([letterbox.apply(image)], spec)))
        runs += 1
    return _compared(name, runs, wrong)


def _images() -> Iterator[tuple[Array, Letterbox, InputSpec]]:
    rng = np.random.default_rng(0)
    spec = InputSpec(size=(96, 128), scale=1.0)
    for size in ((48, 64), (200, 301), (400, 50)):
        yield rng.integers(0, 256, (*size, 3), dtype=np.uint8), Letterbox.fit(size, spec.size, Fit()), spec


def _near(found: Array, expected: Array) -> bool:
    """Within one grey level: OpenCV rounds twice on some of its paths."""
    return bool(np.abs(found - expected).max() <= 1)


def _tensorrt(name: str) -> Check:
    return Check(name, None, "it loads; it runs in TensorRT only, when an engine with its nodes is built")


def nms_kpt_model(dtype: Any, layout: RawDetections, thresholds: Thresholds, points: int) -> bytes:
    """An ONNX file of the node NmsKpt alone, from ``rows`` (a dynamic batch and number of rows) to its outputs."""
    from onnx import helper

    real, whole = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)), helper.np_dtype_to_tensor_dtype(np.dtype("i4"))
    most = thresholds.max_det
    shapes = {
        "num_dets": (whole, [1]), "boxes": (real, [most, 4]), "scores": (real, [most]), "labels": (whole, [most]),
        "keypoints": (real, [most, points, 3]), "num_candidates": (whole, [1]),
    }  # fmt: skip
    if not points:
        del shapes["keypoints"]
    node = helper.make_node(
        "NmsKpt", ["rows"], list(shapes), domain="deploykit",
        conf=float(thresholds.conf), iou=float(thresholds.iou), max_det=most, pre_nms_topk=thresholds.pre_nms_topk,
        num_classes=layout.cls[1] - layout.cls[0], num_keypoints=points, kpt_dims=layout.kpt_dims,
        has_obj=int(layout.obj is not None), plugin_version="1", plugin_namespace="deploykit",
    )  # fmt: skip
    if not layout.cls_counts:  # as an export writes it
        node.attribute.append(helper.make_attribute("cls_counts", 0))
    rows = helper.make_tensor_value_info(
        "rows", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", "rows", layout.columns]
    )
    outputs = [helper.make_tensor_value_info(n, kind, ["batch", *sides]) for n, (kind, sides) in shapes.items()]
    graph = helper.make_graph([node], "nms_kpt", [rows], outputs)
    return _file_of(graph)


def decode_rows_model(dtype: Any, strides: Sequence[int], anchors: Array, classes: int, points: int) -> bytes:
    """An ONNX file of the node DecodeRows alone, from ``level_0``, ``level_1``, ... of any size to ``rows``."""
    from onnx import helper

    names = [f"level_{i}" for i in range(len(strides))]
    columns = 5 + classes + 3 * points
    node = helper.make_node(
        "DecodeRows", names, ["rows"], domain="deploykit", num_classes=classes, num_keypoints=points,
        strides=list(strides), anchors=anchors.astype(float).ravel().tolist(), plugin_version="1",
        plugin_namespace="deploykit",
    )  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    levels = [
        helper.make_tensor_value_info(name, kind, ["batch", anchors.shape[1] * columns, f"h{i}", f"w{i}"])
        for i, name in enumerate(names)
    ]
    real = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    rows = helper.make_tensor_value_info("rows", real, ["batch", "rows", columns])
    return _file_of(helper.make_graph([node], "decode_rows", levels, [rows]))


def _file_of(graph: Any) -> bytes:
    from onnx import helper

    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deploykit", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
