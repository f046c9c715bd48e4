"""What a network gives: the base of every kind of output, and the table of the kinds.

A kind is a frozen dataclass with a field ``kind``, its name in JSON. To add one, subclass :class:`Output`, register it
with :func:`register_output`, and its adapters with :func:`deploykit.runtime.outputs.register_runtime_adapter` and
:func:`deploykit.export.outputs.register_export_adapter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from deploykit.errors import SpecError
from deploykit.spec.input import InputSpec
from deploykit.spec.json_values import KINDS
from deploykit.spec.keypoints import KeypointSpec
from deploykit.spec.thresholds import Thresholds

__all__ = ["OUTPUTS", "Output", "OutputTensor", "Span", "SpecLike", "register_output"]

Span = tuple[int, int]
"""Columns, from the first to the one after the last."""


class SpecLike(Protocol):
    """What a kind of output may ask of the :class:`deploykit.spec.ModelSpec` that it belongs to."""

    @property
    def task(self) -> str:
        """What the network does."""

    @property
    def input(self) -> InputSpec:
        """What it takes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""

    @property
    def keypoints(self) -> KeypointSpec | None:
        """The keypoints of an object."""

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of the postprocess."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an output.

    ``axes`` are the names of its axes, the batch first. ``columns``: the length of the axis ``columns_axis`` (None: any
    number). ``free``: the axes whose lengths follow from the size of the input.
    """

    name: str
    axes: tuple[str, ...]
    dtype: Literal["float", "int32"] = "float"
    columns: int | None = None
    free: tuple[str, ...] = ()
    columns_axis: int = -1


@dataclass(frozen=True)
class Output(ABC):
    """One kind of output. Subclasses are frozen dataclasses whose field ``kind`` has its name as default.

    Attributes:
        kind: the name of the kind, in JSON and in the tables of adapters.
        tasks: the tasks of networks with such an output.
        finds_objects: whether the network finds objects, so that thresholds apply.
        nms_inside: whether the network has done NMS.
    """

    kind: str

    tasks: ClassVar[tuple[str, ...]] = ()
    finds_objects: ClassVar[bool] = False
    nms_inside: ClassVar[bool] = False

    @abstractmethod
    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """Return the network's output tensors in their order."""

    @abstractmethod
    def describe(self, spec: SpecLike) -> str:
        """Return one sentence that says what the values mean."""

    @property
    def thresholds_inside(self) -> bool:
        """Whether the spec's thresholds are those that the network itself applies, so that weaker ones do nothing."""
        return self.nms_inside

    @property
    def oriented(self) -> bool:
        """Whether boxes have angles."""
        return False

    @property
    def two_stages(self) -> bool:
        """Whether the network proposes boxes first and then looks at each of them; an engine is its first stage."""
        return False

    def num_classes(self, spec: SpecLike) -> int:
        """Return the number of classes; 0 where it is unknown."""
        return len(spec.classes)

    def check(self, spec: SpecLike) -> None:  # noqa: B027  (not every kind has something to check)
        """Check that the spec fits this output.

        Raises:
            SpecError: the spec does not fit.
        """

    def trained_classes(self, spec: SpecLike) -> tuple[str, ...]:
        """Return the class names as a checkpoint lists them."""
        return spec.classes

    def facts(self, spec: SpecLike) -> dict[str, Any]:
        """Return the facts that ``deploykit inspect`` shows about the output."""
        return {"output": self.describe(spec)}


OUTPUTS: dict[str, type[Output]] = {}
"""Kind of output -> its class."""
KINDS[Output] = OUTPUTS

OutputT = TypeVar("OutputT", bound=Output)


def register_output(kind: type[OutputT]) -> type[OutputT]:
    """Register a kind of output, so that specs with it can be read.

    Raises:
        SpecError: the class has no name of a kind, or another class has the same one.
    """
    name = next((f.default for f in fields(kind) if f.name == "kind"), None)
    if not isinstance(name, str):
        raise SpecError(f"{kind.__name__} needs a field 'kind' whose default is the name of the kind")
    if OUTPUTS.setdefault(name, kind) is not kind:
        raise SpecError(f"the kind of output {name!r} is {OUTPUTS[name].__name__} already: choose another name")
    return kind
