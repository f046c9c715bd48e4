"""Text as pixels, in any script that a font of this machine has.

OpenCV 5 brings a font with Latin, Greek, Cyrillic, Chinese, Japanese and Korean letters. The font of OpenCV 4 has ASCII
only; what it lacks is then drawn by Pillow with a font of the system. So is what OpenCV cannot set: scripts that run
from right to left, or whose letters join or carry marks. Text that no font has is never shown as question marks or
empty boxes: a class is then shown by its number.
"""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deploykit.errors import MissingDependencyError, NotFoundError, UsageError, import_extra
from deploykit.runtime.arrays import Array

__all__ = ["FONT_VARIABLE", "Typeface", "class_text", "plain_text", "rendered", "typeface_for"]

FONT_VARIABLE = "DEPLOYKIT_FONT"
ABSENT = "\U0010fffe"  # a noncharacter, which no font has
UNSEEN = {"Zs", "Cf"}  # spaces, and marks that join or direct letters
WEIGHT = 500  # a little bolder than regular
WIDE = (1 << 20, 1 << 12)  # OpenCV wraps text at the edge of an image of this size
HERSHEY_EM = 30.0  # pixels of OpenCV 4's font at a scale of 1: its capitals are 22 high
SYSTEM_FONTS = (
    "notosanscjk", "sourcehansans", "notosanssc", "notosansjp", "notosanskr", "wqy-microhei", "wqy-zenhei",
    "droidsansfallback", "pingfang", "hiragino sans gb", "applesdgothicneo", "msyh", "yugothm", "malgun", "simsun",
    "arial unicode", "dejavusans", "notosans", "liberationsans", "freesans", "arial", "segoeui", "unifont",
)  # fmt: skip
"""Beginnings of the file names of fonts with many scripts, the best first, in small letters."""
MOST_FONTS = 40
log = logging.getLogger(__name__)
_told: set[str | None] = set()


class Typeface(ABC):
    """A font that draws text as coverage.

    Attributes:
        shapes: whether it joins letters, sets marks and runs from right to left where a script does.
    """

    shapes: bool = False

    @abstractmethod
    def has(self, char: str) -> bool:
        """Return whether the font has a glyph of its own for this character."""

    @abstractmethod
    def draw(self, text: str, size: int) -> Array:
        """Return ``uint8 (H, W)``, 0 to 255: one line of text, H the line's height, the same for every text.

        Args:
            text: without control characters.
            size: of the em square in pixels; capitals are about 0.7 of it high.
        """

    def has_all(self, text: str) -> bool:
        """Return whether the font has every character of the text, and can set them in its script."""
        if self.shapes < needs_shaping(text):
            return False
        return all(self.has(char) for char in set(text) if unicodedata.category(char) not in UNSEEN)


class HersheyTypeface(Typeface):
    """The line font of OpenCV 4: ASCII only."""

    def has(self, char: str) -> bool:
        """See :meth:`Typeface.has`."""
        return " " <= char <= "~"

    def draw(self, text: str, size: int) -> Array:
        """See :meth:`Typeface.draw`."""
        scale, stroke = size / HERSHEY_EM, max(1, round(size / 14))
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
        canvas = np.zeros((_line(size), width + stroke), np.uint8)
        place = (stroke // 2, _baseline(size))
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255,), stroke, cv2.LINE_AA)
        return canvas


