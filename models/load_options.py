"""What may be asked of the loading of a checkpoint; importing it loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

__all__ = ["Interpolation", "LoadOptions"]

Interpolation = Literal["bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded, where the file leaves it open.

    Attributes:
        entry: dotted name of the entry whose weights are taken, ``model`` or ``ema.module``; empty: the entry that
            docs/checkpoints.md names, which is an average of the weights where the file has one.
        heads: heads of each attention of a vision transformer; None: as the file tells, or assumed.
        score: of a detector of one class of the YOLOv5 and YOLOv7 families: ``obj``, the objectness alone, or
            ``obj*cls`` (docs/nms.md); None: as the file tells, or assumed.
        head: branch of a head that has two: ``one2one``, whose detections need no NMS, or ``one2many``; None: the
            former.
        pool: what a vision transformer classifies: its class token, or the average of the patches.
        activation: between the two linear layers of each block of a vision transformer: ``gelu``, ``gelu-tanh`` or
            ``quick-gelu``.
        head_activation: between the layers of a classifier's head that has several: ``relu``, ``gelu``, ``silu``,
            ``tanh`` or ``none``.
        mean, std: of the pixels in each channel, or of all; of 0 to 1, or of 0 to 255 where the network takes those.
        crop: share of an image's shorter side whose middle a classifier is given.
        interpolation: Pillow's filter by which a classifier's images are scaled.
    """

    entry: str = ""
    heads: int | None = None
    score: Literal["obj", "obj*cls"] | None = None
    head: Literal["one2one", "one2many"] | None = None
    pool: Literal["token", "avg"] | None = None
    activation: str | None = None
    head_activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | None = None
    interpolation: Interpolation | None = None

    def __str__(self) -> str:
        """The options as they are typed, ``--entry ema --heads 12``: those that differ from their default."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        asked = [(name, value) for name, value in given if value not in (None, "")]
        return " ".join(f"--{name.replace('_', '-')} {_typed(value)}" for name, value in asked)


def _typed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
