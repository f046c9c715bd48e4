"""A network's input tensor, and how an image becomes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deploykit.errors import SpecError
from deploykit.spec.json_values import LATER

__all__ = ["Dynamic", "Fit", "InputSpec"]

Dynamic = Literal["none", "batch", "shape"]


@dataclass(frozen=True)
class Fit:
    """How an image of any size becomes the network's canvas.

    ``letterbox``: scale by one factor until it fits, pad with ``pad_value``, or ``pad_colour`` (blue, green, red) if
    given. ``stride``: the canvas' sides are multiples of it. ``auto``: pad only to the next multiple of ``stride`` (a
    rectangle) instead of the whole canvas; only networks with a dynamic shape can take that. ``rounding``: of the
    scaled size, ``round`` (half to even, YOLOv5/v7), ``floor`` (YOLOX) or ``ceil``. ``shrink``: how an image is made
    smaller, ``linear`` or ``area``; larger always by ``linear``. ``margin``: with ``auto``, so many strides are added
    before the rectangle is rounded up. ``crop_share``: with ``crop``, the canvas' share of the scaled image's shorter
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
