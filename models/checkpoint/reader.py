"""read_checkpoint: a trained checkpoint, read without executing anything in it.

``read_checkpoint`` takes the weights and the facts around them out of a torch file (zip or legacy; a state dict or a
pickled model), a safetensors file or a pickle of numpy arrays. Nothing that the file names is imported or called, and
what the file makes us allocate is bounded by its size: the peak stays under three times the file plus 256 MB.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from deploykit.errors import CheckpointError, DeployError, NotFoundError
from deploykit.models.checkpoint.archive import Contents, Format, read_contents
from deploykit.models.checkpoint.entries import COUNTERS, Entry, choose_entry, is_averaged_model
from deploykit.models.checkpoint.facts import class_names, note_mixed_precision, note_precision, strides, what_is_beside
from deploykit.models.checkpoint.module_tree import (
    MAX_TENSORS,
    Module,
    PlainValues,
    checked_name,
    is_tensor,
    read_modules,
)
from deploykit.models.checkpoint.parametrized import whole_weights
from deploykit.models.checkpoint.refusals import refuse_names, why_not_read
from deploykit.models.checkpoint.safetensors_file import find_shards, read_shards
from deploykit.models.checkpoint.stack_machine import Record, unsafe, what_is
from deploykit.models.checkpoint.tensors import StoredTensor
from deploykit.models.load_options import LoadOptions

LOG = logging.getLogger(__name__)

__all__ = ["Checkpoint", "Entry", "Module", "read_checkpoint"]

_WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
"""Prefix of all names -> what puts it there; DataParallel is not the only one."""

_TENSORS = ("torch._utils.", "torch._tensor.", "torch.distributed.", "torchao.", "bitsandbytes.")
"""How the names begin of what makes tensors."""
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules that torch.compile, FSDP and activation checkpointing put around parts of a network."""
_AROUND = ("DataParallel", "OptimizedModule", "AveragedModel", "ModelEmaV2", "ModelEmaV3")
"""How the classes end that are put around a model."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: the file; of shards the one that was given, or their folder.
        size: in bytes; of shards all of them together.
        sha256: of the whole file, in hexadecimal; of shards that of their bytes one after the other, in order of names.
        format: how it was saved; ``pickle`` is a plain pickle, as detectron2 writes.
        entry: the entry that the weights came from, ``ema`` or ``model``; empty where the top level is them.
        state_dict: the weights under the names that torch gives them, in its order, as stored (half stays half).
        yaml: the description that a model of the YOLO family carries of itself.
        names: the class names, in order.
        stride: the strides of a detection head, in pixels.
        modules: every module of a pickled model, parents first; empty for a state dict.
        metadata: the other top-level entries, as far as they are plain.
        notes: what is unusual about the file, one sentence each.
        entries: every entry that holds weights.
        loading: what the user says of it, for the family that reads it.
    """

    path: Path
    size: int
    sha256: str
    format: Format
    entry: str
    state_dict: dict[str, torch.Tensor] = field(repr=False)
    yaml: dict[str, Any] | None
    names: tuple[str, ...] | None
    stride: tuple[int, ...] | None
    modules: tuple[Module, ...] = field(repr=False)
    metadata: Mapping[str, Any]
    notes: tuple[str, ...]
    entries: tuple[Entry, ...] = ()
    loading: LoadOptions = field(default_factory=LoadOptions)

    def float32(self) -> dict[str, torch.Tensor]:
        """The weights with every floating tensor in float32 and contiguous; one tensor under two names stays one."""
        done: dict[tuple[Any, ...], torch.Tensor] = {}
        result = {}
        for name, tensor in self.state_dict.items():
            view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if view not in done or not tensor.numel():
                done[view] = tensor.float().contiguous() if tensor.is_floating_point() else tensor
            result[name] = done[view]
        return result


def read_checkpoint(path: str | Path, *, entry: str = "") -> Checkpoint:
    """Read a checkpoint (.pt, .pth, .pkl, .safetensors) without importing or calling anything that it names.

    Shards of safetensors are read together: ``path`` is their index, their folder or any of them.
    ``entry``: dotted name of the entry whose weights are taken; empty: by the rule of docs/checkpoints.md.

    Raises:
        UsageError: the file has no weights in ``entry``.
        NotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, is truncated or damaged, or holds no weights that can be read.
        UnsafeCheckpointError: it breaks the reader's limits, or names what no checkpoint needs.
    """
    path, began = Path(path), time.perf_counter()
    checkpoint = _read(path, entry)
    LOG.debug(
        "%s: %s, %d bytes, %d tensors, read in %.0f ms",
        path, checkpoint.format, checkpoint.size, len(checkpoint.state_dict), 1000 * (time.perf_counter() - began),
    )  # fmt: skip
    return checkpoint


