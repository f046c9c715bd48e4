"""Evaluation of image restoration: PSNR and SSIM of the written 8-bit pixels, or of mosaics."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import DataError
from deploykit.runtime.evaluate.folders import first_of, pairs_of, unturned_images, upright_size
from deploykit.runtime.evaluate.image_meter import ImageMeter
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.images.metrics import WINDOW, psnr, ssim
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.raw.mosaic import RawImage, pack, read_raw
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import RestoredImage, RestoredRaw
from deploykit.spec import ModelSpec

__all__ = ["RestoredMeter", "mosaic_scores"]


class RestoredMeter(ImageMeter):
    """PSNR and SSIM, means over the images. The ground truth of a RAW file is a RAW file."""

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """See :class:`deploykit.runtime.evaluate.meter.Meter`."""
        super().__init__(spec, task, data, options)
        found = pairs_of(task, data, "their targets", raw=adapter_of(spec).takes_raw)
        chosen, self.notes = first_of(found, options.limit)
        self._truths = dict(chosen)
        self.paths = [path for path, _ in chosen]
        self.unturned, turned = unturned_images(self.paths, lambda path: upright_size(self._truths[path]), "targets")
        self.notes += turned
        self._seen: dict[str, dict[str, float]] = {}

    def add(self, path: Path, result: ImageResult) -> None:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.add`."""
        truth = self._truths[path]
        if isinstance(result, RestoredRaw):
            self._seen[path.name] = mosaic_scores(result.raw, read_raw(truth, max_pixels=self.options.max_pixels))
            return
        assert isinstance(result, RestoredImage)
        channels = result.pixels.shape[2] if result.pixels.ndim == 3 else 1
        target = read_image(truth, channels=channels, max_pixels=self.options.max_pixels)
        found = result.pixels
        if channels == 1:
            target = cv2.cvtColor(target, cv2.COLOR_BGR2GRAY)
        if found.shape != target.shape:
            raise DataError(
                f"{truth} has size {target.shape[:2]} (height, width), but the restored image has {found.shape[:2]}"
            )
        values = {"PSNR": psnr(found, target)}
        values["SSIM"] = ssim(found, target) if min(target.shape[:2]) >= WINDOW else math.nan
        self._seen[path.name] = values

    def metrics(self) -> dict[str, float]:
        """``PSNR`` and ``SSIM``."""
        return {name: float(np.mean([v[name] for v in self._seen.values()])) for name in ("PSNR", "SSIM")}

    def per_image(self) -> dict[str, dict[str, float]]:
        """Return ``PSNR`` and ``SSIM`` of each image."""
        return self._seen

    def versions(self) -> dict[str, str]:
        """Return the version of OpenCV."""
        return {"opencv": cv2.__version__}


def mosaic_scores(image: RawImage, target: RawImage) -> dict[str, float]:
    """Return PSNR and SSIM of two mosaics of one camera, in packed channels from black to white.

    Raises:
        DataError: they differ in size, pattern or levels, or are too small for SSIM.
    """
    if (image.pattern, image.black, image.white) != (target.pattern, target.black, target.white):
        raise DataError("the two mosaics differ in their pattern, black level or white level")
    a, b = (np.ascontiguousarray(pack(side).transpose(1, 2, 0)) for side in (image, target))
    return {"PSNR": psnr(a, b, largest=1.0), "SSIM": ssim(a, b, largest=1.0)}
