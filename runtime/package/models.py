"""The models that are packaged: their names, their files, and what a server must know about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import ArtefactError, NotFoundError, UsageError
from deploykit.runtime.backends.onnx_weights import external_files
from deploykit.runtime.engine_record import find_onnx_source, read_record, second_stage_path
from deploykit.runtime.files import existing_file, exists
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.session import TensorInfo, is_checkpoint, open_session
from deploykit.runtime.spec_file import read_spec
from deploykit.spec import ENGINE_SUFFIXES, ModelSpec

__all__ = ["Network", "PackagedModel", "network_of", "packaged_models"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
SUFFIXES = (".onnx", *ENGINE_SUFFIXES)


@dataclass(frozen=True)
class PackagedModel:
    """A model under the name by which a server knows it. ``beside``: the files that the model needs next to it."""

    name: str
    file: Path
    beside: tuple[Path, ...] = ()

    @property
    def is_engine(self) -> bool:
        """Whether it is a TensorRT engine."""
        return self.file.suffix.lower() in ENGINE_SUFFIXES

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return (self.file, *self.beside)


@dataclass(frozen=True)
class Network:
    """What a server must know about a network.

    ``most_batch`` is the largest batch that it takes; None: any.
    """

    spec: ModelSpec
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    most_batch: int | None = None


def packaged_models(words: Sequence[str]) -> list[PackagedModel]:
    """Return the models that ``NAME=FILE`` or ``FILE`` name; without a name a model has that of its file.

    Raises:
        UsageError: a name is not possible, or two models have one name; or a file is a checkpoint.
        NotFoundError, ArtefactError: a file, or one that it needs, is missing or no exported model.
    """
    found: dict[str, PackagedModel] = {}
    for word in words:
        before, equals, after = word.partition("=")
        name, place = (before, after) if equals and NAME.fullmatch(before) and after else (Path(word).stem, word)
        if not NAME.fullmatch(name):
            raise UsageError(
                f"a model's name has letters, digits, '_', '.' and '-', and at most 100 of them, got {name!r:.120}: "
                "write NAME=MODEL"
            )
        if name in found:
            raise UsageError(f"two models are called {name!r}: write NAME=MODEL for one of them")
        if is_checkpoint(place):
            raise UsageError(f"{place} is a checkpoint, and a server takes an exported model: deploykit export {place}")
        file = existing_file(place, "a model")
        if file.suffix.lower() not in SUFFIXES:
            raise ArtefactError(f"expected a model that ends in {', '.join(SUFFIXES)}, got {place}")
        found[name] = PackagedModel(name, file, _beside(file))
    return list(found.values())


def network_of(model: PackagedModel, spec: ModelSpec | str | Path | None = None) -> Network:
    """Return what a server must know about a model's network; nothing runs on a GPU for it.

    An engine's tensors are those of the ONNX file that it was built from, if that lies beside it; else the engine is
    opened, which needs its GPU.

    Args:
        model: the model.
        spec: for a model that does not carry its own, as for :func:`deploykit.load`.

    Raises:
        SpecError: it has no spec. ArtefactError: an engine's record is missing.
        BackendError, MissingDependencyError: it cannot be opened.
    """
    record = read_record(model.file) if model.is_engine else None
    source = find_onnx_source(model.file) if model.is_engine else None
    most = None
    with open_session(source or model.file, device="cpu" if source or not model.is_engine else None) as session:
        own = read_spec(spec) or (record.spec if record else session_spec(session, str(model.file)))
        (info, *_), outputs = session.inputs, session.outputs
    if record is not None:
        if record.second_stage:
            raise UsageError(
                f"{model.file} is the first of two stages, which Triton does not join: package its .onnx file"
            )
        profiles = record.profiles
        if profiles:
            most = max(profile.max[0] for profile in profiles)
        elif info.shape[0] is None:  # built for the shape of the spec alone
            info = TensorInfo(info.name, (own.input.batch, own.input.channels, *own.input.size), info.dtype)
            outputs = tuple(TensorInfo(o.name, (own.input.batch, *o.shape[1:]), o.dtype) for o in outputs)
    return Network(own, info, tuple(outputs), most)


def _beside(file: Path) -> tuple[Path, ...]:
    """Return the files that a model needs next to it.

    Raises:
        NotFoundError, ArtefactError: one is missing, or lies in another folder.
    """
    if file.suffix.lower() != ".onnx":
        record = file.with_name(f"{file.name}.json")
        return tuple(each for each in (record, second_stage_path(file)) if exists(each))
    needed = []
    for name in external_files(file):
        if Path(name).name != name:
            raise ArtefactError(
                f"{file} keeps weights in {name!r:.120}, which is not a file beside it: export it again"
            )
        if not exists(file.with_name(name)):
            raise NotFoundError(f"{file} keeps weights in {name}, which does not lie beside it")
        needed.append(file.with_name(name))
    return tuple(needed)