class OpenCvTypeface(Typeface):
    """A font of OpenCV 5: a built-in one by its name, or a file; missing glyphs come from the built-in Unicode font.

    Raises:
        UsageError: the file is not a font that OpenCV reads.
    """

    def __init__(self, font: str) -> None:
        self._face: Any = _any(cv2).FontFace()  # OpenCV 5 only
        if not self._face.set(font):
            raise UsageError(f"OpenCV cannot read {font} as a font: choose a .ttf file")
        self._known: dict[str, bool] = {}

    def has(self, char: str) -> bool:
        """See :meth:`Typeface.has`; OpenCV draws a question mark for what it lacks."""
        if char not in self._known:
            same = char != "?" and np.array_equal(self.draw(char, 24), self.draw("?", 24))
            self._known[char] = not same
        return self._known[char]

    def draw(self, text: str, size: int) -> Array:
        """See :meth:`Typeface.draw`."""
        face: Any = self._face
        put, measure = _any(cv2.putText), _any(cv2.getTextSize)
        width = measure(WIDE, text, (0, 0), face, size, WEIGHT)[2]
        canvas = np.zeros((_line(size), max(1, width + 1)), np.uint8)
        put(canvas, text, (0, _baseline(size)), (255,), face, size, WEIGHT)
        return canvas


class PillowTypeface(Typeface):
    """A font file drawn by Pillow.

    Raises:
        UsageError: the file is not a font that Pillow reads.
        MissingDependencyError: Pillow is not installed.
    """

    def __init__(self, font: str) -> None:
        self._fonts: Any = import_extra("PIL.ImageFont", "eval")
        features: Any = import_extra("PIL.features", "eval")
        self.shapes = bool(features.check("raqm"))
        self._file = font
        self._known: dict[str, bool] = {}
        self._sizes: dict[int, Any] = {}
        self._absent = self._glyph(ABSENT)

    def has(self, char: str) -> bool:
        """See :meth:`Typeface.has`; a font has one glyph for all that it lacks."""
        if char not in self._known:
            self._known[char] = self._glyph(char) != self._absent
        return self._known[char]

    def draw(self, text: str, size: int) -> Array:
        """See :meth:`Typeface.draw`."""
        font = self._of(size)
        images: Any = import_extra("PIL.Image", "eval")
        drawing: Any = import_extra("PIL.ImageDraw", "eval")
        left, _, right, _ = font.getbbox(text, anchor="ls")
        image = images.new("L", (max(1, int(right - min(left, 0)) + 1), _line(size)))
        drawing.Draw(image).text((-min(left, 0), _baseline(size)), text, fill=255, font=font, anchor="ls")
        return np.array(image)

    def _glyph(self, char: str) -> bytes:
        mask = self._of(24).getmask(char)
        return repr(mask.size).encode() + bytes(mask)

    def _of(self, size: int) -> Any:
        if size not in self._sizes:
            try:
                self._sizes[size] = self._fonts.truetype(self._file, size)
            except (OSError, ValueError) as e:
                raise UsageError(f"Pillow cannot read {self._file} as a font ({e}): choose a .ttf, .otf or .ttc") from e
        return self._sizes[size]


def class_text(name: str, number: int, font: str | None = None) -> tuple[str, Typeface]:
    """Return the text that stands for a class, and a font that has it.

    That is its name, or ``#7`` for class 7 if no font has all characters of its name; a note says once what to install.

    Args:
        name: of the class.
        number: of the class.
        font: a font file; None: that of the environment variable ``DEPLOYKIT_FONT``, or none.

    Raises:
        NotFoundError, UsageError, MissingDependencyError: the font file cannot be used.
    """
    return _class_text(name, number, font or os.environ.get(FONT_VARIABLE))


@lru_cache(maxsize=4096)
def _class_text(name: str, number: int, font: str | None) -> tuple[str, Typeface]:
    text = plain_text(name)
    found = typeface_for(text, font)
    if found is not None:
        return text, found
    _tell_missing(font, text)
    number_face = typeface_for("#0123456789", None)
    assert number_face is not None  # ASCII
    return f"#{number}", number_face


def _tell_missing(font: str | None, name: str) -> None:
    """Log once per font that names cannot be written."""
    if font in _told:
        return
    _told.add(font)
    where = f"neither {font} nor another" if font else "no"
    log.warning(
        f"{where} font here can write the class name {name!r}: drawn images show the numbers of such classes, as #7; "
        "install opencv-python>=5 or, with pillow, a font of the script such as Noto Sans CJK, or name a font file "
        f"(--font FILE, font= in Python, or the environment variable {FONT_VARIABLE})"
    )


