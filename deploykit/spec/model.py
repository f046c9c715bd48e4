"""ModelSpec: everything that the runtime must know about a network, in one value.

Export writes it into the artefact (ONNX ``metadata_props``, key :data:`METADATA_KEY`) and beside an engine; the runtime
reads it nowhere else. Standard library only: the torch side and the torch-free side both import this file.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.errors import SpecError
from deploykit.spec.json_values import read_value

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "COCO_KEYPOINTS",
    "METADATA_KEY",
    "SPEC_VERSION",
    "Fit",
    "InputSpec",
    "KeypointSpec",
    "ModelSpec",
    "NmsOutputs",
    "PoseFusion",
    "PoseObjectRows",
    "RawRows",
    "Source",
    "Tensor",
    "Thresholds",
]

METADATA_KEY = "deploykit"
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pkl", ".safetensors")
SPEC_VERSION = 1

LATER = {"later": True}
"""Marks a field that came after the first release: written only where it is not its default, for older readers."""

Task = Literal["detect", "keypoints", "instances", "classify", "segment", "restore", "features"]
Dynamic = Literal["none", "batch", "shape"]
Span = tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """How a picture of any size becomes the network's canvas.

    ``letterbox``: scale by one factor until it fits, pad with ``pad_value``, or ``pad_colour`` (blue, green, red) if
    given. ``stride``: the canvas' sides are multiples of it. ``auto``: pad only to the next multiple of ``stride`` (a
    rectangle) instead of the whole canvas; only networks with a dynamic shape can take that. ``rounding``: of the
    scaled size, ``round`` (half to even, YOLOv5/v7), ``floor`` (YOLOX) or ``ceil``. ``shrink``: how a picture is made
    smaller, ``linear`` or ``area``; larger always by ``linear``. ``margin``: with ``auto``, so many strides are added
    before the rectangle is rounded up. ``crop_share``: with ``crop``, the canvas' share of the scaled picture's shorter
    side. ``step``: of a network that halves its input, the pixels after which its grid repeats: tiles begin at
    multiples of it. ``resample``: ``opencv`` resizes as ``shrink`` says; the others are Pillow's filters, as
    classifiers were evaluated.
    """

    kind: Literal["letterbox", "resize", "crop", "pad", "tile"] = "letterbox"
    stride: int = 32
    auto: bool = False
    pad_value: int = 114
    anchor: Literal["centre", "top-left"] = "centre"
    scale_up: bool = True
    rounding: Literal["round", "floor", "ceil"] = "round"
    shrink: Literal["linear", "area"] = field(default="linear", metadata=LATER)
    margin: float = field(default=0.0, metadata=LATER)
    crop_share: float = field(default=0.875, metadata=LATER)
    step: int = field(default=1, metadata=LATER)
    resample: Literal["opencv", "bilinear", "bicubic", "lanczos"] = field(default="opencv", metadata=LATER)
    pad_colour: tuple[int, int, int] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_share <= 1.0:
            raise SpecError(f"a crop's share lies over 0 and up to 1, got {self.crop_share}")
        if self.step < 1:
            raise SpecError(f"tiles begin at multiples of at least 1 pixel, got {self.step}")


@dataclass(frozen=True)
class InputSpec:
    """The network's input tensor, ``(B, channels, height, width)`` float.

    ``size (height, width)`` in pixels and ``batch`` are the only ones, or, where ``dynamic`` frees them, preferred.
    A pixel value p of 0..255 enters the network as ``(p * scale - mean) / std``.
    """

    name: str = "images"
    size: tuple[int, int] = (640, 640)
    batch: int = 1
    dynamic: Dynamic = "none"
    channels: int = 3
    colour: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fit: Fit = field(default_factory=Fit)


@dataclass(frozen=True)
class RawRows:
    """One output ``(B, rows, columns)`` of candidate rows before NMS, in network pixels.

    Each span is ``(start, stop)`` in the columns: ``box`` holds ``cx, cy, w, h``; ``obj`` one objectness (None: the
    score is the class score alone); ``cls`` one probability a class; ``keypoints`` K times ``kpt_dims`` values
    (``x, y`` or ``x, y, v``; None: there are no keypoints).

    ``decode``: what the runtime does to the rows first. ``none``: they are pixels already. ``yolox``: the box columns
    are a YOLOX head's own values (as its export writes them by default), one row a cell of the grids of ``strides``.
    """

    kind: Literal["rows"] = "rows"
    name: str = "output"
    box: Span = (0, 4)
    obj: Span | None = (4, 5)
    cls: Span = (5, 6)
    keypoints: Span | None = None
    kpt_dims: int = 3
    decode: Literal["none", "yolox"] = field(default="none", metadata=LATER)
    strides: tuple[int, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        if (self.decode == "none") != (not self.strides):
            raise SpecError(f"rows are decoded by strides, or not at all; got decode {self.decode!r}, {self.strides}")
        if any(stride < 1 for stride in self.strides):
            raise SpecError(f"the strides of a grid are at least 1 pixel, got {self.strides}")
        if self.decode != "none" and self.keypoints is not None:
            raise SpecError(f"decode {self.decode!r} is of boxes; rows with keypoints must be decoded by the network")

    @property
    def decoded(self) -> RawRows:
        """The layout of the same rows in pixels."""
        return dataclasses.replace(self, decode="none", strides=())

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        return max(stop for _, stop in (self.box, self.obj or self.box, self.cls, self.keypoints or self.box))

    @property
    def plain(self) -> RawRows:
        """Itself; see :attr:`PoseObjectRows.plain`."""
        return self


@dataclass(frozen=True)
class PoseFusion:
    """How keypoint objects replace keypoints of poses, after NMS and in source pixels.

    ``conf`` and ``iou`` are the thresholds of the keypoint objects' NMS (the persons' are the spec's). A pose takes
    part if its person's score is over ``person``; a keypoint object replaces the same keypoint of the pose where that
    is nearest, if it is nearer than ``tolerance`` source pixels. The defaults are those of KaPao's published accuracy.
    """

    conf: float = 0.2
    iou: float = 0.25
    person: float = 0.3
    tolerance: float = 50.0

    def __post_init__(self) -> None:
        for name in ("conf", "iou", "person"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise SpecError(f"the fusion's {name} must lie in 0..1, got {value}")
        if not self.tolerance >= 0.0:
            raise SpecError(f"the fusion's tolerance must be at least 0 pixels, got {self.tolerance}")


@dataclass(frozen=True)
class PoseObjectRows:
    """One output ``(B, rows, columns)`` of persons and of single keypoints as objects, in network pixels, before NMS.

    Spans as in :class:`RawRows`. Of the ``1 + K`` class columns the first is a person, the others are the K keypoints.
    ``coords`` holds ``x, y`` of the K keypoints of a person; in the row of a keypoint object they mean nothing.
    ``fusion`` tells how the two become poses.
    """

    kind: Literal["pose-objects"] = "pose-objects"
    name: str = "output"
    box: Span = (0, 4)
    obj: Span = (4, 5)
    cls: Span = (5, 23)
    coords: Span = (23, 57)
    fusion: PoseFusion = field(default_factory=PoseFusion)

    def __post_init__(self) -> None:
        objects, values = self.cls[1] - self.cls[0] - 1, self.coords[1] - self.coords[0]
        if objects < 1 or values != 2 * objects:
            raise SpecError(
                f"{values} coordinate columns are not x, y of {objects} keypoint classes beside the person's"
            )

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        return max(stop for _, stop in (self.box, self.obj, self.cls, self.coords))

    @property
    def num_keypoints(self) -> int:
        """K, the keypoints of a person."""
        return (self.coords[1] - self.coords[0]) // 2

    @property
    def plain(self) -> RawRows:
        """The same columns as rows of 1 + K classes with keypoints, for whoever compares values."""
        return RawRows(name=self.name, box=self.box, obj=self.obj, cls=self.cls, keypoints=self.coords, kpt_dims=2)


@dataclass(frozen=True)
class NmsOutputs:
    """Fixed-shape outputs after NMS, in network pixels (M = the thresholds' ``max_det``).

    ``num_dets (B,1) int32, boxes (B,M,4) xyxy, scores (B,M), labels (B,M) int32, keypoints (B,M,K,3),
    masks (B,M,S,S)`` (0..1, each over its box), ``num_candidates (B,1) int32``; empty slots are zero.
    """

    kind: Literal["nms"] = "nms"
    num_dets: str = "num_dets"
    boxes: str = "boxes"
    scores: str = "scores"
    labels: str = "labels"
    keypoints: str | None = None
    num_candidates: str = "num_candidates"
    masks: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Tensor:
    """One dense output: ``logits (B,C)`` classify or ``(B,C,H,W)`` segment, ``image (B,C,H,W)``, ``features (B,D)``."""

    kind: Literal["tensor"] = "tensor"
    name: str = "logits"

    @property
    def plain(self) -> Tensor:
        """Itself; see :attr:`PoseObjectRows.plain`."""
        return self

    @property
    def decoded(self) -> Tensor:
        """Itself; see :attr:`RawRows.decoded`."""
        return self


@dataclass(frozen=True)
class KeypointSpec:
    """The K keypoints of one object: names, limbs (pairs of indices), left-right pairs, OKS sigmas (or empty)."""

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        k = len(self.names)
        for name, pairs in (("skeleton", self.skeleton), ("flip_pairs", self.flip_pairs)):
            for a, b in pairs:
                if not (0 <= a < k and 0 <= b < k):
                    raise SpecError(f"{name} names keypoint {max(a, b)}, but there are {k} (0 to {k - 1})")
        if self.sigmas and len(self.sigmas) != k:
            raise SpecError(f"expected {k} OKS sigmas, one for each keypoint, got {len(self.sigmas)}")

    @staticmethod
    def unnamed(count: int) -> KeypointSpec:
        """K keypoints of which nothing is known but their number."""
        return KeypointSpec(tuple(f"keypoint {i}" for i in range(count)))


COCO_KEYPOINTS = KeypointSpec(
    names=(
        "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
        "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
        "right ankle",
    ),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
            0.089, 0.089),
)  # fmt: skip
"""The 17 COCO person keypoints; limbs, order and sigmas are the facts published with the COCO data set."""


@dataclass(frozen=True)
class Thresholds:
    """Defaults of the postprocess: keep ``score > conf``, suppress ``IoU > iou``, at most ``max_det`` an image.

    NMS sees the best ``pre_nms_topk`` candidates of an image; ``keypoint`` is the visibility from which one is drawn.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300
    pre_nms_topk: int = 1000
    keypoint: float = 0.5

    def __post_init__(self) -> None:
        for name in ("conf", "iou", "keypoint"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise SpecError(f"{name} must lie in 0..1, got {value}")
        for name in (few for few in ("max_det", "pre_nms_topk") if getattr(self, few) < 1):
            raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Source:
    """Where a network came from: the model's name, its checkpoint's SHA-256, and what wrote the artefact."""

    model: str = ""
    sha256: str = ""
    deploykit: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """What the runtime must know about a network; travels inside the ONNX file and beside the engine."""

    task: Task
    input: InputSpec
    output: RawRows | PoseObjectRows | NmsOutputs | Tensor
    classes: tuple[str, ...] = ()
    keypoints: KeypointSpec | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"] = "fp32"
    opset: int = 18
    source: Source = field(default_factory=Source)
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if isinstance(self.output, NmsOutputs) and (self.keypoints is None) != (self.output.keypoints is None):
            raise SpecError("a spec has keypoint names and a keypoint output, or neither")
        if (self.task == "instances") != (isinstance(self.output, NmsOutputs) and self.output.masks is not None):
            raise SpecError("a spec of the task instances has an output of masks, and no other has")
        if isinstance(self.output, PoseObjectRows):
            _check_poses(self.output, self.classes, self.keypoints)
        if not isinstance(self.output, RawRows):
            return
        rows = self.output
        if self.classes and len(self.classes) != rows.cls[1] - rows.cls[0]:
            raise SpecError(f"{len(self.classes)} class names for {rows.cls[1] - rows.cls[0]} class columns")
        if (self.keypoints is None) != (rows.keypoints is None):
            raise SpecError("a spec has keypoint names and keypoint columns, or neither")
        if self.keypoints and rows.keypoints:
            width = rows.keypoints[1] - rows.keypoints[0]
            if width != len(self.keypoints.names) * rows.kpt_dims:
                expected = f"{len(self.keypoints.names)} x {rows.kpt_dims}"
                raise SpecError(f"{width} keypoint columns do not hold {expected} values")

    @property
    def dense_axes(self) -> int:
        """How many axes one dense output has: 2 where it is of the picture, 4 where it is of its pixels."""
        return 2 if self.task in ("classify", "features") else 4

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys: equal specs give equal bytes."""
        return json.dumps(_written(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """Read what :meth:`to_json` wrote, or a hand-written spec that leaves out what has a default.

        Raises:
            SpecError: not JSON, of a newer version, or with a field that is unknown or of another type.
        """
        try:
            data = json.loads(text)
        except ValueError as e:
            raise SpecError(f"a model spec is JSON, but this does not parse: {e}") from e
        if not isinstance(data, dict):
            raise SpecError(f"a model spec is a JSON object, got {type(data).__name__}")
        version = data.get("version", SPEC_VERSION)
        if not isinstance(version, int) or version > SPEC_VERSION:
            raise SpecError(
                f"the spec has version {version!r}, this deploykit reads up to {SPEC_VERSION}: update deploykit"
            )
        spec = read_value(ModelSpec, data, "spec")
        assert isinstance(spec, ModelSpec)
        return spec


def _check_poses(rows: PoseObjectRows, classes: tuple[str, ...], keypoints: KeypointSpec | None) -> None:
    if len(classes) > 1:
        raise SpecError(f"pose objects are of one class, the person; its keypoints are no classes: got {len(classes)}")
    if keypoints is None or len(keypoints.names) != rows.num_keypoints:
        raise SpecError(f"pose objects of {rows.num_keypoints} keypoints need as many keypoint names")


def _written(value: Any) -> Any:
    """A value as JSON has it, without the later fields that have their defaults."""
    if isinstance(value, tuple):
        return [_written(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {f.name: _written(v) for f, v in fields if not (f.metadata.get("later") and v == f.default)}
