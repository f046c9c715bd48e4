"""A run: the plan is made or found again, parts that are missing are computed and written, and the manifest lists it.

The folder of a run holds ``plan.jsonl``, a file for each part that is complete, and at the end ``manifest.json``. A
part's file appears whole or not at all, and only this process writes, whoever computes: so what a run that was killed
at any moment leaves are complete parts, and the next run computes the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploykit.atomic import become_file, sync, write_atomic
from deploykit.errors import BackendError, DataError, OutputError, UsageError, os_errors_as_output_errors
from deploykit.partials import lock, partial_file
from deploykit.progress import SILENT, Progress
from deploykit.runtime.cluster.parts import Format, join_parts, outline
from deploykit.runtime.cluster.plan import Plan, difference
from deploykit.runtime.cluster.work import Attempt, Done, Task
from deploykit.runtime.verified import sha256
from deploykit.strict_json import JsonError, parse_json, read_json

__all__ = ["Joined", "Manifest", "Part", "check_folder", "complete"]

PLAN, MANIFEST, PARTS, WHOLE = "plan.jsonl", "manifest.json", "parts", "results"


@dataclass(frozen=True)
class Part:
    """A complete part: its file's name, its rows, how many of them have no result, and the SHA-256 of the file."""

    file: str
    rows: int
    failed: int
    sha256: str


@dataclass(frozen=True)
class Joined:
    """All rows as one file: its name, and its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a complete run has written.

    Attributes:
        plan: the SHA-256 of the plan's file.
        images: how many images there are, each with one row.
        failed: how many of them have no result.
        parts: the parts in order.
        computed: how many of the parts this run computed; the others it found.
        joined: all rows as one file; None: it was not asked for.
    """

    plan: str
    images: int
    failed: int
    parts: Sequence[Part]
    computed: int
    joined: Joined | None = None


def complete(
    plan: Plan, folder: Path, form: Format, attempt: Attempt, *, join: bool = False, progress: Progress = SILENT
) -> Manifest:
    """Bring a folder to the end of its plan.

    Args:
        plan: the plan.
        folder: the output folder; it is made, or holds what an earlier run of the same plan has left.
        form: the format of the parts.
        attempt: what computes parts; called only if some are missing.
        join: write all rows as one file too, ``results.jsonl`` or ``results.parquet``.
        progress: hears the share of the images that is done.

    Raises:
        UsageError: the folder is of another plan, has other files of such names, or another run writes into it.
        DataError: a part that was found is not the one of the plan.
        BackendError: workers die over every image of a part.
        OutputError: the folder cannot be written, or the disk is full; a later run goes on.
    """
    with _claimed(plan, folder):
        found = {number: part for number in range(plan.parts) if (part := _found(plan, folder, number, form))}
        computed, done = plan.parts - len(found), sum(part.rows for part in found.values())
        if found and computed:
            progress.message(f"{done} of {len(plan.items)} images are complete since an earlier run")
        progress.step("computing")
        tasks = [Task(number, plan.part(number)) for number in range(plan.parts) if number not in found]
        for each in _computed(tasks, attempt):
            found[each.number] = _written(plan, folder, each, form)
            done += each.rows
            progress.share(f"computing: {done} of {len(plan.items)} images", done / len(plan.items))
        return _finished(plan, folder, [found[number] for number in range(plan.parts)], form, computed, join)


def _computed(tasks: Sequence[Task], attempt: Attempt) -> Iterator[Done]:
    """Compute tasks. Where workers die over one, its images are tried one by one, and those that end a worker again
    become rows without a result.

    Raises:
        BackendError: that is all of its images.
    """
    left = {task.number: task for task in tasks}
    for done in attempt(tasks) if tasks else ():
        if left.pop(done.number, None):  # else two workers had it, because one was thought to be dead
            yield done
    for task in left.values():
        survived = {done.number for done in attempt([Task(i, [item]) for i, item in enumerate(task.items)])}
        deadly = frozenset(item.name for i, item in enumerate(task.items) if i not in survived)
        done_apart = next(iter(attempt([replace(task, deadly=deadly)])), None) if survived else None
        if done_apart is None:
            raise BackendError(
                f"workers died over part {task.number}, {task.items[0].name} to {task.items[-1].name}, and again over "
                "its images one by one: give the run fewer workers or more memory"
            )
        yield done_apart


