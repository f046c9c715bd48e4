"""What a graph consists of besides its nodes: constants, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Constant", "Interface"]


@dataclass(frozen=True)
class Constant:
    """A tensor of the graph that is not a weight: grids, anchors, shapes."""

    name: str
    shape: tuple[int, ...]
    size: int  # bytes


@dataclass(frozen=True)
class Interface:
    """One input or output: a side is a number or the name of a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"
