"""What is known of a kind of command: how it is prepared, called and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INPUTS", "OUT", "PLACE", "Kind"]

INPUTS = "../in"
"""The folder of what a command reads, from the folder that it runs in."""

PLACE = "DEPLOYKIT_KILLS_INPUTS"
"""The environment variable with the whole path of that folder."""

OUT = "out"
"""The folder of what it writes."""


def nothing_doubtful(folder: Path) -> str:
    """No check besides that of the bytes."""
    return ""


@dataclass(frozen=True)
class Kind:
    """A kind of command.

    Attributes:
        name: what it is called.
        prepare: writes what the command reads into a folder.
        words: the command; True: the one that wrote the artefact that was there before.
        together: names of files in ``out`` that must be of one version, if they are there.
        removed_first: files that a run may remove before it writes the new ones, because they say something about
            others.
        growing: files that grow while the command runs, so that the next run can go on.
        varying: files whose bytes follow from more than the command, such as what is kept of earlier runs; only whether
            they are whole is asked.
        doubt: says what is wrong in ``out`` after a kill, or nothing.
        weight: how often it is killed, compared with others.
        imports: modules that are loaded before the fork, so that a kill meets the work.
    """

    name: str
    prepare: Callable[[Path], None]
    words: Callable[[bool], Sequence[str]]
    together: Sequence[Sequence[str]] = ()
    removed_first: Sequence[str] = ()
    growing: Sequence[str] = ()
    varying: Sequence[str] = ()
    doubt: Callable[[Path], str] = nothing_doubtful
    weight: float = 1.0
    imports: Sequence[str] = ()
