"""Surfaces on which prints lie: the backgrounds of scenes, all of them made but for parts of the image that ships.

Each maker gives a grey mask ``(side, side)`` uint8 or an image ``(side, side, 3)`` uint8 BGR. ``leaves`` follows the
dead leaves model (facts: shapes of power-law sizes that hide each other have the statistics of photographs; Lee,
Mumford and Huang, "Occlusion models for natural images", 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.markers.prints import Image, colour, text_block, tinted

OF_PHOTO, OF_TWO = 0.15, 0.35
"""The shares of backgrounds that are part of a photograph, and of those made of two surfaces."""


def background(rng: np.random.Generator, side: int, photos: Sequence[Image]) -> Image:
    """``(side, side, 3)``: a part of a photograph, a made surface, or two with an edge or a soft change between."""
    if photos and rng.random() < OF_PHOTO:
        return _photo_part(rng, side, photos[int(rng.integers(len(photos)))])
    image = _surface(rng, side)
    if rng.random() < OF_TWO:
        if rng.random() < 0.5:
            share = np.clip(_noise(rng, side, 4) * 3 - 1, 0, 1)
        else:
            share = np.zeros((side, side), np.float32)
            points = rng.integers(-side // 4, side + side // 4, size=(int(rng.integers(3, 7)), 1, 2))
            cv2.fillPoly(share, [points.astype(np.int32)], 1.0, cv2.LINE_AA)
        other = _surface(rng, side)
        image = np.asarray(image * (1 - share[..., None]) + other * share[..., None], np.uint8)
    return _muted(image, rng.uniform(0.15, 1.0))


def _muted(image: Image, keep: float) -> Image:
    """The image with ``keep`` of its colour: few things are as colourful as random numbers."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None].astype(np.float32)
    return np.asarray(grey + (image - grey) * keep, np.uint8)


def _surface(rng: np.random.Generator, side: int) -> Image:
    made = SURFACES[int(rng.integers(len(SURFACES)))](rng, side)
    return made if made.ndim == 3 else tinted(made, colour(rng, 0, 255), colour(rng, 0, 255))


def _noise(rng: np.random.Generator, side: int, octaves: int) -> NDArray[np.float32]:
    """Smooth noise ``(side, side)`` between 0 and 1, of ever finer cells."""
    noise = np.zeros((side, side), np.float32)
    for octave in range(1, octaves + 1):
        cells = rng.random((2**octave, 2**octave), np.float32)
        noise += cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC) / octave
    return np.asarray((noise - noise.min()) / np.ptp(noise), np.float32)


def clouds(rng: np.random.Generator, side: int) -> Image:
    """Smooth noise, of a few colours now and then: walls, skies, cloth."""
    if rng.random() < 0.5:
        return np.asarray(_noise(rng, side, int(rng.integers(2, 8))) * 255, np.uint8)
    channels = [_noise(rng, side, int(rng.integers(2, 7))) * rng.uniform(60, 255) for _ in range(3)]
    return np.asarray(np.dstack(channels), np.uint8)


def gradient(rng: np.random.Generator, side: int) -> Image:
    """From one grey to another."""
    y, x = np.mgrid[:side, :side] / side
    turn = rng.uniform(0, 2 * np.pi)
    slope = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
    return np.asarray(np.clip(127 + 180 * slope, 0, 255), np.uint8)


def shapes(rng: np.random.Generator, side: int) -> Image:
    """A few large polygons."""
    mask = np.full((side, side), 128, np.uint8)
    for _ in range(int(rng.integers(5, 40))):
        points = rng.integers(0, side, size=2) + rng.integers(-90, 90, size=(int(rng.integers(3, 7)), 1, 2))
        cv2.fillPoly(mask, [points.astype(np.int32)], int(rng.integers(256)), cv2.LINE_AA)
    return mask


def leaves(rng: np.random.Generator, side: int) -> Image:
    """Shapes of all sizes and colours that hide each other: dead leaves."""
    palette = rng.integers(0, 256, size=(int(rng.integers(2, 12)), 3))
    image = np.full((side, side, 3), palette[0], np.uint8)
    count, least = int(rng.integers(80, 500)), rng.uniform(2, 8)
    sizes = np.minimum(least / (1 - rng.random(count)) ** 0.7, side / 2)
    kind = rng.choice(["ellipse", "box", "polygon", "all"])
    for size in -np.sort(-sizes) if rng.random() < 0.5 else sizes:
        at = rng.integers(0, side, size=2)
        fill = [int(v) for v in np.clip(palette[int(rng.integers(len(palette)))] + rng.normal(0, 22), 0, 255)]
        sort = kind if kind != "all" else rng.choice(["ellipse", "box", "polygon"])
        axes = np.maximum(size * rng.uniform(0.3, 1.0, size=2), 1)
        turn = float(rng.uniform(0, 180))
        if sort == "ellipse":
            cv2.ellipse(image, (int(at[0]), int(at[1])), axes.astype(int).tolist(), turn, 0, 360, fill, -1, cv2.LINE_AA)
            continue
        if sort == "box":
            points = cv2.boxPoints(((float(at[0]), float(at[1])), (float(axes[0]), float(axes[1])), turn % 30))
        else:
            points = at + rng.uniform(-size, size, size=(int(rng.integers(3, 7)), 2))
        cv2.fillPoly(image, [np.round(points).astype(np.int32)], fill, cv2.LINE_AA)
    return image


