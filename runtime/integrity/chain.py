"""The chain of hashes from a checkpoint to an engine, as far as its files lie beside one another.

Each artefact names the SHA-256 of what it was made from, and the small file beside it names that of the artefact:

* ``X.pt.source.json`` (of ``deploykit fetch``): of the checkpoint;
* the spec inside ``X.onnx``: of the checkpoint; ``X.onnx.parity.json``: of the file, its external data, the checkpoint,
  or the ONNX file that it was made from;
* ``X.trt.json``: of the engine, its second stage, its reports, the ONNX file with its external data, the checkpoint;
* ``SHA256SUMS`` in the folders of a package; ``manifest.json`` of a run on a cluster.

Here every file that is named is read in full. Names are of files beside the one that names them, and lead nowhere else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from deploykit.errors import ArtefactError, DataError, SpecError
from deploykit.runtime.backends.onnx_weights import external_files, metadata_of
from deploykit.runtime.cluster.run import MANIFEST, PLAN, check_folder
from deploykit.runtime.engine_record import (
    EngineRecord,
    parity_report_path,
    read_record,
    record_path,
    second_stage_path,
)
from deploykit.runtime.files import existing_file, exists, is_folder
from deploykit.runtime.package.sums import SUMS, read_sums
from deploykit.runtime.verified import sha256
from deploykit.spec import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES, METADATA_KEY, ModelSpec
from deploykit.strict_json import JsonError, read_json

__all__ = ["Chain", "Link", "belonging", "verify_chain"]

State = Literal["ok", "differs", "absent", "unknown"]
SOURCE = ".source.json"  # what ``deploykit fetch`` adds to the name of a checkpoint
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Link:
    """One comparison of a file with the hash that another file names.

    Attributes:
        file: the file whose content was read.
        state: ``ok``; ``differs``; ``absent``: the file, or what it was made from, is not there; ``unknown``: nothing
            names its hash.
        named_by: the name of the file that names the hash; empty: none does.
        says: what there is to say of it.
    """

    file: Path
    state: State
    named_by: str = ""
    says: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return JSON-able data."""
        return {"file": str(self.file), "state": self.state, "named_by": self.named_by, "says": self.says}


@dataclass(frozen=True)
class Chain:
    """All links that begin at a file or a folder."""

    path: Path
    links: tuple[Link, ...]

    @property
    def differing(self) -> tuple[Link, ...]:
        """The links that differ."""
        return tuple(link for link in self.links if link.state == "differs")

    @property
    def problem(self) -> str:
        """Why the file is not known to be what it was made as; empty: its hash is named and right, and none differs."""
        if self.differing:
            first, *others = self.differing
            also = f" (and {len(others)} more)" if others else ""
            return f"{first.file} is not the file that {first.named_by or 'its maker'} names: {first.says}{also}"
        if any(link.state == "ok" and (link.file == self.path or is_folder(self.path)) for link in self.links):
            return ""
        return f"nothing beside {self.path} names its hash, so it cannot be verified: copy what was written with it too"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {"path": str(self.path), "links": [link.to_dict() for link in self.links]}


def verify_chain(path: str | Path) -> Chain:
    """Read everything in the chain of a file or of a folder's files, and compare it with the hashes that are named.

    Raises:
        NotFoundError: there is no such file. ArtefactError: a file cannot be read, or the folder has nothing that
            names a hash.
    """
    place = Path(path).expanduser()
    walk = _Walk()
    try:
        if is_folder(place):
            walk.folder(place)
        else:
            walk.file(existing_file(place, "a checkpoint or an exported model"))
    except OSError as e:
        raise ArtefactError(f"cannot read {e.filename or place}: {e.strerror or e}") from e
    if not walk.links:
        raise ArtefactError(
            f"{place} has no model, no {SUMS} and no {MANIFEST}, so there is nothing to verify: give the folder of an "
            "export, a package or a run"
        )
    return Chain(place, tuple(walk.links))


def belonging(file: Path) -> list[Path]:
    """Return a model's file and those beside it that it cannot do without or that say what it is.

    Raises:
        ArtefactError: a file cannot be read.
    """
    if file.suffix.lower() == ".onnx":
        beside = [*external_files(file), parity_report_path(file).name]
    elif file.suffix.lower() in ENGINE_SUFFIXES:
        record = read_record(file)
        endings = {**record.second_stage, **record.reports} if record else {}
        beside = [record_path(file).name, *(f"{file.name}{ending}" for ending in endings)]
    else:
        beside = [f"{file.name}{SOURCE}"]
    found = [file, *(file.with_name(name) for name in beside if _is_name(name))]
    return [each for each in found if each.is_file()]


