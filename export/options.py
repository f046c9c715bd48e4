"""What may be asked of an export: every option and its default stands here, and nowhere else.

The command line, Python and the tests fill the same objects. Importing this module loads neither torch nor onnx.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from deploykit.errors import DataError, NotFoundError, UsageError
from deploykit.models.timm_options import TimmOptions
from deploykit.runtime.engine_record import BuilderOptions, Profile
from deploykit.spec import Dynamic

__all__ = [
    "AccuracyGate",
    "Calibration",
    "CalibrationMethod",
    "EngineOptions",
    "Exporter",
    "HalfIO",
    "NmsMode",
    "OnnxOptions",
    "Precision",
    "PrecisionOptions",
    "QuantKind",
]

Exporter = Literal["dynamo", "legacy"]
NmsMode = Literal["none", "graph", "basic", "plugin"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
QuantKind = Literal["int8", "fp8"]
HalfIO = Literal["none", "input", "output", "both"]
CalibrationMethod = Literal["auto", "minmax", "percentile", "entropy", "mse"]

OPSETS = range(18, 24)
"""Below 18 the exporter writes models that are not valid; above 23 it has no operators."""
MIN_OPSET = {"bf16": 22, "fp8": 19}
"""Below, ONNX has no convolution of bf16 and no quantisation to fp8."""


@dataclass(frozen=True)
class Calibration:
    """The images from which the ranges of int8 and fp8 are measured, and how a range follows from them.

    Attributes:
        source: a folder of images (subfolders are not searched), or the images themselves.
        size: so many of them are used, spread evenly over their sorted names; where there are fewer, all.
        method: how a range follows from absolute values; see :mod:`deploykit.export.precision.calibration`.
        percentile: the one of the method ``percentile``, in percent.
    """

    source: str | os.PathLike[str] | tuple[str | os.PathLike[str], ...]
    size: int = 32
    method: CalibrationMethod = "auto"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"calibration needs at least 1 image, got {self.size}")
        if self.method not in get_args(CalibrationMethod):
            known = ", ".join(get_args(CalibrationMethod))
            raise UsageError(f"a calibration method is one of {known}, got {self.method!r}")
        if not 50.0 < self.percentile <= 100.0:
            raise UsageError(f"a percentile of absolute values lies over 50 and up to 100, got {self.percentile}")

    def images(self) -> list[Path]:
        """The images that are used.

        Raises:
            NotFoundError: no such folder or image. ImageError, DataError: there is no image.
        """
        from deploykit.runtime.images.sources import list_images

        if isinstance(self.source, tuple):
            found = [Path(p).expanduser() for p in self.source]
            missing = next((p for p in found if not p.is_file()), None)
            if missing is not None:
                raise NotFoundError(f"an image to calibrate with was expected at {missing}, which does not exist")
        else:
            folder = Path(self.source).expanduser()
            if not folder.is_dir():
                raise NotFoundError(f"a folder of images to calibrate with was expected at {folder}, which is none")
            found = list_images(folder)
        if not found:
            raise DataError(f"no image to calibrate with in {self.source}: ranges are measured on images, or not")
        count = min(self.size, len(found))
        return [found[i * len(found) // count] for i in range(count)]


@dataclass(frozen=True)
class PrecisionOptions:
    """The precision of weights and activations, and what it needs (docs/precision.md).

    Attributes:
        precision: of weights and activations, in the graph itself.
        half_io: which of the file's own inputs and outputs are fp16 too; only with ``fp16``.
        calibration: the images from which the ranges of int8 and fp8 are measured.
        nodes_to_exclude: layers that are not quantised: ``auto`` by measurement, ``none``, or names and patterns.
        reduce_range: int8 weights of 7 bits, for CPUs whose int8 kernels saturate.
        cache: keep measured ranges for the next export of the same model with the same images.
    """

    precision: Precision = "fp32"
    half_io: HalfIO = "none"
    calibration: Calibration | None = None
    nodes_to_exclude: Literal["auto", "none"] | tuple[str, ...] = "auto"
    reduce_range: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"a precision is one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.half_io != "none" and self.precision != "fp16":
            raise UsageError(f"--half-io {self.half_io} goes with --precision fp16, not with {self.precision}")
        if (self.calibration is not None) != (self.quantised is not None):
            raise UsageError(
                f"--precision {self.precision} needs images to measure ranges with: --calib DIR, a folder of "
                "images like those that it will see"
                if self.quantised
                else f"calibration is for int8 and fp8, not for {self.precision}"
            )

    @property
    def quantised(self) -> QuantKind | None:
        """What weights and activations are quantised to by measured ranges; None: they are not."""
        return self.precision if self.precision in ("int8", "fp8") else None

    @property
    def half(self) -> Literal["fp16", "bf16"] | None:
        """The 16-bit type of weights and activations; None: they have another precision."""
        return self.precision if self.precision in ("fp16", "bf16") else None


@dataclass(frozen=True)
class AccuracyGate:
    """An export that loses more on annotated images than is allowed is not kept.

    Attributes:
        max_drop: AP may fall by so many points (hundredths).
        data: annotations in COCO's format.
        images: the folder with their images.
        limit: only the first so many images; None: all.
        bootstrap: draws for the interval that is told with the drop.
    """

    max_drop: float
    data: str | os.PathLike[str]
    images: str | os.PathLike[str]
    limit: int | None = None
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise UsageError(f"--max-drop is a number of points of at least 0, got {self.max_drop}")


@dataclass(frozen=True)
class OnnxOptions:
    """What an ONNX file shall be.

    Attributes:
        img: input size in pixels, one side or ``(height, width)``; None: the size the model was published for.
        batch: images per run; with a dynamic batch the preferred number.
        dynamic: ``none``; ``batch``: any batch; ``shape``: any batch and any size that is a multiple of the stride.
        opset: ONNX operator set, 18 to 23; a precision that needs a higher one gets it, and the report says so.
        simplify: fold constants and remove what is idle.
        exporter: torch's ``dynamo`` exporter, or its ``legacy`` one (with onnxsim).
        nms: ``none``: raw rows; ``graph``: suppressed in the graph by ONNX's NonMaxSuppression; ``basic``: by basic
            operators only; ``plugin``: by the node ``deploykit::NmsKpt``, after ``deploykit::DecodeRows`` where the
            head is one of anchors. All have one meaning, that of :mod:`deploykit.runtime.postprocess.nms`.
        conf, iou, max_det, pre_nms_topk: instead of the model's own thresholds; with NMS inside they are fixed.
        preprocessing: how images are prepared, where a model was published with two ways: ``legacy`` for the weights
            of YOLOX's release 0.0.1 and those trained alike. It is written into the file's spec.
        rewrite: another form of the network for the same weights, where a model has one: ``tlc`` of NAFNet.
        timm: how a model of timm is made (docs/models/timm.md).
        precision: of weights and activations.
        gate: annotated images on which the file may lose only so much; None: its accuracy is not looked at.
    """

    img: int | tuple[int, int] | None = None
    batch: int = 1
    dynamic: Dynamic = "none"
    opset: int = 18
    simplify: bool = True
    exporter: Exporter = "dynamo"
    nms: NmsMode = "none"
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    pre_nms_topk: int | None = None
    preprocessing: str = "default"
    rewrite: str = ""
    timm: TimmOptions | None = None
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    gate: AccuracyGate | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"--batch must be at least 1, got {self.batch}")
        if self.opset not in OPSETS:
            raise UsageError(
                f"--opset must be {OPSETS[0]} to {OPSETS[-1]}, got {self.opset}: lower ones give invalid models"
            )

    @property
    def effective_opset(self) -> int:
        """The opset to export with: the one that was asked for, or the lowest that has the precision."""
        return max(self.opset, MIN_OPSET.get(self.precision.precision, 0))

    def updated(
        self,
        *,
        img: int | tuple[int, int] | None = None,
        dynamic: Dynamic | None = None,
        nms: NmsMode | None = None,
        precision: Precision | PrecisionOptions | None = None,
    ) -> OnnxOptions:
        """The same options but for those that are given."""
        if isinstance(precision, str):
            precision = PrecisionOptions(precision)
        return replace(
            self,
            img=self.img if img is None else img,
            dynamic=self.dynamic if dynamic is None else dynamic,
            nms=self.nms if nms is None else nms,
            precision=self.precision if precision is None else precision,
        )


@dataclass(frozen=True)
class EngineOptions(BuilderOptions):
    """What an engine shall be, and how it is built; the options of :class:`BuilderOptions` are kept in its record.

    Attributes:
        profiles: the input shapes of a network with a dynamic batch or shape; none: batches of 1 to 8, and with a
            dynamic shape every rectangle within the spec's size.
        timing_cache: reuse what earlier builds measured on this kind of GPU, and keep what this one measures.
        gpu: the number of the GPU to build on and to run on.
        verbose: keep every line of the builder's log.
    """

    profiles: tuple[Profile, ...] = ()
    timing_cache: bool = True
    gpu: int = 0
    verbose: bool = False

    @property
    def builder(self) -> BuilderOptions:
        """The part that the builder gets, and that the engine's record keeps."""
        return BuilderOptions(**{option.name: getattr(self, option.name) for option in fields(BuilderOptions)})
