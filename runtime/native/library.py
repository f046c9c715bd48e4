"""The native library of ``cpp_plugins``: where it is, and NMS on the CPU by it.

Everything works without it: :func:`deploykit.runtime.postprocess.nms.nms` takes it where it is there and gives the same
bits either way. ``DEPLOYKIT_PLUGINS`` names the folder to look in, ``DEPLOYKIT_NATIVE=0`` switches the library off.

It is called through ctypes: the library then knows no Python, so that one file serves every Python and C programs too,
and building it needs no Python headers. Such a call takes 3 microseconds where a compiled extension's takes 2, and the
work 100 and more (docs/plugins.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from deploykit.errors import BackendError
from deploykit.runtime.arrays import Array
from deploykit.spec import RawDetections, Thresholds

__all__ = [
    "ABI",
    "FOLDER",
    "LIBRARIES",
    "SUMS",
    "SWITCH",
    "abi_and_words",
    "abi_of",
    "built_with",
    "check_undamaged",
    "cpu_library",
    "find_library",
    "library_folder",
    "native_nms",
    "native_suppressed",
]

LOG = logging.getLogger(__name__)

ABI = 7
"""What ``deploykit_abi()`` of a library that fits this code answers; ``abi_number`` in common/portable.h."""

FOLDER = "DEPLOYKIT_PLUGINS"
SWITCH = "DEPLOYKIT_NATIVE"

SUMS = "SHA256SUMS"
"""The file beside built libraries with the SHA-256 of each, in the format of ``sha256sum``; wheels have none."""

LIBRARIES = {
    "cpu": "NMS on the CPU",
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


def check_undamaged(library: Path) -> None:
    """Check that a library is the one that was built, if there is a file :data:`SUMS` beside it that names it.

    Raises:
        BackendError: it has other bytes, which may crash the process. OSError: it cannot be read.
    """
    try:
        lines = library.with_name(SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if sums.get(library.name) not in (None, hashlib.sha256(library.read_bytes()).hexdigest()):
        raise BackendError(f"{library} is damaged, it has not the SHA-256 of {SUMS}: deploykit plugins build")


def _opened(library: Path) -> ctypes.CDLL:
    check_undamaged(library)
    return ctypes.CDLL(str(library))


def abi_of(library: Path) -> int:
    """The number that a library answers.

    Raises:
        BackendError: it is damaged, does not load, or has no such function.
    """
    with _as_library(library):
        return int(_opened(library).deploykit_abi())


def built_with(library: Path) -> str:
    """The compiler, and the framework whose headers a library was built with.

    Raises:
        BackendError: as for :func:`abi_of`.
    """
    with _as_library(library):
        return _words(_opened(library))


def abi_and_words(library: Path) -> tuple[int, str]:
    """What :func:`abi_of` and :func:`built_with` tell, of a library that is read once.

    Raises:
        BackendError: as for :func:`abi_of`.
    """
    with _as_library(library):
        opened = _opened(library)
        return int(opened.deploykit_abi()), _words(opened)


def _words(opened: ctypes.CDLL) -> str:
    function = opened.deploykit_built_with
    function.restype = ctypes.c_char_p
    return str(function().decode())


@contextlib.contextmanager
def _as_library(library: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, AttributeError) as e:
        raise BackendError(f"{library} does not load as a library of deploykit ({e}): deploykit plugins build") from e


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
        LOG.warning("%s; until then numpy does its work", e)
        return None
    if found != ABI:
        LOG.warning(
            "%s has ABI %s, and this deploykit needs %s: deploykit plugins build; until then numpy does its work",
            file, found, ABI,
        )  # fmt: skip
        return None
    library = ctypes.CDLL(str(file))
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.deploykit_nms_workspace.argtypes = [int64, pointer, pointer, pointer]
    library.deploykit_nms_workspace.restype = int64
    library.deploykit_nms.argtypes = [pointer, int32, int64, int64, int64, *[pointer] * 9]
    library.deploykit_nms.restype = int64
    library.deploykit_rotated_suppress.argtypes = [pointer, pointer, int64, ctypes.c_double, pointer]
    library.deploykit_rotated_suppress.restype = int64
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


class Choice(ctypes.Structure):
    """``deploykit::nms::Choice``; ``wanted`` is the address of a byte for each class, or null."""

    _fields_ = [("wanted", ctypes.c_void_p), ("multi_label", ctypes.c_int32), ("agnostic", ctypes.c_int32)]


@dataclass(frozen=True)
class _Described:
    """The addresses of the three structs, and what has to live as long as these."""

    addresses: tuple[int, int, int]
    most: int  # objects of one row
    owners: tuple[object, ...]


@lru_cache(maxsize=16)
def _described(
    columns: int,
    layout: RawDetections,
    thresholds: Thresholds,
    multi_label: bool,
    classes: tuple[int, ...] | None,
    agnostic: bool,
) -> _Described:
    """The structs for rows of so many columns; those of the keypoints only have to be finite."""
    most = 2**31 - 1  # more than there can be rows
    factor, scores = layout.score_spans
    count = scores[1] - scores[0]
    shape = Layout(
        columns=columns,
        box=layout.box[0],
        obj=-1 if factor is None else factor[0],
        cls=scores[0],
        num_classes=count,
        keypoints=-1,
    )
    limits = Limits(thresholds.conf, thresholds.iou, min(thresholds.max_det, most), min(thresholds.pre_nms_topk, most))
    wanted = None if classes is None else np.isin(np.arange(count), classes).astype(np.uint8)
    choice = Choice(None if wanted is None else wanted.ctypes.data, multi_label, agnostic)
    owners = (shape, limits, choice)
    addresses = (ctypes.addressof(shape), ctypes.addressof(limits), ctypes.addressof(choice))
    return _Described(addresses, count if multi_label else 1, (*owners, wanted))


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
    rows: Array,
    layout: RawDetections,
    thresholds: Thresholds,
    *,
    multi_label: bool = False,
    classes: tuple[int, ...] | None = None,
    agnostic: bool = False,
) -> tuple[Array, Array, Array, Array, int] | None:
    """Rows, boxes, scores, labels and the number of candidates, as :mod:`deploykit.runtime.postprocess.nms` defines
    them, its ``Choice`` included.

    None: there is no library, or it does not take these rows (another type than float32 and float16, values that lie
    side by side neither in a row nor in a column, columns that the layout has and the rows have not).
    """
    library = cpu_library()
    if library is None or rows.dtype.char not in "fe" or not rows.dtype.isnative or not rows.shape[1]:
        return None
    strides = _strides(rows)
    if strides is None:
        return None
    count, size = len(rows), rows.itemsize
    described = _described(rows.shape[1], layout, thresholds, multi_label, classes, agnostic)
    need = library.deploykit_nms_workspace(count, *described.addresses)
    work = _workspace
    room = min(thresholds.max_det, thresholds.pre_nms_topk, count * described.most)
    memory, *outputs = work.reserve(need, room)
    kept = library.deploykit_nms(
        rows.ctypes.data, size == 2, count, *strides, *described.addresses, memory, *outputs
    )  # fmt: skip
    if kept < 0:
        return None
    found = work.kept[:kept].copy(), work.boxes[:kept].copy(), work.scores[:kept].copy(), work.labels[:kept].copy()
    return *found, int(work.candidates[0])


def _strides(rows: Array) -> tuple[int, int] | None:
    """Values from one row to the next, and from one column to the next, one of which is 1; None: neither is."""
    (count, columns), size = rows.shape, rows.itemsize
    down, across = rows.strides
    if across == size or columns == 1:
        stride, rest = divmod(down, size) if count > 1 else (columns, 0)
        return None if rest or stride < columns else (stride, 1)
    stride, rest = divmod(across, size)
    return None if rest or stride < count or (down != size and count > 1) else (1, stride)


def native_suppressed(shapes: Array, labels: Array, limit: float) -> Array | None:
    """Return which oriented boxes, the best first, have one of the same label before them that is nearer than a limit.

    Args:
        shapes: ``(7, N)`` float64, see :func:`deploykit.runtime.postprocess.rotated_nms.shapes_of`.
        labels: ``(N,)``.
        limit: of the distance.

    Returns:
        ``(N,)`` bool; None: there is no library.
    """
    library = cpu_library()
    if library is None:
        return None
    values, groups = np.ascontiguousarray(shapes, np.float64), np.ascontiguousarray(labels, np.int64)
    gone = np.empty(len(groups), np.uint8)
    library.deploykit_rotated_suppress(values.ctypes.data, groups.ctypes.data, len(groups), limit, gone.ctypes.data)
    return gone.astype(bool)
