"""What may be asked of a model of timm; importing it loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TimmOptions"]


@dataclass(frozen=True)
class TimmOptions:
    """How a model of timm is made.

    Attributes:
        model: the name in timm of the model that a file of weights is of; None: ``weights`` is ``timm:NAME``.
        pretrained: timm downloads the weights; else, without a file, they are random.
        num_classes: None: as published, or as many as the file has.
        in_chans: channels of the image; None: as published, or as the file has.
    """

    model: str | None = None
    pretrained: bool = False
    num_classes: int | None = None
    in_chans: int | None = None
