"""The stack machine of a pickle under limits: its memory, and what its opcodes share.

Every object is charged for before it is made, so that what a stream can make Python allocate depends on how long the
stream is, never on a number that the stream states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["CHOICES", "MAX_NESTING", "Builder", "Global", "Record", "StackMachine", "damaged", "unsafe", "what_is"]

MAX_OPCODES = 2_000_000  # the largest detectors have about 200,000
MAX_NESTING = 500  # Python's own pickler cannot write deeper
MAX_OBJECT_BYTES = 150 << 20  # what the objects may take on top of the stream's own length
MAX_INTEGER_BYTES = 255
MAX_INTEGER_KEYS = 30_000  # integers do not hash at random: more of them could be chosen to collide for long
MAX_INTEGER_KEY = 1 << 60  # above it, integers share whole hashes
MAX_KEY = 1024  # characters; to compare long keys takes long
MAX_NAME = 256

# What an object takes in CPython, and its entry in the table that measures nesting.
SLOT = 8
LIST = TUPLE = 160
DICT, DICT_ITEM = 180, 100
SET, SET_ITEM = 250, 128
RECORD = 200
TEXT = 56

_ABSENT = object()
_WIDE, _WIDEST = re.compile(rb"[\xc4-\xff]"), re.compile(rb"[\xf0-\xff]")

# No checkpoint needs these. They would stay as inert as any other name, but a file that has them is an attack.
_HOSTILE_MODULES = {
    "_pickle", "ctypes", "importlib", "marshal", "nt", "os", "pickle", "posix", "pty", "runpy", "shutil", "socket",
    "subprocess", "sys", "webbrowser",
}  # fmt: skip
_HOSTILE_BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "exit", "input", "open", "quit"}


def damaged(what: str) -> CheckpointError:
    """The error for a file of which ``what`` is true and must not be."""
    return CheckpointError(f"{what}: the file is truncated or damaged; get it again")


def unsafe(what: str) -> UnsafeCheckpointError:
    """The error for a file of which ``what`` is true, which breaks a limit of the reader."""
    return UnsafeCheckpointError(f"{what}: refused as unsafe; if the file is yours, save only its state_dict()")


CHOICES = ("torchvision.transforms.functional.InterpolationMode", "PIL.Image.Resampling")
"""Enumerations of the filters that scale images; a call of one, with a filter's name or number, is that filter."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a pickle, such as ``torch.FloatStorage``; nothing behind it is imported."""

    path: str


