"""Adapters of the runtime for each kind of output: their base class and their table.

An adapter belongs to one spec and one set of options. It turns a network's outputs into results, and takes from them
the values by which two networks are compared. To add one, subclass :class:`OutputAdapter` and name it in
:data:`ADAPTERS`, or pass it to :func:`register_runtime_adapter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar, cast

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import CanvasImage
from deploykit.runtime.images.tiles import Tiling
from deploykit.runtime.options import PredictOptions, given_options
from deploykit.runtime.parity.differences import Difference, tensor_difference
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.checks import check_finite
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import TensorInfo
from deploykit.spec import ModelSpec, Output, OutputTensor

__all__ = ["ADAPTERS", "OutputAdapter", "adapter_of", "loaded", "register_runtime_adapter"]

OutputT = TypeVar("OutputT", bound=Output)

EVERY = frozenset({"batch", "every", "max_pixels", "reconnect", "time_limit", "workers"})
"""Options of a prediction that every model has."""


class OutputAdapter(ABC, Generic[OutputT]):
    """One kind of output at run time. The methods that are not abstract suit one float tensor with one entry per image.

    Attributes:
        takes: the options of a prediction (:class:`deploykit.runtime.options.PredictOptions`) that apply here.
        result_type: the class of an image's result.
        stage: name, in a result's timings, of the stage from an image to the network's input.
        gives: what an image becomes, in the words of a benchmark's report.
        done: what was done to the images, in one word; empty where objects were found, which are counted.
        meters: task -> the class that scores its results, as ``module:name`` or itself; tasks without one cannot be
            evaluated. See :class:`deploykit.runtime.evaluate.meter.Meter`.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    result_type: ClassVar[type[ImageResult]]
    stage: ClassVar[str] = "prepare"
    gives: ClassVar[str]
    done: ClassVar[str] = ""
    meters: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, spec: ModelSpec, options: PredictOptions | None = None) -> None:
        """Create the adapter for ``spec``; ``options`` of None means their defaults.

        Raises:
            UsageError: an option of another kind of output, or out of range. SpecError: the spec cannot be used.
        """
        self.spec, self.options = spec, options or PredictOptions()
        self.output = cast(OutputT, spec.output)
        wrong = [name for name in given_options(self.options) if name not in self.takes | EVERY]
        if wrong:
            own = ", ".join(sorted(self.takes)) or "none"
            raise UsageError(
                f"{', '.join(wrong)}: not for the task {spec.task} of this model; options of this task: {own}"
            )
        for name, least in (("max_pixels", 1), ("every", 1), ("reconnect", 0)):
            if getattr(self.options, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self.options, name)}")

    @abstractmethod
    def decode(self, outputs: Mapping[str, Array], slot: int, shown: CanvasImage) -> Callable[..., ImageResult]:
        """Decode image ``slot`` of a batch; return a function that makes a result of the fields that all results have.

        Nothing in the result may be a view of an output, because the next run may reuse its memory.

        Raises:
            SpecError, BackendError: an output has another shape than the spec says.
        """

    def offers(self) -> dict[str, dict[str, Any]]:
        """Return the options that a caller can really change -> the limits of their values, in words of JSON Schema.

        ``filter`` is true of a threshold whose higher values leave objects out of a result and change nothing else.
        """
        return {name: {} for name in self.takes}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the options, one sentence each."""
        return ()

    @property
    def takes_raw(self) -> bool:
        """Whether the network takes the mosaics of RAW files."""
        return False

    def tiling(self, *, fixed_size: bool, batch: int) -> Tiling | None:
        """Return how images that are not run as a whole are cut into tiles; None: they are never cut."""
        return None

    def check_input(self) -> None:
        """Check that the kind can use images that are made into the spec's input.

        Raises:
            SpecError: it cannot.
        """

    def check_outputs(self, found: Sequence[TensorInfo]) -> None:
        """Check the network's outputs, as far as its session knows them, against the spec.

        Raises:
            SpecError: an output is missing, or has another shape.
        """
        by_name = {info.name: info for info in found}
        for tensor in self.spec.output_tensors:
            if not found or (self._is_only and len(found) == 1 and tensor.name not in by_name):
                continue  # a single output is found under any name
            if tensor.name not in by_name:
                raise SpecError(
                    f"the spec names the output {tensor.name!r}, the network has {', '.join(map(repr, by_name))}"
                )
            shape = by_name[tensor.name].shape
            if not _fits(tensor, shape):
                raise SpecError(
                    f"the spec says that output {tensor.name!r} is ({_sides(tensor)}), "
                    f"the network gives {by_name[tensor.name]}"
                )

    def check_values(self, outputs: Mapping[str, Array], images: int) -> None:
        """Check the values of one run: numbers, for as many images as there are, and all of them finite.

        Every output of a prediction passes here before it is decoded, whatever its kind and backend are.

        Args:
            outputs: the outputs of the run.
            images: the number of images in the batch; slots after them mean nothing.

        Raises:
            SpecError: an output does not match the spec.
            NotFiniteError: a value is NaN or infinite.
        """
        for tensor in self.spec.output_tensors:
            found = self.tensor_in(outputs, "the network") if self._is_only else outputs.get(tensor.name)
            if found is None:
                raise SpecError(f"the spec names the output {tensor.name!r}, the network gives {', '.join(outputs)}")
            if found.dtype.kind not in "fiub":
                raise SpecError(f"the output {tensor.name!r} must be numbers, the network gives {found.dtype}")
            if len(found) < images or 0 in found.shape:
                raise SpecError(
                    f"the output {tensor.name!r} must hold values for {images} image{'s' * (images != 1)}, "
                    f"the network gives {found.shape}"
                )
            check_finite(found[:images], tensor.name)

    @property
    def _is_only(self) -> bool:
        """Whether there is a single output, which is found under any name."""
        return len(self.spec.output_tensors) == 1

    def tensor_in(self, outputs: Mapping[str, Array], what: str) -> Array:
        """Return the first of the spec's outputs, or the only one: a third-party export may name it differently.

        ``what`` names the network in messages.

        Raises:
            SpecError: the output is missing, or has another number of axes or columns.
        """
        tensor, *_ = self.spec.output_tensors
        if tensor.name not in outputs and len(outputs) > 1:
            raise SpecError(f"{what} has no output {tensor.name!r}, which the spec names; it has {', '.join(outputs)}")
        found = outputs.get(tensor.name, next(iter(outputs.values())))
        if not _fits(tensor, found.shape):
            raise SpecError(
                f"the task {self.spec.task} needs an output of {len(tensor.axes)} axes ({_sides(tensor)}), "
                f"the output of {what} is {found.shape}"
            )
        return found

    def compared(self) -> Output:
        """Return the layout of :meth:`values` as a kind of output."""
        return self.output

    def values(self, outputs: Mapping[str, Array], fed: tuple[int, ...], name: str) -> Array:
        """Return the values that are compared, one entry per image: the output itself, or the output in pixels.

        Args:
            outputs: the outputs of one run.
            fed: the shape of its input.
            name: the network's name in messages.

        Raises:
            SpecError: the output is not what the spec says.
        """
        found = self.tensor_in(outputs, name)
        if len(found) != fed[0]:
            raise SpecError(f"a batch of {fed[0]} has as many outputs, {name} gives {found.shape}")
        return found

    def differences(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Difference]:
        """Return how far the values of a batch are off, one :class:`Difference` per kind of value.

        Args:
            names: the names of the reference, the candidate and the input.
            expected, found: the values of each slot.
            limits: the tolerance.

        Raises:
            ParityError: the two have different shapes.
        """
        (tensor,) = self.spec.output_tensors
        return [tensor_difference(names, tensor.name, expected, found, limits)]


def _fits(tensor: OutputTensor, shape: tuple[int | None, ...]) -> bool:
    """Whether a shape has a tensor's axes, and its columns, as far as both are known."""
    if len(shape) != len(tensor.axes):
        return False
    side = None if tensor.columns is None else shape[tensor.columns_axis]
    return side is None or tensor.columns is None or side >= tensor.columns


