"""PSNR and SSIM of RAW mosaics."""

from __future__ import annotations

import numpy as np

from deploykit.errors import DataError
from deploykit.runtime.images.metrics import psnr, ssim
from deploykit.runtime.raw.mosaic import RawImage, pack

__all__ = ["raw_scores"]


def raw_scores(image: RawImage, target: RawImage) -> dict[str, float]:
    """PSNR (dB) and SSIM of a mosaic against another one of the same camera, in packed channels from black to white.

    Raises:
        DataError: they differ in size, pattern or levels, or are too small for SSIM.
    """
    if (image.pattern, image.black, image.white) != (target.pattern, target.black, target.white):
        raise DataError("two mosaics are compared that differ in their pattern, or their black or white level")
    a, b = (np.ascontiguousarray(pack(side).transpose(1, 2, 0)) for side in (image, target))
    return {"PSNR": psnr(a, b, largest=1.0), "SSIM": ssim(a, b, largest=1.0)}
