"""CheckpointShapes: a network's sizes and counts, read off tensors' shapes within bounds that no real one reaches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint

__all__ = ["CheckpointShapes"]

MAX_CHANNELS = 65_536  # so that a hostile file builds nothing large


@dataclass(frozen=True)
class CheckpointShapes:
    """The shapes of a checkpoint's tensors.

    Attributes:
        checkpoint: whose tensors they are.
        family: its name, for messages.
        max_count: the largest number of layers that is counted.
        key_map: a network's names of tensors -> the checkpoint's, where they differ.
        shapes: the checkpoint's names of tensors -> their shapes.
    """

    checkpoint: Checkpoint
    family: str
    max_count: int = 256
    key_map: Mapping[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        found = {key: tuple(tensor.shape) for key, tensor in self.checkpoint.state_dict.items()}
        object.__setattr__(self, "shapes", found)

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, by the network's name of it.

        Raises:
            CheckpointError: it is missing, has another number of axes, or a size that no network has.
        """
        key = self.key_map.get(key, key)
        found = self.shapes.get(key, ())
        if len(found) != axes or not 0 < min(found) <= max(found) <= MAX_CHANNELS:
            state = f"is {list(found)}" if found else "is missing"
            raise CheckpointError(
                f"{self.checkpoint.path} has the tensors of a {self.family} network, but {key} {state}: expected "
                f"{axes} axes; it is of a changed model, or of another network (deploykit inspect shows it)"
            )
        return found

    def weight_shape(self, layer: str, axes: int = 4) -> tuple[int, ...]:
        """The shape of a layer's weights; see :meth:`shape`."""
        return self.shape(f"{layer}.weight", axes)

    def count_layers(self, before: str) -> int:
        """One more than the highest number after ``before`` in the checkpoint's names, at most ``max_count``."""
        numbers = (re.match(rf"{re.escape(before)}([0-9]{{1,3}})\.", key) for key in self.shapes)
        return min(max((int(m[1]) + 1 for m in numbers if m), default=0), self.max_count)
