"""The files of ``predict --dota``: oriented boxes as the evaluation of DOTA reads them, one file per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deploykit.cli._predict_collected import Collected
from deploykit.cli._predict_objects import folder_name
from deploykit.cli._predict_plan import KnownFiles, refuse_known
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.results.detection import Result
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video
    from deploykit.spec import ModelSpec

__all__ = ["DotaFiles"]


class DotaFiles(Collected):
    """A file ``Task1_CLASS.txt`` of each class, also of one without objects.

    A line is ``image score x1 y1 x2 y2 x3 y3 x4 y4``: the name of the image without its suffix, and the corners in
    pixels of the source, not clipped. Spaces in a class name become hyphens, as in DOTA's own.

    Args:
        path: the folder.
        spec: the model's spec.
        sources: what is predicted on.
        order: the position of each source, by name.
        known: the files that must not be written; takes in these.

    Raises:
        UsageError: a video, two images of one name, a space in one, two classes of one file name, or a file that is
            read or written besides.
    """

    key = "dota"

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        sources: Sequence[Images | Video],
        order: Mapping[str, int],
        known: KnownFiles,
    ) -> None:
        from deploykit.runtime.files import exists
        from deploykit.runtime.sources.video import Video

        super().__init__(path, order)
        if videos := [source.name for source in sources if isinstance(source, Video)]:
            raise UsageError(f"--dota is for images, but {videos[0]} is a video: leave it out")
        if exists(path) and not path.is_dir():
            raise UsageError(f"--dota must be a folder, but {path} is a file")
        by_stem: dict[str, str] = {}
        for name in order:
            first = by_stem.setdefault(Path(name).stem, name)
            if first != name:
                raise UsageError(f"--dota names images without folder and suffix: {first} and {name} are the same")
            if len(Path(name).stem.split()) != 1:
                raise UsageError(f"--dota has spaces between its values, and there is one in {name}: rename it")
        names = spec.classes or tuple(map(str, range(spec.output.num_classes(spec))))
        self._files = [path / f"Task1_{folder_name(n, i).replace(' ', '-')}.txt" for i, n in enumerate(names)]
        if len(set(self._files)) < len(self._files):
            raise UsageError(f"--dota writes a file per class, and two classes of {', '.join(names)} have one name")
        for file in self._files:
            refuse_known(file, "--dota", known)
            known.add(file)

    def entries(self, result: ImageResult) -> list[list[Any]]:
        """See :meth:`Collected.entries`: of each object its label and its line."""
        from deploykit.runtime.results.objects import rounded, short

        found = cast("Result", result)
        assert found.corners is not None
        image = Path(found.name).stem
        lines = []
        for label, score, corners in zip(found.labels, found.scores, found.corners, strict=True):
            values = " ".join(f"{value:.7g}" for value in rounded(corners.reshape(-1)))
            lines.append([int(label), f"{image} {short(float(score)):.7g} {values}\n"])
        return lines

    def content(self, parts: list[Any]) -> bytes:
        """See :meth:`Collected.content`: the lines of one file."""
        return "".join(line for part in parts for _, line in part).encode()

    def write(self) -> None:
        """See :meth:`Collected.write`."""
        from deploykit.atomic import write_atomic

        for label, file in enumerate(self._files):
            own = [[entry for entry in part if entry[0] == label] for part in self.ordered()]
            write_atomic(file, self.content(own))
