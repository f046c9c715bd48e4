"""From the inert record of a pickled torch module to its state dict, and to the facts that no state dict holds.

Source of the order and the names: ``torch.nn.Module.state_dict``: parameters, then persistent buffers, then children.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.refusals import why_not_read
from deploykit.models.checkpoint.stack_machine import CHOICES, Record, damaged, unsafe, what_is
from deploykit.models.checkpoint.tensors import StoredTensor, TensorReader

__all__ = [
    "STEP",
    "Budget",
    "Module",
    "PlainValues",
    "checked_name",
    "is_module",
    "is_tensor",
    "read_modules",
    "tensors_of",
]

MAX_MODULES = 20_000
MAX_TENSORS = 50_000
MAX_VISITS = 1_000_000  # entries of all modules; only modules that share them have more than a pickle can list
MAX_PATH = 1024  # characters
MAX_NAMES = 20_000_000  # characters of the names of all tensors of a model
MAX_PLAIN_NESTING = 50
MAX_PLAIN_VALUE = 100_000  # parts of one value; what is shared counts as often as it would be printed
MAX_PLAIN_VALUES = 400_000  # parts of all of them
MAX_PLAIN_NOTES = 10
MAX_SMALL_TENSOR = 1024  # elements


@dataclass(frozen=True)
class Module:
    """One submodule of a pickled model, inert.

    Attributes:
        path: where it is, ``model.105.ia.0``; empty for the model itself.
        kind: the dotted name of its class, ``torch.nn.modules.batchnorm.BatchNorm2d``.
        attributes: what it holds beside tensors and submodules, as far as that is numbers, strings, None, small tensors
            (as lists), or tuples, lists and dicts of those; private attributes are left out. A method of its own that
            stands for ``forward``, as ``fuse()`` of the YOLO projects puts one there, is its name. A step that prepares
            images is a dict of what it holds, with the dotted name of its class under :data:`STEP`.
        buffers: the names of its own tensors that are no parameters.
    """

    path: str
    kind: str
    attributes: Mapping[str, Any]
    buffers: tuple[str, ...] = ()


def is_module(value: Any) -> bool:
    """Whether a record is that of a pickled torch module."""
    return isinstance(value, Record) and isinstance(value.state, dict) and "_modules" in value.state


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of numbers."""
    return isinstance(value, StoredTensor) and value.dtype is not None


def read_modules(root: Record, plain: PlainValues) -> tuple[list[Module], dict[str, StoredTensor]]:
    """Every module below ``root``, parents first, and the tensors under the names that torch gives them.

    Raises:
        CheckpointError: a parameter, a buffer or a submodule is of a kind that is not read.
        UnsafeCheckpointError: the tree has too many modules, or modules inside themselves.
    """
    modules: list[Module] = []
    tensors: dict[str, StoredTensor] = {}
    for path, record in _walk(root, Budget()):
        if len(tensors) > MAX_TENSORS:
            raise unsafe(f"the model has more than {MAX_TENSORS:,} tensors, the limit")
        for name, tensor in _own_tensors(record):
            full = _join(path, name)
            if not is_tensor(tensor):
                raise CheckpointError(f"the weight {full} is {why_not_read(what_is(tensor))}")
            tensors[full] = tensor
        own = {k: v for k, v in record.state.items() if type(k) is str and not k.startswith("_")}
        if "forward" in own:
            own["forward"] = _plain_method(own["forward"])
        buffers = tuple(name for name in _table(record, "_buffers") if type(name) is str)
        modules.append(Module(path, record.kind, plain.items(own, path), buffers))
    return modules, tensors


def tensors_of(root: Record, budget: Budget) -> dict[str, StoredTensor]:
    """The tensors of a pickled model by name, without what its modules hold besides; what is no tensor is left out.

    Raises:
        CheckpointError: as :func:`read_modules`.
    """
    tensors: dict[str, StoredTensor] = {}
    for path, record in _walk(root, budget):
        own = {_join(path, name): tensor for name, tensor in _own_tensors(record) if is_tensor(tensor)}
        budget.take_names(own)
        tensors |= own
    return tensors


