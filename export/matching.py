"""The outcome of matching two results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deploykit.runtime.parity.tolerance import Tolerance

__all__ = ["MatchKind", "Matching"]

MatchKind = Literal["detections", "best rows", "classes", "grey levels", "values"]


@dataclass(frozen=True)
class Matching:
    """How many results of the candidate match the reference's on one input.

    The results are detections, or the best rows. For a dense output they are the classes of the pixels (or of the
    image), or the values, as grey levels of 0 to 255 or as they are.

    ``borderline`` counts unmatched results so near to a threshold that rounding decides; they are not failures.
    ``max_keypoint`` is in network pixels, None without keypoints. ``max_score`` is a difference of scores; for classes
    it is one of probabilities. ``min_mask`` is the least IoU of two matched objects' masks of prototypes, at the cells
    of the prototypes inside of the box; None without such masks.

    Of detections that a network chooses itself ``moved`` counts those with another rank, and ``exchanged`` those at the
    end of a full list in whose place there is another one of the same score but for rounding. Both are explained by
    the rounding of scores, and fail nothing.
    """

    reference: str
    candidate: str
    input: str
    what: MatchKind
    expected: int
    found: int
    matched: int
    borderline: int
    min_iou: float
    max_score: float
    max_keypoint: float | None
    limits: Tolerance = field(default_factory=Tolerance)
    min_mask: float | None = None
    moved: int = 0
    exchanged: int = 0

    @property
    def ok(self) -> bool:
        """Whether every detection has a partner with the same box and score, within the tolerance."""
        alone = self.expected + self.found - 2 * self.matched - self.borderline
        paired = alone <= self.limits.unmatched * (self.expected + self.found)
        near = self.max_keypoint is None or self.max_keypoint <= self.limits.max_keypoint
        near = near and (self.min_mask is None or self.min_mask >= self.limits.min_iou)
        return paired and near and self.min_iou >= self.limits.min_iou and self.max_score <= self.limits.max_score

    def __str__(self) -> str:
        if self.what in ("classes", "grey levels", "values"):
            scores = f", probabilities within {self.max_score:.3g}" if self.what == "classes" else ""
            return (
                f"{self.what} of {self.candidate} against {self.reference} on {self.input}: {self.matched} of "
                f"{self.expected} match ({self.borderline} borderline){scores}"
            )
        points = "" if self.max_keypoint is None else f", keypoints within {self.max_keypoint:.3g} px"
        masks = "" if self.min_mask is None else f", IoU of masks at least {self.min_mask:.4f}"
        order = f", {self.moved} have another rank" if self.moved else ""
        order += f", {self.exchanged} at the end of a full list are others of equal scores" if self.exchanged else ""
        return (
            f"{self.what} of {self.candidate} against {self.reference} on {self.input}: {self.matched} of "
            f"{self.expected} expected and {self.found} found match ({self.borderline} borderline), "
            f"IoU at least {self.min_iou:.4f}, scores within {self.max_score:.3g}{points}{masks}{order}"
        )
