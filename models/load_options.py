"""What may be asked of the loading of a checkpoint; importing it loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LoadOptions"]


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded, where the file leaves it open.

    Attributes:
        entry: dotted name of the entry whose weights are taken, ``model`` or ``ema.module``; empty: the entry that
            docs/checkpoints.md names, which is an average of the weights where the file has one.
    """

    entry: str = ""
