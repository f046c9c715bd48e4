"""A session that computes an ONNX graph in torch and rounds every tensor to the type that the graph declares.

ONNX Runtime's CPU provider computes half-precision convolutions in float32 between casts and removes pairs of casts, so
it neither rounds nor overflows where a GPU would. It has no bfloat16 convolution at all. This session does what the
graph says. It verifies fp16 and bf16 files, measures the largest value of every tensor, and runs int8 files with exact
quantization, without the saturation of a kernel. It is slower than ONNX Runtime and not meant for deployment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from deploykit.errors import ArtefactError, BackendError
from deploykit.export.sessions.onnx_ops import OPERATORS, TORCH_TYPES, UnsupportedFormError
from deploykit.models.fuse import torch_threads
from deploykit.runtime.arrays import Array
from deploykit.runtime.compute import default_threads
from deploykit.runtime.session import Session, TensorInfo, check_inputs

__all__ = ["OnnxInTorchSession", "open_onnx_in_torch"]

VIEWS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
"""Types that numpy lacks -> a type of the same size through which their bits pass."""

Observer = Callable[[str, Tensor], None]

SIDE_BY_SIDE = 4  # images that are computed at the same time: each holds its activations


class OnnxInTorchSession(Session):
    """An ONNX model without control flow on the CPU.

    Args:
        model: the graph; its weights are shared where they can be, and nothing changes them.
        threads: within one operator; None: :func:`deploykit.runtime.compute.default_threads`, else torch's own setting.
        observe: called with the name and value of every floating-point tensor as soon as a node has computed it.

    Raises:
        BackendError: a node of another domain than ONNX's own, or one with subgraphs.
    """

    def __init__(self, model: ir.Model, *, observe: Observer | None = None, threads: int | None = None) -> None:
        self._observe = observe
        self._opset = model.opset_imports.get("", 18)
        self._nodes = list(model.graph)
        for node in self._nodes:
            if node.domain or any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attributes_of(node)
            ):
                raise BackendError(f"torch does not run the node {node.name!r} ({node.domain}::{node.op_type})")
        self._attributes = [{a.name: a.value for a in _attributes_of(node)} for node in self._nodes]
        self._weights = {
            str(name): _tensor(value.const_value)
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self._output_names = [str(value.name) for value in model.graph.outputs]
        self._ends = _last_uses(self._nodes, self._output_names)
        self.inputs, self.outputs = _infos(model.graph.inputs), _infos(model.graph.outputs)
        self.metadata = dict(model.metadata_props)
        self.providers = ("PyTorch CPU, by the graph's types",)
        self.notes = ()
        self._wanted, self.threads_from = (threads, "as asked for") if threads is not None else default_threads()
        self.threads = torch.get_num_threads() if self._wanted is None else self._wanted

    def with_values(self, values: Mapping[str, Array]) -> OnnxInTorchSession:
        """Return a session of the same graph with these values of stored tensors; all others are shared."""
        new = object.__new__(type(self))
        new.__dict__ |= self.__dict__
        new._weights = self._weights | {name: torch.from_numpy(value) for name, value in values.items()}
        return new

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`; a bfloat16 output is returned as float32."""
        check_inputs(self.inputs, inputs)
        with torch.inference_mode():
            found = self.forward({name: torch.from_numpy(x) for name, x in inputs.items()})
            return {name: _array(x.float() if x.dtype in VIEWS else x) for name, x in found.items()}

    @contextlib.contextmanager
    def in_one_thread(self) -> Iterator[None]:
        """Let each operator compute in one thread while the context lasts; several threads may then call :meth:`run`.

        The order in which a convolution is summed depends on the number of threads, and so do the last bits of its
        result. What is decided by results then depends on it no more.
        """
        before, self._wanted = self._wanted, None
        with torch_threads(1):
            try:
                yield
            finally:
                self._wanted = before

    def run_each(self, images: Iterable[Array]) -> Iterator[dict[str, Array]]:
        """Yield the outputs for images, which are the network's one input, in order.

        Several images are computed at the same time, each in one thread: see :meth:`in_one_thread`.
        """
        (info,), left = self.inputs, iter(images)
        count = max(1, min(self.threads or 1, SIDE_BY_SIDE))
        with self.in_one_thread(), ThreadPoolExecutor(count) as pool:
            while several := list(islice(left, count)):
                yield from pool.map(lambda image: self.run({info.name: image}), several)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs for these inputs, which are not checked.

        They have derivatives by the inputs where all operators on the way are torch's.
        """
        # A copy, because other threads may add weights that they have widened.
        values: dict[str, Tensor] = self._weights.copy() | dict(inputs)
        with self._limited():
            for number in range(len(self._nodes)):
                self._step(number, values)
        return {name: values[name] for name in self._output_names}

    def _limited(self) -> contextlib.AbstractContextManager[None]:
        """The threads of a run."""
        return contextlib.nullcontext() if self._wanted is None else torch_threads(self._wanted)

    def _step(self, number: int, values: dict[str, Tensor]) -> None:
        """Compute one node, unless its result is a constant that is known, and drop what no later node needs."""
        node = self._nodes[number]
        if str(node.outputs[0].name) not in values:
            given = [None if v is None else values[str(v.name)] for v in node.inputs]
            self._note(node, values, self._run_node(node, given, self._attributes[number]))
        for name in self._ends[number]:
            values.pop(name, None)

    def _note(self, node: ir.Node, values: dict[str, Tensor], found: tuple[Tensor, ...]) -> None:
        """Add what a node has computed to the values; a weight that it has widened is widened once for all runs."""
        constant = node.op_type == "DequantizeLinear" and all(str(v.name) in self._weights for v in node.inputs if v)
        for value, one in zip(node.outputs, found, strict=False):
            name = str(value.name)
            values[name] = one
            if constant:
                self._weights[name] = one
            if self._observe is not None and one.is_floating_point():
                self._observe(name, one)

    def close(self) -> None:
        """Drop the weights."""
        self._weights.clear()

    def _run_node(self, node: ir.Node, given: list[Tensor | None], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        function = OPERATORS.get(node.op_type)
        try:
            if function is not None:
                try:
                    found = function(given, attributes)
                    several = found if isinstance(found, tuple) else (found,)
                    if not any(value.name for value in node.outputs[len(several) :]):
                        return several
                except UnsupportedFormError:
                    pass
            return _run_by_reference(node, given, self._opset)
        except Exception as e:  # torch and onnx raise what their many operators raise
            raise BackendError(f"the node {node.name!r} ({node.op_type}) failed in torch: {e}") from e


def open_onnx_in_torch(path: Path, *, threads: int | None = None) -> OnnxInTorchSession:
    """Open an ONNX file as a :class:`OnnxInTorchSession`, on the CPU with so many threads within one operator.

    Raises:
        ArtefactError: it is no ONNX file. BackendError: torch cannot run it.
    """
    try:
        model = ir.load(path)
    except Exception as e:  # protobuf's errors have no base class of their own
        raise ArtefactError(f"{path} is not a whole ONNX file: {str(e).splitlines()[0]}") from e
    return OnnxInTorchSession(model, threads=threads)


def _last_uses(nodes: Sequence[ir.Node], outputs: Sequence[str]) -> list[list[str]]:
    """For each node the values that nothing needs after it."""
    last: dict[str, int] = {}
    for number, node in enumerate(nodes):
        last |= {str(value.name): number for value in (*node.inputs, *node.outputs) if value is not None}
    found: list[list[str]] = [[] for _ in nodes]
    for name, number in last.items():
        if name not in outputs:
            found[number].append(name)
    return found


def _attributes_of(node: ir.Node) -> list[ir.Attr]:
    return [a for a in node.attributes.values() if isinstance(a, ir.Attr)]


def _tensor(value: Any) -> Tensor:
    """An initializer as a torch tensor."""
    kind = TORCH_TYPES.get(int(value.dtype))
    if kind is None:
        raise BackendError(f"torch does not run tensors of the type {value.dtype}")
    array = np.require(
        value.numpy(), requirements=["C", "W"]
    )  # torch warns of what it may not write; it writes nothing
    if kind in VIEWS:
        bits = array.view(np.int16 if VIEWS[kind] == torch.int16 else np.uint8)
        return torch.from_numpy(bits).view(kind)
    return torch.from_numpy(array)


def _array(value: Tensor) -> Array:
    array: Array = value.detach().contiguous().numpy()
    return array


def _infos(values: Any) -> tuple[TensorInfo, ...]:
    infos = []
    for value in values:
        sides = tuple(side if isinstance(side, int) else None for side in value.shape or ())
        name = "float32" if value.dtype is None else value.dtype.numpy().name
        infos.append(TensorInfo(str(value.name), sides, "float32" if name == "bfloat16" else name))
    return tuple(infos)


def _run_by_reference(node: ir.Node, given: list[Tensor | None], opset: int) -> tuple[Tensor, ...]:
    """Compute a node by onnx's reference implementation, in float32 where numpy lacks the type."""
    narrow = next((v.dtype for v in given if v is not None and v.dtype in (torch.float16, torch.bfloat16)), None)
    feeds = {
        str(value.name): _array(x.float() if x.dtype == narrow else x)
        for value, x in zip(node.inputs, given, strict=True)
        if value is not None and x is not None
    }
    proto = ir.serde.serialize_node(node)
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(str(v.name), onnx.TypeProto()) for v in node.outputs if v.name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    found = [torch.from_numpy(np.array(x)) for x in ReferenceEvaluator(model).run(None, feeds)]
    return tuple(x.to(narrow) if narrow is not None and x.is_floating_point() else x for x in found)
