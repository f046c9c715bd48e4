"""What the heads make of raw values: against stored outputs of the originals, and against plain definitions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.oriented import Oriented
from deploykit.models.families.ultralytics.heads.points import cells_of
from deploykit.models.families.ultralytics.heads.pose import FreePose, Pose26
from deploykit.models.families.ultralytics.heads.segment import Segment, Segment26
from tests.models.families.ultralytics.small_heads import CHANNELS, HEADS, STRIDES, levels_of, seeded

Array = NDArray[np.float64]

HEIGHT, WIDTH = 128, 160  # of the stored images
Channels = Sequence[int]
GOLDEN: dict[str, Callable[[Channels], FreeDetect]] = {
    "yolov8n-detect-narrow": lambda c: FreeDetect(4, c),
    "yolov8n-detect-by-8.3.0": lambda c: FreeDetect(4, c, depthwise=True),
    "yolo11n-detect-narrow": lambda c: FreeDetect(4, c, depthwise=True),
    "yolo11m-detect-narrow": lambda c: FreeDetect(2, c, depthwise=True),
    "yolo12n-narrow": lambda c: FreeDetect(4, c, depthwise=True),
    "yolov9t-narrow": lambda c: FreeDetect(4, c),
    "yolov5nu-narrow": lambda c: FreeDetect(4, c),
    "yolov8n-pose-narrow": lambda c: FreePose(1, c),
    "yolo11n-pose-narrow": lambda c: FreePose(1, c, depthwise=True),
    "yolov8n-face-5x2-last": lambda c: FreePose(1, c, (5, 2)),
    "yolov8n-seg-narrow": lambda c: Segment(5, c, 32, 32),
    "yolov8n-obb-narrow": lambda c: Oriented(3, c),
    "yolov10n-narrow": lambda c: FreeDetect(4, c, depthwise=True, dual=True),
    "yolo26n-detect-narrow": lambda c: FreeDetect(4, c, reg_max=1, depthwise=True, dual=True),
    "yolo26n-pose-narrow": lambda c: Pose26(1, c, reg_max=1, depthwise=True, dual=True),
    "yolo26n-seg-narrow": lambda c: Segment26(3, c, 32, 32, reg_max=1, depthwise=True, dual=True),
}
TRAINING_ONLY = re.compile(r"(one2one_)?(cv4_sigma|flow_model)\.|proto\.semseg\.")
DUAL = [name for name in GOLDEN if name.startswith(("yolov10", "yolo26"))]


def stored_extra(head: FreeDetect, golden: dict[str, NDArray[np.float32]], suffix: str, rows: Tensor) -> Tensor | None:
    """Raw extra values: stored ones of keypoints, else the raw values of the extra columns of the stored rows."""
    if f"raw_kpts{suffix}" in golden:
        return torch.from_numpy(golden[f"raw_kpts{suffix}"])
    extra = rows[:, rows.shape[1] - head.extras :]
    if isinstance(head, Oriented):
        return torch.logit(extra.double() / math.pi + 0.25).float()
    return extra if head.extras else None


def read(shared: Path, name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(shared / "golden" / f"{name}.npz") as golden:
        return {key: golden[key] for key in golden.files if key.startswith(("raw_", "output"))}


def assert_close(found: Tensor, expected: Tensor, scores: slice, visible: list[int]) -> None:
    """Pixels within 1e-3, probabilities within 1e-5."""
    assert found.shape == expected.shape
    share = torch.zeros(found.shape[-1], dtype=torch.bool)
    share[scores] = True
    share[visible] = True
    error = (found - expected).abs().flatten(0, 1).amax(0)
    assert float(error[share].max()) <= 1e-5
    assert float(error[~share].max()) <= 1e-3


def visible_columns(head: FreeDetect, first: int) -> list[int]:
    if isinstance(head, FreePose) and head.kpt_shape[1] == 3:
        return list(range(first + 2, first + head.extras, 3))
    return []


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_the_tensors_of_the_originals_file_are_the_heads(shared: Path, name: str) -> None:
    weights = read_checkpoint(shared / "golden" / f"{name}.pt").state_dict
    last = max(int(key.split(".")[1]) for key in weights)
    own = {key.removeprefix(f"model.{last}."): t for key, t in weights.items() if key.startswith(f"model.{last}.")}
    head = GOLDEN[name]([own[f"cv2.{level}.0.conv.weight"].shape[1] for level in range(3)])
    head.load_state_dict({key: t for key, t in own.items() if not TRAINING_ONLY.match(key)})


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in GOLDEN if "8.3.0" not in name])  # it has no raw values stored
def test_every_cell_is_decoded_as_by_the_original(shared: Path, name: str) -> None:
    golden, suffix = read(shared, name), "_one2many" if name in DUAL else ""
    head = GOLDEN[name](CHANNELS).with_branch("one2many")
    head.set_stride(STRIDES)
    expected = torch.from_numpy(golden[f"output{suffix}"])
    box, cls = (torch.from_numpy(golden[f"raw_{what}{suffix}"]) for what in ("boxes", "scores"))
    raw = levels_of(box, cls, stored_extra(head, golden, suffix, expected), HEIGHT, WIDTH)
    found, last = head.decode(raw), 4 + head.num_classes
    assert found.shape[2] == head.columns
    assert_close(found, expected.transpose(1, 2), slice(4, last), visible_columns(head, last))


@pytest.mark.data
@pytest.mark.parametrize("name", DUAL)
def test_the_best_detections_are_the_originals(shared: Path, name: str) -> None:
    golden, head = read(shared, name), GOLDEN[name](CHANNELS)
    head.set_stride(STRIDES)
    expected = torch.from_numpy(golden["output"])
    box, cls = (torch.from_numpy(golden[f"raw_{what}"]) for what in ("boxes", "scores"))
    masks = isinstance(head, Segment)  # the file has the coefficients of the chosen cells only
    extra = torch.zeros(2, 32, box.shape[2]) if masks else stored_extra(head, golden, "", expected)
    found = head.decode(levels_of(box, cls, extra, HEIGHT, WIDTH))
    assert found.shape[2] == head.columns
    columns = 6 if masks else head.columns
    assert_close(found[..., :columns], expected[..., :columns], slice(4, 6), visible_columns(head, 6))


def chosen_by_hand(logits: Array, count: int) -> list[tuple[int, int]]:
    """(cell, class) of the best of one image ``(N, classes)``, the best first; equal ones in the order of cells, then
    of classes."""
    cells = sorted(range(len(logits)), key=lambda cell: (-logits[cell].max(), cell))[:count]
    every = [(-logits[cell, label], rank, label) for rank, cell in enumerate(cells) for label in range(logits.shape[1])]
    return [(cells[rank], label) for _, rank, label in sorted(every)[:count]]


def raw_values(head: FreeDetect, batch: int, cells: int, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    chance = torch.Generator().manual_seed(seed)
    box = torch.randn(batch, 4 * head.reg_max, cells, generator=chance) * 3
    cls = torch.randint(-9, 4, (batch, head.num_classes, cells), generator=chance) / 2  # many are equal
    extra = torch.randn(batch, head.extras, cells, generator=chance) * 2 if head.extras else None
    return box, cls, extra


SIZES = st.sampled_from([(32, 32), (64, 96), (128, 160)])  # 21, 126 and 420 cells


@pytest.mark.parametrize("name", [name for name, make in HEADS.items() if make().dual])
@settings(max_examples=8)
@given(size=SIZES, seed=st.integers(0, 1000))
def test_the_best_are_chosen_in_two_steps_and_decoded_as_every_cell(
    name: str, size: tuple[int, int], seed: int
) -> None:
    head = seeded(HEADS[name])
    cells = sum(size[0] // s * (size[1] // s) for s in STRIDES)
    box, cls, extra = raw_values(head, 2, cells, seed)
    raw = levels_of(box, cls, extra, *size)
    found, every = head.decode(raw), head.with_branch("one2many").decode(raw)
    count = min(300, cells)
    assert found.shape == (2, count, head.columns)
    for image in range(2):
        best = chosen_by_hand(cls[image].T.double().numpy(), count)
        if head.num_classes > 1:
            assert len({cell for cell, _ in best}) < count  # some cell has several classes
        at, labels = [cell for cell, _ in best], torch.tensor([label for _, label in best])
        rows = every[image, at]
        assert found[image, :, 5].tolist() == labels.tolist()
        assert torch.equal(found[image, :, 4], rows[torch.arange(count), 4 + labels])
        centre, half = rows[:, :2], rows[:, 2:4] / 2
        boxes = rows[:, :4] if name == "oriented26" else torch.cat((centre - half, centre + half), 1)
        assert torch.allclose(found[image, :, :4], boxes, rtol=0, atol=1e-4)
        assert torch.allclose(found[image, :, 6:], rows[:, 4 + head.num_classes :], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=8)
@given(seed=st.integers(0, 1000))
def test_cells_can_be_chosen_before_they_are_decoded(name: str, seed: int) -> None:
    head = seeded(HEADS[name])
    if head.dual:
        head = head.with_branch("one2many")
    cells = cells_of(levels_of(*raw_values(head, 2, 126, seed), 64, 96), STRIDES)
    every = head.rows_of(*cells)
    assert every.shape == (2, 126, head.columns)
    index = torch.randint(0, 126, (2, 40), generator=torch.Generator().manual_seed(seed))
    wanted = torch.stack([rows[at] for rows, at in zip(every, index, strict=True)])
    assert torch.allclose(head.rows_of(*cells.take(index)), wanted, rtol=1e-5, atol=1e-4)


def by_hand(head: FreeDetect, name: str, values: Array, x: int, y: int, stride: int) -> list[float]:
    """One cell's row from its raw values, one number after the other."""
    sides = []
    for side in range(4):
        bins = values[side * head.reg_max : (side + 1) * head.reg_max]
        shares = np.exp(bins) / np.exp(bins).sum()
        sides.append(float(bins[0]) if head.reg_max == 1 else float(sum(i * share for i, share in enumerate(shares))))
    left, top, right, bottom = sides
    boxes, classes = 4 * head.reg_max, head.num_classes
    scores = [1 / (1 + math.exp(-v)) for v in values[boxes : boxes + classes]]
    extra = values[boxes + classes :]
    if name.startswith("oriented"):
        angle = float(extra[0]) if "26" in name else (1 / (1 + math.exp(-extra[0])) - 0.25) * math.pi
        dx, dy = (right - left) / 2, (bottom - top) / 2
        centre = (
            dx * math.cos(angle) - dy * math.sin(angle) + x + 0.5,
            dx * math.sin(angle) + dy * math.cos(angle) + y + 0.5,
        )
        box = [centre[0] * stride, centre[1] * stride, (left + right) * stride, (top + bottom) * stride]
        return [*box, *scores, angle]
    x1, y1, x2, y2 = (x + 0.5 - left), (y + 0.5 - top), (x + 0.5 + right), (y + 0.5 + bottom)
    box = [v * stride for v in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]
    if isinstance(head, FreePose):
        points: list[float] = []
        for point in extra.reshape(head.kpt_shape):
            shift = (point[0] + x + 0.5, point[1] + y + 0.5) if "26" in name else (2 * point[0] + x, 2 * point[1] + y)
            points += [float(v) * stride for v in shift]
            points += [1 / (1 + math.exp(-v)) for v in point[2:]]
        return [*box, *scores, *points]
    return [*box, *scores, *(float(v) for v in extra)]


@pytest.mark.parametrize("name", HEADS)
def test_a_row_is_what_the_equations_say(name: str) -> None:
    head = seeded(HEADS[name])
    if head.dual:
        head = head.with_branch("one2many")
    box, cls, extra = raw_values(head, 1, 126, 5)
    rows = head.decode(levels_of(box, cls, extra, 64, 96))[0]
    values = torch.cat([v[0] for v in (box, cls, extra) if v is not None]).double().numpy()
    places = [(s, x, y) for s in STRIDES for y in range(64 // s) for x in range(96 // s)]
    for at, (stride, x, y) in enumerate(places):
        assert np.abs(rows[at].numpy() - by_hand(head, name, values[:, at], x, y, stride)).max() < 1e-3
