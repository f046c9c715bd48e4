"""A session without a network, for testing code that uses deploykit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deploykit.errors import BackendError
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import Session, TensorInfo, check_inputs
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = ["FakeSession"]


class FakeSession(Session):
    """A session whose outputs come from a Python function; it checks its inputs as a real session does.

    Args:
        answer: maps the input arrays by name to the output arrays by name.
        inputs: the inputs of the network; by default the one input of ``spec``.
        outputs: the declared outputs; the arrays from ``answer`` are not compared with them.
        spec: stored in the metadata, as in a real artefact.
    """

    def __init__(
        self,
        answer: Callable[[Mapping[str, Array]], dict[str, Array]],
        *,
        spec: ModelSpec | None = None,
        inputs: Sequence[TensorInfo] | None = None,
        outputs: Sequence[TensorInfo] = (),
    ) -> None:
        self._answer = answer
        self._closed = False
        self.inputs = tuple(inputs) if inputs is not None else (input_of(spec),) if spec else ()
        self.outputs = tuple(outputs)
        self.metadata = {METADATA_KEY: spec.to_json()} if spec else {}
        self.providers = ("fake",)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        if self._closed:
            raise BackendError("the fake session is closed")
        check_inputs(self.inputs, inputs)
        return self._answer(inputs)

    def close(self) -> None:
        """Make every later ``run`` fail, as a real session does."""
        self._closed = True


def input_of(spec: ModelSpec) -> TensorInfo:
    """Return the input tensor that a spec describes."""
    size = (None, None) if spec.input.dynamic == "shape" else spec.input.size
    batch = spec.input.batch if spec.input.dynamic == "none" else None
    return TensorInfo(spec.input.name, (batch, spec.input.channels, *size), "float32")
