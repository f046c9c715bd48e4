"""Adversarial cases for the NMS of oriented boxes, and its definition as plain loops.

``reference`` is the definition with covariance matrices in Python's own arithmetic, which shares no formula with an
implementation. No pair of a case is nearer to the threshold than what float32 can tell, so that all implementations
have to agree; ``surely`` says whether that holds for other rows. Where the answer can be worked out by hand it stands
beside the case. Nothing here knows an implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deploykit.spec import RawDetections, Thresholds
from tests.nms_corpus import Case, F, Kept, Rows, candidates

TWO = RawDetections(obj=None, cls=(4, 6), angle=(6, 7))
ONE = RawDetections(obj=None, cls=(4, 5), angle=(5, 6))
ELSEWHERE = RawDetections(box=(4, 8), obj=(1, 2), cls=(2, 4), angle=(0, 1))
HALF = Thresholds(conf=0.25, iou=0.5)
QUARTER = math.pi / 2


def reference(
    rows: Rows,
    layout: RawDetections,
    thresholds: Thresholds,
    *,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
) -> list[Kept]:
    """What stays, the best first."""
    kept = []
    for one, over in _pairs(rows, layout, thresholds, classes, agnostic):
        if not any(value > thresholds.iou for value in over):
            kept.append(one)
    return kept[: thresholds.max_det]


def surely(rows: Rows, layout: RawDetections, thresholds: Thresholds, margin: float = 1e-4) -> bool:
    """Whether no pair of candidates overlaps by the threshold to within ``margin``."""
    pairs = _pairs(rows, layout, thresholds, None, agnostic=True)
    return all(abs(value - thresholds.iou) > margin for _, over in pairs for value in over)


def _pairs(
    rows: Rows, layout: RawDetections, thresholds: Thresholds, classes: Sequence[int] | None, agnostic: bool
) -> list[tuple[Kept, list[float]]]:
    """Each candidate with its overlaps with those before it of the same label."""
    found = [k for k in candidates(rows, layout, thresholds) if classes is None or k.label in classes]
    found = found[: thresholds.pre_nms_topk]
    return [
        (one, [_overlap(rows[one.row], rows[k.row], layout) for k in found[:i] if agnostic or k.label == one.label])
        for i, one in enumerate(found)
    ]


def _overlap(one: Rows, other: Rows, layout: RawDetections) -> float:
    (ax, ay, a), (bx, by, b) = (_gaussian(row, layout) for row in (one, other))
    if a is None or b is None:
        return 0.0
    (p, q, r), x, y = ((i + j) / 2 for i, j in zip(a, b, strict=True)), ax - bx, ay - by
    det = p * r - q * q
    distance = (r * x * x - 2 * q * x * y + p * y * y) / det / 8
    dets = [xx * yy - xy * xy for xx, xy, yy in (a, b)]
    distance += math.log(det / math.sqrt(dets[0] * dets[1])) / 2
    return 1 - math.sqrt(max(0.0, 1 - math.exp(-max(distance, 0.0))))


def _gaussian(row: Rows, layout: RawDetections) -> tuple[float, float, tuple[float, float, float] | None]:
    """The centre of a box, and its covariance as xx, xy, yy (None: it has no area)."""
    assert layout.angle is not None
    x, y, w, h = (float(v) for v in row[slice(*layout.box)])
    cos, sin = math.cos(float(row[layout.angle[0]])), math.sin(float(row[layout.angle[0]]))
    if w <= 0 or h <= 0:
        return x, y, None
    a, b = w * w / 12, h * h / 12
    return x, y, (a * cos * cos + b * sin * sin, (a - b) * cos * sin, a * sin * sin + b * cos * cos)


def corpus() -> list[Case]:
    """All cases; their names are unique."""
    return [*_rule(), *_shapes(), *_classes(), *_broken(), *_limits(), *_near(), *_crowds()]


def _case(
    name: str,
    boxes: Sequence[Sequence[float]],
    kept: tuple[int, ...] | None = None,
    *,
    scores: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    thresholds: Thresholds = HALF,
) -> Case:
    """Boxes of cx, cy, w, h, angle; scores fall from 0.9 if not given."""
    rows = np.zeros((len(boxes), TWO.columns), F)
    if len(boxes):
        values = np.array(boxes, F)
        rows[:, :4], rows[:, 6] = values[:, :4], values[:, 4]
        rows[np.arange(len(rows)), 4 + np.array(labels or [0] * len(rows))] = scores or np.linspace(0.9, 0.5, len(rows))
    return Case(name, rows, TWO, thresholds, kept)


def _rule() -> list[Case]:
    row = [(x, 60, 60, 20, 0) for x in (80, 90, 100)]  # neighbours overlap by 0.80, the ends by 0.61
    box = (80, 60, 60, 20, 0.5)
    return [
        _case("no rows", [], ()),
        _case("one box", [box], (0,)),
        _case("a box that is removed still removes", row, (0,), thresholds=Thresholds(iou=0.7)),
        _case("the same without the middle", [row[0], row[2]], (0, 1), thresholds=Thresholds(iou=0.7)),
        _case("the chain reversed in rows", row, (2,), scores=(0.7, 0.8, 0.9), thresholds=Thresholds(iou=0.7)),
        _case("equal boxes with equal scores: the lowest row stays", [box] * 5, (0,), scores=[0.9] * 5),
        _case("a long chain leaves its head", [(60 + 8 * i, 60, 60, 20, 0) for i in range(70)], (0,)),
    ]


def _shapes() -> list[Case]:
    box, thin = (80, 60, 60, 20, 0.5), (300, 300, 400, 4, 0.7)
    quarter = (80, 60, 20, 60, 0.5 + QUARTER)
    return [
        _case("half a turn changes nothing", [box, (80, 60, 60, 20, 0.5 - math.pi)], (0,)),
        _case("a quarter with exchanged sides changes nothing", [quarter, box], (0,)),
        _case("many turns change nothing", [box, (80, 60, 60, 20, 0.5 + 20 * math.pi)], (0,)),
        _case("a cross stays", [(80, 60, 60, 10, 0), (80, 60, 60, 10, QUARTER)], (0, 1)),
        _case("a square is the same in any direction", [(80, 60, 30, 30, 0), (80, 60, 30, 30, 0.7)], (0,)),
        _case("a thin box beside itself by its width stays", [thin, (303, 296, 400, 4, 0.7)], (0, 1)),
        _case("a thin box on itself does not", [thin, thin], (0,)),
        _case("a thin box turned by a degree stays", [thin, (300, 300, 400, 4, 0.72)], (0, 1)),
        _case("a box inside another", [(80, 60, 60, 60, 0.2), (80, 60, 50, 50, 1.2)], (0,)),
        _case("neighbours that do not touch overlap", [(50, 50, 10, 10, 0), (61, 50, 10, 10, 0)], (0,),
              thresholds=Thresholds(iou=0.05)),
        _case("threshold 1 suppresses nothing", [box, box], (0, 1), thresholds=Thresholds(iou=1)),
        _case("threshold 0 leaves one", [box, (120, 90, 30, 10, 0)], (0,), thresholds=Thresholds(iou=0)),
        _case("far from the origin", [(9000, 9000, 30, 12, 1), (9001, 9000, 30, 12, 1), (9000, 9030, 30, 12, 1)],
              (0, 2)),
        _case("negative coordinates", [(-60, -60, 60, 20, 1), (-62, -60, 60, 20, 1)], (0,)),
    ]  # fmt: skip


def _classes() -> list[Case]:
    box, near = (80, 60, 60, 20, 0.5), (82, 60, 60, 20, 0.5)
    elsewhere = np.array(
        [[0.5, 0.9, 0.2, 0.9, *box[:4]], [0.5, 0.8, 0.1, 0.9, *near[:4]], [2, 0.9, 0.8, 0, *near[:4]]], F
    )
    return [
        _case("classes do not suppress each other", [box, near, near], (0, 1), labels=(0, 1, 0)),
        _case("the other class in between", [box, near, box, near], (0, 1), labels=(0, 1, 1, 0)),
        Case("an objectness, and the angle first", elsewhere, ELSEWHERE, HALF, (0, 2)),
    ]


def _broken() -> list[Case]:
    box = (80, 60, 60, 20, 0.5)
    flat = [(80, 60, 60, 0, 0.5), (80, 60, 0, 20, 0.5), (80, 60, -60, 20, 0.5), (80, 60, -60, -20, 0.5)]
    cases = [_case("boxes without area neither suppress nor are suppressed", [*flat, box, *flat], tuple(range(9)))]
    for value in (math.nan, math.inf, -math.inf):
        for column in range(5):
            broken = list(box)
            broken[column] = value
            cases.append(_case(f"{value} in value {column} suppresses nothing", [broken, box], (1,)))
    return cases


def _limits() -> list[Case]:
    apart = [(40 * i, 50, 20, 10, 0.3 * i) for i in range(20)]
    same = [(80, 60, 60, 20, 0.5)] * 3 + [(200, 60, 60, 20, 0.5)]
    return [
        _case("at most max_det", apart, tuple(range(7)), thresholds=Thresholds(max_det=7)),
        _case("more candidates than top-k", apart[::-1], tuple(range(10)), thresholds=Thresholds(pre_nms_topk=10)),
        _case("top-k counts before NMS", same, (0,), thresholds=Thresholds(pre_nms_topk=3)),
        _case("a score equal to the threshold is not over it", same[2:], (1,), scores=(0.25, 0.3)),
        _case("what is no candidate removes nothing", same[1:3], (0,), scores=(0.5, 0.2)),
    ]


def _near() -> list[Case]:
    """Pairs whose overlap is 2e-4 above the threshold and below it, at several angles, shapes and sizes."""
    cases = []
    for number, (w, h, angle) in enumerate([(40, 10, 0.3), (12, 12, 1.1), (300, 6, 2.4), (5, 90, -0.6), (1.5, 0.7, 0)]):
        for iou in (0.3, 0.5, 0.7, 0.9):
            for over in (True, False):
                wanted = iou + (2e-4 if over else -2e-4)
                step = w * math.sqrt(-8 / 12 * math.log(1 - (1 - wanted) ** 2))  # apart along w by so much
                moved = (50 + step * math.cos(angle), 70 + step * math.sin(angle), w, h, angle)
                name = f"shape {number} {'just over' if over else 'just below'} {iou}"
                kept = (0,) if over else (0, 1)
                cases.append(_case(name, [(50, 70, w, h, angle), moved], kept, thresholds=Thresholds(iou=iou)))
    return cases


def _crowds() -> list[Case]:
    cases = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        boxes = np.column_stack(
            (random.uniform(20, 180, (120, 2)), random.uniform(5, 60, (120, 2)), random.uniform(-4, 4, 120))
        )
        scores = random.choice(np.arange(0.2, 1, 0.05), 120).tolist()
        thresholds = Thresholds(conf=0.3, iou=0.35, pre_nms_topk=(1000, 40)[seed % 2])
        case = _case(f"crowd {seed}", boxes.tolist(), scores=scores, labels=random.integers(0, 2, 120).tolist(),
                     thresholds=thresholds)  # fmt: skip
        if surely(case.rows, case.layout, thresholds, 3e-5):
            cases.append(case)
        if len(cases) == 6:
            return cases
    raise AssertionError("no crowd keeps its distance from the threshold")
