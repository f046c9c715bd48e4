"""Two networks in sequence as one session: the second takes the outputs of the first."""

from __future__ import annotations

from collections.abc import Mapping

from deploykit.errors import SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import Session

__all__ = ["ChainSession"]


class ChainSession(Session):
    """A network in two stages, each of them a session; closing it closes both.

    ``stage_ms`` and ``device_memory`` are those of the first stage. The metadata, and so the spec, are those of the
    second.

    Raises:
        SpecError: the second stage takes an input that the first does not return.
    """

    def __init__(self, first: Session, second: Session) -> None:
        available = {info.name for info in first.outputs}
        missing = [info.name for info in second.inputs if info.name not in available]
        if missing:
            raise SpecError(
                f"the second stage takes {missing[0]!r}, which the first does not return: they belong to two networks"
            )
        self._first, self._second = first, second
        self.inputs, self.outputs = first.inputs, second.outputs
        self.metadata = second.metadata
        self.providers = (*first.providers, *second.providers)
        self.notes = (*first.notes, *second.notes)
        self.threads, self.threads_from = second.threads, second.threads_from
        self.concurrent = first.concurrent and second.concurrent

    @property
    def stage_ms(self) -> Mapping[str, float]:  # type: ignore[override]  # an attribute of other sessions
        """See :class:`deploykit.runtime.session.Session`."""
        return self._first.stage_ms

    @property
    def device_memory(self) -> int | None:  # type: ignore[override]  # it grows; other sessions have a constant
        """See :class:`deploykit.runtime.session.Session`."""
        return self._first.device_memory

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        between = self._first.run(inputs)
        return self._second.run({info.name: between[info.name] for info in self._second.inputs})

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """See :meth:`deploykit.runtime.session.Session.accepts_shape`."""
        return self._first.accepts_shape(shape)

    def close(self) -> None:
        """Close both sessions."""
        self._first.close()
        self._second.close()
