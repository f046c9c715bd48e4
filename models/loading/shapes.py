"""Reads a layer graph off the shapes of a checkpoint's tensors, within bounds that no real network reaches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint

__all__ = ["Shapes"]

MAX_CHANNELS = 65_536  # so that a hostile file builds nothing large


@dataclass(frozen=True)
class Shapes:
    """The shapes of a checkpoint's tensors by their names; ``family`` is for messages. ``most``: what is counted."""

    checkpoint: Checkpoint
    family: str
    most: int = 256
    shapes: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        found = {key: tuple(tensor.shape) for key, tensor in self.checkpoint.state_dict.items()}
        object.__setattr__(self, "shapes", found)

    def of(self, key: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that has to be there.

        Raises:
            CheckpointError: it is missing, has another number of axes, or a size that no network has.
        """
        found = self.shapes.get(key, ())
        if len(found) != axes or not 0 < min(found) <= max(found) <= MAX_CHANNELS:
            told = f"is {list(found)}" if found else "is missing"
            raise CheckpointError(
                f"{self.checkpoint.path} has the tensors of a {self.family} network, but {key} {told}: expected one "
                f"of {axes} axes; the file is damaged or of a changed model (deploykit inspect shows it)"
            )
        return found

    def weight(self, layer: str, axes: int = 4) -> tuple[int, ...]:
        """The shape of a layer's weights; see :meth:`of`."""
        return self.of(f"{layer}.weight", axes)

    def count(self, before: str) -> int:
        """One more than the highest number that follows ``before``, at most ``most``."""
        numbers = (re.match(rf"{re.escape(before)}([0-9]{{1,3}})\.", key) for key in self.shapes)
        return min(max((int(m[1]) + 1 for m in numbers if m), default=0), self.most)
