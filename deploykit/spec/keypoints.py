"""The keypoints of an object: names, limbs, sides and OKS sigmas."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.errors import SpecError
from deploykit.spec.checks import SPACES, check_range, check_text

__all__ = ["COCO_KEYPOINTS", "KeypointSpec"]

LEAST_SIGMA, MOST_SIGMA = 1e-6, 1e3  # COCO's are from 0.025 to 0.107


@dataclass(frozen=True)
class KeypointSpec:
    """The K keypoints of one object: names, limbs (pairs of indices), left-right pairs, OKS sigmas (or empty)."""

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        k = len(self.names)
        for i, text in enumerate(self.names):
            check_text(f"the name of keypoint {i}", text, allowed=SPACES)
        for sigma in self.sigmas:
            check_range("an OKS sigma", sigma, LEAST_SIGMA, MOST_SIGMA)
        for name, pairs in (("skeleton", self.skeleton), ("flip_pairs", self.flip_pairs)):
            for a, b in pairs:
                if not (0 <= a < k and 0 <= b < k):
                    raise SpecError(f"{name} names keypoint {max(a, b)}, but there are {k} (0 to {k - 1})")
        if self.sigmas and len(self.sigmas) != k:
            raise SpecError(f"expected {k} OKS sigmas, one for each keypoint, got {len(self.sigmas)}")

    @staticmethod
    def unnamed(count: int) -> KeypointSpec:
        """K keypoints of which nothing is known but their number."""
        return KeypointSpec(tuple(f"keypoint {i}" for i in range(count)))


COCO_KEYPOINTS = KeypointSpec(
    names=(
        "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
        "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
        "right ankle",
    ),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
            0.089, 0.089),
)  # fmt: skip
"""The 17 COCO person keypoints; limbs, order and sigmas are the facts published with the COCO data set."""
