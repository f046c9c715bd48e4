"""The COCO results file of ``predict``: category numbers, and an id of its own for every image."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from deploykit.cli._display import note
from deploykit.cli._predict_collected import Collected
from deploykit.errors import DataError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.datasets.coco import CocoData, Image
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.results.detection import Result
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video
    from deploykit.spec import ModelSpec

LARGEST_ID = 2**53  # the metric libraries read numbers as float64
SHOWN = 5  # names in a note


class CocoFile(Collected):
    """The detections of all images as a COCO results file.

    Args:
        path: the file.
        spec: the model's spec.
        sources: what is predicted on.
        order: the position of each source, by name.
        annotations: an annotation file, whose categories and images are matched by name; None: none.

    Raises:
        DataError: the annotations cannot be read, do not fit the model, or list an image that two sources match.
        UsageError: annotations of images, and a video among the sources.
    """

    key = "coco"

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        sources: Sequence[Images | Video],
        order: Mapping[str, int],
        annotations: Path | None,
    ) -> None:
        from deploykit.runtime.sources.video import Video

        super().__init__(path, order)
        videos = [source.name for source in sources if isinstance(source, Video)]
        images = [name for source in sources if not isinstance(source, Video) for name in source.names]
        self._ids: dict[str, int | str | None]
        if annotations is None:
            self._categories: Sequence[int | None] | None = None  # results have COCO's numbers, or their own
            _tell_own_categories(spec)
            self._ids = {**image_ids(images, videos)}
            return
        if videos:
            raise UsageError(f"--annotations is for images, but {videos[0]} is a video: leave it out")
        from deploykit.runtime.datasets.coco import match_labels, read_coco

        data = read_coco(annotations)
        labels = match_labels(spec.classes, spec.output.num_classes(spec), data.categories)
        self._categories = labels.ids
        self._ids = {**listed_ids(images, data)}
        for each in labels.notes:
            note(each)
        missing = [name for name, found in self._ids.items() if found is None]
        if missing:
            note(f"--coco leaves out what {annotations} does not list: {_some(missing)}")

    def entries(self, result: ImageResult) -> list[dict[str, Any]]:
        """See :meth:`Collected.entries`; none of an image that the annotations do not list."""
        found = cast("Result", result)
        image = self._ids[found.name]
        if image is None:
            return []
        return found.to_coco(image if found.frame is None else f"{image}_{found.frame:06d}", self._categories)

    def content(self, parts: list[Any]) -> bytes:
        """See :meth:`Collected.content`."""
        return json.dumps([entry for part in parts for entry in part]).encode()


def _tell_own_categories(spec: ModelSpec) -> None:
    from deploykit.runtime.results.coco import coco_category_ids

    if coco_category_ids(spec.classes) is None:
        first = f" ({spec.classes[0]} is 1)" if spec.classes else ""
        note(
            f"--coco numbers categories by the model's classes from 1 on{first}, because they are not COCO's 80: "
            "--annotations FILE gives them the numbers of your annotations"
        )


def image_ids(images: Sequence[str], videos: Sequence[str]) -> dict[str, int | str]:
    """Return an id for each image and video, by name, that no other has.

    The id is the number that an image's name is (000000000139.jpg: 139), or else its name without a suffix. Images that
    would share one get their path without the suffix, or with it if they would share that too. A frame's id is that of
    its video with the frame's number.
    """
    names = list(dict.fromkeys((*videos, *images)))
    films = set(videos)

    def forms(name: str) -> list[int | str]:
        path = PurePath(name)
        number = int(path.stem) if path.stem.isdecimal() and len(path.stem) < 20 else None
        short: int | str = path.stem
        if number is not None and number <= LARGEST_ID and name not in films:
            short = number
        return [short, path.with_suffix("").as_posix(), path.as_posix()]

    found = {name: forms(name) for name in names}
    level = dict.fromkeys(names, 0)
    while True:
        sharing: defaultdict[int | str, list[str]] = defaultdict(list)
        film_ids = {found[name][level[name]] for name in films}
        for name in names:
            sharing[_film_of(found[name][level[name]], film_ids)].append(name)
        again = [name for group in sharing.values() if len(group) > 1 for name in group if level[name] < 2]
        if not again:
            break
        for name in again:
            level[name] += 1
    moved = [name for name in names if level[name]]
    if moved:
        note(f"images that share a name have their path as image_id: {_some(moved)}")
    return {name: found[name][level[name]] for name in names}


def _film_of(own: int | str, films: Collection[int | str]) -> int | str:
    """Return the video's id if this one is that of a frame of it (film_000001), else the id itself."""
    frame = re.fullmatch(r"(.*)_\d{6,}", own, re.DOTALL) if isinstance(own, str) else None
    film: int | str = frame[1] if frame else own
    return film if film in films else own


def listed_ids(images: Sequence[str], data: CocoData) -> dict[str, int | None]:
    """Return the id of each image in the annotations, by its file name; None: it is not listed.

    Raises:
        DataError: two images are the same one of the annotations.
    """
    by_name: defaultdict[str, list[Image]] = defaultdict(list)
    for image in data.images:
        by_name[PurePath(image.file_name).name].append(image)
    found = {name: _listed(Path.cwd() / name, by_name) for name in images}
    counts = Counter(i for i in found.values() if i is not None)
    shared = next((i for i, count in counts.items() if count > 1), None)
    if shared is not None:
        names = [name for name, i in found.items() if i == shared]
        raise DataError(
            f"{' and '.join(names[:2])} are both image {shared} of {data.path}, which is found by its file name: "
            "predict on one folder at a time"
        )
    return found


def _listed(path: PurePath, by_name: dict[str, list[Image]]) -> int | None:
    """Return the id of the image whose listed path is the end of this one, or the only one with its name."""
    same = by_name.get(path.name, [])
    whole = [image for image in same if path.parts[-len(parts := PurePath(image.file_name).parts) :] == parts]
    best = max(whole, key=lambda image: len(PurePath(image.file_name).parts), default=None)
    if best is None and len(same) == 1:
        (best,) = same
    return None if best is None else best.id


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
