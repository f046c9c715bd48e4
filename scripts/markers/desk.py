"""Draw the image that ships with the model: codes, markers and other prints on a desk, seen from a chair.

python -m scripts.markers.desk --out deploykit/assets/markers.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from scripts.markers.prints import CELL, FONTS, Image, barcode, bordered, chessboard, tinted

SIZE = (1700, 1350)  # of the desk, in pixels from above
VIEW = (1200, 800)
SEED = 7
INK, PAPER = np.array([38, 30, 28], np.uint8), np.array([238, 243, 246], np.uint8)


def wood(rng: np.random.Generator) -> Image:
    """A desk of planks."""
    width, height = SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    out = np.zeros((height, width, 3), np.float32)
    plank = height // 5 + 1
    for i in range(5):
        rows = slice(i * plank, min((i + 1) * plank, height))
        phase, bend = rng.uniform(0, 900), rng.uniform(0.6, 1.4)
        rings = np.sin((y[rows] + 14 * np.sin((x[rows] + phase) / (210 * bend)) + phase) / 7.5)
        fine = cv2.resize(rng.random((rings.shape[0], width // 24), np.float32), (width, rings.shape[0]))
        tone = 0.86 + 0.05 * rings + 0.12 * (fine - 0.5) + rng.uniform(-0.07, 0.07)
        out[rows] = tone[..., None] * np.array([98, 138, 178], np.float32)
        out[rows][:3] *= 0.62
    return np.clip(out, 0, 255).astype(np.uint8)


def qr(text: str) -> Image:
    """A QR code with its quiet zone, dark on paper."""
    modules = np.asarray(cv2.QRCodeEncoder.create().encode(text)[2:-2, 2:-2], np.uint8)
    return bordered(np.kron(modules, np.ones((CELL, CELL), np.uint8)), (2 * CELL,) * 4, 255)


def marker(dictionary: int, number: int) -> Image:
    """An ArUco or AprilTag marker on a card."""
    known = cv2.aruco.getPredefinedDictionary(dictionary)
    modules = np.asarray(cv2.aruco.generateImageMarker(known, number, known.markerSize + 2), np.uint8)
    return bordered(np.kron(modules, np.ones((24, 24), np.uint8)), (24,) * 4, 255)


def fitted(mask: Image, side: int) -> Image:
    """The print as wide as ``side``."""
    shape = (side, round(side * mask.shape[0] / mask.shape[1]))
    return np.asarray(cv2.resize(mask, shape, interpolation=cv2.INTER_AREA), np.uint8)


def lines(mask: Image, left: int, top: int, count: int, width: int, rng: np.random.Generator) -> None:
    """Grey bars where a printed page would have words."""
    for i in range(count):
        x = left
        while x < left + width * (1.0 if i < count - 1 else 0.55):
            length = int(rng.integers(12, 52))
            cv2.line(mask, (x, top + 19 * i), (min(x + length, left + width), top + 19 * i), 95, 5)
            x += length + 11


def letter(rng: np.random.Generator) -> Image:
    """A page with a heading, text and a QR code."""
    mask = np.full((640, 470), 255, np.uint8)
    cv2.putText(mask, "Invoice 2041", (42, 84), FONTS[1], 1.3, 40, 2, cv2.LINE_AA)
    lines(mask, 42, 132, 8, 380, rng)
    lines(mask, 42, 318, 4, 190, rng)
    code = fitted(qr("https://example.org/invoice/2041?pay=118.40"), 175)
    mask[310 : 310 + len(code), 255 : 255 + len(code)] = code
    lines(mask, 42, 520, 5, 380, rng)
    return mask


def parcel() -> Image:
    """A parcel's label with a barcode and a QR code."""
    mask = np.full((330, 480), 255, np.uint8)
    cv2.rectangle(mask, (6, 6), (473, 323), 30, 3)
    cv2.putText(mask, "EXPRESS", (28, 66), FONTS[1], 1.5, 20, 4, cv2.LINE_AA)
    cv2.putText(mask, "4 kg  NL-1083", (28, 112), FONTS[0], 0.9, 40, 2, cv2.LINE_AA)
    bars = fitted(barcode(np.random.default_rng(3)), 260)[:150]
    mask[150 : 150 + len(bars), 20:280] = bars
    code = fitted(qr("PARCEL NL1083 00451 9921"), 165)
    mask[130 : 130 + len(code), 295 : 295 + len(code)] = code
    return mask


def lay(desk: Image, sheet: Image, centre: tuple[int, int], degrees: float, scale: float = 1.0) -> None:
    """Lay a sheet on the desk, with the shadow of its edge."""
    h, w = sheet.shape[:2]
    turn = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, scale)
    turn[:, 2] += np.array(centre) - ((w - 1) / 2, (h - 1) / 2)
    shape = (desk.shape[1], desk.shape[0])
    pixels = cv2.warpAffine(sheet, turn, shape, flags=cv2.INTER_AREA)
    alpha = cv2.warpAffine(np.full((h, w), 255, np.uint8), turn, shape, flags=cv2.INTER_LINEAR)
    share = alpha[..., None].astype(np.float32) / 255
    moved = np.roll(alpha, (9, 7), (0, 1)).astype(np.float32)
    shadow = cv2.GaussianBlur(moved, (0, 0), 8)[..., None] / 255
    desk[:] = desk * (1 - 0.5 * shadow * (1 - share)) * (1 - share) + pixels * share


