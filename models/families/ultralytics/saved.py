"""Saved: what the tensors of a file say about the layers of its network, which beats what its description says.

Releases of the package read one description in different ways: a layer as wide as there are classes was not scaled, the
class branch was as wide as there are classes or at most 100, and depthwise or not. The tensors tell which it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["Saved"]

OUTPUTS = {
    "Conv": "conv", "DWConv": "conv", "Focus": "conv.conv", "nn.ConvTranspose2d": "", "AConv": "cv1.conv",
    "C1": "cv1.conv", "C2": "cv2.conv", "C2f": "cv2.conv", "C3": "cv3.conv", "C3x": "cv3.conv", "C3k2": "cv2.conv",
    "A2C2f": "cv2.conv", "C2fCIB": "cv2.conv", "C2PSA": "cv2.conv", "C2fPSA": "cv2.conv", "PSA": "cv2.conv",
    "SPP": "cv2.conv", "SPPF": "cv2.conv", "SPPELAN": "cv5.conv", "SCDown": "cv2.conv", "Bottleneck": "cv2.conv",
    "ELAN1": "cv4.conv", "RepNCSPELAN4": "cv4.conv",
}  # fmt: skip
"""Layer -> the convolution within that gives its output."""


class Saved:
    """The shapes of the tensors of a file, by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._shapes = {key: tuple(t.shape) for key, t in tensors.items()}
        self._places: set[str] = set()
        for key in self._shapes:
            path = key.rpartition(".")[0]
            while path and path not in self._places:
                self._places.add(path)
                path = path.rpartition(".")[0]

    def has(self, path: str) -> bool:
        """Whether there are tensors below a path."""
        return path in self._places

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor; ``()``: there is none of that name."""
        return self._shapes.get(key, ())

    def count(self, path: str) -> int:
        """How many numbered modules lie below a path, from 0 on without a gap."""
        count = 0
        while self.has(f"{path}.{count}"):
            count += 1
        return count

    def outputs(self, kind: str, path: str) -> int:
        """How many channels a layer gives; 0: its tensors do not tell."""
        if kind == "ADown":
            shapes = [self.shape(f"{path}.{part}.conv.weight") for part in ("cv1", "cv2")]
            return sum(shape[0] for shape in shapes) if all(shapes) else 0
        inner = OUTPUTS.get(kind)
        if inner is None:
            return 0
        shape = self.shape(f"{path}.{inner}.weight" if inner else f"{path}.weight")
        return shape[1 if kind == "nn.ConvTranspose2d" else 0] if len(shape) > 1 else 0

    @property
    def head(self) -> int:
        """The number of the last layer that has tensors; -1: there is none."""
        numbered = (re.fullmatch(r"model\.([0-9]{1,4})", path) for path in self._places)
        return max((int(match[1]) for match in numbered if match), default=-1)
