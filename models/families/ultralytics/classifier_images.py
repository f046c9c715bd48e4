"""How a classifier of the ultralytics package is given its images, which changed with release 8.1."""

from __future__ import annotations

from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.spec import Fit, InputSpec

__all__ = ["classifier_input"]


def classifier_input(side: int, channels: int, checkpoint: Checkpoint | None) -> tuple[InputSpec, tuple[str, ...]]:
    """The input of a classifier, and what is to be said about it.

    Args:
        side: pixels a side.
        channels: of the image.
        checkpoint: where the network is from; None: it was built by its name.
    """
    fit = Fit(kind="crop", stride=1, crop_share=1.0, resample="bilinear")
    canvas = InputSpec(size=(side, side), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels, fit=fit)
    return canvas, ()