def check_folder(folder: Path) -> Manifest:
    """Check that what a complete run has written is still there, unchanged, with one row for each image of its plan.

    Raises:
        DataError: it is not; the message says what differs. OSError: a file cannot be read.
    """
    try:
        about = read_json(folder / MANIFEST, most=1 << 28)
        parts = [Part(**part) for part in about.pop("parts")]
        joined = Joined(**about["joined"]) if about.get("joined") else None
        known = {name: about[name] for name in ("plan", "images", "failed", "computed")}
        manifest = Manifest(**known, parts=parts, joined=joined)
        plan = (folder / PLAN).read_bytes()
        names = [name for line in plan.splitlines()[1:] for name in parse_json(line, most=1 << 28)["names"]]
    except (JsonError, KeyError, TypeError) as e:
        raise DataError(f"{folder / MANIFEST} is not the manifest of a run ({e})") from e
    if hashlib.sha256(plan).hexdigest() != manifest.plan:
        raise DataError(f"{folder / PLAN} is not the plan that the manifest is of")
    if joined is not None and sha256(folder / joined.file) != joined.sha256:
        raise DataError(f"{joined.file} has changed since the run was complete: the same command writes it again")
    rows: list[tuple[str, bool]] = []
    for part in parts:
        data = (folder / PARTS / part.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise DataError(f"{part.file} has changed since the run was complete")
        rows += outline(data, "parquet" if part.file.endswith(".parquet") else "jsonl")
    if [name for name, _ in rows] != names or sum(failed for _, failed in rows) != manifest.failed:
        raise DataError(f"the rows in {folder} are not those of the images of its plan")
    return manifest


@contextlib.contextmanager
def _claimed(plan: Plan, folder: Path) -> Iterator[None]:
    """Put the plan into the folder, or find it there, and keep other runs away while the context lasts."""
    place = folder / PLAN
    with os_errors_as_output_errors(place):
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        if not place.exists():
            other = next((folder / PARTS).glob("part-*"), None) or next(folder.glob(MANIFEST), None)
            if other is not None:
                raise UsageError(f"{folder} has no {PLAN}, but {other.name}: choose another folder, or empty this one")
            write_atomic(place, plan.data)
        descriptor = os.open(place, os.O_RDWR)
    try:
        if lock(descriptor) is False:
            raise UsageError(f"another run writes into {folder}: wait for it, or choose another folder")
        before = place.read_bytes()
        if before != plan.data:
            raise UsageError(
                f"{folder} holds another run: {difference(before, plan.data)}; give the same images, model and options "
                "to continue it, or choose another folder"
            )
        yield
    finally:
        os.close(descriptor)


def _file(number: int, form: Format) -> str:
    return f"part-{number:06d}.{form}"


def _found(plan: Plan, folder: Path, number: int, form: Format) -> Part | None:
    """Return a part that an earlier run has written; None: there is none."""
    file = _file(number, form)
    try:
        data = (folder / PARTS / file).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise OutputError(f"cannot read {folder / PARTS / file}: {e.strerror or e}") from e
    try:
        rows = outline(data, form)
    except DataError as e:
        raise DataError(f"{folder / PARTS / file} is damaged, {e}: remove it to have it computed again") from e
    if [name for name, _ in rows] != [item.name for item in plan.part(number)]:
        raise DataError(f"{folder / PARTS / file} has other rows than its plan: remove it to have it computed again")
    return Part(file, len(rows), sum(failed for _, failed in rows), hashlib.sha256(data).hexdigest())


def _written(plan: Plan, folder: Path, done: Done, form: Format) -> Part:
    file, expected = _file(done.number, form), len(plan.part(done.number))
    if done.rows != expected:
        raise DataError(f"part {done.number} came with {done.rows} rows for {expected} images: a fault in deploykit")
    write_atomic(folder / PARTS / file, done.data)
    return Part(file, done.rows, done.failed, hashlib.sha256(done.data).hexdigest())


def _finished(plan: Plan, folder: Path, parts: Sequence[Part], form: Format, computed: int, join: bool) -> Manifest:
    joined = None
    if join:
        place = folder / f"{WHOLE}.{form}"
        with os_errors_as_output_errors(place), partial_file(place) as partial:
            join_parts([folder / PARTS / part.file for part in parts], partial, form)
            sync(partial)
            joined = Joined(place.name, sha256(partial))
            become_file(partial, place)
    failed = sum(part.failed for part in parts)
    manifest = Manifest(plan.digest, len(plan.items), failed, parts, computed, joined)
    write_atomic(folder / MANIFEST, (json.dumps(asdict(manifest), indent=1) + "\n").encode("ascii"))
    return manifest
