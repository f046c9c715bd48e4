"""Lines of text in a corner: as large as fits, where the least is to be seen, and steady in videos."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.fonts import class_text
from deploykit.runtime.drawing.panel import Line, draw_lines, draw_panel
from deploykit.runtime.results.dense import Classification, LabelMap

TYPEFACE = class_text("a", 0)[1]


def changed(before: Array, after: Array) -> tuple[int, int, int, int]:
    """The smallest box around the changed pixels: x1, y1, x2, y2."""
    ys, xs = np.nonzero((before != after).any(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def busy_but(rows: slice, columns: slice) -> Array:
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image[rows, columns] = 120
    return image


@pytest.mark.parametrize(
    ("rows", "columns", "corner"),
    [
        (slice(150), slice(200), (0, 0)),
        (slice(150), slice(200, None), (400, 0)),
        (slice(150, None), slice(200), (0, 300)),
        (slice(150, None), slice(200, None), (400, 300)),
    ],
)
def test_the_panel_is_where_the_least_is_to_be_seen(rows: slice, columns: slice, corner: tuple[int, int]) -> None:
    image = busy_but(rows, columns)
    x1, y1, x2, y2 = changed(image, draw_panel(image, [Line("one class", TYPEFACE)] * 3, steady=False))
    assert corner[0] in (x1, x2)
    assert corner[1] in (y1, y2)


def test_in_a_video_it_stays_at_the_top_left() -> None:
    image = busy_but(slice(150, None), slice(200, None))
    fields = {"size": (300, 400), "labels": np.arange(3), "scores": np.array([0.7, 0.2, 0.1])}
    assert changed(image, Classification(**fields, frame=4).draw(image))[:2] == (0, 0)  # type: ignore[arg-type]
    assert changed(image, Classification(**fields).draw(image))[:2] != (0, 0)  # type: ignore[arg-type]


def test_the_image_keeps_its_size_and_is_not_changed() -> None:
    for size in ((1, 1), (9, 300), (300, 9), (96, 128), (2000, 3000)):
        image = np.full((*size, 3), 77, np.uint8)
        drawn = draw_panel(image, [Line(f"class {i} 0.5", TYPEFACE, (0, 0, 255), 0.5) for i in range(20)], steady=False)
        assert drawn.shape == image.shape
        assert (image == 77).all()


def test_a_bar_is_as_long_as_its_probability() -> None:
    image = np.zeros((200, 400, 3), np.uint8)
    lengths = []
    for share in (0.25, 0.5, 1.0):
        drawn = draw_panel(image, [Line("a long name of a class", TYPEFACE, bar=share)], steady=True)
        row = drawn[np.flatnonzero(drawn.any(axis=(1, 2)))[0]]  # above the letters
        lengths.append(int(row.any(axis=1).sum()))
    assert lengths[0] == pytest.approx(lengths[2] / 4, abs=1)
    assert lengths[1] == pytest.approx(lengths[2] / 2, abs=1)


def test_labels_and_scores_can_be_left_out() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    classified = Classification(
        size=(200, 300), labels=np.arange(2), scores=np.array([0.7, 0.3]), classes=("cat", "dog")
    )
    assert (classified.draw(image, labels=False) == image).all()
    full, short = classified.draw(image), classified.draw(image, conf=False)
    assert changed(image, short)[2] < changed(image, full)[2]
    map_ = LabelMap(size=(200, 300), labels=np.ones((200, 300), np.int32), classes=("background", "cat"))
    assert np.array_equal(map_.draw(image, labels=False), map_.draw(image, legend=False))
    assert not np.array_equal(map_.draw(image, labels=False), map_.draw(image))


def test_lines_are_drawn_on_a_copy() -> None:
    image = np.full((100, 200, 3), 128, np.uint8)
    drawn = draw_lines(image, ["12 features", "行\n1" if TYPEFACE.has("行") else "second"])
    assert (image == 128).all()
    assert changed(image, drawn)[:2] == (0, 0)
