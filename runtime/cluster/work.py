"""What a worker does: open the model once, then turn the images of one part after another into a file's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import (
    DataError,
    DeployError,
    FetchError,
    ImageError,
    ImageSizeError,
    NotFiniteError,
    NotFoundError,
)
from deploykit.runtime.cluster.parts import Format, Row, encoded, failure
from deploykit.runtime.cluster.plan import Item
from deploykit.runtime.engine_record import second_stage_path
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.verified import sha256

__all__ = ["Attempt", "Done", "Task", "Work", "Worker", "model_digest"]

OF_THE_IMAGE = (ImageError, ImageSizeError, NotFoundError, FetchError, NotFiniteError)
"""Errors that are an image's own fault; any other one would meet the next image too, and ends the run."""

CHANGED = "the file has changed, or is gone, since the run was planned"
DEADLY = "every worker that computed this image died: it, or the memory that it needs, ends the process"


@dataclass(frozen=True)
class Task:
    """One part, for a worker: its number, its images, and the names of those among them that are not to be tried."""

    number: int
    items: Sequence[Item]
    deadly: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Done:
    """A part that a worker has finished: its number, the bytes of its file, and its images with and without result."""

    number: int
    data: bytes
    rows: int
    failed: int


Attempt = Callable[[Sequence[Task]], Iterator[Done]]
"""Computes tasks, and yields each as soon as it is done, in any order; but not those over which workers die."""


@dataclass(frozen=True)
class Work:
    """What every worker of a run is started with. It travels to other processes, so all of it can be pickled.

    Attributes:
        open: opens the model: a function of a module with its arguments.
        model: the model's absolute path.
        digest: of the model, see :func:`model_digest`; empty: it is not compared.
        form: the format of the parts.
    """

    open: Callable[[], Predictor[Any]]
    model: str
    digest: str
    form: Format


def model_digest(model: Path) -> str:
    """Return the SHA-256 of a model's file; of one with external weights, or a second stage, that of all their hashes.

    Raises:
        NotFoundError: it cannot be read.
    """
    parts = [model.with_name(f"{model.name}.data"), second_stage_path(model)]
    try:
        found = [sha256(file) for file in (model, *(part for part in parts if part.is_file()))]
    except OSError as e:
        raise NotFoundError(f"a model was expected at {model}, but it cannot be read: {e.strerror or e}") from e
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


class Worker:
    """A model that is open, for one part after another.

    Raises:
        DataError: the model is not the file that the run was planned with. DeployError: it cannot be opened.
    """

    def __init__(self, work: Work) -> None:
        self._form = work.form
        if work.digest and model_digest(Path(work.model)) != work.digest:
            raise DataError(f"{work.model} is another file for a worker than the one that the run was planned with")
        self._predictor = work.open()

    def __call__(self, task: Task) -> Done:
        """Compute a part: a row for each of its images, in their order.

        Raises:
            DeployError: what is no image's own fault, such as a device that is lost.
        """
        found = _rows(self._predictor, [item for item in task.items if item.name not in task.deadly])
        rows = [found.get(item.name) or failure(item.name, DEADLY) for item in task.items]
        failed = sum("error" in row for row in rows)
        return Done(task.number, encoded(rows, self._form), len(rows), failed)

    def close(self) -> None:
        """Close the model."""
        self._predictor.close()


def _rows(predictor: Predictor[Any], items: Sequence[Item]) -> dict[str, Row]:
    """Return the rows of images, by their names."""
    try:
        found = dict(_stream(predictor, items))
    except OF_THE_IMAGE as e:  # of a batch, and which of its images it was is known when each runs alone
        if len(items) == 1:
            return {items[0].name: failure(items[0].name, str(e))}
        return {name: row for item in items for name, row in _rows(predictor, [item]).items()}
    return {item.name: found[item.name] if item.is_unchanged() else failure(item.name, CHANGED) for item in items}


def _stream(predictor: Predictor[Any], items: Sequence[Item]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of images by their names: first those with a result."""
    errors: list[DeployError] = []
    sources = [item.source if isinstance(item.source, Address) else Path(item.source) for item in items]
    images = Images(tuple(sources), keep_files=False, names=tuple(item.name for item in items))
    left = dict.fromkeys(images.names)
    for result in predictor.stream(images, skip=errors.append):
        del left[result.name]
        yield result.name, result.to_dict()
    # Errors come in the order of the images, so they are those of the images that are left, in turn.
    yield from ((name, failure(name, str(error))) for name, error in zip(left, errors, strict=True))