class Budget:
    """How much of the pickled models of a file is still looked at."""

    def __init__(self) -> None:
        self._modules, self._visits, self._characters = MAX_MODULES, MAX_VISITS, MAX_NAMES

    def take_module(self, entries: int) -> None:
        """Count a module with so many entries."""
        self._modules -= 1
        self._visits -= entries
        if self._modules < 0:
            raise unsafe(f"the model has more than {MAX_MODULES:,} modules, the limit")
        if self._visits < 0:
            raise unsafe(f"the model has more than {MAX_VISITS:,} entries, or modules in each other")

    def take_names(self, names: Iterable[str]) -> None:
        """Count the names of tensors."""
        self._characters -= sum(map(len, names))
        if self._characters < 0:
            raise unsafe(f"the names of the model's tensors have more than {MAX_NAMES:,} characters, the limit")


def _walk(root: Record, budget: Budget) -> Iterator[tuple[str, Record]]:
    """Every module with its path, parents first."""
    todo: list[tuple[str, Record]] = [("", root)]
    while todo:
        path, record = todo.pop()
        budget.take_module(len(record.state) + sum(len(_table(record, name)) for name in _TABLES))
        yield path, record
        children = _table(record, "_modules")
        for name in reversed(children):
            child, full = children[name], _join(path, name)
            if child is None:
                continue
            if not is_module(child):
                raise CheckpointError(f"the submodule {full} is {why_not_read(what_is(child))}")
            todo.append((full, child))


_GETATTR = ("builtins.getattr", "__builtin__.getattr")


def _plain_method(value: Any) -> Any:
    """The name of a method that was pickled bound to its object, and anything else as it is."""
    is_method = isinstance(value, Record) and value.kind in _GETATTR and len(value.args) == 2
    return value.args[1] if is_method and type(value.args[1]) is str else value


_TABLES = ("_parameters", "_buffers", "_modules")


def _own_tensors(record: Record) -> Iterator[tuple[Any, Any]]:
    transient = record.state.get("_non_persistent_buffers_set")
    if not isinstance(transient, (set, frozenset)):
        transient = frozenset()  # absent before torch 1.6
    for name, tensor in _table(record, "_parameters").items():
        if tensor is not None:
            yield name, tensor
    for name, tensor in _table(record, "_buffers").items():
        if tensor is not None and name not in transient:
            yield name, tensor


def _table(record: Record, name: str) -> dict[Any, Any]:
    table = record.state.get(name, {})
    if not isinstance(table, dict):
        raise damaged(f"a {record.kind} has {name} that are no dictionary")
    return table


def _join(path: str, name: Any) -> str:
    if type(name) is not str:
        raise damaged(f"a parameter or submodule of {path or 'the model'} has a name of type {what_is(name)}")
    return checked_name(f"{path}.{name}" if path else name)


def checked_name(name: str) -> str:
    """``name``, if it can be that of a tensor or a module.

    Raises:
        UnsafeCheckpointError: it is too long, which modules inside themselves lead to, or not printable.
    """
    if len(name) > MAX_PATH:
        raise unsafe(
            f"the name of a weight or module has more than {MAX_PATH:,} characters ({name[:40]}...), the limit"
        )
    if not name.isprintable():
        raise unsafe(f"the name of a weight or module has characters that do not print: {name[:80]!r}")
    return name


_SETTINGS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)
"""Classes that hold the arguments of a training script, and nothing else."""

STEP = "step"
"""The key of a step's class."""

_STEPS = re.compile(r"(torchvision\.transforms|ultralytics(\.yolo)?\.data)(\.\w+)*\.\w+")
"""Classes of the steps that prepare images: those of torchvision, and of the ultralytics package."""

