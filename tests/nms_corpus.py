"""Adversarial cases for NMS, and its definition as plain loops: what every implementation has to agree with.

A case is rows, a layout and thresholds; ``reference`` gives the rows that stay, the best first, for these and any
others. Where the answer can be worked out by hand it stands beside the case, so that the loops are tested too.
Nothing here knows an implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit.spec import RawDetections, Thresholds

Rows = npt.NDArray[np.floating]
F = np.float32


class Kept(NamedTuple):
    """One row that stays."""

    row: int
    label: int
    score: float


@dataclass(frozen=True)
class Case:
    """Rows of one image with what is asked of them; ``kept``: the row numbers that a person worked out."""

    name: str
    rows: Rows
    layout: RawDetections
    thresholds: Thresholds
    kept: tuple[int, ...] | None = None


def reference(
    rows: Rows,
    layout: RawDetections,
    thresholds: Thresholds,
    *,
    multi_label: bool = False,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
) -> list[Kept]:
    """The definition in single float32 operations, one row and one pair at a time."""
    with np.errstate(all="ignore"):
        kept: list[Kept] = []
        found = candidates(rows, layout, thresholds, multi_label=multi_label)
        wanted = [each for each in found if classes is None or each.label in classes]
        for one in wanted[: thresholds.pre_nms_topk]:
            rivals = (k for k in kept if agnostic or k.label == one.label)
            if not any(_iou(rows, layout, one.row, k.row) > F(thresholds.iou) for k in rivals):
                kept.append(one)
        return kept[: thresholds.max_det]


def candidates(rows: Rows, layout: RawDetections, thresholds: Thresholds, *, multi_label: bool = False) -> list[Kept]:
    """What scores over the threshold, the best first: steps 1 to 3, before the cut at ``pre_nms_topk``."""
    found = []
    for number, row in enumerate(rows.astype(F)):
        if not all(np.isfinite(value) for value in row):
            continue
        with np.errstate(all="ignore"):
            scores, bound = _class_scores(row, layout)
        best = max(range(len(scores)), key=lambda c: (scores[c], -c))
        for label in range(len(scores)) if multi_label else (best,):
            score = min(scores[label], bound)
            if score > F(thresholds.conf):
                found.append(Kept(number, label, float(score)))
    return sorted(found, key=lambda k: (-k.score, k.row, k.label))


def _class_scores(row: Rows, layout: RawDetections) -> tuple[list[np.float32], np.float32]:
    """What each class of one row scores, and what it scores at most."""
    if layout.obj is None:
        return [*row[slice(*layout.cls)]], F(np.inf)
    obj = row[layout.obj[0]]
    return [obj] if layout.score == "obj" else [obj * value for value in row[slice(*layout.cls)]], obj


def _iou(rows: Rows, layout: RawDetections, a: int, b: int) -> np.float32:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (_corners(rows[i, slice(*layout.box)].astype(F)) for i in (a, b))
    width = max(F(0), min(ax2, bx2) - max(ax1, bx1))
    height = max(F(0), min(ay2, by2) - max(ay1, by1))
    inter = width * height
    area_a = (ax2 - ax1) * (ay2 - ay1)
    area_b = (bx2 - bx1) * (by2 - by1)
    return inter / (area_a + area_b - inter)


def _corners(box: Rows) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    cx, cy, w, h = box
    return cx - w / F(2), cy - h / F(2), cx + w / F(2), cy + h / F(2)


ONE_CLASS = RawDetections()
TWO_CLASSES = RawDetections(cls=(5, 7))
NO_OBJ = RawDetections(obj=None, cls=(4, 7))
POSE = RawDetections(cls=(5, 6), keypoints=(6, 12))
ELSEWHERE = RawDetections(box=(3, 7), obj=(0, 1), cls=(1, 3), keypoints=(7, 11), kpt_dims=2)
ONLY_OBJ = RawDetections(cls_counts=False)
ONLY_OBJ_POSE = RawDetections(cls=(5, 6), keypoints=(6, 12), cls_counts=False)
ONLY_OBJ_ELSEWHERE = RawDetections(box=(3, 7), obj=(1, 2), cls=(0, 1), cls_counts=False)
HALF = Thresholds(conf=0.25, iou=0.5)


def corpus() -> list[Case]:
    """All cases; their names are unique."""
    return [
        *_scores(),
        *_objectness_alone(),
        *_ties(),
        *_overlaps(),
        *_broken_rows(),
        *_limits(),
        *_arithmetic(),
        *_crowds(),
    ]


def _box(x1: float, y1: float, x2: float, y2: float, *values: float) -> list[float]:
    """A row: corners as cx, cy, w, h (exact for small integers), then the other columns."""
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *values]


def _far(i: int, *values: float) -> list[float]:
    """Box number i of a line of boxes that do not touch."""
    return _box(20 * i, 0, 20 * i + 10, 10, *values)


def _case(
    name: str,
    rows: Sequence[Sequence[float]],
    kept: tuple[int, ...] | None = None,
    layout: RawDetections = ONE_CLASS,
    thresholds: Thresholds = HALF,
) -> Case:
    return Case(name, np.array(rows, F).reshape(len(rows), layout.columns), layout, thresholds, kept)


def _scores() -> list[Case]:
    return [
        _case("no rows", [], ()),
        _case("nothing over the threshold", [_far(0, 0.5, 0.4), _far(1, 0, 1)], ()),
        _case("a score equal to the threshold is not over it", [_far(0, 0.5, 0.5), _far(1, 1, 0.2500001)], (1,)),
        _case("objectness over 1", [_far(0, 4, 0.1), _far(1, 2, 0.1), _far(2, 0.3, 0.9)], (0, 2)),
        _case("classes over 1 do not lift an objectness", [_far(0, 0.1, 5, 0), _far(1, 0.5, 0, 9)], (1,), TWO_CLASSES),
        _case("a class over 1 scores the objectness", [_far(0, 0.5, 1), _far(1, 0.5, 9), _far(2, 0.6, 2)], (2, 0, 1)),
        _case("two negatives make no score", [_far(0, -1, -0.5, 0.5), _far(1, -1, -1, -1)], (), TWO_CLASSES),
        _case("the product may overflow", [_far(0, 1e30, 1), _far(1, 1e30, 1e30), _far(2, 1e31, 1)], (2, 0, 1)),
        _case(
            "a threshold of 0 keeps denormal scores, not zeros",
            [_far(0, 1e-42, 1), _far(1, 0, 1), _far(2, 1e-30, 1e-30)],
            (0,),
            thresholds=Thresholds(conf=0, iou=0.5),
        ),
        _case("no objectness", [_far(0, 0.1, 0.9, 0), _far(1, 0.2, 0.2, 0.2), _far(2, 0, 0, 1)], (2, 0), NO_OBJ),
        _case(
            "one class without objectness", [_far(0, 0.3), _far(1, 0.9)], (1, 0), RawDetections(obj=None, cls=(4, 5))
        ),
    ]


def _objectness_alone() -> list[Case]:
    """The class column is there and does not count."""
    nan, rest = float("nan"), [1] * 6
    return [
        _case(
            "the class is not part of the score",
            [_far(0, 0.3, 0.1), _far(1, 0.9, 0), _far(2, 0.2, 1), _far(3, 0.8, -1), _far(4, 0.5, 9)],
            (1, 3, 4, 0),
            ONLY_OBJ,
        ),
        _case(
            "an objectness equal to the threshold is not over it", [_far(0, 0.25, 1), _far(1, 0.26, 0)], (1,), ONLY_OBJ
        ),
        _case("objectness over 1 alone", [_far(0, 2, 0.1), _far(1, 4, 0.1), _far(2, -1, -1)], (1, 0), ONLY_OBJ),
        _case(
            "the class does not order rows that tie", [_far(i, 0.9, i / 10) for i in range(4)], (0, 1, 2, 3), ONLY_OBJ
        ),
        _case(
            "the objectness decides who suppresses",
            [_far(0, 0.6, 1), _far(0, 0.9, 0.1), _far(1, 0.5, 0.5)],
            (1, 2),
            ONLY_OBJ,
        ),
        _case(
            "NaN in a class that does not count breaks its row", [_far(0, 0.9, nan), _far(0, 0.8, 0)], (1,), ONLY_OBJ
        ),
        _case(
            "objectness alone with keypoints",
            [_far(0, 0.6, 0, *rest), _far(0, 0.9, 0, *rest[1:], nan), _far(1, 0.7, 0, *rest)],
            (2, 0),
            ONLY_OBJ_POSE,
        ),
        _case(
            "objectness alone in other columns",
            [[0.1, 0.4, 0, *_far(0)], [0.9, 0.2, 0, *_far(1)], [0, 0.8, 0, *_far(2)]],
            (2, 0),
            ONLY_OBJ_ELSEWHERE,
        ),
    ]


def _ties() -> list[Case]:
    near = _classes_whose_products_tie(F(0.6))
    return [
        _case("equal boxes with equal scores: the lowest row stays", [_far(0, 0.9, 1)] * 5, (0,)),
        _case("equal scores keep the order of the rows", [_far(i, 0.9, 1) for i in (3, 1, 2, 0)], (0, 1, 2, 3)),
        _case("equal classes give the lowest label", [_far(0, 1, 0.5, 0.5), _far(0, 1, 0.4, 0)], (0,), TWO_CLASSES),
        _case("products may tie where classes do not", [_far(0, 0.6, *near), _far(0, 0.5, 1, 0)], (0,), TWO_CLASSES),
        _case(
            "a tie at the top-k border goes to the lower row",
            [_far(0, 0.5, 1), _far(1, 0.9, 1), _far(2, 0.5, 1), _far(3, 0.5, 1)],
            (1, 0),
            thresholds=Thresholds(pre_nms_topk=2),
        ),
    ]


def _classes_whose_products_tie(obj: np.float32) -> tuple[float, float]:
    """Two neighbouring float32 values, the lower one first, that times ``obj`` round to the same score."""
    low = F(0.9)
    while obj * low != obj * np.nextafter(low, F(1)):
        low = np.nextafter(low, F(1))
    return float(low), float(np.nextafter(low, F(1)))


def _overlaps() -> list[Case]:
    chain = [_box(0, 0, 30, 10, 0.9, 1), _box(10, 0, 40, 10, 0.8, 1), _box(20, 0, 50, 10, 0.7, 1)]
    square = _box(0, 0, 10, 10, 0.9, 1)
    point, line = _box(5, 5, 5, 5, 0.8, 1), _box(5, 0, 5, 9, 0.7, 1)
    mirrored = _box(10, 10, 0, 0, 0.8, 1), _box(10, 0, 0, 10, 0.7, 1)
    shared = [_far(0, 1, 0.9, 0), _far(0, 1, 0, 0.8), _far(0, 1, 0.7, 0)]
    low, zero, one = Thresholds(iou=0.4), Thresholds(iou=0), Thresholds(iou=1)
    return [
        _case("a chain: the suppressed middle does not suppress", chain, (0, 2), thresholds=low),
        _case("the chain reversed in rows", chain[::-1], (2, 0), thresholds=low),
        _case("an overlap equal to the threshold stays", [_box(0, 0, 2, 1, 0.9, 1), _box(0, 0, 1, 1, 0.8, 1)], (0, 1)),
        _case("a box inside another", [square, _box(1, 1, 9, 9, 0.8, 1)], (0,)),
        _case("boxes that touch", [square, _box(10, 0, 20, 10, 0.8, 1)], (0, 1), thresholds=zero),
        _case("one shared pixel, threshold 0", [square, _box(9, 9, 20, 20, 0.8, 1)], (0,), thresholds=zero),
        _case("threshold 1 suppresses nothing", [square, square], (0, 1), thresholds=one),
        _case("classes do not suppress each other", shared, (0, 1), TWO_CLASSES),
        _case("negative coordinates", [_box(-30, -30, -10, -10, 0.9, 1), _box(-28, -30, -10, -10, 0.8, 1)], (0,)),
        _case("no area: equal points and equal lines stay", [point, point, line, line], (0, 1, 2, 3)),
        _case("a point and a line inside a box stay", [square, point, line], (0, 1, 2), thresholds=zero),
        _case("negative sides overlap nothing", [square, *mirrored, *mirrored], (0, 1, 3, 2, 4), thresholds=zero),
    ]


def _broken_rows() -> list[Case]:
    nan, inf = float("nan"), float("inf")
    whole = _far(0, 0.9, 1, *[1] * 6)
    cases = []
    for value in (nan, inf, -inf):
        for column in range(12):
            broken = list(_far(0, 0.95, 1, *[1] * 6))
            broken[column] = value
            cases.append(_case(f"{value} in column {column} suppresses nothing", [broken, whole], (1,), POSE))
    taken = _far(1, nan, 1, *[1] * 6), _far(2, 0.99, 1, *[1] * 5, nan)
    cases.append(
        _case("broken rows take no place among the best", [*taken, whole], (2,), POSE, Thresholds(pre_nms_topk=1))
    )
    cases.append(_case("only broken rows", [[nan] * 12, [inf] * 12], (), POSE))
    cases.append(_case("NaN in the class that is not the best", [_far(0, 1, 0.9, nan)], (), TWO_CLASSES))
    cases.append(_case("infinity times zero", [_far(0, inf, 0), _far(0, 0, inf), _far(0, 0.9, 1)], (2,)))
    return cases


def _limits() -> list[Case]:
    line = [_far(i, 0.9 - i / 100, 1) for i in range(40)]
    equal = [_far(0, 0.9, 1)] * 3 + [_far(1, 0.5, 1)]
    ten = Thresholds(pre_nms_topk=10)
    return [
        _case("at most max_det", line, tuple(range(7)), thresholds=Thresholds(max_det=7)),
        _case("max_det of 1", line[::-1], (39,), thresholds=Thresholds(max_det=1)),
        _case("more candidates than top-k", line[::-1], tuple(range(39, 29, -1)), thresholds=ten),
        _case("top-k counts before NMS, not after", equal, (0,), thresholds=Thresholds(pre_nms_topk=3)),
        _case("exactly top-k candidates", equal, (0, 3), thresholds=Thresholds(pre_nms_topk=4)),
    ]


def _arithmetic() -> list[Case]:
    tiny = 1e-42
    return [
        _case("denormal boxes: their areas vanish", [_box(0, 0, tiny, tiny, 0.9, 1)] * 2, (0, 1)),
        _case("boxes whose area overflows", [[0, 0, 1e30, 1e30, 0.9, 1], [0, 0, 1e30, 1e30, 0.8, 1]], (0, 1)),
        _case("corners that overflow", [[3e38, 0, 3e38, 10, 0.9, 1], [3e38, 0, 3e38, 10, 0.8, 1]], (0, 1)),
        *_decided_by_the_last_bit(),
        _far_from_the_origin(),
    ]


def _decided_by_the_last_bit() -> list[Case]:
    """Two boxes with an overlap that only float32, rounded after each step, puts on the right side of the threshold."""
    rng = np.random.default_rng(7)
    found: dict[str, tuple[Rows, float, tuple[int, ...]]] = {}
    while len(found) < 2:
        rows = np.array([_box(0, 0, *rng.uniform(5, 9, 2), 0.9, 1), _box(*rng.uniform(0, 2, 2), 10, 10, 0.8, 1)], F)
        exact = _iou(rows, ONE_CLASS, 0, 1)
        fused = _fused_iou(rows)
        if fused > exact:
            found["a fused multiply-add would suppress"] = (rows, float(exact), (0, 1))
        elif fused < exact:
            found["a fused multiply-add would not suppress"] = (rows, float(fused), (0,))
    return [Case(name, rows, ONE_CLASS, Thresholds(iou=iou), kept) for name, (rows, iou, kept) in found.items()]


def _fused_iou(rows: Rows) -> np.float32:
    """As a compiler may contract it: the intersection enters the union unrounded."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (_corners(row[:4]) for row in rows)
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    areas = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    return (width * height) / F(float(areas) - float(width) * float(height))


