"""A float32 or quantized graph in ONNX Runtime, whose inner tensors can be looked at.

It takes two thirds of the time that PyTorch takes (:mod:`deploykit.export.sessions.onnx_in_torch`), and computes the
same: pairs of QuantizeLinear and DequantizeLinear stay pairs, so that a layer multiplies the rounded values in float32
and no kernel of a processor saturates. Each image is computed in one thread, because the sum of a convolution depends
on how threads share it, and what is decided by results should not.

A tensor that is looked at is not copied as a whole. The graph itself finds its largest value, and gives some of its
rows where it is large, so that all tensors of a large network take little memory.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from deploykit.atomic import temporary_folder
from deploykit.export.graph.finalize import write
from deploykit.export.graph.passes import drop_weights, initializers_of
from deploykit.export.precision.qdq import constant
from deploykit.export.sessions.onnx_in_torch import SIDE_BY_SIDE, OnnxInTorchSession
from deploykit.models.fuse import torch_threads
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.ort import open_session
from deploykit.runtime.compute import default_threads
from deploykit.runtime.session import Session

__all__ = [
    "BINS", "Look", "ObservedGraph", "Running", "network_of", "on_grid", "outputs_of_each", "scales_of", "values_of",
    "with_peaks",
]  # fmt: skip

Look = Callable[[str, float, Array], None]
"""Receives a tensor's name, its largest absolute value on an image (NaN or infinite if a value is not finite), and some
of its values. Several threads call it."""

ENOUGH = 2**16  # values of a tensor that are looked at on each image, or more
SPARSEST = 4  # of so many rows at least one is looked at

GRIDS = (ir.DataType.FLOAT, ir.DataType.UINT8)  # of scales, and of zero points where activations have their own
BINS = 2048  # bins of a histogram of absolute values
GRID = 8  # significant bits of a largest value
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN)


class ObservedGraph:
    """A graph in ONNX Runtime with one input, for images that are computed side by side.

    ``tensors`` are float tensors that a node computes; ``look`` receives them. ``varying`` are stored tensors that may
    have other values later (:meth:`with_values`).

    Raises:
        BackendError: ONNX Runtime does not run the graph. MissingDependencyError: it is not installed.
    """

    def __init__(
        self, graph: ir.Model, tensors: Sequence[str] = (), look: Look | None = None, varying: Collection[str] = ()
    ) -> None:
        self._outputs = [str(value.name) for value in graph.graph.outputs]
        self._look = look
        self._values = values_of(graph, varying)
        graph = graph.clone()
        for name in varying:
            value = graph.graph.initializers.pop(name)
            value.const_value = None
            graph.graph.inputs.append(value)
        self._parts = _with_parts(graph, tensors)
        with temporary_folder() as folder:
            weights = sum(each.size for each in initializers_of(graph))
            file = write(graph, folder / "observed.onnx", weights, check=False)
            self._session: Session = open_session(file, provider="cpu", threads=1, optimization="pairs")
        drop_weights(graph)  # of the copy, whose cycles would keep them for a while
        (self.input,) = (given for given in self._session.inputs if given.name not in varying)

    def with_values(self, values: Mapping[str, Array]) -> ObservedGraph:
        """Return the same network with these values of its varying tensors."""
        new = copy.copy(self)
        new._values = {**self._values, **values}
        return new

    def close(self) -> None:
        """Close the network, with all that have other values."""
        self._session.close()

    def __enter__(self) -> ObservedGraph:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def run_each(self, images: Iterable[Array]) -> Iterator[dict[str, Array]]:
        """Yield the graph's outputs for each image, in order, after its tensors were looked at."""
        left, count = iter(images), max(1, min(default_threads()[0] or torch.get_num_threads(), SIDE_BY_SIDE))
        with torch_threads(1), ThreadPoolExecutor(count) as pool:
            while several := list(islice(left, count)):
                yield from pool.map(self._run, several)

    def _run(self, image: Array) -> dict[str, Array]:
        found = self._session.run({self.input.name: image, **self._values})
        for tensor, (most, least, total, some) in self._parts.items():
            assert self._look is not None
            top = max(float(found[most]), -float(found[least]))
            self._look(tensor, top if np.isfinite(found[total]) else float(found[total]), found[some])
        return {name: found[name] for name in self._outputs}


