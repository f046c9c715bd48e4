"""What is fuzzed: a target makes inputs from a random generator and gives them to the product.

A target is one file in ``tests/fuzz/targets`` and one line in :data:`TARGETS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

from deploykit.errors import DeployError, OutOfMemoryError, UnexpectedError

__all__ = ["TARGETS", "Failed", "Files", "Outcome", "Target", "input_of", "named", "outcome_of"]

Files = dict[str, bytes]
"""One input: names and contents. What is no file by nature (words, a request) has its JSON as content."""

Outcome = Literal["accepted", "refused", "crash", "hang", "memory"]


class Failed(AssertionError):  # noqa: N818  # what a target says of the product, beside what the product raises
    """The product did what it promises not to do."""


class Target(ABC):
    """One way into the product.

    Args:
        folder: an empty folder for the target's own files.

    Attributes:
        name: what the command line and the table call it.
        memory: bytes that taking one input may add to the process.
        room: bytes of address space beside these, for libraries that reserve more than they touch.
    """

    name: ClassVar[str]
    memory: ClassVar[int] = 256 << 20
    room: ClassVar[int] = 256 << 20

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def make(self, random: Random) -> Files:
        """Return an input, which follows from the generator alone."""

    @abstractmethod
    def take(self, files: Files) -> None:
        """Give an input to the product, which accepts it by returning.

        Raises:
            DeployError: it is refused, as is right. Anything else is a finding.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Give back what the target holds."""

    def written(self, files: Files) -> Path:
        """Write an input into the target's folder and return the path of its first file."""
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        return self.folder / next(iter(files))


TARGETS = {
    "checkpoints": 260,
    "specs": 110,
    "records": 100,
    "onnx_files": 100,
    "images": 230,
    "raw_files": 35,
    "videos": 35,
    "datasets": 50,
    "configuration": 60,
    "command_lines": 60,
    "http_requests": 110,
    "grpc_requests": 50,
}
"""The modules of :mod:`tests.fuzz.targets`, each with its class as ``TARGET``, and their shares of a run over all."""


def named(name: str) -> type[Target]:
    """Return the class of a target: one of :data:`TARGETS`, or another by its module."""
    found: type[Target] = import_module(name if "." in name else f"tests.fuzz.targets.{name}").TARGET
    return found


def input_of(target: Target, seed: int, number: int) -> Files:
    """Return input ``number`` of a run: the same for the same seed."""
    return target.make(Random(f"{seed} {target.name} {number}"))


def outcome_of(target: Target, files: Files) -> tuple[Outcome, BaseException | None]:
    """Take an input; return what became of it, and what was raised."""
    try:
        target.take(files)
    except MemoryError as e:
        return "memory", e
    except OutOfMemoryError as e:
        return "memory", e
    except UnexpectedError as e:
        return "crash", e
    except DeployError as e:
        return ("refused" if str(e) else "crash"), e  # a message says something
    except Exception as e:
        return "crash", e
    return "accepted", None
