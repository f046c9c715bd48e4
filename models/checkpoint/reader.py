"""read_checkpoint: a trained checkpoint, read without executing anything in it.

``read_checkpoint`` takes the weights and the facts around them out of a torch file (zip or legacy; a state dict or a
pickled model), a safetensors file or a pickle of numpy arrays. Nothing that the file names is imported or called, and
what the file makes us allocate is bounded by its size: the peak stays under three times the file plus 256 MB.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from deploykit.errors import CheckpointError, DeployError, NotFoundError
from deploykit.models.checkpoint.archive import Contents, Format, read_contents
from deploykit.models.checkpoint.module_tree import (
    MAX_TENSORS,
    Module,
    PlainValues,
    checked_name,
    is_module,
    is_tensor,
    read_modules,
)
from deploykit.models.checkpoint.stack_machine import Record, unsafe, what_is
from deploykit.models.checkpoint.tensors import StoredTensor

__all__ = ["Checkpoint", "Module", "read_checkpoint"]

ENTRIES = ("ema", "model", "state_dict", "params_ema", "params")
"""Where projects put the weights, best first."""

_WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: the file.
        size: its size in bytes.
        sha256: of the whole file, in hexadecimal.
        format: how it was saved; ``pickle`` is a plain pickle, as detectron2 writes.
        entry: the top-level entry that the weights came from, ``ema`` or ``model``; empty where the top level is them.
        state_dict: the weights under the names that torch gives them, in its order, as stored (half stays half).
        yaml: the description that a model of the YOLO family carries of itself.
        names: the class names, in order.
        stride: the strides of a detection head, in pixels.
        modules: every module of a pickled model, parents first; empty for a state dict.
        metadata: the other top-level entries, as far as they are plain.
        notes: what is unusual about the file, one sentence each.
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


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint (.pt, .pth, .pkl, .safetensors) without importing or calling anything that it names.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, is truncated or damaged, or holds no weights that can be read.
        UnsafeCheckpointError: it breaks the reader's limits, or names what no checkpoint needs.
    """
    path = Path(path)
    with _naming(path), _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _assemble(path, size, read_contents(file, size), file)


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
    if stat.S_ISDIR(mode):
        raise CheckpointError("it is a folder; expected the checkpoint file itself (.pt, .pth, .pkl or .safetensors)")
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


def _assemble(path: Path, size: int, contents: Contents, file: BufferedReader) -> Checkpoint:
    found = _find_weights(contents.root, "", 0)
    if found is None:
        raise CheckpointError(_no_weights(contents.root))
    entry, holder = found
    plain = PlainValues(contents.tensors)
    notes = list(contents.notes)
    modules: list[Module] = []
    if isinstance(holder, Record):
        modules, stored = read_modules(holder, plain)
    else:
        stored = _flat_tensors(holder, entry, notes)
    stored, modules = _unwrap(stored, modules, notes)
    state_dict = {name: contents.tensors.read(tensor) for name, tensor in stored.items()}
    metadata = {**contents.metadata, **plain.items(_beside(contents.root, entry, notes))}
    _note_precision(state_dict, notes)
    _note_mixed_precision(contents.root, metadata, notes)
    facts = modules[0].attributes if modules else metadata
    yaml = facts.get("yaml")
    file.seek(0)
    return Checkpoint(
        path=path,
        size=size,
        sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        format=contents.format,
        entry=entry,
        state_dict=state_dict,
        yaml=yaml if isinstance(yaml, dict) else None,
        names=_names(facts.get("names", metadata.get("names"))),
        stride=_stride(facts.get("stride")),
        modules=tuple(modules),
        metadata=metadata,
        notes=(*notes, *plain.notes),
    )


def _find_weights(value: Any, entry: str, depth: int) -> tuple[str, Any] | None:
    """The pickled model or the state dict inside the top-level object, and the dotted name of its entry."""
    if is_module(value):
        return entry, value
    if not isinstance(value, dict) or depth > 2:
        return None
    for name in (*ENTRIES, "module") if depth else ENTRIES:
        found = _find_weights(value.get(name), f"{entry}.{name}" if entry else name, depth + 1)
        if found is not None:
            return found
    return (entry, value) if any(is_tensor(item) for item in value.values()) else None


