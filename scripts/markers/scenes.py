"""Scenes: prints lie in perspective on a background, under a light, before a camera.

The same seed and OpenCV version give the same scene. Coordinates are pixel edges, as in ``prints``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.markers.prints import (
    ARUCO_MARKER,
    QR_CODE,
    Image,
    Points,
    Print,
    code,
    colour,
    distractor,
)
from scripts.markers.surfaces import background

HIDDEN_LIMIT = 0.4  # a code of which more is hidden is not annotated


@dataclass(frozen=True)
class Scene:
    """An image ``(H, W, 3)`` uint8 BGR, and of its N codes the classes ``(N,)`` and corners ``(N, 4, 3)``.

    A corner is ``x, y, v`` in COCO's sense: v is 2 where it is seen, 1 where something hides it, 0 outside the image.
    The four are named by where they lie: top left, top right, bottom right, bottom left.
    """

    image: Image
    labels: NDArray[np.int64]
    corners: Points


@dataclass(frozen=True)
class Settings:
    """What scenes are like: their side, the sides of codes in it, and the worst of the camera."""

    side: int = 448
    smallest: float = 14.0
    largest: float = 330.0
    max_codes: int = 7
    empty: float = 0.22
    max_blur: float = 1.6
    max_noise: float = 14.0


def in_image_order(corners: Points) -> Points:
    """Four corners, clockwise from any of them, from the top left one on: the order nearest to their box's corners."""
    low, high = corners.min(0), corners.max(0)
    box = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    orders = [np.roll(corners, -i, axis=0) for i in range(4)]
    return min(orders, key=lambda order: float(((order - box) ** 2).sum()))


def render(rng: np.random.Generator, photos: Sequence[Image] = (), settings: Settings = Settings()) -> Scene:
    """One scene, with parts of ``photos`` as some of the backgrounds."""
    side = settings.side
    image = background(rng, side, photos)
    hidden = np.zeros((side, side), np.uint8)  # what lies on top of which code: 0 is nothing
    for _ in range(int(rng.integers(0, 8))):
        _place(image, distractor(rng), _quad(rng, side, rng.uniform(20, 220)), hidden, 0, rng)
    placed: list[tuple[int, Points]] = []
    count = 0 if rng.random() < settings.empty else int(rng.integers(1, settings.max_codes + 1))
    for _ in range(count):
        size = float(np.exp(rng.uniform(np.log(settings.smallest), np.log(settings.largest))))
        kind = int(rng.integers(2))
        for _attempt in range(6):
            quad = _quad(rng, side, size)
            if all(_apart(quad, other) for _, other in placed):
                corners = _place(image, code(rng, kind), quad, hidden, len(placed) + 1, rng)
                placed.append((kind, corners))
                break
    _cover(image, hidden, rng)
    image = camera(lit(image, rng), rng, settings)
    return annotated(image, placed, hidden)


def pasted(rng: np.random.Generator, photo: Image, quality: int = 30) -> Scene:
    """A whole photograph with one to four codes of 20 to 200 px in it, saved as a poor JPEG: no scene of training."""
    image = photo.copy()
    hidden = np.zeros(image.shape[:2], np.uint8)
    room = np.array(image.shape[1::-1])
    placed: list[tuple[int, Points]] = []
    for _ in range(int(rng.integers(1, 5))):
        quad = _quad(rng, room, float(np.exp(rng.uniform(np.log(20), np.log(200)))))
        if all(_apart(quad, other) for _, other in placed):
            kind = int(rng.integers(2))
            placed.append((kind, _place(image, code(rng, kind), quad, hidden, len(placed) + 1, rng)))
    return annotated(as_jpeg(image, quality), placed, hidden)


def as_jpeg(image: Image, quality: int) -> Image:
    """The image as a JPEG file of this quality has it."""
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


def annotated(image: Image, placed: Sequence[tuple[int, Points]], hidden: Image) -> Scene:
    """Name the corners, and leave out codes that are mostly hidden or outside."""
    h, w = image.shape[:2]
    labels, found = [], []
    for number, (kind, corners) in enumerate(placed, 1):
        area = cv2.contourArea(corners)
        if area <= 0 or (hidden == number).sum() < (1 - HIDDEN_LIMIT) * area:
            continue
        points = in_image_order(corners)
        inside = (points >= 0).all(1) & (points < (w, h)).all(1)
        at = np.clip(points, 0, (w - 1, h - 1)).astype(int)
        seen = _near(hidden, at, number)
        labels.append(kind)
        found.append(np.column_stack((points, np.where(inside, np.where(seen, 2, 1), 0))))
    return Scene(image, np.array(labels, np.int64), np.array(found, np.float32).reshape(-1, 4, 3))


def _near(hidden: Image, at: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
    """Whether code ``number`` is what lies within a pixel of each point."""
    return np.array([bool((hidden[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] == number).any()) for x, y in at])


def _quad(rng: np.random.Generator, side: int | NDArray[np.int64], size: float) -> Points:
    """Where a square of ``size`` pixels comes to lie: turned, tilted and seen in perspective; four corners."""
    angle = np.deg2rad(rng.normal(0, 13) if rng.random() < 0.75 else rng.uniform(0, 360))
    tilt, turn = np.deg2rad(np.clip(rng.normal(0, 24, size=2), -62, 62))
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float) * size / 2
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_y = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turned = square @ (about_y @ about_x @ about_z).T
    distance = size * rng.uniform(2.2, 8.0)
    flat = turned[:, :2] * (distance / (distance + turned[:, 2:]))
    reach = np.abs(flat).max(0)
    overhang = 0.25 if rng.random() < 0.1 else 0.0
    low, high = reach * (1 - overhang), side - reach * (1 - overhang)
    centre = np.where(low < high, rng.uniform(np.minimum(low, high), np.maximum(low, high)), side / 2)
    return np.asarray(flat + centre, np.float32)