_LISTED = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def _settings(value: Any) -> dict[Any, Any] | None:
    """The arguments of a training script by name; None: it is something else."""
    if not isinstance(value, Record) or value.kind not in _SETTINGS:
        return None
    state = value.state if isinstance(value.state, dict) else {}
    return {**state, **{pair[0]: pair[1] for pair in value.entries or () if type(pair) is tuple and len(pair) == 2}}


def _step(value: Any) -> dict[Any, Any] | None:
    """What a step that prepares images holds, by name; None: it is something else."""
    if not isinstance(value, Record) or not _STEPS.fullmatch(value.kind) or value.kind in CHOICES:
        return None
    state = value.state if isinstance(value.state, dict) else {}
    return {**{k: v for k, v in state.items() if type(k) is str and not k.startswith("_")}, STEP: value.kind}


def _choice(value: Any) -> Any:
    """The value or the name of one of a few filters, which Python's versions pickle in two ways; else ``value``."""
    if not isinstance(value, Record) or not value.args:
        return value
    if value.kind in _GETATTR and len(value.args) == 2 and what_is(value.args[0]) in CHOICES:
        return value.args[1]
    return value.args[0] if value.kind in CHOICES else value


class _NotPlainError(Exception):
    """A value holds something that is not plain."""


class PlainValues:
    """Copies plain values out of a checkpoint, without sharing: whoever prints one prints no more than was counted.

    Args:
        tensors: reads small tensors, which become lists.

    Attributes:
        notes: what was left out because it is too large, a sentence each.
    """

    def __init__(self, tensors: TensorReader) -> None:
        self.notes: list[str] = []
        self._tensors = tensors
        self._left = MAX_PLAIN_VALUES
        self._room = 0

    def items(self, values: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
        """Those of ``values`` that are plain all through; ``owner`` is the module that has them."""
        result = {}
        for name, value in values.items():
            room = self._room = min(self._left, MAX_PLAIN_VALUE)
            try:
                result[name] = self._copy(value, MAX_PLAIN_NESTING)
            except _NotPlainError as e:
                if e.args and len(self.notes) < MAX_PLAIN_NOTES:
                    full = f"{owner}.{name}" if owner else name
                    self.notes.append(f"{full[:80]!r} {e}: left out")
            self._left -= room - self._room
        return result

    def _copy(self, value: Any, levels: int) -> Any:
        value = _choice(value)
        kind = type(value)
        self._take(1 + (len(value) // 64 if kind is str else 0))
        if value is None or kind in (bool, int, float, str):
            return value
        if is_tensor(value) and value.numel <= MAX_SMALL_TENSOR and value.dtype in _LISTED:
            self._take(value.numel)
            return self._tensors.read(value).tolist()
        settings = _step(value) if (found := _settings(value)) is None else found
        if kind not in (list, tuple, dict) and settings is None:
            raise _NotPlainError
        if levels == 0:
            raise _NotPlainError(f"nests deeper than {MAX_PLAIN_NESTING} levels")
        if settings is not None:
            return self._copy_settings(settings, levels - 1)
        if kind is dict:
            table = {}
            for key, item in value.items():
                table[key] = self._copy(item, levels - 1)
            return table
        copied = []
        for item in value:
            copied.append(self._copy(item, levels - 1))
        return copied if kind is list else tuple(copied)

    def _copy_settings(self, settings: dict[Any, Any], levels: int) -> dict[str, Any]:
        """The plain ones of the arguments: a device or a path among them does not take the others along."""
        table = {}
        for name, value in settings.items():
            if type(name) is not str:
                continue
            try:
                table[name] = self._copy(value, levels)
            except _NotPlainError as e:
                if e.args:
                    raise
        return table

    def _take(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise _NotPlainError(f"holds more than {MAX_PLAIN_VALUE:,} values (of {MAX_PLAIN_VALUES:,} in all)")
