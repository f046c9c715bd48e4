"""What a run of ``predict`` has finished, so that another one can go on where it stopped (``--resume``).

The record is a file of JSON lines in the output folder, or beside the results file: the first line says by which model
and options, and there is one for each image whose results are complete, with what it adds to the files about all
images. A run with ``--resume`` writes each line as soon as the image is done, so that even a killed one can be
continued; a run without writes the record when it is stopped. A video is predicted as a whole.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._predict_collected import Collected
from deploykit.cli._predict_folder import Folder
from deploykit.errors import UsageError, os_errors_as_output_errors

if TYPE_CHECKING:
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video

__all__ = ["Record", "described"]

VERSION = 1
ENDING = "progress.jsonl"
LARGEST_LINE = 2**28  # bytes
OTHERWISE = frozenset({
    "batch", "command", "config", "device", "json", "level", "max_pixels", "model", "more", "named_models", "out",
    "provider", "quiet", "reconnect", "recursive", "resume", "run", "show", "source", "threads", "time_limit",
    "traceback", "verbose", "verify", "workers",
})  # fmt: skip
"""Arguments on which the results of an image do not depend, or that are recorded in another way."""


def described(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Return what the results of a run depend on: the model's content, and the options as typed."""
    from deploykit.runtime.verified import sha256

    path = Path(model).expanduser()
    options = {name: _plain(value) for name, value in vars(args).items() if name not in OTHERWISE}
    return {
        "record": VERSION, "model": sha256(path) if path.is_file() else _plain(path.resolve()), "options": options
    }  # fmt: skip


class Record:
    """The record of one run.

    Args:
        place: the output folder, or a file about all images.
        about: gives what the results depend on, see :func:`described`; called only if it is needed.
        resume: go on from the record that is there, and write every line as soon as it is complete.

    Raises:
        UsageError: the record that is there is of another model or of other options, or is none.
    """

    def __init__(self, place: Path, about: Callable[[], dict[str, Any]], *, resume: bool, is_folder: bool) -> None:
        self.path = place / f"predict.{ENDING}" if is_folder else place.with_name(f"{place.name}.{ENDING}")
        self._about, self._resume = cache(about), resume
        self._found: dict[str, dict[str, Any]] = {}
        self._lines: list[str] = []
        if resume and self.path.exists():
            self._read()
        elif not resume:
            with os_errors_as_output_errors(self.path):  # it would be about results that are replaced now
                self.path.unlink(missing_ok=True)

    def left(
        self, sources: Sequence[Images | Video], folder: Folder | None, collected: Sequence[Collected]
    ) -> list[Images | Video]:
        """Return the sources without the images that are complete; ``folder`` and ``collected`` take those over."""
        from deploykit.runtime.sources.video import Video

        images = [source for source in sources if not isinstance(source, Video)]
        counts = Counter(name for source in images for name in source.names)
        rest: list[Images | Video] = []
        for source in sources:
            if isinstance(source, Video):
                rest.append(source)
                continue
            left = []
            for place, name in enumerate(source.names):
                line = self._found.get(name)
                planned = [str(file) for file in folder.files_of(name)] if folder else []
                if line is None or counts[name] > 1 or not _is_complete(line, name, planned):
                    left.append(place)
                    continue
                if folder:
                    folder.pass_over(name)
                for each in collected:
                    each.add(name, line["adds"][each.key])
                self._lines.append(_dumped(line))
            items, names = tuple(source.items[i] for i in left), tuple(source.names[i] for i in left)
            rest.append(replace(source, items=items, names=names))
        if self._resume:
            self.save()
        return rest

    def line_of(self, source: str, files: Sequence[Path], adds: Mapping[str, Any]) -> str | None:
        """Return the line that says that an image is complete, for :meth:`add`.

        Args:
            source: the image.
            files: the files of its results.
            adds: what it adds to the files about all images, by their keys.

        Returns:
            The line; None: the source is no file, or a name is no text, so the image is predicted again.
        """
        try:
            "".join([source, *map(str, files)]).encode()
            found = Path(source).stat()
        except (OSError, UnicodeEncodeError):
            return None
        return _dumped({
            "source": source, "bytes": found.st_size, "modified_ns": found.st_mtime_ns,
            "files": [str(file) for file in files], "adds": dict(adds),
        })  # fmt: skip

    def add(self, line: str) -> None:
        """Record that an image is complete.

        Raises:
            OutputError: the record is not writable, or the disk is full.
        """
        self._lines.append(line)
        if self._resume:
            with os_errors_as_output_errors(self.path), self.path.open("a", encoding="ascii") as stream:
                stream.write(line)

    @property
    def has_lines(self) -> bool:
        """Whether any image is complete."""
        return bool(self._lines)

    def save(self) -> None:
        """Write the whole record.

        Raises:
            OutputError: the place is not writable, or the disk is full.
        """
        from deploykit.atomic import write_atomic

        write_atomic(self.path, "".join([_dumped(self._about()), *self._lines]).encode("ascii"))

    def _read(self) -> None:
        with os_errors_as_output_errors(self.path):
            first, *lines = self.path.read_bytes().split(b"\n")
        found = self._parsed(first)
        if not isinstance(found.get("options"), dict) or found.get("record") != VERSION:
            raise UsageError(f"--resume: {self.path} is not the record of a run of this version: remove it")
        if found.get("model") != self._about()["model"]:
            raise UsageError(
                f"--resume: {self.path} is of another model, or this one has changed since: leave --resume out to "
                "begin again, or choose another --out"
            )
        before, now = found["options"], self._about()["options"]
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise UsageError(
                    f"--resume: {self.path} was written with --{name.replace('_', '-')} {_typed(before.get(name))}, "
                    f"and now it is {_typed(now.get(name))}: give the same options, or begin again without --resume"
                )
        for line in lines[:-1]:  # what follows the last line end was cut off
            entry = self._parsed(line)
            self._found[str(entry.get("source"))] = entry

    def _parsed(self, line: bytes) -> dict[str, Any]:
        from deploykit.strict_json import JsonError, parse_json

        try:
            found = parse_json(line, most=LARGEST_LINE)
        except JsonError as e:
            raise UsageError(f"--resume: {self.path} is damaged ({e}): remove it to begin again") from e
        if not isinstance(found, dict):
            raise UsageError(f"--resume: {self.path} is not the record of a run: remove it")
        return found


def _is_complete(line: Mapping[str, Any], source: str, planned: Sequence[str]) -> bool:
    """Return whether the source is unchanged, and its files are those that are planned now, and are there."""
    try:
        found = Path(source).stat()
    except OSError:
        return False
    same = (line.get("bytes"), line.get("modified_ns")) == (found.st_size, found.st_mtime_ns)
    files = line.get("files", [])
    return same and set(planned) <= set(files) and all(Path(file).is_file() for file in files)


def _dumped(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _plain(value: Any) -> Any:
    """Return the value of an option as JSON has it: the same when it is read again."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _typed(value: Any) -> str:
    """Return an option's value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not given" if value is None else {"True": "on", "False": "off"}.get(str(value), str(value))