def _apart(a: Points, b: Points) -> bool:
    grown = [(p - p.mean(0)) * 1.35 + p.mean(0) for p in (a, b)]
    return bool((np.maximum(*[p.min(0) for p in grown]) > np.minimum(*[p.max(0) for p in grown])).any())


def _place(image: Image, flat: Print, quad: Points, hidden: Image, number: int, rng: np.random.Generator) -> Points:
    """Lay a print into the image so that its code covers ``quad``; return the code's corners."""
    h, w = flat.image.shape[:2]
    to_image = cv2.getPerspectiveTransform(flat.corners, quad)
    sides = np.linalg.norm(np.roll(quad, -1, 0) - quad, axis=1)
    of_code = np.linalg.norm(np.roll(flat.corners, -1, 0) - flat.corners, axis=1)
    shrink = min(1.0, 1.25 * float(sides.max() / of_code.max()))
    pixels = cv2.resize(flat.image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    ph, pw = pixels.shape[:2]
    # the matrix is of pixel edges, and warpPerspective's of pixel centres
    edges = to_image @ np.diag([w / pw, h / ph, 1.0])
    centres = (
        np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]]) @ edges @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    )
    outline = cv2.perspectiveTransform(np.array([[[0, 0], [w, 0], [w, h], [0, h]]], np.float32), to_image)[0]
    room = image.shape[1::-1]
    x0, y0 = np.clip(np.floor(outline.min(0)).astype(int) - 2, 0, room)
    x1, y1 = np.clip(np.ceil(outline.max(0)).astype(int) + 2, 0, room)
    if x1 <= x0 or y1 <= y0:
        return quad
    move = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]], float)
    size = (int(x1 - x0), int(y1 - y0))
    warped = cv2.warpPerspective(pixels, move @ centres, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillConvexPoly(alpha, np.round((outline - (x0, y0) - 0.5) * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    patch = image[y0:y1, x0:x1]
    share = alpha[..., None].astype(np.float32) * (rng.uniform(0.9, 1.0) / 255)
    patch[:] = patch * (1 - share) + warped * share
    covered = alpha > 127
    region = hidden[y0:y1, x0:x1]
    region[covered] = 0
    if number:
        inner = np.zeros_like(alpha)
        cv2.fillConvexPoly(inner, np.round((quad - (x0, y0) - 0.5) * 16).astype(np.int32), 255, cv2.LINE_8, 4)
        region[inner > 0] = number
    return quad


def _cover(image: Image, hidden: Image, rng: np.random.Generator) -> None:
    """Something thin or round in front, sometimes: a cable, a finger, a leaf."""
    side = len(image)
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.3 else 0):
        mask = np.zeros((side, side), np.uint8)
        a, b = (tuple(int(v) for v in p) for p in rng.integers(0, side, size=(2, 2)))
        if rng.random() < 0.6:
            cv2.line(mask, a, b, 255, int(rng.integers(2, 14)), cv2.LINE_AA)
        else:
            axes = tuple(int(v) for v in rng.integers(6, 40, size=2))
            cv2.ellipse(mask, a, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        share = mask[..., None].astype(np.float32) / 255
        image[:] = image * (1 - share) + colour(rng, 0, 255) * share
        hidden[mask > 127] = 0


def lit(image: Image, rng: np.random.Generator) -> Image:
    """The scene under a light: uneven, tinted, with shadows and a reflection now and then."""
    side = len(image)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.9)
    light = rng.uniform(0.45, 1.15) * (1 + slope * (x * np.cos(turn) + y * np.sin(turn)))
    if rng.random() < 0.25:
        shadow = np.zeros((side, side), np.float32)
        cv2.fillPoly(shadow, [rng.integers(0, side, size=(int(rng.integers(3, 6)), 1, 2)).astype(np.int32)], 1.0)
        light = light * (1 - rng.uniform(0.2, 0.6) * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.5, 12)))
    tint = rng.uniform(0.85, 1.15, size=3).astype(np.float32)
    out = image.astype(np.float32) * light[..., None] * tint + rng.uniform(-10, 25)
    if rng.random() < 0.1:
        cx, cy, spread = *rng.uniform(-0.5, 0.5, size=2), rng.uniform(0.03, 0.12)
        out += (rng.uniform(60, 200) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2)))[..., None]
    return np.asarray(np.clip(out, 0, 255), np.uint8)


def camera(image: Image, rng: np.random.Generator, settings: Settings) -> Image:
    """Out of focus or moved, noisy, and saved as JPEG."""
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, settings.max_blur)), np.uint8)
    if rng.random() < 0.12:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        ends = (
            ((0, length // 2), (length - 1, length // 2)) if rng.random() < 0.5 else ((0, 0), (length - 1, length - 1))
        )
        cv2.line(kernel, *ends, 1.0)
        image = np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)
    if rng.random() < 0.7:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, settings.max_noise))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        image = np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)[..., None], 3, 2)
    if rng.random() < 0.7:
        image = as_jpeg(image, int(rng.integers(25, 96)))
    return image


__all__ = ["ARUCO_MARKER", "QR_CODE", "Scene", "Settings", "annotated", "as_jpeg", "in_image_order", "pasted", "render"]