class Record:
    """What a pickle would have made by calling ``kind``: the name, the arguments and the state, all inert.

    Attributes:
        kind: the dotted name of the class or function.
        args: the arguments of the call.
        state: what the pickle would have set as the object's state, None without one.
        entries: what the pickle would have appended (values) or set as items (pairs of key and value).
    """

    __slots__ = ("args", "entries", "kind", "state")

    def __init__(self, kind: str, args: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: Any = None
        self.entries: list[Any] | None = None

    def build(self, machine: StackMachine, state: Any) -> None:
        """Keep the object's state."""
        self.state = state

    def add(self, entries: Iterable[Any]) -> None:
        """Keep what is appended or set as items."""
        if self.entries is None:
            self.entries = []
        self.entries.extend(entries)

    def __repr__(self) -> str:  # without what it holds, which may be endless
        return f"<{self.kind}>"


def what_is(value: Any) -> str:
    """The kind of ``value``, for a message."""
    if isinstance(value, Global):
        return value.path
    return value.kind if isinstance(value, Record) else type(value).__name__


Builder = Callable[["StackMachine", tuple[Any, ...]], Any]


class StackMachine:
    """The stack, the marks, the memo and the budgets.

    Args:
        data: the bytes that hold the streams.
        builders: name to our own function ``(machine, arguments) -> object`` that stands in for it.
        persistent: what to make of a persistent id (torch's reference to a storage).

    Attributes:
        called: the names that a stream wanted to call and that no builder stands in for, in order.
    """

    def __init__(
        self, data: bytes, builders: Mapping[str, Builder] | None = None, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.data = data
        self.end = len(data)
        self.persistent = persistent
        self.called: dict[str, None] = {}
        self.opcodes = 0
        self._builders = builders or {}
        self._budget = MAX_OBJECT_BYTES + len(data)
        self._integer_keys = 0
        self._globals: dict[str, Global] = {}
        self.begin(0)

    def begin(self, start: int) -> None:
        """Go to the stream that begins at byte ``start``; the limits go on counting."""
        self.pos = start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def malformed(self, what: str) -> CheckpointError:
        """The error for a stream that does ``what``."""
        return damaged(f"the pickle {what} (byte {self.pos:,})")

    def charge(self, amount: int) -> None:
        """Account for ``amount`` bytes of memory that an object is about to take."""
        self._budget -= amount
        if self._budget < 0:
            limit = (MAX_OBJECT_BYTES + self.end) >> 20
            raise unsafe(f"the objects of the pickle need more than {limit} MB of memory, the limit")

    # Operands

    def take(self, count: int) -> int:
        """Where the next ``count`` bytes begin; the position is then behind them."""
        start = self.pos
        if count > self.end - start:
            left = self.end - start
            raise damaged(f"the pickle announces {count:,} bytes at byte {start:,} and {left:,} are left")
        self.pos = start + count
        return start

    def unsigned(self, size: int) -> int:
        """The next little-endian number of ``size`` bytes."""
        start = self.take(size)
        return int.from_bytes(self.data[start : self.pos], "little")

    def line(self) -> str:
        """The text up to the next line feed."""
        stop = self.data.find(b"\n", self.pos, self.pos + MAX_NAME + 1)
        if stop < 0:
            raise self.malformed("has a name without an end")
        line, self.pos = self.data[self.pos : stop], stop + 1
        return line.decode("utf-8", "replace")

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        start = self.take(count)
        self.charge(TEXT + count)
        return self.data[start : self.pos]

    def text(self, count: int, encoding: str) -> str:
        """The next ``count`` bytes as a string."""
        start = self.take(count)
        width = 4 if encoding == "utf-8" else 1
        if width == 4 and count > 1024:  # one wide character makes all of a Python string wide
            width = 1 if not _WIDE.search(self.data, start, self.pos) else width
            width = 2 if width == 4 and not _WIDEST.search(self.data, start, self.pos) else width
        self.charge(TEXT + width * count)
        try:
            return str(self.data[start : self.pos], encoding)
        except UnicodeDecodeError as e:
            raise self.malformed("has a string that is not UTF-8") from e

    # Stack and memo

    def from_mark(self) -> list[Any]:
        """Take what is on the stack above the last mark."""
        if not self.marks or self.marks[-1] > len(self.stack):
            raise self.malformed("refers to a mark that is not there")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def put(self, index: int) -> None:
        """Memorise the top of the stack under a number."""
        value, memo = self.stack[-1], self.memo
        if index == len(memo):
            memo.append(value)
            return
        if index > self.opcodes:
            raise unsafe(f"the pickle memorises object {index:,} after only {self.opcodes:,} opcodes")
        memo.extend([_ABSENT] * (index + 1 - len(memo)))
        memo[index] = value

    def get(self, index: int) -> None:
        """Push the object that was memorised under a number."""
        value = self.memo[index] if index < len(self.memo) else _ABSENT
        if value is _ABSENT:
            raise self.malformed(f"refers to object {index:,}, which is not there")
        self.stack.append(value)

    # Objects

    def key(self, key: Any) -> Any:
        """``key``, if it may be a dictionary's key or a set's element."""
        kind = type(key)
        if kind is str or kind is bytes:
            if len(key) > MAX_KEY:
                raise unsafe(f"a dictionary key has {len(key):,} characters, the limit is {MAX_KEY:,}")
        elif kind is int or kind is bool:
            self._integer_keys += 1
            if self._integer_keys > MAX_INTEGER_KEYS:
                raise unsafe(f"the pickle has more than {MAX_INTEGER_KEYS:,} integer keys, the limit")
            if abs(key) >= MAX_INTEGER_KEY:
                raise unsafe("a dictionary key or set element is an integer of more than 60 bits")
        else:
            raise unsafe(f"a dictionary key or set element is a {kind.__name__}; only str, int and bytes are read")
        return key

    def make_tuple(self, values: list[Any]) -> tuple[Any, ...]:
        """A tuple."""
        self.charge(TUPLE + SLOT * len(values))
        return tuple(values)

    def make_dict(self, pairs: Iterable[Any]) -> dict[Any, Any]:
        """A dictionary of pairs, each a tuple or list of a key and a value."""
        self.charge(DICT)
        result: dict[Any, Any] = {}
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise self.malformed("makes a dictionary of something else than pairs")
            self.charge(DICT_ITEM)
            result[self.key(pair[0])] = pair[1]
        return result

    def make_set(self, elements: Iterable[Any]) -> set[Any]:
        """A set of strings, integers or bytes."""
        self.charge(SET)
        result = set()
        for element in elements:
            self.charge(SET_ITEM)
            result.add(self.key(element))
        return result

    def name(self, module: Any, name: Any) -> Global:
        """The name ``module.name``, not imported.

        Raises:
            UnsafeCheckpointError: it is one of those that run code and that no checkpoint needs.
        """
        for part in (module, name):
            if type(part) is not str or not 0 < len(part) <= MAX_NAME or not part.isprintable():
                raise self.malformed("has a name that is no name")
        path = f"{module}.{name}"
        if path not in self._globals:
            root = module.split(".")[0]
            builtin = root in ("builtins", "__builtin__") and name.split(".")[0] in _HOSTILE_BUILTINS
            if builtin or root in _HOSTILE_MODULES:
                raise UnsafeCheckpointError(
                    f"it names {path}, a way to run code that no checkpoint needs: refused as unsafe; "
                    "get the weights from a source that you trust"
                )
            self.charge(RECORD + 4 * len(path))
            self._globals[path] = Global(path)
        return self._globals[path]

    def call(self, function: Any, args: Any, *, noted: bool) -> Any:
        """Stand in for a call: by our own builder of that name, or by a record of the call.

        Args:
            noted: remember the name in ``called`` where there is no builder.
        """
        if type(args) is not tuple:
            raise self.malformed("calls something without a tuple of arguments")
        self.charge(RECORD)
        if isinstance(function, Record):  # the call of what a call would have returned
            return Record(function.kind, args)
        if not isinstance(function, Global):
            raise self.malformed(f"calls a {what_is(function)}")
        builder = self._builders.get(function.path)
        if builder is not None:
            return builder(self, args)
        # A method bound to an object of the file is pickled so, where one stands for another: ``forward``, say.
        own_method = function.path in ("builtins.getattr", "__builtin__.getattr") and isinstance(
            next(iter(args), None), Record
        )
        if noted and not own_method and function.path not in CHOICES:
            self.called[function.path] = None
        return Record(function.path, args)


def too_deep() -> UnsafeCheckpointError:
    """The error for a value that nests over the limit."""
    return unsafe(f"the pickle nests deeper than {MAX_NESTING} levels, the limit")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Record):
        return (value.args or None, value.state, value.entries)
    return value.values() if type(value) is dict else value


def check_nesting(root: Any) -> None:
    """Refuse a value whose longest path is over the limit; what is shared is measured once, a cycle ends a path."""
    outside = [root]
    heights = {id(outside): 0}
    path: list[tuple[Any, Any]] = [(outside, iter(outside))]
    tallest = [0]
    while path:
        value, children = path[-1]
        for child in children:
            if not isinstance(child, (list, tuple, dict, Record)):
                continue
            height = heights.get(id(child)) if child else 1
            if height is None:
                heights[id(child)] = 0
                path.append((child, iter(_children(child))))
                tallest.append(0)
                break
            tallest[-1] = max(tallest[-1], height)
        else:
            path.pop()
            heights[id(value)] = tallest.pop() + 1
            if tallest:
                tallest[-1] = max(tallest[-1], heights[id(value)])
        if tallest and len(path) - 1 + tallest[-1] > MAX_NESTING:
            raise too_deep()
