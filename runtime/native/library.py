"""The native library of ``cpp_plugins``: where it is, and NMS and letterbox on the CPU by it.

Everything works without it: :func:`deploykit.runtime.postprocess.nms.nms` takes it where it is there and gives the same
bits either way. ``DEPLOYKIT_PLUGINS`` names the folder to look in, ``DEPLOYKIT_NATIVE=0`` switches the library off.

It is called through ctypes: the library then knows no Python, so that one file serves every Python and C programs too,
and building it needs no Python headers. Such a call takes 3 microseconds where a compiled extension's takes 2, and the
work 100 and more (docs/plugins.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import BackendError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import pixel_lookup_tables
from deploykit.spec import InputSpec, RawDetections, Thresholds

__all__ = [
    "ABI",
    "FOLDER",
    "LIBRARIES",
    "SWITCH",
    "abi_of",
    "built_with",
    "cpu_library",
    "find_library",
    "letterbox_blob",
    "library_folder",
    "native_nms",
]

ABI = 2
"""What ``deploykit_abi()`` of a library that fits this code answers; ``abi_number`` in common/portable.h."""

FOLDER = "DEPLOYKIT_PLUGINS"
SWITCH = "DEPLOYKIT_NATIVE"

LIBRARIES = {
    "cpu": "NMS and letterbox on the CPU",
    "onnxruntime": "the operators NmsKpt and DecodeRows for ONNX Runtime",
    "cuda": "NMS, decoding and letterbox on a GPU",
    "tensorrt": "the plugins NmsKpt and DecodeRows for TensorRT",
}
"""What ``deploykit plugins build`` makes, where it finds what is needed."""


def library_folder() -> Path:
    """``$DEPLOYKIT_PLUGINS``, or the package's own ``cpp_plugins/lib``; it need not exist."""
    return _folder(os.environ.get(FOLDER))


def _folder(place: str | None) -> Path:
    return Path(place) if place else Path(__file__).parents[2] / "cpp_plugins" / "lib"


def find_library(name: str) -> Path | None:
    """The file of one of :data:`LIBRARIES`, if it is there."""
    return _file_in(library_folder(), name)


def _file_in(folder: Path, name: str) -> Path | None:
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
    file = folder / f"{prefix}deploykit_{name}{suffix}"
    return file if file.is_file() else None


def abi_of(library: Path) -> int:
    """The number that a library answers.

    Raises:
        BackendError: it does not load, or has no such function.
    """
    try:
        return int(ctypes.CDLL(str(library)).deploykit_abi())
    except (OSError, AttributeError) as e:
        raise BackendError(f"{library} does not load as a library of deploykit ({e}): deploykit plugins build") from e


def built_with(library: Path) -> str:
    """The compiler, and the framework whose headers a library was built with.

    Raises:
        BackendError: as for :func:`abi_of`.
    """
    try:
        function = ctypes.CDLL(str(library)).deploykit_built_with
    except (OSError, AttributeError) as e:
        raise BackendError(f"{library} does not load as a library of deploykit ({e}): deploykit plugins build") from e
    function.restype = ctypes.c_char_p
    return str(function().decode())


def cpu_library() -> ctypes.CDLL | None:
    """The library for the CPU; None: it is switched off, not there, or does not fit (which warns, once)."""
    return _cpu_library(os.environ.get(SWITCH), os.environ.get(FOLDER))


