"""One run of a network on noise: what its shapes and its metadata leave open, its numbers may tell."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from deploykit.errors import BackendError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import Session, input_arrays, shape_matches

__all__ = ["Probe"]

SECONDS = 60.0
"""The most that the run may take: a network from outside may never end."""


class Probe:
    """The outputs of a network for noise; it runs when they are first asked for.

    Args:
        session: a network with one input of images.
        size: (height, width) to take where the network leaves it open.
    """

    def __init__(self, session: Session, size: tuple[int, int]) -> None:
        self._session, self._size = session, size

    @cached_property
    def outputs(self) -> Mapping[str, Array]:
        """The outputs by name, in float32.

        Raises:
            BackendError: the network failed, or gave outputs of other shapes than it declares, or took longer than its
                session's limit (without one, :data:`SECONDS`).
        """
        info, session = self._session.inputs[0], self._session
        batch, channels, height, width = info.shape
        shape = (batch or 1, channels or 3, height or self._size[0], width or self._size[1])
        noise = np.random.default_rng(0).random(shape, dtype=np.float32)
        own = session.time_limit
        with contextlib.suppress(UsageError):  # a backend that cannot end a run
            session.limit_time(own or SECONDS)
        try:
            found = session.run(input_arrays(info, noise))
        finally:
            session.limit_time(own)
        for each in session.outputs:
            if not isinstance(found[each.name], np.ndarray):
                raise BackendError(
                    f"the output {each.name!r} of the network is no tensor ({each.dtype}): export it without "
                    "ZipMap, or without the sequence"
                )
            if each.shape and not shape_matches(each.shape, found[each.name].shape):
                raise BackendError(
                    f"the network declares its output {each.name!r} as {each}, but gave {found[each.name].shape} for "
                    "noise: export it again"
                )
        return {name: value.astype(np.float32) for name, value in found.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, by its declaration where that is complete."""
        info = next(info for info in self._session.outputs if info.name == name)
        if info.shape and None not in info.shape[1:]:
            return (info.shape[0] or 1, *(side for side in info.shape[1:] if side is not None))
        return self.outputs[name].shape