def needs_shaping(text: str) -> bool:
    """Return whether the text runs from right to left or has marks that combine with letters."""
    if text.isascii():
        return False
    kinds = {(unicodedata.bidirectional(char), unicodedata.category(char)) for char in text}
    return any(direction in ("R", "AL") or category in ("Mn", "Mc") for direction, category in kinds)


def plain_text(text: str) -> str:
    """Return the text on one line, without control characters, its accents composed."""
    text = unicodedata.normalize("NFC", text)
    kept = (" " if char.isspace() else char for char in text if char.isspace() or unicodedata.category(char) != "Cc")
    return " ".join("".join(kept).split())


def typeface_for(text: str, font: str | None = None) -> Typeface | None:
    """Return the first font that has all characters of the text: the named file, OpenCV's own, one of the system.

    Raises:
        NotFoundError, UsageError, MissingDependencyError: the font file cannot be used.
    """
    if font is not None and (named := _named(font)).has_all(text):
        return named
    own = _own()
    if own.has_all(text):
        return own
    return next((face for face in _system() if face.has_all(text)), None)


@lru_cache(maxsize=512)
def rendered(typeface: Typeface, text: str, size: int) -> Array:
    """Return :meth:`Typeface.draw` of a text, kept for the next call; not to be written to."""
    drawn = typeface.draw(text, size)
    drawn.flags.writeable = False
    return drawn


@lru_cache(maxsize=8)
def _named(font: str) -> Typeface:
    file = Path(font).expanduser()
    if not file.is_file():
        raise NotFoundError(f"a font file was expected at {file}, which does not exist")
    try:
        return PillowTypeface(str(file))
    except MissingDependencyError as e:
        if hasattr(cv2, "FontFace"):
            return OpenCvTypeface(str(file))
        raise MissingDependencyError(f"the font {file} needs Pillow or OpenCV 5: pip install pillow") from e


@lru_cache(maxsize=1)
def _own() -> Typeface:
    return OpenCvTypeface("sans") if hasattr(cv2, "FontFace") else HersheyTypeface()


@lru_cache(maxsize=1)
def _system() -> tuple[Typeface, ...]:
    """Return the fonts of the system that may have what OpenCV's lacks; none without Pillow."""
    faces = []
    for file in _font_files():
        try:
            faces.append(PillowTypeface(str(file)))
        except MissingDependencyError:
            return ()
        except UsageError:
            continue
    return tuple(faces)


def _font_files() -> list[Path]:
    """Return the files of well-known fonts with many scripts, the best first."""
    found = []
    for folder in _font_folders():
        for parent, _, names in os.walk(folder):
            for name in names:
                small = name.casefold()
                rank = next((i for i, known in enumerate(SYSTEM_FONTS) if small.startswith(known)), None)
                if rank is not None and small.endswith((".ttf", ".otf", ".ttc")):
                    upright = "regular" in small or not any(word in small for word in ("bold", "italic", "oblique"))
                    found.append((rank, not upright, len(name), Path(parent, name)))
    return [entry[-1] for entry in sorted(found)[:MOST_FONTS]]


def _font_folders() -> Iterator[str]:
    home = Path.home()
    if sys.platform == "win32":
        yield str(Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"))
        yield str(home / "AppData/Local/Microsoft/Windows/Fonts")
    elif sys.platform == "darwin":
        yield from ("/System/Library/Fonts", "/Library/Fonts", str(home / "Library/Fonts"))
    else:
        yield from (str(home / ".local/share/fonts"), str(home / ".fonts"))
        yield from ("/usr/local/share/fonts", "/usr/share/fonts")


def _line(size: int) -> int:
    return round(1.3 * size)


def _baseline(size: int) -> int:
    return round(1.0 * size)


def _any(part: object) -> Any:
    """Return a part of OpenCV 5 that the types of OpenCV 4 do not have."""
    return part