def _read(path: Path, entry: str) -> Checkpoint:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_naming(path))
        shards = find_shards(path)
        if shards is not None:
            files = [stack.enter_context(_open(shards.folder / name)) for name in shards.files]
            root, tensors, metadata = read_shards(shards, files)
            contents = Contents("safetensors", root, tensors, dict(metadata), [shards.note])
            return _assemble(path, contents, files, entry)
        file = stack.enter_context(_open(path))
        if path.suffix == ".distcp":
            raise CheckpointError(
                "it is a shard of torch.distributed.checkpoint: join its folder with python -m "
                "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt"
            )
        size = os.fstat(file.fileno()).st_size
        return _assemble(path, read_contents(file, size), [file], entry)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in every error, and make our own of what the system raises."""
    try:
        yield
    except DeployError as e:
        raise type(e)(f"{path}: {e}") from e
    except MemoryError as e:
        raise CheckpointError(f"{path}: there is not enough memory to read it; free some and try again") from e
    except OSError as e:
        raise CheckpointError(f"{path}: it cannot be read ({e.strerror or e}); check its permissions") from e


def _open(path: Path) -> BufferedReader:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as e:
        raise NotFoundError(f"there is no such file{_close_matches(path)}") from e
    if not stat.S_ISREG(mode):  # to open a pipe may wait forever, and a device has no end
        raise CheckpointError("it is a device or a pipe, not a file; expected a checkpoint")
    return path.open("rb")


def _close_matches(path: Path) -> str:
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(10_000), strict=False)]
    except (OSError, ValueError):
        return f"; its folder {path.parent} is not there either"
    close = difflib.get_close_matches(path.name, names, 3, 0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f" in {path.parent}; check the path"


def _assemble(path: Path, contents: Contents, files: Sequence[BufferedReader], asked: str) -> Checkpoint:
    chosen = choose_entry(contents.root, asked, contents.tensors.read)
    entry, holder = chosen.name, chosen.holder
    plain = PlainValues(contents.tensors)
    notes = [*contents.notes, *chosen.notes]
    modules: list[Module] = []
    if isinstance(holder, Record):
        modules, stored = read_modules(holder, plain)
    else:
        stored = _flat_tensors(holder, entry, notes)
    stored, modules = _unwrap(stored, modules, notes)
    refuse_names(stored)
    stored = _without_counters(stored, notes)
    state_dict = {name: contents.tensors.read(tensor) for name, tensor in stored.items()}
    state_dict = whole_weights(state_dict, notes)
    metadata = {**contents.metadata, **plain.items(what_is_beside(contents.root, entry, notes))}
    note_precision(state_dict, notes)
    note_mixed_precision(contents.root, metadata, notes)
    facts = modules[0].attributes if modules else metadata
    yaml = facts.get("yaml")
    names = class_names(modules[0].attributes if modules else {}, metadata, notes)
    digest = hashlib.sha256()
    for file in files:
        file.seek(0)
        hashlib.file_digest(file, lambda: digest)
    return Checkpoint(
        path=path,
        size=sum(os.fstat(file.fileno()).st_size for file in files),
        sha256=digest.hexdigest(),
        format=contents.format,
        entry=entry,
        state_dict=state_dict,
        yaml=yaml if isinstance(yaml, dict) else None,
        names=names,
        stride=strides(facts.get("stride")),
        modules=tuple(modules),
        metadata=metadata,
        notes=(*notes, *plain.notes),
        entries=chosen.entries,
    )


def _flat_tensors(holder: dict[Any, Any], entry: str, notes: list[str]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    others: list[str] = []
    for name, value in holder.items():
        if type(name) is str and is_tensor(value):
            stored[checked_name(name)] = value
        elif isinstance(value, StoredTensor) or what_is(value).startswith(_TENSORS):
            raise CheckpointError(f"the weight {str(name)[:80]!r} is {why_not_read(value.kind)}")
        else:
            others.append(repr(name)[:80])
    if len(stored) > MAX_TENSORS:
        raise unsafe(f"it has more than {MAX_TENSORS:,} tensors, the limit")
    if others and entry:
        notes.append(f"{len(others)} entries of {entry} are no tensors ({', '.join(others[:3])}): ignored")
    return stored


def _unwrap(
    stored: dict[str, StoredTensor], modules: list[Module], notes: list[str]
) -> tuple[dict[str, StoredTensor], list[Module]]:
    """Take off what DataParallel, torch.compile and averages put around a model."""
    if is_averaged_model(stored) and (not modules or modules[0].kind.endswith(_AROUND)):
        stored = {name: tensor for name, tensor in stored.items() if name not in COUNTERS}
    if not modules:
        stored = _without_wrappers(stored, notes)
    wrapped = True
    while wrapped and stored:
        wrapped = False
        for prefix, wrapper in _WRAPPERS.items():
            if not all(name.startswith(prefix) for name in stored):
                continue
            if modules and not modules[0].kind.endswith(_AROUND):
                continue
            around = modules[0].kind.rpartition(".")[2] if modules else ""
            stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
            modules = [replace(m, path=(m.path + ".").removeprefix(prefix)[:-1]) for m in modules[1:]]
            notes.append(f"{around or wrapper} prefix {prefix!r} removed")
            wrapped = True
    return stored, modules


def _without_wrappers(stored: dict[str, StoredTensor], notes: list[str]) -> dict[str, StoredTensor]:
    """Take off what stands in the middle of names, where parts of a network were compiled or sharded."""
    for wrapper in _INSIDE:
        parts = {name: name.split(".") for name in stored}
        plain = {name: ".".join(part for part in parts[name] if part != wrapper) for name in stored}
        count = sum(name != plain[name] for name in stored)
        if count and len(set(plain.values())) == len(stored) and not all(p[0] == wrapper for p in parts.values()):
            stored = {plain[name]: tensor for name, tensor in stored.items()}
            notes.append(f"{wrapper} removed from {count:,} names")
    return stored


def _without_counters(stored: dict[str, StoredTensor], notes: list[str]) -> dict[str, StoredTensor]:
    """Take off what thop's profiler registers in every module, and nothing computes with."""
    counters = {name for name in stored if name.rpartition(".")[2] in ("total_ops", "total_params")}
    counters = {name for name in counters if stored[name].numel == 1}
    if counters:
        notes.append(f"{len(counters):,} counters of a profiler (total_ops, total_params) are ignored")
    return {name: tensor for name, tensor in stored.items() if name not in counters}