class _Walk:
    """The links found so far. A file is read once, and a file's chain is followed once."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._hashes: dict[Path, str] = {}
        self._seen: set[Path] = set()

    def file(self, file: Path) -> None:
        """Follow the chain from a file: to what it was made from, and to what was made from it."""
        suffix = file.suffix.lower()
        if suffix == ".onnx":
            self._onnx(file)
            for engine in _with_suffix(file.parent, ENGINE_SUFFIXES):
                record = self._record(engine, quiet=True)
                if record is not None and record.onnx == file.name:
                    self._engine(engine)
        elif suffix in ENGINE_SUFFIXES:
            self._engine(file)
        else:
            self._checkpoint(file)
            for model in _models(file.parent):
                if _stem(model) == _stem(file) or self._source_of(model) == self._hash(file):
                    self.file(model)

    def folder(self, folder: Path) -> None:
        """Follow the chains of a folder: of its models, of a package, of a run on a cluster."""
        if exists(folder / MANIFEST) and exists(folder / PLAN):
            self._run(folder)
        for sums in sorted(folder.rglob(SUMS)):
            self._sums(sums)
        for model in _models(folder):
            (self._onnx if model.suffix.lower() == ".onnx" else self._engine)(model)
        for source in sorted(folder.glob(f"*{SOURCE}")):
            self._checkpoint(source.with_name(source.name.removesuffix(SOURCE)))

    def _hash(self, file: Path) -> str:
        if file not in self._hashes:
            self._hashes[file] = sha256(file)
        return self._hashes[file]

    def _compare(self, folder: Path, named: Mapping[str, str], by: str) -> None:
        """Compare files in a folder with hashes by name."""
        for name, digest in named.items():
            file = folder / name
            if not _is_name(name):
                self.links.append(Link(folder, "differs", by, f"it names {name!r:.80}, which does not lie beside it"))
            elif not file.is_file():
                self.links.append(Link(file, "absent", by))
            elif not digest:
                self.links.append(Link(file, "unknown", by, "it has no hash of this file"))
            elif self._hash(file) == digest:
                self.links.append(Link(file, "ok", by))
            else:
                self.links.append(Link(file, "differs", by, f"SHA-256 {self._hash(file)}, expected {digest!s:.64}"))

    def _is_new(self, file: Path) -> bool:
        new = file not in self._seen
        self._seen.add(file)
        return new

    def _onnx(self, file: Path) -> None:
        if not self._is_new(file):
            return
        self._report(file)
        try:
            external = external_files(file)
        except ArtefactError as e:
            self.links.append(Link(file, "differs", file.name, str(e)))
            return
        covered = {link.file.name for link in self.links}
        for name in external:
            if name not in covered:
                self._compare(file.parent, {name: ""}, file.name)
        self._made_from(file, self._source_of(file), f"the spec in {file.name}")

    def _report(self, file: Path) -> None:
        """Compare a file and its parts with its parity report."""
        report = parity_report_path(file)
        about = self._json(report)
        if about is None:
            if file.suffix.lower() == ".onnx" and not exists(report):
                self.links.append(Link(report, "absent", says=f"so nothing names the hash of {file.name}"))
            return
        parts = about.get("parts")
        self._compare(
            file.parent,
            {file.name: str(about.get("sha256", "")), **(parts if isinstance(parts, dict) else {})},
            report.name,
        )
        source, parts = about.get("source"), about.get("source_parts")
        if isinstance(source, str):  # of a file that deploykit quantize made
            named_parts = parts if isinstance(parts, dict) else {}
            self._compare(file.parent, {source: str(about.get("source_sha256", "")), **named_parts}, report.name)
        named = about.get("checkpoint_sha256")
        if file.suffix.lower() == ".onnx" and named not in (None, self._source_of(file)):
            says = f"it names another checkpoint than the spec in {file.name}"
            self.links.append(Link(report, "differs", file.name, says))

    def _record(self, engine: Path, *, quiet: bool = False) -> EngineRecord | None:
        try:
            return read_record(engine)
        except ArtefactError as e:  # an invalid record is one too
            if not quiet:
                self.links.append(Link(record_path(engine), "differs", says=str(e)))
            return None

    def _engine(self, engine: Path) -> None:
        if not self._is_new(engine):
            return
        record, by = self._record(engine), record_path(engine).name
        if record is None:
            if not exists(record_path(engine)):
                says = f"so nothing names the hash of {engine.name}, and what it was built from"
                self.links.append(Link(record_path(engine), "absent", says=says))
            return
        beside = {
            f"{engine.name}{ending}": digest for ending, digest in {**record.second_stage, **record.reports}.items()
        }
        self._compare(engine.parent, {engine.name: record.sha256, **beside}, by)
        self._report(engine)
        self._compare(engine.parent, {record.onnx: record.onnx_sha256, **record.onnx_parts}, by)
        source = engine.with_name(record.onnx)
        if source.is_file():
            self._onnx(source)
        self._made_from(engine, record.spec.source.sha256, by)

    def _source_of(self, model: Path) -> str:
        """Return the hash of the checkpoint that a model names; empty: none."""
        try:
            if model.suffix.lower() == ".onnx":
                text = metadata_of(model).get(METADATA_KEY)
                return ModelSpec.from_json(text).source.sha256 if text else ""
            record = self._record(model, quiet=True)
            return record.spec.source.sha256 if record else ""
        except (ArtefactError, SpecError):
            return ""

    def _made_from(self, model: Path, digest: str, by: str) -> None:
        """Look beside a model for the checkpoint of this hash: first under the same name, then under any."""
        if not digest:
            self.links.append(Link(model, "unknown", by, "no checkpoint is named there"))
            return
        found = sorted(_checkpoints(model.parent), key=lambda files: _stem(files[0]) != _stem(model))
        for files in found:
            if self._hash_of_all(files) == digest:
                for file in files:
                    self.links.append(Link(file, "ok", by))
                    self._fetched(file)
                return
        if found and _stem(found[0][0]) == _stem(model):
            says = (
                f"SHA-256 {self._hash_of_all(found[0])}, expected {digest:.64}: {model.name} was made from another one"
            )
            self.links.append(Link(found[0][0], "differs", by, says))
        else:
            says = f"the checkpoint that it was made from, of SHA-256 {digest:.64}, does not lie beside it"
            self.links.append(Link(model, "absent", by, says))

    def _hash_of_all(self, files: tuple[Path, ...]) -> str:
        """Return the hash of a checkpoint; of shards that of their bytes one after the other."""
        if len(files) == 1:
            return self._hash(files[0])
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        return digest.hexdigest()

    def _checkpoint(self, file: Path) -> None:
        if not self._fetched(file) and file.is_file() and file.suffix.lower() in CHECKPOINT_SUFFIXES:
            says = f"there is no {file.name}{SOURCE}, which deploykit fetch writes"
            self.links.append(Link(file, "unknown", says=says))

    def _fetched(self, file: Path) -> bool:
        """Compare a checkpoint with the record of where it came from, if there is one."""
        source = file.with_name(f"{file.name}{SOURCE}")
        about = self._json(source) if self._is_new(source) else None
        if about is not None:
            self._compare(file.parent, {file.name: str(about.get("sha256", ""))}, source.name)
        return exists(source)

    def _sums(self, sums: Path) -> None:
        """Compare the files below a folder of a package with its list."""
        for name, digest in read_sums(sums).items():
            place = sums.parent / name
            self._compare(place.parent, {place.name: digest}, str(sums))

    def _run(self, folder: Path) -> None:
        try:
            manifest = check_folder(folder)
        except DataError as e:
            self.links.append(Link(folder / MANIFEST, "differs", says=str(e)))
            return
        self.links.append(Link(folder / PLAN, "ok", MANIFEST))
        self.links += [Link(folder / "parts" / part.file, "ok", MANIFEST) for part in manifest.parts]
        if manifest.joined is not None:
            self.links.append(Link(folder / manifest.joined.file, "ok", MANIFEST))

    def _json(self, file: Path) -> dict[str, Any] | None:
        """Return what a small file says; None: it is not there, or it is damaged, which is a link."""
        if not exists(file):
            return None
        try:
            about = read_json(file)
        except JsonError as e:
            about, problem = None, str(e)
        else:
            problem = "it is no JSON object"
        if isinstance(about, dict):
            return about
        self.links.append(Link(file, "differs", says=f"it cannot be read: {problem}"))
        return None


def _is_name(name: str) -> bool:
    """Return whether a name leads to a file of the same folder."""
    return bool(name) and Path(name).name == name and name not in (".", "..") and "\x00" not in name


def _stem(file: Path) -> str:
    """Return the name that a checkpoint and its exports share."""
    shard = SHARD.fullmatch(file.name)
    return shard[1] if shard else Path(file.name.removesuffix(".tar")).stem


def _with_suffix(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    wanted = tuple(suffixes)
    return [file for file in sorted(folder.iterdir()) if file.name.lower().endswith(wanted) and file.is_file()]


def _models(folder: Path) -> list[Path]:
    """Return the models in a folder; the second stage of an engine is none, but a part of it."""
    engines = _with_suffix(folder, ENGINE_SUFFIXES)
    stages = {second_stage_path(engine) for engine in engines}
    return [*(file for file in _with_suffix(folder, (".onnx",)) if file not in stages), *engines]


def _checkpoints(folder: Path) -> Iterator[tuple[Path, ...]]:
    """Yield the checkpoints of a folder, each with all of its shards."""
    files = _with_suffix(folder, CHECKPOINT_SUFFIXES)
    for shard, group in groupby(files, lambda file: (found := SHARD.fullmatch(file.name)) and found[1]):
        if shard:
            yield tuple(group)
        else:
            yield from ((file,) for file in group)
