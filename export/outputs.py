"""Export adapters: what an export does with each kind of output.

An adapter matches the results of two networks, gives their difference as a single number, and says whether NMS can
follow. :class:`ExportAdapter` itself serves a kind of one float tensor. To add an adapter, name it in
:data:`ADAPTERS`, or pass it to :func:`register_export_adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, cast

from deploykit.errors import SpecError, UsageError
from deploykit.export.matching import Matching
from deploykit.runtime.arrays import Array
from deploykit.runtime.outputs import adapter_of, loaded
from deploykit.runtime.parity.expected import values_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session
from deploykit.spec import ModelSpec, Output, RawDetections

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ADAPTERS",
    "ExportAdapter",
    "Packaged",
    "export_adapter_of",
    "finite_or_infinite",
    "register_export_adapter",
]

OutputT = TypeVar("OutputT", bound=Output)


@dataclass(frozen=True)
class Packaged:
    """An output as the ultralytics package lays it out.

    Attributes:
        output: its kind and columns.
        arrangement: what is done to the network's values for it.
        facts: what the package's metadata say of it beside what they say of every output.
    """

    output: Output
    arrangement: Literal["none", "columns first", "softmax"] = "none"
    facts: Mapping[str, Any] = field(default_factory=dict)


class ExportAdapter(Generic[OutputT]):
    """The adapter of one kind of output, created for one spec; ``runtime`` is the runtime's adapter of that kind.

    Attributes:
        meaning: the label on the screen of the sentence that describes the output.
        decode: the decoding that the values still need to be in pixels.
        decides: whether results are decisions, such as objects or classes, which stay or go; else they are values.
    """

    meaning: ClassVar[str] = "meaning"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.output = spec, cast(OutputT, spec.output)
        self.runtime = adapter_of(spec)

    @property
    def decode(self) -> str:
        """See the class."""
        return "none"

    @property
    def decides(self) -> bool:
        """See the class."""
        return True

    @property
    def scoring(self) -> str:
        """What the score of a detection is, in a word; empty: the output has only one meaning."""
        return ""

    def compared(self) -> Output:
        """Return the layout of :meth:`reference_values`, as a kind of output."""
        return self.runtime.compared()

    def reference_values(self, session: Session, image: Array, name: str) -> Array:
        """Return the reference values for one image; ``name`` names the reference in messages.

        Raises:
            SpecError: the output is not what the spec says.
        """
        return values_of(session, image, self.runtime.values, name)

    def match(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Matching]:
        """Match the results that follow from a batch of values; a kind without such results returns nothing.

        Args:
            names: the names of the reference, the candidate and the input.
            expected, found: the values of each slot.
            limits: the tolerance.
        """
        return []

    def error(self, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Tensor:
        """Return the error of the outputs as one number without a unit; infinity if a value is not finite.

        It is the root mean square error relative to the root mean square of the values, summed over the outputs. It has
        a derivative by ``found``.
        """
        import torch

        parts = []
        for name, x in ((name, x.double()) for name, x in expected.items()):
            share = (found[name] - x).square().mean().div(x.square().mean().clamp(min=1e-30))
            parts.append(share if float(share.detach()) == 0.0 else share.sqrt())  # a root has no derivative at 0
        return finite_or_infinite(torch.stack(parts).sum())

    def packaged(self, first: str, second: str) -> Packaged | None:
        """Return the output as the ultralytics package lays it out; None: it has no such output.

        ``first`` and ``second`` are the names of the package's outputs.
        """
        return None

    def rows_for_nms(self, mode: str) -> RawDetections:
        """Return the layout of the rows that NMS of this mode takes.

        Raises:
            UsageError: NMS cannot follow this kind of output.
        """
        raise UsageError(f"--nms {mode} is for detectors: this model's task is {self.spec.task}, and it finds no boxes")


def finite_or_infinite(error: Tensor) -> Tensor:
    """Return an error, or infinity in place of NaN, which would be neither larger nor smaller than others."""
    import torch

    return error if bool(error.isfinite()) else torch.full_like(error, torch.inf)


Factory = Callable[[ModelSpec], ExportAdapter[Any]]

ADAPTERS: dict[str, str | Factory] = {
    "rows": "deploykit.export.kinds.detection:RowExport",
    "anchor-heads": "deploykit.export.kinds.detection:AnchorHeadExport",
    "pose-objects": "deploykit.export.kinds.detection:PoseExport",
    "end-to-end": "deploykit.export.kinds.end_to_end:EndToEndExport",
    "nms": "deploykit.export.kinds.detection:NmsExport",
    "tensor": "deploykit.export.kinds.dense:dense_export",
}
"""Kind of output -> the factory of its adapter: a class, or ``module:name``, which is imported on first use."""


def export_adapter_of(spec: ModelSpec) -> ExportAdapter[Any]:
    """Return the adapter for a network's output.

    Raises:
        SpecError: its kind has no adapter.
    """
    kind = spec.output.kind
    if kind not in ADAPTERS:
        raise SpecError(f"there is no export adapter for outputs of kind {kind!r}; known are {', '.join(ADAPTERS)}")
    factory: Factory = loaded(ADAPTERS[kind])
    return factory(spec)


def register_export_adapter(kind: str, adapter: str | Factory) -> None:
    """Register the adapter of a kind of output.

    Raises:
        UsageError: the kind already has an adapter.
    """
    if ADAPTERS.setdefault(kind, adapter) is not adapter:
        raise UsageError(f"the kind of output {kind!r} has an adapter already: {ADAPTERS[kind]}")
