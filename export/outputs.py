"""What an export does with each kind of output: the base of the adapters, and their table.

An adapter says how two networks' results are matched, how far off one is as a single number, and whether NMS can
follow. :class:`ExportAdapter` itself serves a kind of one float tensor. To
add one, name it in :data:`ADAPTERS`, or pass it to :func:`register_export_adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.export.matching import Matching
from deploykit.runtime.arrays import Array
from deploykit.runtime.outputs import adapter_of, loaded
from deploykit.runtime.parity.expected import values_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session
from deploykit.spec import ModelSpec, Output, RawDetections

__all__ = ["ADAPTERS", "ExportAdapter", "export_adapter_of", "register_export_adapter"]

O = TypeVar("O", bound=Output)  # noqa: E741  (the field's letter for an output)


class ExportAdapter(Generic[O]):
    """One kind of output at export, made for one spec; ``runtime`` is the runtime's adapter for it.

    Attributes:
        meaning: what the screen calls the sentence that describes the output.
        decode: what is still to be done to the values to make pixels of them.
    """

    meaning: ClassVar[str] = "meaning"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.output = spec, cast(O, spec.output)
        self.runtime = adapter_of(spec)

    @property
    def decode(self) -> str:
        """See the class."""
        return "none"

    def compared(self) -> Output:
        """The layout of :meth:`reference_values`, as a kind of output."""
        return self.runtime.compared()

    def reference_values(self, session: Session, image: Array, name: str) -> Array:
        """What a reference gives for one image, as it is compared; ``name`` is the reference's in messages.

        Raises:
            SpecError: the output is not what the spec says.
        """
        return values_of(session, image, self.runtime.values, name)

    def match(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Matching]:
        """Match what follows from the values of a batch, where more follows than their differences tell.

        Args:
            names: of the reference, the candidate and the input.
            expected, found: the values of each slot.
            limits: how far they may be off.
        """
        return []

    def error(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
        """How far outputs are off, as one number without a unit: the root of the mean square error as a share of that
        of the values."""
        return sum(
            float(np.sqrt(np.mean((found[name] - x) ** 2) / max(float(np.mean(x**2)), 1e-30)))
            for name, x in ((name, x.astype(np.float64)) for name, x in expected.items())
        )

    def rows_for_nms(self, mode: str) -> RawDetections:
        """The rows that NMS of a mode follows.

        Raises:
            UsageError: it cannot.
        """
        raise UsageError(f"--nms {mode} is for detectors: this model's task is {self.spec.task}, and it finds no boxes")


Factory = Callable[[ModelSpec], ExportAdapter[Any]]

ADAPTERS: dict[str, str | Factory] = {
    "rows": "deploykit.export.kinds.detection:RowExport",
    "pose-objects": "deploykit.export.kinds.detection:PoseExport",
    "nms": "deploykit.export.kinds.detection:NmsExport",
    "tensor": "deploykit.export.kinds.dense:dense_export",
}
"""Kind of output -> what makes its adapter: a class, or ``module:name``, imported when it is needed."""


def export_adapter_of(spec: ModelSpec) -> ExportAdapter[Any]:
    """The adapter for a network's output.

    Raises:
        SpecError: there is none for its kind.
    """
    kind = spec.output.kind
    if kind not in ADAPTERS:
        raise SpecError(f"nothing here exports an output of kind {kind!r}; known are {', '.join(ADAPTERS)}")
    factory: Factory = loaded(ADAPTERS[kind])
    return factory(spec)


def register_export_adapter(kind: str, adapter: str | Factory) -> None:
    """Enter the adapter of a kind of output into the table.

    Raises:
        UsageError: the kind has one already.
    """
    if ADAPTERS.setdefault(kind, adapter) is not adapter:
        raise UsageError(f"the kind of output {kind!r} has an adapter already: {ADAPTERS[kind]}")
