"""What float32 costs a network by itself, where its parity check fails.

Some trained networks magnify rounding: a YOLOX-nano does, thousands of times, at cells in the padding that score
nothing. Then no implementation in float32 is within the tolerances, PyTorch's own neither, and how far each is off
depends on the processor: on its kernels, their layouts and orders of summation. One implementation is one sample of
that. So several are taken: PyTorch with the folded and with the unfolded weights, against float64, and the file in ONNX
Runtime at other optimization levels, against itself (a wrong file is equally wrong at all of them). Each tolerance
grows by what float32 was seen to need of that very tolerance, and no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from deploykit.export.nms.plan import NmsPlan
from deploykit.export.parity.compare import check_expected
from deploykit.export.parity.nms import check_detections
from deploykit.export.parity.onnx_file import check_file, reference_of_file
from deploykit.export.parity.report import ParityReport
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.models.families.vitdet.mask_rcnn import with_thresholds
from deploykit.progress import Progress
from deploykit.runtime.backends.ort import Optimization
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs
from deploykit.runtime.parity.spread import NO_SPREAD
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import ModelSpec

__all__ = ["SAFETY_FACTOR", "Float32Cost", "levels_apart", "relaxed_tolerance", "torch_float32"]

SAFETY_FACTOR = 3.0
"""Implementations of one graph on different processors round by more or less: measured, up to six times between two
layouts of one library on one processor. The largest of several measurements, times this, holds all that were tried."""

Group = Literal["pixels", "probability", "masks", "dense"]
GROUPS: dict[str, Group] = {
    "boxes": "pixels",
    "keypoints": "pixels",
    "scores": "probability",
    "visibility": "probability",
    "masks": "masks",
}


@dataclass(frozen=True)
class Float32Cost:
    """What float32 computations of one network were seen to need, by fp32's tolerances.

    ``used``: what computed -> group of values -> the largest share of its tolerance. ``spread``: kind of value -> the
    shares at :data:`deploykit.runtime.parity.spread.QUANTILES`, the largest of all. ``score`` and ``keypoint``: how far
    matched detections, or probabilities of classes, were off.
    """

    used: Mapping[str, Mapping[Group, float]]
    spread: Mapping[str, tuple[float, ...]]
    score: float
    keypoint: float

    @staticmethod
    def of(reports: Mapping[str, Iterable[ParityReport]]) -> Float32Cost:
        """The cost that comparisons tell: what computed -> its reports."""
        used: dict[str, dict[Group, float]] = {}
        spread: dict[str, tuple[float, ...]] = {}
        score = keypoint = 0.0
        for name, several in reports.items():
            largest = used.setdefault(name, {})
            for report in several:
                for d in report.differences:
                    largest[_group(d)] = float(np.maximum(largest.get(_group(d), 0.0), d.limit_ratio))
                    spread[d.values] = tuple(map(max, zip(spread.get(d.values, d.spread), d.spread, strict=True)))
                score = float(np.max([score, *(m.max_score for m in report.matchings)]))  # NaN stays
                keypoint = float(np.max([keypoint, *(m.max_keypoint or 0.0 for m in report.matchings)]))
        return Float32Cost(used, spread, score, keypoint)

    def share(self, group: Group) -> float:
        """The largest share of its tolerance that any value of a group needed."""
        return float(np.max([largest.get(group, 0.0) for largest in self.used.values()], initial=0.0))

    def explains(self, report: ParityReport) -> bool:
        """Whether as many values are as far off as float32 makes them, and not all of them.

        A wider tolerance is for the few values that a network magnifies; half of all, or nine in ten, must stay near
        what float32 does to half of all, or to nine in ten.
        """
        for d in report.differences:
            known = self.spread.get(d.values, NO_SPREAD)
            if any(found > max(1.0, SAFETY_FACTOR * cost) for found, cost in zip(d.spread, known, strict=True)):
                return False
        return True

    def note(self, limits: Tolerance) -> str:
        """What was widened, by how much and why, for the report."""
        kinds: dict[Group, tuple[str, float]] = {
            "pixels": ("boxes and keypoints", limits.pixels),
            "probability": ("probabilities", limits.probability),
            "masks": ("masks", limits.max_score),
            "dense": ("values, of the largest", limits.dense),
        }
        parts = []
        for group, (what, limit) in kinds.items():
            if SAFETY_FACTOR * self.share(group) > 1.0:
                by = " and ".join(f"{largest.get(group, 0.0):.3g} in {name}" for name, largest in self.used.items())
                parts.append(f"{what} use {by} times their tolerance and may be off by {limit:.3g}")
        return f"float32 alone moves this network's values, and the tolerances are wider here: {'; '.join(parts)}"


def _group(difference: Difference) -> Group:
    return "dense" if difference.dense else GROUPS[difference.values]


def torch_float32(expected: ReferenceOutputs, module: nn.Module, spec: ModelSpec) -> ParityReport:
    """Hold a module in PyTorch in float32 against what it gives in float64.

    Args:
        expected: rows in float64; of a network with NMS inside, all that it ranks.
        module: in float32, folded or not.
        spec: of what PyTorch gives: raw rows, any batch.
    """
    session, name = TorchSession(module, spec), "PyTorch float32"
    if spec.output.nms_inside:
        opened = TorchSession(with_thresholds(module, replace(spec.thresholds, conf=0.0)), spec)
        return check_detections(expected, name, session, spec, Tolerance(), opened=opened)
    return check_expected(expected, name, session, spec, Tolerance())


def levels_apart(
    file: Path, plan: NmsPlan, spec: ModelSpec, expected: ReferenceOutputs, progress: Progress
) -> list[ParityReport]:
    """Hold a file in ONNX Runtime with fewer optimizations against itself with all of them.

    It sees one image at a time: slots that leak into one another are an error, which batches would count as rounding.
    """
    images = expected.feeds.images
    alone = ParityInputs(images, tuple(Batch(label, (label,)) for label in images))
    optimized = reference_of_file(plan, alone, file, spec)
    levels: tuple[Optimization, ...] = ("extended", "none")
    return [check_file(plan, optimized, file, spec, progress, Tolerance(), optimization=level) for level in levels]


def relaxed_tolerance(limits: Tolerance, cost: Float32Cost) -> Tolerance | None:
    """The tolerances of a network whose float32 costs so much; None: ``limits`` hold as they are.

    Each is :data:`SAFETY_FACTOR` times what float32 was seen to need of it, where that is more than it is. There is no
    widest one: a sensitive network is exported, with a note that says how far float32 alone moves its values.
    """
    groups: tuple[Group, ...] = ("pixels", "probability", "masks", "dense")
    shares = {group: cost.share(group) for group in groups}
    if not all(map(math.isfinite, (*shares.values(), cost.score, cost.keypoint))):
        return None
    factor = {group: max(1.0, SAFETY_FACTOR * share) for group, share in shares.items()}
    pixels = limits.pixels * factor["pixels"]
    relaxed = replace(
        limits,
        pixels=pixels,
        relative=limits.relative * factor["pixels"],
        probability=limits.probability * factor["probability"],
        dense=limits.dense * factor["dense"],
        same_box=max(limits.same_box, pixels),
        max_keypoint=max(limits.max_keypoint, SAFETY_FACTOR * cost.keypoint),
        max_score=max(limits.max_score * factor["masks"], SAFETY_FACTOR * cost.score),
    )
    return None if relaxed == limits else relaxed
