"""One dense output: classes of an image or of its pixels, a restored image, features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from deploykit.errors import SpecError
from deploykit.spec.checks import check_name
from deploykit.spec.json_values import LATER
from deploykit.spec.output import Output, OutputTensor, SpecLike

__all__ = ["DenseOutput"]

OF_IMAGE = ("batch", "channels")
OF_PIXELS = (*OF_IMAGE, "out_height", "out_width")  # the network may enlarge or shrink
AXES = {"classify": OF_IMAGE, "segment": OF_PIXELS, "restore": OF_PIXELS, "features": OF_IMAGE}
"""Task -> axes of the output."""


@dataclass(frozen=True)
class DenseOutput(Output):
    """One dense output: ``logits (B,C)`` classify or ``(B,C,H,W)`` segment, ``image (B,C,H,W)``, ``features (B,D)``.

    ``probabilities``: of the task classify, the network has applied the softmax itself.
    """

    tasks: ClassVar[tuple[str, ...]] = tuple(AXES)

    kind: Literal["tensor"] = "tensor"
    name: str = "logits"
    probabilities: bool = field(default=False, metadata=LATER)

    def check(self, spec: SpecLike) -> None:
        """See :meth:`Output.check`: only classifiers give probabilities."""
        if self.probabilities and spec.task != "classify":
            raise SpecError(f"probabilities are an output of the task classify, not of {spec.task}")

    def __post_init__(self) -> None:
        check_name("the name of the output", self.name)

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """See :meth:`Output.tensors`."""
        return (OutputTensor(self.name, AXES[spec.task], free=OF_PIXELS[2:]),)

    def describe(self, spec: SpecLike) -> str:
        """See :meth:`Output.describe`."""
        fixed = {
            "restore": "the restored image, in the numbers of the input",
            "features": "the features of the image, in no unit",
        }
        if self.probabilities:
            return f"probabilities of {len(spec.classes) or 'its'} classes of the image"
        return fixed.get(spec.task) or _logits(spec)


def _logits(spec: SpecLike) -> str:
    where = "the image" if AXES[spec.task] == OF_IMAGE else "each pixel"
    if len(spec.classes) == 1:
        return f"the logit of {spec.classes[0]} of {where}; over 0 it is that"
    two = " (one channel: of the second against the first, before the sigmoid)" if len(spec.classes) == 2 else ""
    return f"logits of {len(spec.classes) or 'its'} classes of {where}, before softmax{two}"
