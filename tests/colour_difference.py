"""How different two colours look: CIEDE2000, and the colours that people with a colour vision deficiency see.

The formula is that of Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula" (2005); the deficiencies are those
of Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009), at
full severity, applied to linear RGB.
"""

from __future__ import annotations

import numpy as np

from deploykit.runtime.arrays import Array

VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""Kind of vision -> matrix for linear RGB."""

TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = TO_XYZ.sum(axis=1)  # D65


def linear(rgb: Array) -> Array:
    """sRGB ``(..., 3)``, 0 to 255, as linear RGB, 0 to 1."""
    value = np.asarray(rgb, np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array, vision: str = "normal") -> Array:
    """sRGB ``(..., 3)``, 0 to 255, as CIELAB under D65, as a kind of vision sees it."""
    seen = np.clip(linear(rgb) @ VISION[vision].T, 0, 1)
    t = seen @ TO_XYZ.T / WHITE
    x, y, z = np.moveaxis(np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def contrast(one: Array, other: Array) -> float:
    """The contrast ratio of two sRGB colours by WCAG, 1 to 21."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted((float(linear(one) @ weights), float(linear(other) @ weights)))
    return (high + 0.05) / (low + 0.05)


def ciede2000(one: Array, other: Array) -> Array:
    """The difference of CIELAB colours ``(..., 3)`` that are broadcast against each other."""
    l1, a1, b1 = np.moveaxis(np.asarray(one, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(other, np.float64), -1, 0)
    mean7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(mean7 / (mean7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = c1 * c2 == 0
    turn = np.where(grey, 0.0, (h2 - h1 + 180) % 360 - 180)
    turn = np.where((turn == -180) & (h2 > h1), 180.0, turn)
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    ml, mc = (l1 + l2) / 2, (c1 + c2) / 2
    total = h1 + h2
    mh = np.where(np.abs(h1 - h2) <= 180, total / 2, np.where(total < 360, total / 2 + 180, total / 2 - 180))
    mh = np.where(grey, total, mh)
    t = 1 - 0.17 * _cos(mh - 30) + 0.24 * _cos(2 * mh) + 0.32 * _cos(3 * mh + 6) - 0.20 * _cos(4 * mh - 63)
    sl = 1 + 0.015 * (ml - 50) ** 2 / np.sqrt(20 + (ml - 50) ** 2)
    sc, sh = 1 + 0.045 * mc, 1 + 0.015 * mc * t
    bend = np.radians(60 * np.exp(-(((mh - 275) / 25) ** 2)))
    rt = -np.sin(bend) * 2 * np.sqrt(mc**7 / (mc**7 + 25.0**7))
    light, c, h = dl / sl, dc / sc, dh / sh
    return np.asarray(np.sqrt(light**2 + c**2 + h**2 + rt * c * h))


def _cos(degrees: Array) -> Array:
    return np.asarray(np.cos(np.radians(degrees)))
