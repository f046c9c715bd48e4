"""The options of exports and engines, each with its default.

The command line, Python and the tests fill the same objects. Importing this module loads neither torch nor onnx.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from deploykit.errors import DataError, NotFoundError, UsageError
from deploykit.models.load_options import LoadOptions
from deploykit.models.timm_options import TimmOptions
from deploykit.runtime.engine_record import BuilderOptions, Profile
from deploykit.spec import Dynamic

__all__ = [
    "AccuracyGate",
    "Calibration",
    "CalibrationMethod",
    "Colour",
    "EngineOptions",
    "Exporter",
    "FitKind",
    "HalfIO",
    "ImagePreparation",
    "Int8Target",
    "KeepAs",
    "NmsMode",
    "OnnxOptions",
    "Precision",
    "PrecisionOptions",
    "QuantKind",
]

Exporter = Literal["dynamo", "legacy"]
NmsMode = Literal["none", "graph", "basic", "plugin"]
Layout = Literal["deploykit", "ultralytics"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
QuantKind = Literal["int8", "fp8"]
HalfIO = Literal["none", "input", "output", "both"]
Int8Target = Literal["any", "cpu"]
KeepAs = Literal["fp32", "fp16"]
FOLDS = ("equalise", "smooth", "correct")
"""What prepares a network for int8: :mod:`deploykit.export.precision.folds`."""
CalibrationMethod = Literal["auto", "minmax", "percentile", "entropy", "mse"]
Colour = Literal["rgb", "bgr"]
FitKind = Literal["letterbox", "resize", "crop"]

OPSETS = range(13, 24)
"""Below 13 quantized weights have one range per tensor only; above 23 the exporter has no operators."""
TRACED = 18
"""The lowest opset that the exporter writes; an older one is reached by conversion."""
MIN_OPSET = {"bf16": 22, "fp8": 19}
"""The lowest opset that has convolutions in bf16, and quantization to fp8."""


@dataclass(frozen=True)
class Calibration:
    """The images that calibrate int8 and fp8, and how a range follows from measured values.

    Attributes:
        source: a folder of images (subfolders are not searched), the images themselves, or the ``data.yaml`` of a YOLO
            data set, of which the split ``train`` is taken, else ``val``.
        size: how many images are used at most, spread evenly over their sorted names.
        method: how a range follows from absolute values; see :mod:`deploykit.export.precision.calibration`.
        percentile: the percentile of the method ``percentile``, in percent.
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
            raise UsageError(f"a calibration method must be one of {known}, got {self.method!r}")
        if not 50.0 < self.percentile <= 100.0:
            raise UsageError(f"the percentile must be over 50 and at most 100, got {self.percentile}")

    def images(self) -> list[Path]:
        """Return the images that are used.

        Raises:
            NotFoundError: the folder or an image does not exist. ImageError, DataError: there is no image.
        """
        from deploykit.runtime.datasets.yolo import CALIBRATED, is_yolo, read_yolo
        from deploykit.runtime.images.folders import list_images

        if isinstance(self.source, tuple):
            found = [Path(p).expanduser() for p in self.source]
            missing = next((p for p in found if not p.is_file()), None)
            if missing is not None:
                raise NotFoundError(f"the calibration image {missing} does not exist")
        elif is_yolo(self.source):
            dataset = read_yolo(self.source)
            found = dataset.images(dataset.split(*CALIBRATED))
        else:
            folder = Path(self.source).expanduser()
            if not folder.is_dir():
                raise NotFoundError(f"expected a folder of calibration images at {folder}, which is not a folder")
            found = list_images(folder)
        if not found:
            raise DataError(f"there is no calibration image in {self.source}: ranges can only be measured on images")
        count = min(self.size, len(found))
        return [found[i * len(found) // count] for i in range(count)]


@dataclass(frozen=True)
class PrecisionOptions:
    """The precision of weights and activations, and what it needs (docs/precision.md).

    Attributes:
        precision: the precision of weights and activations in the graph.
        half_io: which of the graph's inputs and outputs are fp16 too; only with ``fp16``.
        calibration: the images on which the ranges of int8 and fp8 are measured.
        nodes_to_exclude: layers that stay in higher precision: ``auto`` chooses them by measurement; ``none``, or names
            and patterns. Of fp16 and bf16 these are nodes that stay in fp32 beside those that the rules keep.
        keep_as: of int8 and fp8, the precision of the layers that stay: ``fp32`` or ``fp16``.
        keep_file: a file of layers to keep. One that exists says which stay, in place of ``nodes_to_exclude``; where
            there is none, those of this export are written to it.
        target: of int8, what computes it: ``any`` (ONNX Runtime, TensorRT) rounds the inputs of layers; ``cpu`` rounds
            what lies between layers too, to uint8 with zero points, for ONNX Runtime's integer kernels.
        reduce_range: store int8 weights in 7 bits, for CPUs whose int8 kernels saturate.
        folds: what prepares a network for int8 and fp8: ``auto`` is all of :data:`FOLDS`, each taken if the error of
            the outputs falls with it; ``none``, or some of their names.
        cache: keep measured ranges, and what a search for layers has measured, for the next export of the same model
            with the same images.
    """

    precision: Precision = "fp32"
    half_io: HalfIO = "none"
    calibration: Calibration | None = None
    nodes_to_exclude: Literal["auto", "none"] | tuple[str, ...] = "auto"
    reduce_range: bool = False
    cache: bool = True
    target: Int8Target = "any"
    keep_as: KeepAs = "fp32"
    keep_file: str | os.PathLike[str] | None = None
    folds: Literal["auto", "none"] | tuple[str, ...] = "auto"

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"a precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.half_io != "none" and self.precision != "fp16":
            raise UsageError(f"--half-io {self.half_io} goes with --precision fp16, not with {self.precision}")
        if self.target not in get_args(Int8Target):
            raise UsageError(f"the target of int8 must be any or cpu, got {self.target!r}")
        if self.target != "any" and self.precision != "int8":
            raise UsageError(f"--target {self.target} goes with --precision int8, not with {self.precision}")
        if self.folds not in ("auto", "none") and not set(self.folds) <= set(FOLDS):
            raise UsageError(f"folds are auto, none, or some of {', '.join(FOLDS)}, got {self.folds!r}")
        if self.folds != "auto" and self.quantised is None:
            raise UsageError(f"--folds goes with --precision int8 and fp8, not with {self.precision}")
        if self.keep_as not in get_args(KeepAs):
            raise UsageError(f"layers are kept in {' or '.join(get_args(KeepAs))}, got {self.keep_as!r}")
        if self.keep_as != "fp32" and (self.quantised is None or self.target != "any"):
            asked = f"--target {self.target}" if self.target != "any" else f"--precision {self.precision}"
            raise UsageError(f"--keep-as {self.keep_as} goes with --precision int8 and fp8, not with {asked}")
        if self.keep_file is not None and self.precision == "fp32":
            raise UsageError("--keep-file goes with a precision other than fp32")
        if (self.calibration is not None) != (self.quantised is not None):
            raise UsageError(
                f"--precision {self.precision} needs images to measure ranges on: pass --calib DIR, a folder of "
                "images like those that the network will see"
                if self.quantised
                else f"calibration is for int8 and fp8, not for {self.precision}"
            )

    def tries(self, fold: str) -> bool:
        """Return whether a fold of :data:`FOLDS` may be taken."""
        return self.folds == "auto" or (self.folds != "none" and fold in self.folds)

    @property
    def quantised(self) -> QuantKind | None:
        """The type that weights and activations are quantized to; None: they are not quantized."""
        return self.precision if self.precision in ("int8", "fp8") else None

    @property
    def half(self) -> Literal["fp16", "bf16"] | None:
        """The 16-bit type of weights and activations; None: they have another precision."""
        return self.precision if self.precision in ("fp16", "bf16") else None


@dataclass(frozen=True)
class AccuracyGate:
    """The accuracy gate: an export whose accuracy falls by more than is allowed on annotated images is not kept.

    Accuracy is AP of detectors, top-1 of classifiers and mIoU of segmentation networks (docs/evaluation.md).

    Attributes:
        max_drop: how far it may fall, in points (hundredths).
        data: annotations in COCO's format, or the ``data.yaml`` of a YOLO data set; of a classifier a folder with one
            folder of images per class; of a segmentation network the folder of label maps.
        images: the folder with the images of COCO's annotations or of label maps; None: ``data`` has them.
        split: the split of a YOLO data set, or of folders of classes; None: val, else test, else train.
        limit: how many of the first images are used; None: all.
        bootstrap: how many bootstrap draws give the confidence interval of a detector's drop.
        mask_values, ignore_label: of label maps, see :class:`deploykit.EvalOptions`.
    """

    max_drop: float
    data: str | os.PathLike[str]
    images: str | os.PathLike[str] | None = None
    split: str | None = None
    limit: int | None = None
    bootstrap: int = 1000
    mask_values: tuple[int, ...] | None = None
    ignore_label: int | Literal["none"] | None = None

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise UsageError(f"--max-drop must be at least 0 points, got {self.max_drop}")


@dataclass(frozen=True)
class ImagePreparation:
    """How images become the input of an ONNX file that does not say it; None: what the file tells, or what is usual.

    A pixel value p of 0 to 255 enters the network as ``(p * scale - mean) / std``.

    Attributes:
        img: input size in pixels, one side or ``(height, width)``, where the file leaves it open.
        colour: the order of the channels.
        scale: 1/255 for values of 0 to 1, and 1 for values of 0 to 255.
        mean, std: one value for all channels, or one for each.
        fit: how an image of another size becomes one of this size.
    """

    img: int | tuple[int, int] | None = None
    colour: Colour | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: FitKind | None = None


@dataclass(frozen=True)
class OnnxOptions:
    """The options of an ONNX file.

    Attributes:
        img: input size in pixels, one side or ``(height, width)``; None: the size the model was published for.
        batch: images per run; with a dynamic batch the preferred number.
        dynamic: ``none``; ``batch``: any batch; ``shape``: any batch and any size that is a multiple of the stride.
        opset: ONNX operator set, 13 to 23; a precision that needs a higher one gets it, and the report says so.
        simplify: fold constants and remove nodes without effect.
        exporter: torch's ``dynamo`` exporter, or its ``legacy`` one (with onnxsim).
        nms: ``none`` gives raw rows. ``graph`` uses ONNX's NonMaxSuppression, ``basic`` only basic operators, and
            ``plugin`` the node ``deploykit::NmsKpt``, after ``deploykit::DecodeRows`` if the head has anchors. All of
            them do what :mod:`deploykit.runtime.postprocess.nms` defines.
        layout: of the outputs. ``ultralytics`` is that of the ultralytics package, with the metadata that its own
            consumers read; of classifiers, and of detectors without an objectness.
        conf, iou, max_det, pre_nms_topk: replace the model's own thresholds; with NMS inside they are fixed.
        preprocessing: how images are prepared, for a model that was published with two ways: ``legacy`` is for the
            weights of YOLOX's release 0.0.1 and those trained alike. It is written into the file's spec.
        rewrite: another form of the network for the same weights, if the model has one: ``tlc`` of NAFNet.
        timm: how a timm model is created (docs/models/timm.md).
        loading: how the checkpoint is loaded (docs/checkpoints.md).
        precision: the precision of weights and activations.
        gate: the accuracy gate; None: accuracy is not measured.
    """

    img: int | tuple[int, int] | None = None
    batch: int = 1
    dynamic: Dynamic = "none"
    opset: int = 18
    simplify: bool = True
    exporter: Exporter = "dynamo"
    nms: NmsMode = "none"
    layout: Layout = "deploykit"
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    pre_nms_topk: int | None = None
    preprocessing: str = "default"
    rewrite: str = ""
    timm: TimmOptions | None = None
    loading: LoadOptions | None = None
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    gate: AccuracyGate | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"--batch must be at least 1, got {self.batch}")
        if self.opset not in OPSETS:
            raise UsageError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {self.opset}")

    @property
    def effective_opset(self) -> int:
        """The opset to export with: ``opset``, or a higher one if the precision needs it."""
        return max(self.opset, MIN_OPSET.get(self.precision.precision, 0))

    def updated(
        self,
        *,
        img: int | tuple[int, int] | None = None,
        dynamic: Dynamic | None = None,
        nms: NmsMode | None = None,
        precision: Precision | PrecisionOptions | None = None,
    ) -> OnnxOptions:
        """Return a copy of the options in which the given ones are replaced."""
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
    """The options of an engine and of its build; those of :class:`BuilderOptions` are kept in the engine's record.

    Attributes:
        profiles: the optimization profiles of a network with a dynamic batch or shape. None given means batches of 1
            to 8, and with a dynamic shape every rectangle within the spec's size.
        timing_cache: reuse the timings of earlier builds on this kind of GPU, and keep those of this one.
        gpu: the number of the GPU to build on and to run on.
        verbose: keep every line of the builder's log.
    """

    profiles: tuple[Profile, ...] = ()
    timing_cache: bool = True
    gpu: int = 0
    verbose: bool = False

    @property
    def builder(self) -> BuilderOptions:
        """The options that the builder gets and the engine's record keeps."""
        return BuilderOptions(**{option.name: getattr(self, option.name) for option in fields(BuilderOptions)})