def _far_from_the_origin() -> Case:
    """Pairs near the threshold, in many classes: an offset of 4096 pixels a class would round the boxes away."""
    rng = np.random.default_rng(11)
    layout = RawDetections(cls=(5, 85))
    rows = np.zeros((160, layout.columns), F)
    for i in range(0, 160, 2):
        x, y, side = rng.uniform(0, 900), rng.uniform(0, 900), rng.uniform(4, 9)
        shift = side / 3 * (1 + rng.uniform(-1e-4, 1e-4))  # two squares, shifted by a third of their side: IoU 0.5
        rows[i : i + 2, :4] = _box(x, y, x + side, y + side), _box(x + shift, y, x + shift + side, y + side)
        rows[i : i + 2, 4] = rng.uniform(0.3, 1, 2)
        rows[i : i + 2, 5 + i // 2] = 1
    return Case("pairs near the threshold in 80 classes", rows, layout, HALF)


def _crowds() -> list[Case]:
    cases = []
    for name, layout, classes in (
        ("one class", POSE, 1),
        ("two classes in other columns", ELSEWHERE, 2),
        ("three classes without objectness", NO_OBJ, 3),
        ("one class that does not count", ONLY_OBJ_POSE, 4),
    ):
        rng = np.random.default_rng(classes)
        rows = rng.uniform(0, 1, (300, layout.columns)).astype(F)
        centres = rng.uniform(50, 600, (12, 2))[rng.integers(0, 12, 300)] + rng.normal(0, 6, (300, 2))
        box = np.concatenate((centres, rng.uniform(40, 80, (300, 2))), axis=1)
        rows[:, slice(*layout.box)] = box
        rows[:, slice(*layout.cls)] = np.round(rows[:, slice(*layout.cls)], 1)  # so that scores tie
        if layout.obj is not None:
            rows[:, layout.obj[0]] = np.round(rows[:, layout.obj[0]], 1)
        for topk in (1000, 100):
            thresholds = Thresholds(conf=0.1, iou=0.45, pre_nms_topk=topk)
            cases.append(Case(f"a crowd of {name}, top-k {topk}", rows, layout, thresholds))
    return cases
