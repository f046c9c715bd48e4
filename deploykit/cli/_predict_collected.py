"""The files of ``predict`` about all images: what each image adds is collected, and written in the sources' order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from deploykit.runtime.results.base import ImageResult

__all__ = ["Collected", "CsvFile"]


class Collected(ABC):
    """One file about all images, or a folder of such files.

    Args:
        path: the file, or the folder.
        order: the position of each source, by name.
    """

    key: ClassVar[str]
    """The name of its entries in the record of a run."""

    def __init__(self, path: Path, order: Mapping[str, int]) -> None:
        self.path = path
        self._order = order
        self._parts: list[tuple[int, Any]] = []

    @abstractmethod
    def entries(self, result: ImageResult) -> Any:
        """Return what an image, or a frame of a video, adds, as values of JSON."""

    @abstractmethod
    def content(self, parts: list[Any]) -> bytes:
        """Return the file of all entries."""

    def add(self, source: str, entries: Any) -> None:
        """Take in what :meth:`entries` returned for a result of this source."""
        self._parts.append((self._order[source], entries))

    def write(self) -> None:
        """Write the file.

        Raises:
            OutputError: the path is not writable, or the disk is full.
        """
        from deploykit.atomic import write_atomic

        write_atomic(self.path, self.content(self.ordered()))

    def ordered(self) -> list[Any]:
        """Return what all results add, in the order of their sources."""
        return [entries for _, entries in sorted(self._parts, key=lambda part: part[0])]


class CsvFile(Collected):
    """A row per object, class or image, as :meth:`deploykit.ImageResult.to_csv` has them, below one header."""

    key = "csv"

    def entries(self, result: ImageResult) -> Any:
        """See :meth:`Collected.entries`: the rows with their header, because there may be no row."""
        return result.to_csv()

    def content(self, parts: list[Any]) -> bytes:
        """See :meth:`Collected.content`."""
        from deploykit.runtime.results.tables import encoded

        header = parts[0].partition("\n")[0] + "\n" if parts else ""
        return encoded(header + "".join(part.partition("\n")[2] for part in parts))