def outputs_of_each(graph: ir.Model, images: Sequence[Array]) -> Iterator[dict[str, Array]]:
    """Yield a graph's outputs for each image, computed in one thread: see :func:`network_of`."""
    with network_of(graph) as network:
        yield from network.run_each(images)


def network_of(graph: ir.Model, varying: Collection[str] = ()) -> ObservedGraph | OnnxInTorchSession:
    """Return a graph for images that are computed in one thread each; ``varying`` as of :class:`ObservedGraph`.

    PyTorch computes graphs with fp8, which ONNX Runtime lacks, and with halves, which it would not round.
    """
    return OnnxInTorchSession(graph) if _has(NARROW, graph) else ObservedGraph(graph, varying=varying)


def scales_of(graph: ir.Model) -> list[str]:
    """Return the names of the scales and zero points with which a quantized graph rounds activations."""
    quantizing = (node for node in graph.graph if node.op_type == "QuantizeLinear")
    given = (value for node in quantizing for value in node.inputs[1:] if value is not None)
    return list(dict.fromkeys(str(value.name) for value in given if value.dtype in GRIDS))


def values_of(graph: ir.Model, names: Collection[str]) -> dict[str, Array]:
    """Return the values of stored tensors."""
    found = {}
    for name in names:
        stored = graph.graph.initializers[name].const_value
        assert stored is not None
        found[name] = np.array(stored.numpy())
    return found


def with_peaks(graph: ir.Model, tensors: Collection[str]) -> dict[str, str]:
    """Add the largest absolute value of each channel of tensors to a graph in place, and return its names by tensor.

    Channels lie on axis 1, with at least one axis behind them; the added tensors are ``(channels, 1)``.
    """
    if not tensors:
        return {}
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    one = constant(graph.graph, "peak:one", np.array([1]))
    found = {}
    for number, tensor in enumerate(tensors):
        value: ir.Value = values[tensor]
        # The largest of a row is the first of TopK: it has no axes, which are an attribute or an input by opset.
        for kind, further in ("Abs", ()), ("GlobalMaxPool", ()), ("Flatten", ()), ("Transpose", ()), ("TopK", (one,)):
            node = ir.node(kind, [value, *further], num_outputs=len(further) + 1, name=f"peak:{kind}:{number}")
            graph.graph.append(node)
            value = node.outputs[0]
            value.name, value.type = str(node.name), ir.TensorType(ir.DataType.FLOAT)
        found[tensor] = str(value.name)
    return found


def _has(types: Collection[ir.DataType], model: ir.Model) -> bool:
    """Whether a graph stores tensors of these types, or makes some."""
    made = (node.attributes["to"].value for node in model.graph if node.op_type == "Cast")
    return any(value.dtype in types for value in model.graph.initializers.values()) or any(to in types for to in made)


