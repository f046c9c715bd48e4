"""A network's input tensor, and how an image becomes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from deploykit.errors import SpecError
from deploykit.spec.checks import MAX_INPUT, MOST_STRIDE, check_name, check_range, max_input_bytes
from deploykit.spec.json_values import LATER

__all__ = ["Dynamic", "Fit", "InputSpec", "check_sizes"]

Dynamic = Literal["none", "batch", "shape"]

MOST_SIDE = 1 << 20  # pixels, channels and images of a batch; what they take together has a limit of its own
LEAST_SHARE = 0.001  # of the scaled image; classifiers use 0.8 to 1
MOST_MARGIN = 64  # strides; YOLOv5's own evaluation uses half a one
LEAST_VALUE, MOST_VALUE = 1e-9, 1e9
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Fit:
    """How an image of any size becomes the network's canvas.

    ``letterbox``: scale by one factor until it fits, pad with ``pad_value``, or ``pad_colour`` (blue, green, red) if
    given. ``stride``: the canvas' sides are multiples of it. ``auto``: pad only to the next multiple of ``stride`` (a
    rectangle) instead of the whole canvas; only networks with a dynamic shape can take that. ``rounding``: of the
    scaled size, ``round`` (half to even, YOLOv5/v7), ``floor`` (YOLOX) or ``ceil``. ``shrink``: how an image is made
    smaller, ``linear`` or ``area``; larger always by ``linear``. ``margin``: with ``auto``, so many strides are added
    before the rectangle is rounded up. ``crop_share``: with ``crop``, the canvas' share of the scaled image's shorter
    side; with ``crop_first`` a square of that share of the image's own shorter side is cut out of its middle, and then
    scaled to the canvas. ``step``: of a network that halves its input, the pixels after which its grid repeats: tiles
    begin at multiples of it. ``resample``: ``opencv`` resizes as ``shrink`` says; the others are Pillow's filters, as
    classifiers were evaluated. ``least``: pixels of the shortest side that the network takes.
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
    crop_first: bool = field(default=False, metadata=LATER)
    least: int = field(default=1, metadata=LATER)

    def __post_init__(self) -> None:
        check_range("a crop's share", self.crop_share, LEAST_SHARE, 1)
        if self.step < 1:
            raise SpecError(f"tiles begin at multiples of at least 1 pixel, got {self.step}")
        check_range("step", self.step, 1, MOST_STRIDE)
        check_range("stride", self.stride, 1, MOST_STRIDE)
        check_range("least", self.least, 1, MOST_SIDE)
        check_range("margin", self.margin, 0, MOST_MARGIN)
        for grey in (self.pad_value, *(self.pad_colour or ())):
            check_range("the grey levels of the border", grey, 0, 255)


@dataclass(frozen=True)
class InputSpec:
    """The network's input tensor, ``(B, channels, height, width)`` float.

    ``size (height, width)`` in pixels and ``batch`` are the only ones, or, where ``dynamic`` frees them, preferred.
    A pixel value p of 0..255 enters the network as ``(p * scale - mean) / std``.

    Raises:
        SpecError: a number makes no sense, or the tensor would take more memory than
            :func:`deploykit.spec.checks.max_input_bytes`.
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

    def __post_init__(self) -> None:
        check_name("the name of the input", self.name)
        check_sizes(self.size, self.batch, self.channels)
        if not len(self.mean) == len(self.std) == self.channels:
            raise SpecError(
                f"an input of {self.channels} channels needs as many values of mean and std, got {len(self.mean)} and "
                f"{len(self.std)}"
            )
        for value in self.mean:
            check_range("mean", value, -MOST_VALUE, MOST_VALUE)
        for what, value in (("scale", self.scale), *(("std", value) for value in self.std)):
            if not LEAST_VALUE <= abs(value) <= MOST_VALUE:
                raise SpecError(
                    f"{what} must not be 0, and be of a size of {LEAST_VALUE:g} to {MOST_VALUE:g}, got {value:g}: the "
                    "network would be given the same value for every pixel, or none"
                )
        check_sizes(self.size, self.batch, self.channels, canvas=self._largest_canvas())
        if min(self.size) < self.fit.least:
            raise SpecError(
                f"the network takes sides of at least {self.fit.least} pixels, got {self.size[0]}x{self.size[1]} "
                "(height x width)"
            )

    def _largest_canvas(self) -> tuple[int, int]:
        """Return the (height, width) of the largest image that is made for this input."""
        more = math.ceil(self.fit.margin + 1) * self.fit.stride if self.fit.auto else 0
        share = self.fit.crop_share if self.fit.kind == "crop" else 1.0
        height, width = (math.ceil((side + more) / share) for side in self.size)
        return height, width


def check_sizes(size: tuple[int, int], batch: int, channels: int, *, canvas: tuple[int, int] | None = None) -> None:
    """Check the sizes of a network's input, and the memory that its tensor takes.

    Args:
        size: (height, width).
        batch, channels: the other two sides.
        canvas: (height, width) of the largest image that is made for the input; None: ``size``.

    Raises:
        SpecError: a side makes no sense, or the tensor takes more memory than :data:`MAX_INPUT` allows.
    """
    numbers = {"height": size[0], "width": size[1], "batch": batch, "channels": channels}
    for what, number in numbers.items():
        check_range(f"the input's {what}", number, 1, MOST_SIDE)
    needed = batch * channels * math.prod(canvas or size) * FLOAT32
    if needed > (most := max_input_bytes()):
        raise SpecError(
            f"an input of {batch} x {channels} x {size[0]} x {size[1]} takes {needed / 2**30:,.1f} GiB of memory, the "
            f"limit is {most / 2**30:,.3g}: ${MAX_INPUT} raises it"
        )