@lru_cache(maxsize=4)
def _cpu_library(switch: str | None, folder: str | None) -> ctypes.CDLL | None:
    """Once for each pair of values that the variables have had; a program may set them while it runs."""
    if switch == "0" or (file := _file_in(_folder(folder), "cpu")) is None:
        return None
    try:
        found = abi_of(file)
    except BackendError as e:
        warnings.warn(f"{e}; until then numpy does its work", RuntimeWarning, stacklevel=4)
        return None
    if found != ABI:
        warnings.warn(
            f"{file} has ABI {found}, and this deploykit needs {ABI}: deploykit plugins build; until then numpy does "
            "its work",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    library = ctypes.CDLL(str(file))
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.deploykit_nms_workspace.argtypes = [int64, pointer]
    library.deploykit_nms_workspace.restype = int64
    library.deploykit_nms.argtypes = [pointer, int32, int64, int64, pointer, pointer, pointer, *[pointer] * 5]
    library.deploykit_nms.restype = int64
    library.deploykit_letterbox_workspace.argtypes = [pointer]
    library.deploykit_letterbox_workspace.restype = int64
    library.deploykit_letterbox.argtypes = [pointer, pointer, int64, pointer, int32, int32, int32, pointer, pointer]
    library.deploykit_letterbox.restype = int32
    return library


def nms_arrays(batch: int, most: int, points: int) -> dict[str, Array]:
    """The outputs of the node NmsKpt, in its order and all zero; ``most`` is ``max_det``, ``points`` may be 0."""
    return {
        "num_dets": np.zeros((batch, 1), np.int32),
        "boxes": np.zeros((batch, most, 4), np.float32),
        "scores": np.zeros((batch, most), np.float32),
        "labels": np.zeros((batch, most), np.int32),
        "keypoints": np.zeros((batch, most, points, 3), np.float32),
        "num_candidates": np.zeros((batch, 1), np.int32),
    }


class Layout(ctypes.Structure):
    """``deploykit::nms::Layout``."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("columns", "box", "obj", "cls", "num_classes", "keypoints", "num_keypoints", "kpt_dims")
    ]


class Limits(ctypes.Structure):
    """``deploykit::nms::Limits``; ctypes rounds the first two to float32, as numpy does."""

    _fields_ = [
        ("conf", ctypes.c_float), ("iou", ctypes.c_float), ("max_det", ctypes.c_int32), ("topk", ctypes.c_int32),
    ]  # fmt: skip


@lru_cache(maxsize=16)
def _described(columns: int, layout: RawDetections, thresholds: Thresholds) -> tuple[Layout, Limits]:
    """Both structs for rows of so many columns; those of the keypoints only have to be finite."""
    most = 2**31 - 1  # more than there can be rows
    return (
        Layout(
            columns=columns,
            box=layout.box[0],
            obj=-1 if layout.obj is None else layout.obj[0],
            cls=layout.cls[0],
            num_classes=layout.cls[1] - layout.cls[0],
            keypoints=-1,
        ),
        Limits(thresholds.conf, thresholds.iou, min(thresholds.max_det, most), min(thresholds.pre_nms_topk, most)),
    )


class _Workspace(threading.local):
    """Memory of one thread, kept from call to call: it grows, and never shrinks."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint64)
        self.kept = np.empty(0, np.int64)
        self.labels = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float32)
        self.boxes = np.empty((0, 4), np.float32)
        self.candidates = np.zeros(1, np.int64)
        self.addresses: tuple[int, ...] = ()

    def reserve(self, size: int, room: int) -> tuple[int, ...]:
        """Addresses of ``size`` bytes and of outputs for ``room`` rows, in the order of ``deploykit_nms``."""
        if not self.addresses or size > self.memory.nbytes or room > len(self.kept):
            self.memory = np.empty(max(size // 8 + 1, len(self.memory)), np.uint64)
            room = max(room, len(self.kept))
            self.kept, self.labels = np.empty(room, np.int64), np.empty(room, np.int64)
            self.scores, self.boxes = np.empty(room, np.float32), np.empty((room, 4), np.float32)
            arrays = (self.memory, self.kept, self.boxes, self.scores, self.labels, self.candidates)
            self.addresses = tuple(a.ctypes.data for a in arrays)
        return self.addresses


_workspace = _Workspace()


def native_nms(
    rows: Array, layout: RawDetections, thresholds: Thresholds
) -> tuple[Array, Array, Array, Array, int] | None:
    """Rows, boxes, scores, labels and the number of candidates, as :mod:`deploykit.runtime.postprocess.nms` defines
    them.

    None: there is no library, or it does not take these rows (another type than float32 and float16, columns that
    do not lie side by side, or that the layout does not have).
    """
    library = cpu_library()
    size = rows.itemsize
    if library is None or rows.dtype.char not in "fe" or not rows.dtype.isnative or not rows.shape[1]:
        return None
    count = len(rows)
    stride, rest = divmod(rows.strides[0], size) if count > 1 else (rows.shape[1], 0)
    if count and (rest or rows.strides[1] != size or stride < rows.shape[1]):
        return None
    shape, limits = _described(rows.shape[1], layout, thresholds)
    need = library.deploykit_nms_workspace(count, ctypes.addressof(limits))
    work = _workspace
    memory, *outputs = work.reserve(need, min(thresholds.max_det, thresholds.pre_nms_topk, count))
    kept = library.deploykit_nms(
        rows.ctypes.data, size == 2, count, stride, ctypes.addressof(shape), ctypes.addressof(limits), memory, *outputs
    )  # fmt: skip
    if kept < 0:
        return None
    found = work.kept[:kept].copy(), work.boxes[:kept].copy(), work.scores[:kept].copy(), work.labels[:kept].copy()
    return *found, int(work.candidates[0])


class Plan(ctypes.Structure):
    """``deploykit::letterbox::Plan``."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "source_height", "source_width", "resized_height", "resized_width", "canvas_height", "canvas_width",
            "top", "left", "pad_value", "swap",
        )
    ]  # fmt: skip


def plan_of(letterbox: Letterbox, spec: InputSpec) -> Plan:
    """A letterbox as the native code wants it.

    Raises:
        BackendError: its border has a colour, or it resizes as Pillow does: the native code does neither.
    """
    if not isinstance(letterbox.pad_value, int) or letterbox.resample != "opencv":
        raise BackendError("the native letterbox has a grey border and resizes as OpenCV does; this one is another")
    left, top = letterbox.pad
    sizes = (*letterbox.source, *letterbox.resized, *letterbox.canvas)
    return Plan(*sizes, top, left, letterbox.pad_value, spec.colour == "rgb")


def tables_of(spec: InputSpec, dtype: Any) -> Array:
    """``(3, 256)`` finished values of ``dtype``, one row a channel of the network."""
    return np.ascontiguousarray(np.stack(pixel_lookup_tables(spec)).astype(dtype))


def letterbox_blob(
    image: Array, letterbox: Letterbox, spec: InputSpec, out: Array, *, rows: tuple[int, int] | None = None
) -> bool:
    """One image on its canvas as the network's input, in one pass.

    The values are those of :meth:`Letterbox.apply` and :func:`deploykit.runtime.images.to_tensor.to_nchw`, except that
    a pixel may differ by one grey level, where OpenCV rounds twice. The runtime itself uses OpenCV, which is faster
    (benchmarks/README.md).

    Args:
        image: ``uint8 (h, w, 3)``; rows may lie further apart than their width (a part of a larger image).
        letterbox: made for this size.
        spec: colour order, scale, mean and std.
        out: contiguous float32 or float16 ``(3, H, W)``, which is filled.
        rows: fill only these rows of the canvas (first, one after the last), so that threads can share an image.

    Returns:
        False: there is no library, and ``out`` is untouched.

    Raises:
        BackendError: the arrays are not what is described here.
    """
    library = cpu_library()
    if library is None:
        return False
    fits = image.shape == (*letterbox.source, 3) and image.dtype == np.uint8 and image.strides[1:] == (3, 1)
    if not (fits and out.shape == (3, *letterbox.canvas) and out.flags.c_contiguous):
        raise BackendError(
            f"letterbox_blob takes uint8 {(*letterbox.source, 3)} and contiguous (3, H, W) of {letterbox.canvas}, got "
            f"{image.dtype} {image.shape} and {out.shape}"
        )
    first, last = rows or (0, letterbox.canvas[0])
    plan, tables = plan_of(letterbox, spec), tables_of(spec, out.dtype)
    memory = np.empty(library.deploykit_letterbox_workspace(ctypes.addressof(plan)), np.uint8)
    code = library.deploykit_letterbox(
        ctypes.addressof(plan), image.ctypes.data, image.strides[0], tables.ctypes.data, out.dtype == np.float16,
        first, last, memory.ctypes.data, out.ctypes.data,
    )  # fmt: skip
    if code:
        raise BackendError(f"the native letterbox refuses rows {first} to {last} of {letterbox}")
    return True
