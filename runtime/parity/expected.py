"""Reference values: the outputs of reference networks on given images.

The export side decides whether an artefact is kept. An engine built on a machine without a GPU has its reference values
in a file beside it (:class:`ReferenceOutputs`); the runtime verifies the engine against them when it first runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import ArtefactError, ParityError, SpecError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.npz_file import opened_npz
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session, input_arrays
from deploykit.spec import Output, json_value, read_value
from deploykit.strict_json import parse_json

__all__ = [
    "Batch",
    "ParityInputs",
    "ReferenceOutputs",
    "Values",
    "runs",
    "values_of",
]

Values = Callable[[Mapping[str, Array], tuple[int, ...], str], Array]
"""The compared values of a run, one entry per image: :meth:`deploykit.runtime.outputs.OutputAdapter.values`."""

FORMAT = 1  # of files with reference outputs
ABOUT_BYTES = 16 << 20  # of what such a file says of its arrays; a few kB are usual


@dataclass(frozen=True)
class Batch:
    """Images of one size, by label, in the order of their slots."""

    name: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class ParityInputs:
    """Network inputs ``(1, C, H, W)`` float32 by label, and the batches to run them in."""

    images: dict[str, Array]
    batches: tuple[Batch, ...]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Array:
        """Return the first image."""
        return next(iter(self.images.values()))

    def restrict_to(self, takes: Callable[[tuple[int, ...]], bool]) -> ParityInputs:
        """Return the part that a network accepts; ``takes`` tells whether it accepts an input shape ``(B, C, H, W)``.

        Batches that are too large lose their last slots. Images of a size that the network does not accept are left
        out, with a note.
        """
        batches, left_out = [], []
        for batch in self.batches:
            slots = range(len(batch.images), 0, -1)
            size = self.images[batch.images[0]].shape[1:]
            fitting = next((n for n in slots if takes((n, *size))), 0)
            if fitting == len(batch.images):
                batches.append(batch)
            elif fitting:
                batches.append(Batch(f"{batch.name}, the first {fitting}", batch.images[:fitting]))
            else:
                left_out.append(batch.name)
        used = {label for batch in batches for label in batch.images}
        images = {label: image for label, image in self.images.items() if label in used}
        notes = tuple(f"{name} is not compared: the network does not accept its size" for name in left_out)
        return ParityInputs(images, tuple(batches), (*self.notes, *notes))


@dataclass(frozen=True)
class ReferenceOutputs:
    """The outputs of references on the images of ``feeds``: ``rows[reference][label]`` is ``(N, columns)`` for rows,
    else one image's part of the output.

    ``computed``: what computed each reference. ``layout``: the layout of the values. A reference may lack some images.
    ``limits``: the tolerance of the network at export. ``chosen``: the rows are detections that the network has chosen
    itself, so nothing suppresses them again; a one-to-one branch may give boxes of a class that overlap.
    """

    feeds: ParityInputs
    rows: Mapping[str, Mapping[str, Array]]
    computed: Mapping[str, str]
    layout: Output
    limits: Tolerance = field(default_factory=Tolerance)
    chosen: bool = False

    def restrict_to(self, takes: Callable[[tuple[int, ...]], bool]) -> ReferenceOutputs:
        """Return the part that a network accepts; see :meth:`ParityInputs.restrict_to`.

        Raises:
            ParityError: the network accepts none of the images.
        """
        feeds = self.feeds.restrict_to(takes)
        if not feeds.batches:
            raise ParityError(f"the network accepts none of the images to compare on ({', '.join(self.feeds.images)})")
        return replace(self, feeds=feeds)

    def select_reference(self, reference: str) -> ReferenceOutputs:
        """Return the outputs of one reference only."""
        rows, computed = {reference: self.rows[reference]}, {reference: self.computed[reference]}
        return replace(self, rows=rows, computed=computed)

    def save(self, path: Path) -> None:
        """Write the images and the first reference's rows as float32; numpy's ``.npz``, compressed.

        Raises:
            OutputError: the file cannot be written.
        """
        reference = next(iter(self.rows))
        labels = [label for label in self.feeds.images if label in self.rows[reference]]
        batches = [[b.name, list(b.images)] for b in self.feeds.batches if set(b.images) <= set(labels)]
        about = {
            "format": FORMAT,
            "reference": reference,
            "computed": self.computed[reference],
            "layout": json_value(self.layout),
            "limits": dataclasses.asdict(self.limits),
            "labels": labels,
            "batches": batches,
            "notes": list(self.feeds.notes),
            "chosen": self.chosen,
        }
        arrays = {"about": np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), np.uint8)}
        for i, label in enumerate(labels):
            arrays[f"image{i}"] = self.feeds.images[label]
            arrays[f"rows{i}"] = self.rows[reference][label].astype(np.float32)
        data = BytesIO()
        np.savez_compressed(data, allow_pickle=False, **arrays)
        write_atomic(path, data.getvalue())

    @staticmethod
    def load(path: Path) -> ReferenceOutputs:
        """Read what :meth:`save` wrote.

        Raises:
            ArtefactError: the file has another format, is damaged, or has a newer version.
        """
        try:
            with opened_npz(path) as array:
                data = parse_json(array("about", most=ABOUT_BYTES).tobytes(), constants=True)  # limits may be infinite
                found = data.get("format") if isinstance(data, dict) else None
                if isinstance(found, int) and found > FORMAT:
                    raise ArtefactError(
                        f"{path} has format {found:.6g}, but this deploykit reads {FORMAT}: update deploykit"
                    )
                about: _About = read_value(_About, data, "about")
                images = {label: array(f"image{i}") for i, label in enumerate(about.labels)}
                rows = {label: array(f"rows{i}") for i, label in enumerate(about.labels)}
            batches = tuple(Batch(name, slots) for name, slots in about.batches)
            _check_images(images, rows, batches)
        except (OSError, ValueError, SpecError) as e:
            raise ArtefactError(f"{path} has no readable reference values ({e}): export again") from e
        feeds = ParityInputs(images, batches, about.notes)
        return ReferenceOutputs(
            feeds, {about.reference: rows}, {about.reference: about.computed}, about.layout, about.limits, about.chosen
        )


@dataclass(frozen=True)
class _About:
    """What a file says about its arrays; older files have no limits, and do not say what was chosen."""

    format: int
    reference: str
    computed: str
    layout: Output
    labels: tuple[str, ...]
    batches: tuple[tuple[str, tuple[str, ...]], ...]
    limits: Tolerance = field(default_factory=Tolerance)
    notes: tuple[str, ...] = ()
    chosen: bool = False


def _check_images(images: Mapping[str, Array], rows: Mapping[str, Array], batches: Sequence[Batch]) -> None:
    if not batches or not {label for b in batches for label in b.images} <= set(images):
        raise ValueError("it names images that it does not have")
    for label, image in images.items():
        if image.ndim != 4 or len(image) != 1 or not image.size or image.dtype != np.float32:
            raise ValueError(f"the image {label!r} must be float32 (1, C, H, W), got {image.dtype} {image.shape}")
        if not rows[label].ndim or rows[label].dtype != np.float32:
            raise ValueError(
                f"the values of {label!r} must be a float32 array, got {rows[label].dtype} {rows[label].shape}"
            )
    for batch in batches:
        if len({images[label].shape for label in batch.images}) != 1:
            raise ValueError(f"the batch {batch.name!r} must have images of one size")


def runs(
    expected: ReferenceOutputs,
    name: str,
    session: Session,
    values: Values,
    progress: Progress = SILENT,
) -> Iterator[tuple[Batch, str, list[Array], list[Array]]]:
    """Run every batch, and yield (batch, reference, expected, found) for each reference that has all its images.

    Both lists hold the values of one image per slot. References saw one image at a time, so swapped slots,
    or an image that leaks into another slot, show as a difference.

    Raises:
        SpecError: the output does not match the spec. BackendError: the network failed.
    """
    total = len(expected.feeds.batches)
    for done, batch in enumerate(expected.feeds.batches):
        progress.step(f"{name} on {batch.name}")
        progress.share(f"{name} on {batch.name}, {done + 1} of {total} batches", done / total)
        found = _run_batch(session, batch, expected.feeds, values, name)
        for reference, rows in expected.rows.items():
            if all(label in rows for label in batch.images):
                yield batch, reference, [rows[label] for label in batch.images], found


def values_of(session: Session, image: Array, values: Values, name: str) -> Array:
    """Return the compared values of one image; a session with a fixed batch gets the image in every slot.

    Raises:
        SpecError: the output does not match the spec.
    """
    info = session.inputs[0]
    batch = info.shape[0] or 1
    fed = np.repeat(image, batch, 0)
    found: Array = values(session.run(input_arrays(info, fed)), fed.shape, name)[0]
    return found


def _run_batch(session: Session, batch: Batch, feeds: ParityInputs, values: Values, name: str) -> list[Array]:
    info = session.inputs[0]
    images = np.concatenate([feeds.images[label] for label in batch.images])
    fixed = info.shape[0]
    if fixed is None or fixed == len(images):
        return list(values(session.run(input_arrays(info, images)), images.shape, name))
    return [values_of(session, image[None], values, name) for image in images]
