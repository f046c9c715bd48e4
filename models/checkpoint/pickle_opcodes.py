"""A small interpreter of pickle opcodes: it builds containers and inert records, and imports and calls nothing.

A pickle is a program for a stack machine, and Python's own machine runs whatever the file asks for. An allow-list of
names on top of it is not enough: nine bytes (LONG_BINPUT) make it reserve 1.5 GB, and a nested tuple as a dictionary
key crashes it. This one knows only the opcodes that torch, numpy and pickle protocols 2 to 5 write, and each of them is
bounded by what the stream has paid for in bytes (see :class:`~deploykit.models.checkpoint.stack_machine.StackMachine`).

What a stream names stays a :class:`~deploykit.models.checkpoint.stack_machine.Global` (the name) and what it would call
becomes a :class:`~deploykit.models.checkpoint.stack_machine.Record` (the name, the arguments, the state). The
exceptions are the *builders*: our own functions for a few names, such as ``collections.OrderedDict`` or
``torch._utils._rebuild_tensor_v2``.

Source of the opcodes' meaning: ``pickletools`` in the documentation of the Python standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from deploykit.models.checkpoint.stack_machine import (
    DICT,
    DICT_ITEM,
    LIST,
    MAX_INTEGER_BYTES,
    MAX_NESTING,
    MAX_OPCODES,
    SET_ITEM,
    SLOT,
    TUPLE,
    Record,
    StackMachine,
    check_nesting,
    damaged,
    too_deep,
    unsafe,
    what_is,
)

__all__ = ["Interpreter"]

_Opcode = Callable[[StackMachine], None]

_REFUSED = {
    **dict.fromkeys(b"FILPSVdgilop", "belongs to protocols 0 and 1, expected 2 or newer"),
    **dict.fromkeys(b"\x82\x83\x84", "asks for Python's registry of extensions"),
    **dict.fromkeys(b"\x97\x98", "asks for a buffer outside the file"),
}


class Interpreter(StackMachine):
    """Runs the pickle streams of one file, under one set of limits for all of them."""

    def run(self, start: int = 0) -> tuple[Any, int]:
        """Run the stream that begins at byte ``start``.

        Returns:
            The object it leaves, and the position of the byte after it.

        Raises:
            CheckpointError: the stream is truncated or malformed.
            UnsafeCheckpointError: it breaks a limit, or names what no checkpoint needs.
        """
        self.begin(start)
        try:
            self._loop()
            value = self.stack.pop()
        except IndexError as e:
            raise self.malformed("takes an object from an empty stack") from e
        check_nesting(value)
        return value, self.pos

    def _loop(self) -> None:
        data, end, table = self.data, self.end, _TABLE
        while self.pos < end:
            code = data[self.pos]
            self.pos += 1
            self.opcodes += 1
            if self.opcodes > MAX_OPCODES:
                raise unsafe(f"the pickle has more than {MAX_OPCODES:,} opcodes, the limit")
            if code == _STOP:
                return
            opcode = table.get(code)
            if opcode is None:
                if code in _REFUSED:
                    raise unsafe(f"the pickle's opcode {chr(code)!r} {_REFUSED[code]}")
                raise self.malformed(f"has an opcode 0x{code:02x}, which does not exist")
            opcode(self)
        raise damaged("the pickle ends before its STOP")


# The stream


def _proto(m: StackMachine) -> None:
    version = m.unsigned(1)
    if version > 5:
        raise m.malformed(f"says that it is of protocol {version}, which does not exist")


def _frame(m: StackMachine) -> None:
    m.pos = m.take(m.unsigned(8))  # a frame only helps buffering: what it holds is read opcode by opcode


# The stack


def _mark(m: StackMachine) -> None:
    if len(m.marks) >= MAX_NESTING:
        raise too_deep()
    m.marks.append(len(m.stack))


def _pop(m: StackMachine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.stack.pop()


def _pop_mark(m: StackMachine) -> None:
    m.from_mark()


def _dup(m: StackMachine) -> None:
    m.stack.append(m.stack[-1])


def _memoize(m: StackMachine) -> None:
    m.put(len(m.memo))


# Values


def _constant(value: Any) -> _Opcode:
    return lambda m: m.stack.append(value)


def _unsigned(size: int) -> _Opcode:
    return lambda m: m.stack.append(m.unsigned(size))


def _text(size: int, encoding: str = "utf-8") -> _Opcode:
    return lambda m: m.stack.append(m.text(m.unsigned(size), encoding))


def _bytes(size: int) -> _Opcode:
    return lambda m: m.stack.append(m.bytes(m.unsigned(size)))


def _binint(m: StackMachine) -> None:
    m.stack.append(struct.unpack_from("<i", m.data, m.take(4))[0])


def _binfloat(m: StackMachine) -> None:
    m.stack.append(struct.unpack_from(">d", m.data, m.take(8))[0])


def _long(size: int) -> _Opcode:
    def run(m: StackMachine) -> None:
        count = m.unsigned(size)
        if count > MAX_INTEGER_BYTES:
            raise unsafe(f"an integer has {count:,} bytes, the limit is {MAX_INTEGER_BYTES}")
        m.stack.append(int.from_bytes(m.bytes(count), "little", signed=True))

    return run


# Containers


def _tuple(count: int) -> _Opcode:
    def run(m: StackMachine) -> None:
        if len(m.stack) < count:
            raise m.malformed("takes an object from an empty stack")
        values = m.stack[-count:]
        del m.stack[-count:]
        m.stack.append(m.make_tuple(values))

    return run


def _tuple_from_mark(m: StackMachine) -> None:
    m.stack.append(m.make_tuple(m.from_mark()))


def _empty_list(m: StackMachine) -> None:
    m.charge(LIST)
    m.stack.append([])


def _append(m: StackMachine, values: list[Any]) -> None:
    target = m.stack[-1]
    if type(target) is list:
        m.charge(SLOT * len(values))
        target.extend(values)
    elif isinstance(target, Record):
        m.charge(SLOT * len(values) + LIST)
        target.add(values)
    else:
        raise m.malformed(f"appends to a {what_is(target)}")


def _append_one(m: StackMachine) -> None:
    _append(m, [m.stack.pop()])


def _appends(m: StackMachine) -> None:
    _append(m, m.from_mark())


def _empty_dict(m: StackMachine) -> None:
    m.charge(DICT)
    m.stack.append({})


def _set(m: StackMachine, flat: list[Any]) -> None:
    target = m.stack[-1]
    if len(flat) % 2:
        raise m.malformed("has a key without a value")
    if type(target) is dict:
        m.charge(DICT_ITEM * (len(flat) // 2))
        for i in range(0, len(flat), 2):
            target[m.key(flat[i])] = flat[i + 1]
    elif isinstance(target, Record):
        m.charge(TUPLE * (len(flat) // 2) + LIST)
        target.add(zip(flat[::2], flat[1::2], strict=True))
    else:
        raise m.malformed(f"sets items of a {what_is(target)}")


def _setitem(m: StackMachine) -> None:
    value = m.stack.pop()
    _set(m, [m.stack.pop(), value])


def _setitems(m: StackMachine) -> None:
    _set(m, m.from_mark())


def _empty_set(m: StackMachine) -> None:
    m.stack.append(m.make_set(()))


def _additems(m: StackMachine) -> None:
    elements = m.from_mark()
    target = m.stack[-1]
    if type(target) is set:
        m.charge(SET_ITEM * len(elements))
        target.update(map(m.key, elements))
    else:
        _append(m, elements)


def _frozenset(m: StackMachine) -> None:
    m.stack.append(frozenset(m.make_set(m.from_mark())))


# Names, calls and state


def _global(m: StackMachine) -> None:
    module = m.line()
    m.stack.append(m.name(module, m.line()))


def _stack_global(m: StackMachine) -> None:
    name = m.stack.pop()
    m.stack.append(m.name(m.stack.pop(), name))


def _reduce(m: StackMachine) -> None:
    args = m.stack.pop()
    m.stack.append(m.call(m.stack.pop(), args, noted=True))


def _newobj(m: StackMachine) -> None:
    args = m.stack.pop()
    m.stack.append(m.call(m.stack.pop(), args, noted=False))


def _newobj_ex(m: StackMachine) -> None:
    keywords, args = m.stack.pop(), m.stack.pop()
    m.stack.append(m.call(m.stack.pop(), m.make_tuple([args, keywords]), noted=False))


def _build(m: StackMachine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if isinstance(target, Record):
        target.build(m, state)
    elif type(target) is not dict:  # an OrderedDict may have attributes of its own, which nobody needs
        raise m.malformed(f"sets the state of a {what_is(target)}")


def _binpersid(m: StackMachine) -> None:
    reference = m.stack.pop()
    if m.persistent is None:
        raise m.malformed("refers to a storage, which a plain pickle does not have")
    m.stack.append(m.persistent(reference))


_STOP = ord(".")
_TABLE: dict[int, _Opcode] = {
    0x80: _proto,
    0x95: _frame,
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): _pop_mark,
    ord("2"): _dup,
    ord("q"): lambda m: m.put(m.unsigned(1)),
    ord("r"): lambda m: m.put(m.unsigned(4)),
    0x94: _memoize,
    ord("h"): lambda m: m.get(m.unsigned(1)),
    ord("j"): lambda m: m.get(m.unsigned(4)),
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord(")"): _constant(()),
    ord("K"): _unsigned(1),
    ord("M"): _unsigned(2),
    ord("J"): _binint,
    0x8A: _long(1),
    0x8B: _long(4),
    ord("G"): _binfloat,
    0x8C: _text(1),
    ord("X"): _text(4),
    0x8D: _text(8),
    ord("U"): _text(1, "latin-1"),  # Python 2's str
    ord("T"): _text(4, "latin-1"),
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    0x8E: _bytes(8),
    0x96: _bytes(8),  # a bytearray, which nobody changes here
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("t"): _tuple_from_mark,
    ord("]"): _empty_list,
    ord("a"): _append_one,
    ord("e"): _appends,
    ord("}"): _empty_dict,
    ord("s"): _setitem,
    ord("u"): _setitems,
    0x8F: _empty_set,
    0x90: _additems,
    0x91: _frozenset,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _newobj,
    0x92: _newobj_ex,
    ord("b"): _build,
    ord("Q"): _binpersid,
}
