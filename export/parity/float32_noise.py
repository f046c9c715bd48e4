"""The rounding error of float32 itself, measured for a network whose parity check fails.

Some trained networks magnify rounding: a YOLOX-nano does so thousands of times, at cells in the padding with scores
near 0. No implementation in float32 is within the tolerance then, not even PyTorch. How far each is off depends on the
processor: on its kernels, their layouts and their order of summation. One implementation is one sample of that.

So several are measured: PyTorch with the folded and the unfolded weights, against float64; and the file in ONNX Runtime
at other optimization levels, against itself (a wrong file is equally wrong at all levels). Each tolerance grows only by
the share of it that float32 needed.

Levels that differ by far more than PyTorch's rounding do not round: the optimizer changed what the graph means. ONNX
Runtime 1.31.1 merges a pad with zeros into the max pool after it, for example, which pads with minus infinity.
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
from deploykit.export.parity.nms import check_detections, opened_detections
from deploykit.export.parity.onnx_file import check_file, reference_of_file
from deploykit.export.parity.report import ParityReport
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.models.families.vitdet.mask_rcnn import with_thresholds
from deploykit.progress import Progress
from deploykit.runtime.backends.ort import Optimization
from deploykit.runtime.parity.chosen_rows import UNPAIRED
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs
from deploykit.runtime.parity.spread import NO_SPREAD
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import ModelSpec

__all__ = [
    "ONNX_RUNTIME", "PYTORCH", "SAFETY_FACTOR", "Float32Cost", "levels_apart", "relaxed_tolerance", "torch_float32",
]  # fmt: skip

PYTORCH, ONNX_RUNTIME = "PyTorch", "ONNX Runtime"
"""The names of the implementations whose float32 is measured."""

SAFETY_FACTOR = 3.0
"""The rounding of one graph differs between implementations: up to six times was measured between two layouts of one
library on one processor. The largest of several measurements times this factor covered all that were tried."""

UNALIKE = 30.0
"""Two levels may differ by so many times PyTorch's own error. Between layouts of one library it was six times."""

LEAST_ERROR = 0.1  # of a tolerance: PyTorch may happen to be nearer to float64 than its rounding lets expect

Group = Literal["pixels", "probability", "masks", "dense"]
GROUPS: dict[str, Group] = {
    "boxes": "pixels",
    "keypoints": "pixels",
    "scores": "probability",
    "angles": "probability",
    "visibility": "probability",
    "masks": "masks",
    UNPAIRED: "probability",
}


@dataclass(frozen=True)
class Float32Cost:
    """The measured error of float32 computations of one network, as shares of fp32's tolerance.

    ``used``: implementation -> group of values -> the largest share. ``spread``: kind of value -> the shares at
    :data:`deploykit.runtime.parity.spread.QUANTILES`, the largest over all implementations. ``score`` and
    ``keypoint``: the largest differences of matched detections, or of class probabilities.
    """

    used: Mapping[str, Mapping[Group, float]]
    spread: Mapping[str, tuple[float, ...]]
    score: float
    keypoint: float

    @staticmethod
    def of(reports: Mapping[str, Iterable[ParityReport]]) -> Float32Cost:
        """Return the cost that follows from the reports of each implementation."""
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
        """Return the largest share of its tolerance that a value of the group used."""
        return float(np.max([largest.get(group, 0.0) for largest in self.used.values()], initial=0.0))

    def optimizer_fault(self) -> str:
        """Return a sentence if the levels of ONNX Runtime differ by more than rounding; empty: they do not."""
        levels, torch = self.used.get(ONNX_RUNTIME, {}), self.used.get(PYTORCH, {})
        for group, share in levels.items():
            if not share <= UNALIKE * max(torch.get(group, 0.0), LEAST_ERROR):
                return (
                    f"ONNX Runtime's optimization levels differ by {share:.3g} times the tolerance of {group}, and "
                    f"PyTorch from float64 by {torch.get(group, 0.0):.3g}: its optimizer changes what this graph "
                    "computes"
                )
        return ""

    def explains(self, report: ParityReport) -> bool:
        """Whether the errors of a report are distributed as those of float32 are.

        A wider tolerance is for the few values that a network magnifies. So the quantiles of the errors must stay near
        those of float32: the median, for example, and the value that nine in ten do not exceed.
        """
        for d in report.differences:
            known = self.spread.get(d.values, NO_SPREAD)
            if any(found > max(1.0, SAFETY_FACTOR * cost) for found, cost in zip(d.spread, known, strict=True)):
                return False
        return True

    def note(self, limits: Tolerance) -> str:
        """Return the note for the report: which tolerances are wider, by how much and why."""
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
        return (
            f"float32 alone moves this network's values beyond the tolerance, which is wider here: {'; '.join(parts)}"
        )


def _group(difference: Difference) -> Group:
    return "dense" if difference.dense else GROUPS[difference.values]


def torch_float32(expected: ReferenceOutputs, module: nn.Module, spec: ModelSpec) -> ParityReport:
    """Compare a module in PyTorch in float32 with its values in float64.

    Args:
        expected: the values in float64; a network with NMS inside was run with a confidence of 0.
        module: the network in float32, folded or not.
        spec: the spec of the module's output: raw rows, any batch.
    """
    session, name = TorchSession(module, spec), "PyTorch float32"
    if spec.output.thresholds_inside:
        every = TorchSession(with_thresholds(module, replace(spec.thresholds, conf=0.0)), spec)
        opened = opened_detections(expected, name, every, spec)
        return check_detections(expected, name, session, spec, Tolerance(), opened=opened)
    return check_expected(expected, name, session, spec, Tolerance())


def levels_apart(
    file: Path, plan: NmsPlan, spec: ModelSpec, expected: ReferenceOutputs, progress: Progress
) -> list[ParityReport]:
    """Compare a file in ONNX Runtime at lower optimization levels with itself at the highest one.

    The file runs on one image at a time. Slots of a batch that leak into one another are an error, and must not count
    as rounding.
    """
    images = expected.feeds.images
    alone = ParityInputs(images, tuple(Batch(label, (label,)) for label in images))
    optimized = reference_of_file(plan, alone, file, spec)
    levels: tuple[Optimization, ...] = ("extended", "none")
    return [check_file(plan, optimized, file, spec, progress, Tolerance(), optimization=level) for level in levels]


def relaxed_tolerance(limits: Tolerance, cost: Float32Cost) -> Tolerance | None:
    """Return the tolerance of a network with this cost of float32; None if ``limits`` need not be wider.

    Each value is multiplied by :data:`SAFETY_FACTOR` times the share that float32 used, if that is over 1. There is no
    upper bound: a sensitive network is exported, with a note on how far float32 alone moves its values. None is also
    returned if a measured value is not finite.
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
