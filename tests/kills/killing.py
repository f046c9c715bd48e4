"""One kind of command, killed again and again, and what was found wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.kills.kind import OUT, PLACE, Kind
from tests.kills.process import Ended, Moment, do_apart, run

__all__ = ["Killed", "Trial"]

Snapshot = dict[str, str]
"""Files below ``out`` and the SHA-256 of each."""


@dataclass
class Killed:
    """What became of the kills of one kind.

    Attributes:
        name: the kind.
        kills: how often it was killed; ``at_file`` of them before an operation on a file, the others after a time.
        over_old: how many of them began with an older artefact.
        old, new, part: what was there afterwards: nothing new, all that is new, or some of the new files.
        left: after how many kills hidden names or work files lay there, before the next start.
        wrong: what must not be, in words.
    """

    name: str
    kills: int = 0
    at_file: int = 0
    over_old: int = 0
    old: int = 0
    new: int = 0
    part: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)


class Trial:
    """A kind that is prepared for kills: its inputs, its old artefact, and what an undisturbed run gives.

    Raises:
        RuntimeError: it does not run without a kill.
    """

    def __init__(self, kind: Kind, root: Path, chance: random.Random) -> None:
        self.kind, self.root, self.chance = kind, root, chance
        self.found = Killed(kind.name)
        self._number = 0
        inputs = root / "in"
        inputs.mkdir(parents=True)
        os.environ[PLACE] = str(inputs)
        do_apart(lambda: kind.prepare(inputs))
        self._old = self._fresh("old")
        self._whole(run(kind.words(True), self._old))
        shutil.rmtree(self._old / "tmp")
        self._before = snapshot(self._old)
        self._after: dict[bool, Snapshot] = {}
        self._ran: dict[bool, Ended] = {}
        varying = set(kind.varying)
        for over in (False, False, True):
            folder = self._begin(over)
            self._ran[over] = self._whole(run(kind.words(False), folder))
            found = snapshot(folder)
            before = self._after.setdefault(over, found)
            varying |= {name for name in found if found[name] != before.get(name)}
            if odd := [*(set(found) ^ set(before)), *hidden(folder)]:
                raise RuntimeError(f"{kind.name}: two runs differ in {', '.join(odd)}, or leave it")
            shutil.rmtree(folder)
        self.varying = varying

    def kill(self) -> None:
        """Kill the command once, and look at what is there, and what the next run makes of it."""
        over, by_file = self.chance.random() < 0.5, self.chance.random() < 0.5
        ran = self._ran[over]
        moment = (
            Moment(operation=self.chance.randint(1, max(ran.operations, 1)))
            if by_file
            else Moment(seconds=self.chance.uniform(0.0, ran.seconds))
        )
        folder = self._begin(over)
        ended = run(self.kind.words(False), folder, moment)
        if ended.code != -9:  # it was faster this time
            shutil.rmtree(folder)
            return
        found = self.found
        found.kills += 1
        found.at_file += by_file
        found.over_old += over
        found.left += bool(hidden(folder))
        self._note(self._doubts(folder, over), moment, over, folder)
        again = run(self.kind.words(False), folder)
        wrong = []
        if again.code:
            wrong.append(f"the next run ended with {again.code}: {again.said.strip()[-300:]}")
        else:
            wrong += [f"the next run leaves {name}" for name in hidden(folder)]
            wrong += self._differences(snapshot(folder), self._after[over])
            wrong += self._damaged(folder)
        self._note(wrong, moment, over, folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _note(self, wrong: list[str], moment: Moment, over: bool, folder: Path) -> None:
        when = f"before operation {moment.operation}" if moment.operation else f"after {moment.seconds:.3f} s"
        self.found.wrong += [f"{when}{', over an old one' if over else ''}: {each}" for each in wrong]

    def _doubts(self, folder: Path, over: bool) -> list[str]:
        """What is wrong after a kill."""
        now, old, new = snapshot(folder), self._before if over else {}, self._after[over]
        wrong = []
        fits: dict[str, set[str]] = {}
        for name, digest in now.items():
            if name in self.varying or name in self.kind.growing:
                fits[name] = {"old", "new"}
            else:
                fits[name] = {which for which, files in (("old", old), ("new", new)) if files.get(name) == digest}
            if not fits[name]:
                wrong.append(f"{name} is neither the old file nor the new one")
        for group in self.kind.together:
            there = [fits[name] for name in group if name in now]
            if there and not set.intersection(*there):
                wrong.append(f"{', '.join(name for name in group if name in now)} are of two versions")
        lost = [name for name in old if name not in now and name in new and name not in self.kind.removed_first]
        wrong += [f"{name} has gone" for name in lost]
        wrong += self._damaged(folder)
        if doubt := self.kind.doubt(folder / OUT):
            wrong.append(doubt)
        self.found.new += now == new
        self.found.old += now == old and now != new
        self.found.part += now not in (old, new)
        return wrong

    def _damaged(self, folder: Path) -> list[str]:
        """Files whose bytes differ from run to run are looked at as what they are."""
        return [
            f"{name} is damaged"
            for name in self.varying
            if (folder / OUT / name).exists() and not readable(folder / OUT / name)
        ]

    def _differences(self, now: Snapshot, expected: Snapshot) -> list[str]:
        names = sorted(set(now) ^ set(expected))
        changed = [n for n in now if n in expected and now[n] != expected[n] and n not in self.varying]
        wrong = [f"the next run gives other files than usual: {', '.join(names)}"] if names else []
        return wrong + [f"the next run gives another {name}" for name in changed]

    def _begin(self, over: bool) -> Path:
        """A folder as it is before the command: empty, or with the old artefact."""
        self._number += 1
        if not over:
            return self._fresh(str(self._number))
        folder = self.root / str(self._number)
        shutil.copytree(self._old, folder, symlinks=True)
        return folder

    def _fresh(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        return folder

    def _whole(self, ended: Ended) -> Ended:
        if ended.code:
            raise RuntimeError(f"{self.kind.name} ended with {ended.code} without a kill:\n{ended.said}")
        return ended


def snapshot(folder: Path) -> Snapshot:
    """The visible files below ``out``."""
    files = (file for file in _files(folder / OUT) if not _is_hidden(file, folder))
    return {file.relative_to(folder / OUT).as_posix(): _digest(file) for file in files}


def hidden(folder: Path) -> list[str]:
    """Names that nobody should see when a command has ended: hidden ones, and all that lies in ``tmp``.

    Two things there are not deploykit's: the cache folder of torch's compiler, and the four bytes by which Python's
    ``tempfile`` tries whether it can write.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for path in _entries(folder)
        if _is_hidden(path, folder) or (path.parent == folder / "tmp" and not _is_anothers(path))
    )


def _is_anothers(path: Path) -> bool:
    if path.is_dir():
        return path.name.startswith("torchinductor_")
    return re.fullmatch("[a-z0-9_]{8}", path.name) is not None and path.read_bytes() in (b"", b"blat")


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.rglob("*") if folder.is_dir() else iter(())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(_entries(folder)) if path.is_file() or path.is_symlink())


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def readable(file: Path) -> bool:
    """Whether a file is whole, by its format."""
    data = file.read_bytes()
    if file.suffix == ".json":
        try:
            json.loads(data)
        except ValueError:
            return False
        return True
    if file.suffix in (".npz", ".pt"):
        return zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip() is None
    return bool(data)
