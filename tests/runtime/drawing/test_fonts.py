"""Names in any script are drawn with real glyphs, or the class's number is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.errors import NotFoundError, UsageError
from deploykit.runtime.drawing import fonts
from deploykit.runtime.drawing.fonts import HersheyTypeface, PillowTypeface, Typeface, class_text, plain_text, rendered
from deploykit.runtime.drawing.labels import Label, draw_labels
from deploykit.runtime.drawing.objects import Objects, draw_objects
from deploykit.runtime.options import DrawOptions

DEJAVU = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
needs_font = pytest.mark.skipif(not DEJAVU.is_file(), reason=f"{DEJAVU} is not installed")
needs_opencv_5 = pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 has no Unicode font")


CACHES = (fonts._class_text, fonts._own, fonts._system, fonts._named)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget which fonts were found and which notes were shown."""

    def forget() -> None:
        for cached in CACHES:
            cached.cache_clear()
        fonts._told.clear()

    monkeypatch.delenv(fonts.FONT_VARIABLE, raising=False)
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture
def opencv_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The font of OpenCV 4, and no other on this machine."""
    monkeypatch.setattr(fonts, "_own", HersheyTypeface)
    monkeypatch.setattr(fonts, "_system", tuple)


def is_glyph(typeface: Typeface, char: str) -> bool:
    """Whether something is drawn that is neither nothing nor what a missing character looks like."""
    drawn = rendered(typeface, char, 32)
    others = [rendered(typeface, other, 32) for other in ("?", "\U0010fffe")]
    return bool(drawn.any()) and not any(np.array_equal(drawn, other) for other in others)


@needs_opencv_5
@pytest.mark.parametrize(
    "name", ["行人", "汽车", "自転車", "かな", "버스", "Человек", "ψυχή", "naïve façade", "person"]
)
def test_names_are_drawn_with_their_own_glyphs(name: str) -> None:
    text, typeface = class_text(name, 3)
    assert text == name
    letters = {char for char in name if char != " "}
    assert all(is_glyph(typeface, char) for char in letters)
    assert len({rendered(typeface, char, 32).tobytes() for char in letters}) == len(letters)  # and none like another


@needs_opencv_5
def test_a_chinese_label_is_read_back_from_the_image() -> None:
    """The pixels of 行人 on an image are those of the glyphs, and differ from those of 汽车 and of question marks."""
    image = np.full((120, 240, 3), 128, np.uint8)
    drawn = []
    for name in ("行人", "汽车", "??"):
        objects = Objects(np.array([[20.0, 40, 220, 110]]), np.ones(1), np.zeros(1, int), [name])
        drawn.append(draw_objects(image, objects, DrawOptions(conf=False))[20:38, 15:80])
    one, other, missing = drawn
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, missing)
    ink = one.max(axis=2) < 110
    assert 30 < ink.sum() < 300  # strokes, neither a filled box nor nothing


def test_a_name_that_no_font_has_is_shown_as_its_number(opencv_4: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text, typeface = class_text("行人", 7)
        assert class_text("汽车", 8)[0] == "#8"
    assert text == "#7"
    assert typeface.has_all("#7 0.91")
    assert len(caplog.records) == 1  # one note, not one per class
    message = caplog.text
    assert "行人" in message
    for remedy in ("opencv-python>=5", "Noto Sans CJK", "--font FILE", fonts.FONT_VARIABLE):
        assert remedy in message
    assert class_text("person", 0)[0] == "person"


def test_the_two_labels_of_unknown_names_differ(opencv_4: None) -> None:
    """Numbers tell classes apart, which question marks would not."""
    fields = []
    for number, name in enumerate(("行人", "汽车")):
        canvas = np.zeros((60, 120, 3), np.uint8)
        text, typeface = class_text(name, number)
        draw_labels(canvas, np.array([[10.0, 30, 110, 55]]), [Label(text, typeface, (0, 200, 0))], np.zeros(1, int))
        fields.append(canvas)
    assert not np.array_equal(*fields)


@needs_font
def test_pillow_draws_with_a_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_own", HersheyTypeface)
    monkeypatch.setattr(fonts, "_font_folders", lambda: iter([str(DEJAVU.parent)]))
    text, typeface = class_text("Человек", 3)
    assert text == "Человек"
    assert isinstance(typeface, PillowTypeface)
    assert all(is_glyph(typeface, char) for char in text)
    assert class_text("行人", 3)[0] == "#3"  # DejaVu has no Chinese


@needs_font
def test_a_font_file_is_used_for_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    default, named = class_text("person", 0)[1], class_text("person", 0, str(DEJAVU))[1]
    assert not np.array_equal(rendered(default, "person", 20), rendered(named, "person", 20))
    monkeypatch.setenv(fonts.FONT_VARIABLE, str(DEJAVU))
    assert class_text("person", 0)[1] is named
    with pytest.raises(NotFoundError, match=r"a font file was expected at .*missing\.ttf"):
        class_text("person", 0, str(tmp_path / "missing.ttf"))
    (tmp_path / "not.ttf").write_bytes(b"no font")
    with pytest.raises(UsageError, match=r"not\.ttf as a font"):
        class_text("person", 0, str(tmp_path / "not.ttf"))


def test_scripts_that_join_letters_need_a_font_engine_that_does() -> None:
    """OpenCV would draw Arabic and Hebrew letters from left to right; Pillow with Raqm sets them."""
    for name in ("سيارة", "מכונית", "हिन्दी"):
        text, typeface = class_text(name, 4)
        assert text == "#4" or typeface.shapes
    assert not fonts.needs_shaping("naïve 行人 Человек")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("two\nlines", "two lines"),
        ("a\x00b\x1b", "ab"),
        ("  wide   gaps ", "wide gaps"),
        ("cafe\u0301", "café"),
        ("", ""),
    ],
)
def test_text_is_one_line_without_control_characters(name: str, text: str) -> None:
    assert plain_text(name) == text


def test_the_line_of_a_font_is_as_high_for_every_text() -> None:
    typeface = class_text("person", 0)[1]
    assert (
        len(
            {
                rendered(typeface, text, 17).shape[0]
                for text in ("a", "gÉ", "|", "行" if hasattr(cv2, "FontFace") else "x")
            }
        )
        == 1
    )