def _with_parts(model: ir.Model, tensors: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Add outputs to a graph in place, and return their names for each tensor.

    They are its largest and its smallest value, the sum of absolute values, which tells whether all are finite (the
    other two ignore NaN), and some of its rows.
    """
    if not tensors:
        return {}
    graph: Any = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    numbers = {"0": [0], "1": [1], "end": [2**62], "enough": [ENOUGH], "sparsest": [SPARSEST]}
    given = {name: constant(graph, f"observed:{name}", np.array(number)) for name, number in numbers.items()}
    found = {}

    def add(kind: str, inputs: Sequence[ir.Value], name: str, attributes: dict[str, Any] | None = None) -> ir.Value:
        node = ir.node(kind, inputs, attributes or {}, name=name)
        node.outputs[0].name = name
        graph.append(node)
        return node.outputs[0]

    # ONNX Runtime walks back from the last of the nodes that none follows, so what is looked at first comes last here:
    # a tensor is then looked at, and freed, as soon as it is there, and not when the whole network is.
    for number, tensor in reversed(list(enumerate(tensors))):
        value, name = values[tensor], f"observed:{number}"
        scalars = [
            add(kind, [value], f"{name}:{kind}", {"keepdims": 0}) for kind in ("ReduceMax", "ReduceMin", "ReduceL1")
        ]
        size = add("Reshape", [add("Size", [value], f"{name}:size"), given["1"]], f"{name}:sizes")
        step = add("Div", [size, given["enough"]], f"{name}:steps")
        step = add("Min", [add("Max", [step, given["1"]], f"{name}:step"), given["sparsest"]], f"{name}:sparse")
        rows = add("Flatten", [value], f"{name}:rows", {"axis": -1})
        some = add("Slice", [rows, given["0"], given["end"], given["0"], step], f"{name}:some")
        for value in (*scalars, some):
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.extend([*scalars, some])
        found[tensor] = tuple(str(value.name) for value in (*scalars, some))
    return found


class Running:
    """The largest absolute value of a tensor and a histogram, while images come: one run of each image is enough.

    The bins end at a power of two, and pairs of them become one when a value lies beyond it. They are so many that
    :data:`BINS` of up to the largest value, which is known at the end, are at least four of them each.
    """

    FINE = 8 * BINS

    def __init__(self) -> None:
        self._lock = threading.Lock()  # images are run side by side, and their order changes nothing
        self.largest = 0.0
        self._exponent = -100  # of the power of two; smaller ones are too small for float32's reciprocals
        self._fine = torch.zeros(self.FINE, dtype=torch.int64)

    def add(self, largest: float, some: torch.Tensor) -> None:
        """Add the values of one image: the largest absolute one, and the values that are counted."""
        sizes = some.abs()
        with self._lock:
            self._add(largest, sizes)

    def _add(self, largest: float, sizes: torch.Tensor) -> None:
        self.largest = float(np.maximum(self.largest, largest))  # NaN stays NaN
        if not math.isfinite(self.largest):
            return
        needed = math.frexp(self.largest)[1] if self.largest else self._exponent  # 0 has no power of two above it
        while needed > self._exponent:
            steps = min(needed - self._exponent, int(math.log2(self.FINE)))
            merged = self._fine.reshape(-1, 2**steps).sum(1)
            self._fine = torch.cat([merged, merged.new_zeros(self.FINE - len(merged))])
            self._exponent += steps
        scaled = sizes.mul_(math.ldexp(self.FINE, -self._exponent))
        self._fine += torch.bincount(scaled.to(torch.int32).flatten(), minlength=self.FINE)

    def counts(self) -> Array:
        """Return the histogram in equal bins from 0 to the largest value of :func:`on_grid`.

        A bin on the border of two is shared.
        """
        ends = np.linspace(0.0, math.ldexp(on_grid(self.largest) * self.FINE, -self._exponent), BINS + 1)
        below = np.concatenate([[0], np.cumsum(self._fine.numpy())])
        shared = np.round(np.interp(ends, np.arange(self.FINE + 1), below))
        shared[-1] = below[-1]
        counts: Array = np.diff(shared)
        return counts


def on_grid(largest: float) -> float:
    """Return a largest value rounded up to :data:`GRID` significant bits.

    The last bits of an activation depend on the order in which a convolution is summed, and so on the number of
    threads. Ranges that follow from them would give the same checkpoint other bytes on another machine. The range
    grows by less than 1 %, and by a third of that on average. A value that exceeds a step by less than rounding errors
    can explain is that step, because largest values such as 1 lie on one.
    """
    mantissa, exponent = math.frexp(largest)
    return math.ldexp(math.ceil(mantissa * 2**GRID - 2**-10), exponent - GRID)