def foliage(rng: np.random.Generator, side: int) -> Image:
    """Many small blades that all lean one way, or every way: grass, leaves, fur, hair."""
    mask = np.asarray(_noise(rng, side, 4) * 120, np.uint8)
    lean, spread = rng.uniform(0, np.pi), rng.choice([0.25, 0.8, 3.0])
    length, width = rng.uniform(5, 40), int(rng.integers(1, 5))
    starts = rng.integers(0, side, size=(int(rng.integers(400, 1500)), 2))
    angles = rng.normal(lean, spread, size=len(starts))
    ends = starts + np.column_stack((np.cos(angles), np.sin(angles))) * length * rng.uniform(0.4, 1, (len(starts), 1))
    greys = rng.integers(0, 256, len(starts))
    for start, end, grey in zip(starts.tolist(), ends.astype(int).tolist(), greys.tolist(), strict=True):
        cv2.line(mask, start, end, grey, width, cv2.LINE_AA)
    return mask


def page(rng: np.random.Generator, side: int) -> Image:
    """A page of text."""
    return np.asarray(cv2.resize(text_block(rng), (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def waves(rng: np.random.Generator, side: int) -> Image:
    """Grain as wood has, or a chequered floor."""
    period = rng.uniform(8, 90)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    if rng.random() < 0.5:
        wave = np.sin(x / period + 2 * np.sin(y / period / 7))
    else:
        wave = np.sign(np.sin(x / period * np.pi) * np.sin(y / period * np.pi))
    return np.asarray((wave + 1) * 127, np.uint8)


def bricks(rng: np.random.Generator, side: int) -> Image:
    """Bricks, tiles or planks, each of its own grey, with joints between."""
    height, width = int(rng.integers(8, 70)), int(rng.integers(10, 140))
    joint, shift = int(rng.integers(1, 7)), float(rng.choice([0, 0.5]))
    spread, base = rng.uniform(3, 70), rng.uniform(60, 200)
    mask = np.full((side, side), int(rng.integers(256)), np.uint8)
    for row, y in enumerate(range(-height // 2, side, height)):
        for x in range(-width - int(shift * (row % 2) * width), side, width):
            grey = float(np.clip(rng.normal(base, spread), 0, 255))
            cv2.rectangle(mask, (x + joint, y + joint), (x + width - 1, y + height - 1), grey, -1)
    return mask


def facade(rng: np.random.Generator, side: int) -> Image:
    """Rows of windows with frames and bars, lit or dark, in a wall."""
    image = np.full((side, side, 3), colour(rng, 40, 240), np.uint8)
    step_x, step_y = (int(v) for v in rng.integers(24, 130, size=2))
    part, dark = rng.uniform(0.4, 0.85, size=2), colour(rng, 0, 110)
    frame, bars = [int(v) for v in colour(rng, 90, 255)], rng.integers(0, 3, size=2)
    for y in range(int(rng.integers(-step_y, 0)), side, step_y):
        for x in range(int(rng.integers(-5, 1)), side, step_x):
            right, low = x + int(step_x * part[0]), y + int(step_y * part[1])
            glass = [int(v) for v in np.clip(dark + rng.normal(0, 30), 0, 255)]
            cv2.rectangle(image, (x, y), (right, low), glass, -1)
            cv2.rectangle(image, (x, y), (right, low), frame, max(1, step_x // 24))
            for i in range(1, int(bars[0]) + 1):
                at = x + (right - x) * i // (int(bars[0]) + 1)
                cv2.line(image, (at, y), (at, low), frame, 1 + step_x // 50)
            for i in range(1, int(bars[1]) + 1):
                at = y + (low - y) * i // (int(bars[1]) + 1)
                cv2.line(image, (x, at), (right, at), frame, 1 + step_x // 50)
    return image


def static(rng: np.random.Generator, side: int) -> Image:
    """Fine noise, more or less blurred: gravel, asphalt, plaster."""
    mask = rng.integers(0, 256, size=(side, side)).astype(np.uint8)
    blurred = cv2.GaussianBlur(mask, (0, 0), float(rng.choice([0.6, 1.2, 2.5, 5.0])))
    return np.asarray(cv2.normalize(blurred, np.empty(0), 0, 255, cv2.NORM_MINMAX), np.uint8)


SURFACES: tuple[Callable[[np.random.Generator, int], Image], ...] = (
    clouds,
    clouds,
    gradient,
    shapes,
    leaves,
    leaves,
    leaves,
    foliage,
    foliage,
    page,
    waves,
    bricks,
    facade,
    static,
)


def _photo_part(rng: np.random.Generator, side: int, photo: Image) -> Image:
    """A random part, mirrored or not, and turned now and then."""
    h, w = photo.shape[:2]
    edge = int(rng.uniform(0.25, 1.0) * min(h, w))
    y, x = int(rng.integers(0, h - edge + 1)), int(rng.integers(0, w - edge + 1))
    part = cv2.resize(photo[y : y + edge, x : x + edge], (side, side), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        part = part[:, ::-1]
    if rng.random() < 0.2:
        part = np.rot90(part, int(rng.integers(1, 4)))
    return np.array(part, np.uint8)


__all__ = ["background"]