def cup(desk: Image, centre: tuple[int, int], radius: int) -> None:
    """A cup of coffee from above."""
    shadow = np.zeros(desk.shape[:2], np.float32)
    cv2.circle(shadow, (centre[0] + 26, centre[1] + 30), radius, 1.0, -1)
    desk[:] = desk * (1 - 0.45 * cv2.GaussianBlur(shadow, (0, 0), 14)[..., None])
    handle = (centre[0] + radius, centre[1] - radius // 2)
    cv2.ellipse(desk, handle, (52, 36), -25, 0, 360, (150, 92, 40), 20, cv2.LINE_AA)
    cv2.circle(desk, centre, radius, (168, 104, 48), -1, cv2.LINE_AA)
    cv2.circle(desk, centre, radius - 14, (120, 70, 30), -1, cv2.LINE_AA)
    cv2.circle(desk, centre, radius - 19, (28, 44, 74), -1, cv2.LINE_AA)
    cv2.ellipse(desk, (centre[0] - 14, centre[1] - 18), (40, 26), 30, 0, 360, (44, 66, 104), -1, cv2.LINE_AA)


def pen(desk: Image, start: tuple[int, int], stop: tuple[int, int]) -> None:
    """A pen, with its shadow."""
    shadow = np.zeros(desk.shape[:2], np.float32)
    cv2.line(shadow, (start[0] + 8, start[1] + 12), (stop[0] + 8, stop[1] + 12), 1.0, 18)
    desk[:] = desk * (1 - 0.4 * cv2.GaussianBlur(shadow, (0, 0), 6)[..., None])
    cv2.line(desk, start, stop, (52, 40, 150), 18, cv2.LINE_AA)
    cv2.line(desk, start, stop, (92, 84, 205), 5, cv2.LINE_AA)


def desk(seed: int = SEED) -> Image:
    """The whole desk from above."""
    rng = np.random.default_rng(seed)
    top = wood(rng)
    lay(top, tinted(letter(rng), INK, PAPER), (400, 860), 11, 1.0)
    lay(top, tinted(chessboard(np.random.default_rng(12)), INK, PAPER), (820, 300), -18, 1.0)
    box = np.full((470, 620, 3), (104, 152, 196), np.uint8)
    box[205:265] = (128, 178, 214)
    lay(top, box, (1330, 860), -9)
    lay(top, tinted(parcel(), INK, PAPER), (1345, 850), -9)
    cards = (
        (cv2.aruco.DICT_4X4_50, 7, (140, 330), 6), (cv2.aruco.DICT_5X5_100, 42, (360, 290), -12),
        (cv2.aruco.DICT_APRILTAG_36h11, 3, (1180, 380), 20), (cv2.aruco.DICT_6X6_250, 99, (880, 1020), -28),
    )  # fmt: skip
    for dictionary, number, centre, degrees in cards:
        card = tinted(marker(dictionary, number), INK, PAPER)
        lay(top, card, centre, degrees, 190 / len(card))
    sticker = tinted(qr("WIFI:S:guest;T:WPA;P:coffee;;"), np.array([110, 40, 20], np.uint8), PAPER)
    lay(top, sticker, (820, 680), 33, 210 / len(sticker))
    far = tinted(qr("https://example.org/menu"), INK, np.array([170, 225, 245], np.uint8))
    lay(top, far, (1500, 330), -6, 190 / len(far))
    cup(top, (1010, 640), 92)
    pen(top, (610, 1180), (1010, 1240))
    return top


def seen(top: Image, seed: int = SEED) -> Image:
    """The desk in perspective, under a lamp, as a camera has it."""
    width, height = VIEW
    w, h = SIZE
    view = np.array([[190, -30], [width - 190, -30], [width + 190, height + 40], [-190, height + 40]], np.float32)
    into = cv2.getPerspectiveTransform(np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32), view)
    sharp = cv2.GaussianBlur(top, (0, 0), 0.6)
    image = cv2.warpPerspective(sharp, into, VIEW, flags=cv2.INTER_LINEAR, borderValue=(60, 66, 72)).astype(np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    lamp = np.exp(-(((x - 430) / 900) ** 2 + ((y - 330) / 640) ** 2))
    image = image * (0.52 + 0.62 * lamp)[..., None] * np.array([0.93, 1.0, 1.05], np.float32)
    image += np.random.default_rng(seed).standard_normal(image.shape) * 3
    return np.asarray(np.clip(image, 0, 255), np.uint8)


def main() -> None:
    """Draw it into the file that the command line names."""
    parser = argparse.ArgumentParser(description="Draw the image that ships with the model.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    cv2.imwrite(str(args.out), seen(desk()), [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
