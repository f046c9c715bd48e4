"""The spec's floor: one number per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deploykit.spec import Output, OutputTensor, SpecLike


@dataclass(frozen=True)
class CountOutput(Output):
    """``count (B, 1)``."""

    tasks: ClassVar[tuple[str, ...]] = ("count",)

    kind: Literal["count"] = "count"
    name: str = "count"

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        return (OutputTensor(self.name, ("batch", "count"), columns=1),)

    def describe(self, spec: SpecLike) -> str:
        return f"how many {spec.classes[0]} the image shows"