def _sides(tensor: OutputTensor) -> str:
    """The axes of a tensor, with the number of its columns."""
    sides = list(tensor.axes)
    if tensor.columns is not None:
        sides[tensor.columns_axis] = f"{tensor.columns} {sides[tensor.columns_axis]}"
    return ", ".join(sides)


Factory = Callable[[ModelSpec, PredictOptions | None], OutputAdapter[Any]]

ADAPTERS: dict[str, str | Factory] = {
    "rows": "deploykit.runtime.kinds.detection:RowAdapter",
    "anchor-heads": "deploykit.runtime.kinds.anchor_heads:AnchorHeadAdapter",
    "pose-objects": "deploykit.runtime.kinds.detection:PoseAdapter",
    "end-to-end": "deploykit.runtime.kinds.end_to_end:EndToEndAdapter",
    "nms": "deploykit.runtime.kinds.detection:NmsAdapter",
    "tensor": "deploykit.runtime.kinds.dense:dense_adapter",
}
"""Kind of output -> the factory of its adapter: a callable, or ``module:name``, which is imported on first use."""


def adapter_of(spec: ModelSpec, options: PredictOptions | None = None) -> OutputAdapter[Any]:
    """Return the adapter for a network's output.

    Raises:
        SpecError: its kind has no adapter. UsageError: an option does not apply to it.
    """
    kind = spec.output.kind
    if kind not in ADAPTERS:
        raise SpecError(f"there is no runtime adapter for outputs of kind {kind!r}; known are {', '.join(ADAPTERS)}")
    factory: Factory = loaded(ADAPTERS[kind])
    return factory(spec, options)


def register_runtime_adapter(kind: str, adapter: str | Factory) -> None:
    """Register the adapter of a kind of output.

    Raises:
        UsageError: the kind already has another one.
    """
    if ADAPTERS.setdefault(kind, adapter) is not adapter:
        raise UsageError(f"the kind of output {kind!r} has an adapter already: {ADAPTERS[kind]}")


def loaded(entry: Any) -> Any:
    """Resolve an entry of a table of adapters: the object itself, or the one at ``module:name``."""
    if not isinstance(entry, str):
        return entry
    module, name = entry.split(":")
    return getattr(import_module(module), name)
