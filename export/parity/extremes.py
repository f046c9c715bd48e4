"""Whole images that show nothing, and values far outside of those a network was trained on.

A network that divides by what it measures (the deviation of a map, the length of a vector) divides by nearly nothing in
an image of one colour. A constant that an exporter dropped, or that float32 rounds away, then gives NaN, and no
photograph shows it. So files of such networks also run on whole black and white images, on one of one colour, and on
ten times a photograph that stands on its head. Other networks have the first three as parts of the noise image: of
what they look at, no sum reaches over the whole image.

The reference is the checkpoint in float32, because a float64 one costs twice as much; it is computed where the two
differ. Such images have no detections, and rows of equal cells tie, so what is compared is values and no results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.errors import BackendError, ParityError
from deploykit.export.outputs import ExportAdapter, export_adapter_of
from deploykit.export.parity.inputs import BLACK, GREY_LEVEL, WHITE, plain_image, turned
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs, runs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session, input_arrays
from deploykit.spec import InputSpec, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BEYOND", "Extremes", "divides", "extreme_inputs", "first_not_finite", "plain_too", "with_plain"]

ONE_COLOUR, BEYOND = "one colour", "ten times the image upside down"
LARGE = 3e10  # multiply-adds, about; a network that takes more gets the image of one colour alone
CELL = 16 * 16  # pixels to a place: a network has about as many multiply-adds as weights for each of them
ROUNDING = 2.0**-19  # of a value: sums of a whole map in float32 are off by so much, 16 times their last bit
FLOAT32_SHARE = 3.0  # times what float32 itself is off in PyTorch, as in export/parity/float32_noise.py

DIVIDERS = {
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "LpNormalization",
    "MeanVarianceNormalization", "RMSNormalization", "Reciprocal", "ReduceL2", "Sqrt",
}  # fmt: skip


def divides(graph: ir.Graph) -> bool:
    """Whether a graph divides by something that it has computed, or normalises."""
    return any(node.op_type in DIVIDERS or (node.op_type == "Div" and not _constant(node.inputs[1])) for node in graph)


def _constant(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return value is None or value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def plain_inputs(canvas: InputSpec, image: Array, parameters: int) -> dict[str, Array]:
    """Return the images of one colour by label, of the size of ``image (1, C, H, W)``.

    ``one colour`` is zero in every value where a mean is subtracted, which no black image is then; else it is grey. A
    network that is large by its number of parameters gets that one alone.
    """
    size = (image.shape[2], image.shape[3])
    zero = np.zeros_like(image) if any(canvas.mean) else plain_image(canvas, GREY_LEVEL, size)
    if parameters * (size[0] * size[1] / CELL) > LARGE:
        return {ONE_COLOUR: zero}
    return {ONE_COLOUR: zero, "black": plain_image(canvas, BLACK, size), "white": plain_image(canvas, WHITE, size)}


def with_plain(feeds: ParityInputs, canvas: InputSpec, graph: ir.Graph) -> dict[str, Array]:
    """Return the images of a check by label, with :func:`plain_inputs` where a graph divides."""
    if not divides(graph):
        return dict(feeds.images)
    weights = (value.const_value for value in graph.initializers.values())
    parameters = sum(weight.size for weight in weights if weight is not None)
    return {**feeds.images, **plain_inputs(canvas, feeds.first, parameters)}


def plain_too(feeds: ParityInputs, canvas: InputSpec, graph: ir.Graph) -> ParityInputs:
    """Return the inputs of a comparison with :func:`with_plain`, each in a batch of its own."""
    images = with_plain(feeds, canvas, graph)
    more = tuple(Batch(label, (label,)) for label in images if label not in feeds.images)
    return ParityInputs(images, (*feeds.batches, *more), feeds.notes)


def extreme_inputs(canvas: InputSpec, image: Array, parameters: int) -> ParityInputs:
    """Return the images of a check, each by itself, or with a fixed batch together.

    With a free shape they have half of the sides, in whole strides.

    Args:
        canvas: the input of the network.
        image: the first sample, ``(1, C, H, W)``.
        parameters: of the network: see :func:`plain_inputs`.
    """
    if canvas.dynamic == "shape":
        stride, least = canvas.fit.stride, canvas.fit.least
        height, width = (min(side, -(-max(side // 2, least) // stride) * stride) for side in image.shape[2:])
        image = image[:, :, :height, :width]
    images = plain_inputs(canvas, image, parameters)
    if len(images) > 1:
        images[BEYOND] = 10 * turned(image)
    slots, labels = canvas.batch if canvas.dynamic == "none" else 1, list(images)
    rounds = [tuple(labels[(at + i) % len(labels)] for i in range(slots)) for at in range(0, len(labels), slots)]
    return ParityInputs(images, tuple(Batch(", ".join(dict.fromkeys(names)), names) for names in rounds))


@dataclass(frozen=True)
class Extremes:
    """The check of one fp32 file on :func:`extreme_inputs`.

    Attributes:
        feeds: the images.
        name, file: the file's name in the report, and the file.
        spec: the spec of the file.
        limits: the tolerance.
        reference: computes the values of images by the checkpoint in float32, or (True) in float64.
        progress: receives the image that is computed.
    """

    feeds: ParityInputs
    name: str
    file: Path
    spec: ModelSpec
    limits: Tolerance
    reference: Callable[[ParityInputs, bool], ReferenceOutputs]
    progress: Progress = SILENT

    def compare(self, candidate: Session) -> tuple[list[Difference], list[str], ReferenceOutputs]:
        """Compare the values of each image.

        Returns:
            The differences within the limits, notes, and the reference values in float32.

        Raises:
            ParityError: values differ by more than float32 costs, or an image of one colour gives values that are not
                finite, by the checkpoint or by the file: cameras take such images. Values outside of what was trained
                may overflow, where the checkpoint in float32 does too.
        """
        expected = self.reference(self.feeds, False)
        adapter = export_adapter_of(self.spec)
        kept: list[Difference] = []
        notes: list[str] = []
        for batch, reference, rows, found in runs(
            expected, self.name, candidate, adapter.runtime.values, self.progress
        ):
            for label, a, b in dict(
                zip(batch.images, zip(batch.images, rows, found, strict=True), strict=True)
            ).values():
                differences = self._differences(adapter, reference, label, a, b)
                if all(d.ok for d in differences):
                    kept += differences
                else:
                    notes.append(self._explained(adapter, label, a, b))
        return kept, notes, expected

    def _differences(
        self, adapter: ExportAdapter[Any], reference: str, label: str, a: Array, b: Array
    ) -> list[Difference]:
        return list(adapter.runtime.differences((reference, self.name, label), [a], [b], self.limits))

    def _explained(self, adapter: ExportAdapter[Any], label: str, float32: Array, found: Array) -> str:
        """Return the note that explains a difference from the checkpoint in float32, or raise an error."""
        exact = self.reference(self._alone(label), True)
        ((reference, by_label),) = exact.rows.items()
        values = by_label[label]
        if not np.isfinite(values).all():
            if label == BEYOND:
                return f"{reference} gives values that are not finite on {label}: nothing is compared there"
            raise ParityError(
                f"{reference} itself gives values that are not finite on an image of one colour ({label})"
                f"{self.first(label)}: add to what it divides by, or export with --no-check"
            )
        if not np.isfinite(found).all():
            if label == BEYOND and not np.isfinite(float32).all():
                return f"float32 overflows on {label}{self.first(label)}, in the checkpoint as well"
            raise ParityError(
                f"{self.name} was not kept: it gives values that are not finite on {label}{self.first(label)}, and "
                f"{reference} in float64 does not"
            )
        differences = self._differences(adapter, reference, label, values, found)
        samples = [float32, self._rounded(label)]
        costs = [self._differences(adapter, reference, label, values, sample) for sample in samples]
        for d, *cost in zip(differences, *costs, strict=True):
            if not d.limit_ratio <= max(1.0, FLOAT32_SHARE * max(c.limit_ratio for c in cost)):
                raise ParityError(f"{self.name} does not agree with its source and was not kept: {d}")
        most, torch, rounding = (max(d.limit_ratio for d in each) for each in (differences, *costs))
        return (
            f"on {label} values are {most:.3g} times the tolerance off, which float32 explains: PyTorch is off by "
            f"{torch:.3g} times, and pixels that are off by 2e-6 of themselves by {rounding:.3g} times"
        )

    def _rounded(self, label: str) -> Array:
        """Return the checkpoint's values in float64 for an image whose pixels are off by rounding.

        A deviation of one colour is rounding alone, which is none in one computation and some in another.
        """
        image = self.feeds.images[label]
        bits = np.random.default_rng(0).choice(np.array([-ROUNDING, ROUNDING], np.float32), image.shape)
        exact = self.reference(ParityInputs({label: image + bits * image}, (Batch(label, (label,)),)), True)
        return next(iter(exact.rows.values()))[label]

    def _alone(self, label: str) -> ParityInputs:
        return ParityInputs({label: self.feeds.images[label]}, (Batch(label, (label,)),))

    def check_finite(self, candidate: Session) -> None:
        """Check that a network that chooses its detections gives numbers on images of one colour.

        Cells of such an image tie, so two correct networks choose others.

        Raises:
            ParityError: a value is not finite.
        """
        info = candidate.inputs[0]
        for label, image in self.feeds.images.items():
            self.progress.step(f"{self.name} on {label}")
            fed = image.repeat(info.shape[0] or 1, 0)
            found = candidate.run(input_arrays(info, fed))
            if label != BEYOND and not all(np.isfinite(x).all() for x in found.values() if x.dtype.kind == "f"):
                raise ParityError(
                    f"{self.name} was not kept: it gives values that are not finite on an image of one colour "
                    f"({label}){self.first(label)}"
                )

    def first(self, label: str) -> str:
        """Name the first tensor of the file that is not finite on an image; empty where none is, or none can tell."""
        try:
            name = first_not_finite(ir.load(self.file), self.feeds.images[label])
        except BackendError:  # operators that only libraries of ours have
            return ""
        return f" (the first is the tensor {name!r} of {self.name})" if name else ""


class _FoundError(Exception):
    """Ends a run: its argument is the name of a tensor."""


def first_not_finite(graph: ir.Model, image: Array) -> str:
    """Return the name of the first tensor of a graph that is not finite on an image; empty: all are.

    Raises:
        BackendError: torch cannot run the graph.
    """
    from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession  # torch, which few comparisons need

    def observe(name: str, value: Tensor) -> None:
        if not value.float().isfinite().all():
            raise _FoundError(name)

    with OnnxInTorchSession(graph, observe=observe) as session:
        (info,) = session.inputs
        try:
            session.run({info.name: image.repeat(info.shape[0] or 1, 0)})
        except _FoundError as e:
            return str(e.args[0])
    return ""
