"""Flat prints: codes and markers with their corners, and what else is printed or lies around with corners.

Every print is an image ``(H, W, 3)`` uint8 BGR. Coordinates are pixel edges: 0 is the left edge, W the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

QR_CODE, ARUCO_MARKER = 0, 1
CLASSES = ("qr code", "aruco marker")
CORNERS = ("top left", "top right", "bottom right", "bottom left")
DICTIONARIES = (
    cv2.aruco.DICT_4X4_250,
    cv2.aruco.DICT_5X5_250,
    cv2.aruco.DICT_6X6_250,
    cv2.aruco.DICT_7X7_250,
    cv2.aruco.DICT_ARUCO_ORIGINAL,
    cv2.aruco.DICT_APRILTAG_16h5,
    cv2.aruco.DICT_APRILTAG_25h9,
    cv2.aruco.DICT_APRILTAG_36h10,
    cv2.aruco.DICT_APRILTAG_36h11,
)
TEXT = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .:/-"
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX)
CELL = 8  # pixels per module


@dataclass(frozen=True)
class Print:
    """A flat print. ``corners`` (4, 2) of the code in it, clockwise; ``kind`` is its class, or -1: not a code."""

    image: Image
    corners: Points
    kind: int = -1


def words(rng: np.random.Generator, low: int, high: int) -> str:
    """Random characters, ``low`` to ``high`` of them."""
    return "".join(TEXT[i] for i in rng.integers(len(TEXT), size=rng.integers(low, high + 1)))


def colour(rng: np.random.Generator, low: int, high: int) -> Image:
    """A colour whose channels lie between ``low`` and ``high``; half of the time a grey."""
    channels = rng.integers(low, high + 1, size=3)
    return (np.full(3, channels[0]) if rng.random() < 0.5 else channels).astype(np.uint8)


def code(rng: np.random.Generator, kind: int) -> Print:
    """A QR code or a marker with a quiet zone around it, in a random style."""
    modules = qr_modules(rng) if kind == QR_CODE else aruco_modules(rng)
    n = len(modules)
    styled = _dots(modules, rng) if kind == QR_CODE and n > 24 and rng.random() < 0.15 else _squares(modules)
    quiet = rng.uniform(1.0, 4.0) if kind == QR_CODE else rng.uniform(0.6, 2.0)
    border = round(quiet * CELL)
    mask = bordered(styled, (border,) * 4, 255)
    dark, light = colour(rng, 0, 80), colour(rng, 165, 255)
    if rng.random() < 0.04:
        dark, light = light, dark
    image = tinted(mask, dark, light)
    if kind == QR_CODE and n > 28 and rng.random() < 0.15:
        _put_logo(image, rng)
    low, high = border, border + n * CELL
    corners = np.array([[low, low], [high, low], [high, high], [low, high]], np.float32)
    return Print(image, corners, kind)


def qr_modules(rng: np.random.Generator) -> Image:
    """The modules of a random QR code, versions 1 to 10, without a quiet zone: 0 or 255, a pixel each."""
    params = cv2.QRCodeEncoder.Params()
    params.version = 0  # the smallest that holds the text
    params.correction_level = int(rng.integers(4))
    length = int(rng.choice([8, 16, 30, 50, 90, 150], p=[0.2, 0.25, 0.25, 0.15, 0.1, 0.05]))
    encoded = cv2.QRCodeEncoder.create(params).encode(words(rng, max(length // 2, 1), length))
    return np.asarray(encoded[2:-2, 2:-2], np.uint8)


@cache
def _dictionary(number: int) -> cv2.aruco.Dictionary:
    return cv2.aruco.getPredefinedDictionary(number)


def aruco_modules(rng: np.random.Generator) -> Image:
    """The modules of a random ArUco or AprilTag marker with its black border: 0 or 255, a pixel each."""
    dictionary = _dictionary(int(rng.choice(DICTIONARIES)))
    which = int(rng.integers(len(dictionary.bytesList)))
    return np.asarray(cv2.aruco.generateImageMarker(dictionary, which, dictionary.markerSize + 2), np.uint8)


def tinted(mask: Image, dark: Image, light: Image) -> Image:
    """A grey mask ``(H, W)`` as an image whose black is ``dark`` and whose white is ``light``."""
    share = mask[..., None].astype(np.float32) / 255
    return (dark * (1 - share) + light * share).astype(np.uint8)


def bordered(image: Image, widths: tuple[int, ...], *value: int) -> Image:
    """The image with a border of one colour: ``widths`` at the top, the bottom, the left and the right."""
    top, bottom, left, right = widths
    return np.asarray(cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=value), np.uint8)


def _squares(modules: Image) -> Image:
    return np.kron(modules, np.ones((CELL, CELL), np.uint8))


def _dots(modules: Image, rng: np.random.Generator) -> Image:
    """Modules as dots, and finder patterns as they are."""
    n, radius = len(modules), int(rng.integers(3, 5))
    out = np.full((n * CELL, n * CELL), 255, np.uint8)
    for y, x in np.argwhere(modules == 0):
        cv2.circle(out, (int(x) * CELL + CELL // 2, int(y) * CELL + CELL // 2), radius, 0, -1)
    side = 7 * CELL
    for at in (np.s_[:side, :side], np.s_[:side, -side:], np.s_[-side:, :side]):
        out[at] = _squares(modules)[at]
    return out


def _put_logo(image: Image, rng: np.random.Generator) -> None:
    """A small badge in the middle, as many printed codes have."""
    h, w = image.shape[:2]
    r = int(0.09 * w)
    cv2.rectangle(image, (w // 2 - r, h // 2 - r), (w // 2 + r, h // 2 + r), (255, 255, 255), -1)
    cv2.circle(image, (w // 2, h // 2), int(r * 0.8), [int(v) for v in colour(rng, 20, 220)], -1)


def _plain(image: Image) -> Print:
    h, w = image.shape[:2]
    return Print(image, np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32))


def _ink(rng: np.random.Generator) -> tuple[Image, Image]:
    dark, light = colour(rng, 0, 110), colour(rng, 150, 255)
    return (light, dark) if rng.random() < 0.2 else (dark, light)


def text_block(rng: np.random.Generator) -> Image:
    """Lines of text: grey ``(H, W)``."""
    h, w = int(rng.integers(60, 240)), int(rng.integers(100, 320))
    mask = np.full((h, w), 255, np.uint8)
    scale = rng.uniform(0.3, 1.5)
    font, thickness = int(rng.choice(FONTS)), int(rng.integers(1, 3))
    for y in range(int(28 * scale), h, int(34 * scale)):
        cv2.putText(mask, words(rng, 4, 60), (6, y), font, scale, 0, thickness, cv2.LINE_AA)
    return mask


def barcode(rng: np.random.Generator) -> Image:
    """Bars of random widths, with or without digits below."""
    widths = rng.integers(1, 5, size=int(rng.integers(30, 70))) * 2
    bars = np.concatenate([np.full(w, 255 * (i % 2), np.uint8) for i, w in enumerate(widths)])
    mask = np.tile(bars, (int(rng.uniform(0.3, 1.0) * len(bars)), 1))
    mask = bordered(mask, (12, 30, 14, 14), 255)
    if rng.random() < 0.7:
        cv2.putText(
            mask, "7 351902 480613"[: len(bars) // 14], (14, mask.shape[0] - 8), FONTS[0], 0.6, 0, 1, cv2.LINE_AA
        )
    return mask


def chessboard(rng: np.random.Generator) -> Image:
    """Alternating squares."""
    rows, columns = rng.integers(2, 10, size=2)
    cells = (np.add.outer(np.arange(rows), np.arange(columns)) % 2 * 255).astype(np.uint8)
    side = int(rng.integers(14, 34))
    return np.kron(cells, np.ones((side, side), np.uint8))


def plain_square(rng: np.random.Generator) -> Image:
    """A filled square, a frame, or squares in squares, on white."""
    mask = np.full((200, 200), 255, np.uint8)
    for i, inset in enumerate(sorted(rng.integers(8, 90, size=int(rng.integers(1, 4))))):
        cv2.rectangle(mask, (int(inset), int(inset)), (199 - int(inset), 199 - int(inset)), 255 * (i % 2), -1)
    return mask


def windows(rng: np.random.Generator) -> Image:
    """Panes with frames between, each of its own grey: windows, keys, shelves, tables."""
    rows, columns = rng.integers(1, 8, size=2)
    cell, gap = int(rng.integers(20, 50)), int(rng.integers(2, 10))
    mask = np.full((rows * cell + gap, columns * cell + gap), int(rng.integers(180, 256)), np.uint8)
    spread = int(rng.integers(1, 140))
    for y in range(rows):
        for x in range(columns):
            top, left = y * cell + gap, x * cell + gap
            mask[top : top + cell - gap, left : left + cell - gap] = rng.integers(0, spread)
    return mask


def icon(rng: np.random.Generator) -> Image:
    """A bold sign on a filled square or disc: a letter or a simple shape."""
    mask = np.full((200, 200), 255, np.uint8)
    if rng.random() < 0.6:
        cv2.rectangle(mask, (12, 12), (188, 188), 0, -1)
    else:
        cv2.circle(mask, (100, 100), 90, 0, -1)
    sort = int(rng.integers(4))
    if sort == 0:
        cv2.putText(mask, words(rng, 1, 2), (50, 150), FONTS[1], 4, 255, 12, cv2.LINE_AA)
    elif sort == 1:
        cv2.circle(mask, (100, 100), int(rng.integers(20, 60)), 255, int(rng.choice([-1, 14])))
    elif sort == 2:
        cv2.fillPoly(mask, [rng.integers(40, 160, size=(int(rng.integers(3, 6)), 1, 2)).astype(np.int32)], 255)
    else:
        for _ in range(int(rng.integers(1, 4))):
            a, b = rng.integers(35, 165, size=(2, 2))
            cv2.line(mask, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 255, int(rng.integers(8, 26)))
    return mask


def stripes(rng: np.random.Generator) -> Image:
    """Even stripes, crossed or not: cloth, blinds, grilles."""
    period = int(rng.integers(6, 30))
    lines = (np.arange(240) % period < period * rng.uniform(0.2, 0.8)).astype(np.uint8) * 255
    mask = np.tile(lines, (int(rng.integers(60, 240)), 1))
    return np.minimum(mask, lines[: len(mask), None]) if rng.random() < 0.4 else mask


def mosaic(rng: np.random.Generator) -> Image:
    """Few large cells of random greys: a game, a swatch, a cushion; no code is so coarse."""
    cells = rng.integers(0, 256, size=rng.integers(2, 5, size=2)).astype(np.uint8)
    return np.asarray(cv2.resize(cells, (200, 200), interpolation=cv2.INTER_NEAREST), np.uint8)


def keyboard(rng: np.random.Generator) -> Image:
    """Rows of keys with a sign on each: a keyboard, a remote control, a calendar."""
    rows, columns = int(rng.integers(3, 7)), int(rng.integers(3, 14))
    cell, gap = int(rng.integers(22, 34)), int(rng.integers(1, 6))
    mask = np.full((rows * cell + gap, columns * cell + gap), int(rng.integers(256)), np.uint8)
    key, shift = int(rng.integers(256)), int(rng.integers(0, cell // 2))
    for y in range(rows):
        for x in range(columns):
            left, top = x * cell + gap + shift * (y % 2), y * cell + gap
            cv2.rectangle(mask, (left, top), (left + cell - gap, top + cell - gap), key, -1)
            at = (left + cell // 4, top + cell * 3 // 4)
            cv2.putText(mask, TEXT[int(rng.integers(26)) + 27], at, FONTS[0], 0.45, 255 - key, 1, cv2.LINE_AA)
    return mask


def sign(rng: np.random.Generator) -> Image:
    """A framed board with a line or two of large letters: shops, roads, number plates, labels."""
    h, w = int(rng.integers(60, 200)), int(rng.integers(100, 300))
    mask = np.full((h, w), 255, np.uint8)
    cv2.rectangle(mask, (5, 5), (w - 6, h - 6), 0, int(rng.integers(1, 9)))
    scale, lines = rng.uniform(0.8, 2.6), int(rng.integers(1, 3))
    for i in range(lines):
        at = (14, int(h * (i + 0.75) / lines))
        cv2.putText(mask, words(rng, 2, 9).upper(), at, int(rng.choice(FONTS)), scale, 0, int(rng.integers(2, 7)))
    return mask


def scribble(rng: np.random.Generator) -> Image:
    """Strokes across each other: writing, wires, branches."""
    mask = np.full((200, 200), 255, np.uint8)
    for _ in range(int(rng.integers(1, 7))):
        steps = rng.normal(0, rng.uniform(10, 45), size=(int(rng.integers(4, 30)), 2)).cumsum(0) + 100
        cv2.polylines(mask, [steps.astype(np.int32)], False, 0, int(rng.integers(2, 9)), cv2.LINE_AA)
    return mask


def dots(rng: np.random.Generator) -> Image:
    """An even grid of dots: a calibration board, a loudspeaker, cloth."""
    period, mask = int(rng.integers(10, 34)), np.full((200, 200), 255, np.uint8)
    radius, shift = int(rng.uniform(0.2, 0.45) * period), int(rng.choice([0, period // 2]))
    for row, y in enumerate(range(period // 2, 200, period)):
        for x in range(period // 2 + shift * (row % 2), 200, period):
            cv2.circle(mask, (x, y), radius, 0, -1, cv2.LINE_AA)
    return mask


DISTRACTORS: tuple[Callable[[np.random.Generator], Image], ...] = (
    text_block,
    text_block,
    barcode,
    chessboard,
    plain_square,
    windows,
    icon,
    icon,
    stripes,
    mosaic,
    keyboard,
    sign,
    scribble,
    dots,
)


def distractor(rng: np.random.Generator) -> Print:
    """Something printed that is not a code."""
    make = DISTRACTORS[int(rng.integers(len(DISTRACTORS)))]
    image = tinted(make(rng), *_ink(rng))
    if rng.random() < 0.6:
        border = int(rng.integers(4, 40))
        image = bordered(image, (border,) * 4, *(int(v) for v in colour(rng, 120, 255)))
    return _plain(image)
