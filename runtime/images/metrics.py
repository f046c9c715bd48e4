"""Similarity of two images: PSNR, and SSIM as its authors define it.

SSIM: Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment: from error visibility to structural
similarity", 2004. The window is a Gaussian of 11 x 11 pixels with a standard deviation of 1.5; the computation is in
float64. The result is the mean over the channels and over all pixels whose whole window lies in the image. It equals
scikit-image's with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from deploykit.errors import DataError
from deploykit.runtime.arrays import Array

__all__ = ["psnr", "ssim"]

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(image: Array, target: Array, *, largest: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in decibels; it is infinite for equal images.

    Args:
        image, target: two images of the same shape, ``(H, W)`` or ``(H, W, C)``.
        largest: the largest possible value of a pixel.

    Raises:
        DataError: the shapes differ.
    """
    _check(image, target)
    error = float(np.mean((image.astype(np.float64) - target.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(largest**2 / error)


def ssim(image: Array, target: Array, *, largest: float = 255.0) -> float:
    """Return the structural similarity; it is 1 for equal images.

    Args:
        image, target: two images of the same shape, ``(H, W)`` or ``(H, W, C)``, at least 11 x 11 pixels.
        largest: the largest possible value of a pixel.

    Raises:
        DataError: the shapes differ, or the images are smaller than the window.
    """
    _check(image, target)
    if min(image.shape[:2]) < WINDOW:
        raise DataError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, got {image.shape[:2]}")
    a, b = (side.astype(np.float64) for side in (image, target))
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a = _blurred(a * a) - mean_a * mean_a
    variance_b = _blurred(b * b) - mean_b * mean_b
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (K1 * largest) ** 2, (K2 * largest) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    border = WINDOW // 2
    return float((numerator / denominator)[border:-border, border:-border].mean())


def _blurred(values: Array) -> Array:
    blurred: Array = cv2.GaussianBlur(values, (WINDOW, WINDOW), SIGMA, borderType=cv2.BORDER_REFLECT)
    return blurred


def _check(image: Array, target: Array) -> None:
    if image.shape != target.shape:
        raise DataError(f"expected two images of the same shape, got {image.shape} and {target.shape}")
