"""What is said of two results that were matched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deploykit.runtime.parity.tolerance import Tolerance

__all__ = ["MatchKind", "Matching"]

MatchKind = Literal["detections", "best rows", "classes", "grey levels", "values"]


@dataclass(frozen=True)
class Matching:
    """Detections (or best rows) of the candidate against the reference's on one input; of a dense output the classes
    of its pixels (of the image, where it is one class), or its values, as grey levels of 0 to 255 or as they are.

    ``borderline``: unmatched, but so near to a threshold that rounding decides; they do not count as failures.
    ``max_keypoint`` is in network pixels, None without keypoints. ``max_score`` of classes: of a probability.
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

    @property
    def ok(self) -> bool:
        """Whether every detection has its partner, in the same place and with the same score."""
        alone = self.expected + self.found - 2 * self.matched - self.borderline
        paired = alone <= self.limits.unmatched * (self.expected + self.found)
        near = self.max_keypoint is None or self.max_keypoint <= self.limits.max_keypoint
        return paired and near and self.min_iou >= self.limits.min_iou and self.max_score <= self.limits.max_score

    def __str__(self) -> str:
        if self.what in ("classes", "grey levels", "values"):
            scores = f", probabilities within {self.max_score:.3g}" if self.what == "classes" else ""
            return (
                f"{self.what} of {self.candidate} against {self.reference} on {self.input}: {self.matched} of "
                f"{self.expected} match ({self.borderline} borderline){scores}"
            )
        points = "" if self.max_keypoint is None else f", keypoints within {self.max_keypoint:.3g} px"
        return (
            f"{self.what} of {self.candidate} against {self.reference} on {self.input}: {self.matched} of "
            f"{self.expected} expected and {self.found} found match ({self.borderline} borderline), "
            f"IoU at least {self.min_iou:.4f}, scores within {self.max_score:.3g}{points}"
        )