def _no_weights(root: Any) -> str:
    if isinstance(root, dict):
        found = ", ".join(repr(key)[:40] for key in list(root)[:8]) or "nothing"
        return f"it holds no weights: expected tensors or a model, here or in {', '.join(ENTRIES)}; found {found}"
    return f"it holds no weights: expected a dictionary or a torch module; found a {what_is(root)}"


def _flat_tensors(holder: dict[Any, Any], entry: str, notes: list[str]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    others: list[str] = []
    for name, value in holder.items():
        if type(name) is str and is_tensor(value):
            stored[checked_name(name)] = value
        elif isinstance(value, StoredTensor) or what_is(value).startswith(("torch._utils.", "torch._tensor.")):
            raise CheckpointError(f"the weight {str(name)[:80]!r} is a {value.kind}, which is not read; leave it out")
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
    """Take off what DataParallel and torch.compile put around a model."""
    wrapped = True
    while wrapped and stored:
        wrapped = False
        for prefix, wrapper in _WRAPPERS.items():
            if not all(name.startswith(prefix) for name in stored):
                continue
            if modules and not modules[0].kind.endswith(("DataParallel", "OptimizedModule")):
                continue
            stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
            modules = [Module((m.path + ".").removeprefix(prefix)[:-1], m.kind, m.attributes) for m in modules[1:]]
            notes.append(f"{wrapper} prefix {prefix!r} removed")
            wrapped = True
    return stored, modules


def _beside(root: Any, entry: str, notes: list[str]) -> dict[str, Any]:
    """The top-level entries that are not the weights."""
    if not isinstance(root, dict):
        return {}
    optimizer = root.get("optimizer")
    if isinstance(optimizer, dict):
        state = optimizer.get("state")
        slots = [slot for slot in state.values() if isinstance(slot, dict)] if isinstance(state, dict) else []
        count = sum(is_tensor(value) for slot in slots for value in slot.values())
        if count:
            notes.append(f"carries an optimizer state ({count:,} tensors): ignored")
    skipped = {entry.partition(".")[0], "optimizer"}
    return {
        checked_name(name): value
        for name, value in root.items()
        if type(name) is str and name not in skipped and (entry or not is_tensor(value))
    }


def _note_mixed_precision(root: Any, metadata: Mapping[str, Any], notes: list[str]) -> None:
    """Say what mixed-precision training left in the file; none of it changes what the network computes.

    apex: ``amp`` with a ``loss_scaler0`` for each loss, and optimizers that keep float32 copies of half weights
    (NVIDIA/apex, BSD-3). torch.amp: the state of a GradScaler, under a name that projects choose.
    """
    amp = metadata.get("amp")
    if isinstance(amp, Mapping) and any(str(key).startswith("loss_scaler") for key in amp):
        notes.append("trained in mixed precision by apex.amp: its loss scale is ignored")
    for name, state in metadata.items():
        if isinstance(state, Mapping) and {"scale", "growth_factor", "backoff_factor"} <= set(state):
            notes.append(f"trained in mixed precision by torch.amp: its gradient scaler ({name!r}) is ignored")
    optimizer = root.get("optimizer") if isinstance(root, dict) else None
    if isinstance(optimizer, dict) and isinstance(optimizer.get("fp32_from_fp16"), list):
        notes.append("its optimizer holds float32 copies of the weights: the model's own are read")


def _note_precision(state_dict: Mapping[str, torch.Tensor], notes: list[str]) -> None:
    floating = [tensor for tensor in state_dict.values() if tensor.is_floating_point()]
    double = sum(tensor.numel() for tensor in floating if tensor.dtype == torch.float64)
    if double * 2 > sum(tensor.numel() for tensor in floating):
        notes.append("weights are float64")


def _names(value: Any) -> tuple[str, ...] | None:
    """Class names from a list, or from a dictionary of index to name."""
    if isinstance(value, dict) and all(type(key) is int for key in value):
        value = [value[key] for key in sorted(value)]
    if not isinstance(value, (list, tuple)) or not value or not all(type(name) in (str, int) for name in value):
        return None
    return tuple(str(name) for name in value)


def _stride(value: Any) -> tuple[int, ...] | None:
    """The strides of a model of the YOLO family, which are a tensor there and so a list here."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(step, (int, float)) and step > 0 and float(step).is_integer() for step in value):
        return None
    return tuple(int(step) for step in value)
