"""The pickle interpreter against Python's own, and its limits one by one."""

from __future__ import annotations

import collections
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import CheckpointError, UnsafeCheckpointError
from deploykit.models.checkpoint import stack_machine
from deploykit.models.checkpoint.pickle_opcodes import Interpreter
from deploykit.models.checkpoint.stack_machine import Global, Record
from deploykit.models.checkpoint.tensors import BUILDERS
from tests.models.checkpoint.hostile import MARK, NONE, PROTO, STOP, integer, mapping, name, text

KEYS = st.one_of(st.text(max_size=9), st.integers(-(2**59), 2**59), st.binary(max_size=9), st.booleans())
LEAVES = st.one_of(KEYS, st.none(), st.floats(allow_nan=False), st.integers(), st.text(), st.binary())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=5).map(collections.OrderedDict),
        st.sets(KEYS, max_size=5),
        st.frozensets(KEYS, max_size=5),
    ),
    max_leaves=20,
)


def run(data: bytes) -> Any:
    value, end = Interpreter(data, BUILDERS).run()
    assert end == len(data)
    return value


class Witness:
    """Counts what must never happen."""

    made = 0

    def __init__(self, *args: object) -> None:
        Witness.made += 1
        self.args = args

    def __setstate__(self, state: object) -> None:
        Witness.made += 1


class Listed(list[int]):
    pass


class Mapped(dict[str, int]):
    pass


class Keyed:
    def __getnewargs_ex__(self) -> tuple[tuple[int, ...], dict[str, int]]:
        return (1, 2), {"c": 3}


@given(value=VALUES, protocol=st.integers(2, 5))
def test_plain_values_come_out_as_from_pythons_own_pickle(value: Any, protocol: int) -> None:
    assert run(pickle.dumps(value, protocol)) == value


@given(value=VALUES)
def test_what_is_shared_stays_shared(value: Any) -> None:
    first, second = run(pickle.dumps([[value], [value]]))
    if isinstance(value, (list, dict)):
        assert first[0] is second[0]
    assert first == second == [value]


def test_a_list_inside_itself_stays_so() -> None:
    endless: list[Any] = []
    endless.append(endless)

    value = run(pickle.dumps(endless))

    assert value[0] is value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_instance_becomes_a_record_and_its_class_is_left_alone(protocol: int) -> None:
    witness = Witness(1)
    Witness.made = 0

    record = run(pickle.dumps({"it": witness}, protocol))["it"]

    assert Witness.made == 0
    assert isinstance(record, Record)
    assert record.kind == f"{Witness.__module__}.Witness"
    assert record.state == {"args": (1,)}
    assert repr(record) == f"<{record.kind}>"


def test_what_is_appended_or_set_on_an_instance_is_kept() -> None:
    listed, mapped = run(pickle.dumps((Listed([1, 2, 3]), Mapped(a=1, b=2)), 2))

    assert listed.entries == [1, 2, 3]
    assert mapped.entries == [("a", 1), ("b", 2)]


def test_keyword_arguments_are_kept() -> None:
    assert run(pickle.dumps(Keyed(), 4)).args == ((1, 2), {"c": 3})


def test_a_class_is_its_name_and_the_module_is_not_imported() -> None:
    interpreter = Interpreter(PROTO + name("deploykit_absent.part", "Net") + STOP)

    assert interpreter.run()[0] == Global("deploykit_absent.part.Net")
    assert "deploykit_absent" not in sys.modules
    assert not interpreter.called


def test_a_called_name_is_remembered_and_a_made_instance_is_not() -> None:
    interpreter = Interpreter(PROTO + MARK + name("a", "f") + b")R" + name("b", "C") + b")\x81" + b"t" + STOP)

    called, made = interpreter.run()[0]

    assert (called.kind, made.kind) == ("a.f", "b.C")
    assert list(interpreter.called) == ["a.f"]


def test_strings_of_python_2_are_text() -> None:
    assert run(b"\x80\x02U\x03ab\xe9.") == "abé"
    assert run(b"\x80\x02T\x02\x00\x00\x00ab.") == "ab"


def test_streams_follow_each_other_with_memos_of_their_own() -> None:
    first, second = pickle.dumps(["a", "b"]), b"\x80\x02h\x00."
    interpreter = Interpreter(first + second)

    value, end = interpreter.run()

    assert value == ["a", "b"]
    with pytest.raises(CheckpointError, match="refers to object 0"):
        interpreter.run(end)


def test_every_prefix_of_a_pickle_is_truncated() -> None:
    data = pickle.dumps({"epoch": 3, "names": ["a", "b"], "x": (1.5, 2**40, b"abc", None, True)}, 2)
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match="truncated"):
            Interpreter(data[:length]).run()


# The limits: each at its value and one over it.


def nested(levels: int) -> bytes:
    return PROTO + b"]" * levels + b"a" * (levels - 1) + STOP


def test_nesting() -> None:
    run(nested(stack_machine.MAX_NESTING))
    with pytest.raises(UnsafeCheckpointError, match="deeper than 500"):
        run(nested(stack_machine.MAX_NESTING + 1))


def test_nesting_counts_what_is_shared_where_it_is_deepest() -> None:
    shared = b"]" * 300 + b"a" * 299 + b"q\x00"  # shallow at first, then below 300 more
    with pytest.raises(UnsafeCheckpointError, match="deeper than 500"):
        run(PROTO + b"]" + shared + b"a" + b"]" * 300 + b"h\x00" + b"a" * 300 + b"a" + STOP)


def test_marks() -> None:
    run(PROTO + MARK * 500 + b"t" * 500 + STOP)
    with pytest.raises(UnsafeCheckpointError, match="deeper than 500"):
        run(PROTO + MARK * 501 + b"t" * 501 + STOP)


def test_opcodes() -> None:
    run(b"N" + b"N0" * ((stack_machine.MAX_OPCODES - 2) // 2) + STOP)
    with pytest.raises(UnsafeCheckpointError, match="2,000,000 opcodes"):
        run(b"N" + b"N0" * (stack_machine.MAX_OPCODES // 2) + STOP)


def test_opcodes_of_all_streams_count_together() -> None:
    stream = b"N" + b"N0" * (stack_machine.MAX_OPCODES // 3) + STOP
    interpreter = Interpreter(stream * 2)
    _, end = interpreter.run()
    with pytest.raises(UnsafeCheckpointError, match="2,000,000 opcodes"):
        interpreter.run(end)


def test_a_memo_index_is_at_most_the_opcodes_so_far() -> None:
    assert run(b"Nq\x02h\x02.") is None  # two opcodes, number 2
    with pytest.raises(UnsafeCheckpointError, match="memorises object 3 after only 2"):
        run(b"Nq\x03h\x03.")


def test_integers() -> None:
    assert run(PROTO + integer(2 ** (8 * 255 - 1) - 1) + STOP) == 2 ** (8 * 255 - 1) - 1
    with pytest.raises(UnsafeCheckpointError, match="256 bytes, the limit is 255"):
        run(PROTO + b"\x8b\x00\x01\x00\x00" + bytes(256) + STOP)


@pytest.mark.parametrize("key", [-(2**60) + 1, 2**60 - 1, "k" * 1024, b"k" * 1024])
def test_keys_up_to_the_limit(key: int | str | bytes) -> None:
    assert run(pickle.dumps({key: 1, "s": {key}}, 4)) == {key: 1, "s": {key}}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({2**60: 1}, "more than 60 bits"),
        ({"k" * 1025: 1}, "1,025 characters"),
        ({b"k" * 1025}, "1,025 characters"),
        ({(1, 2): 1}, "is a tuple"),
        ({1.5}, "is a float"),
        ({None: 1}, "is a NoneType"),
        ({frozenset(): 1}, "is a frozenset"),
    ],
)
def test_keys_over_the_limit(value: object, found: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match=found):
        run(pickle.dumps(value, 4))


def test_integer_keys() -> None:
    most = stack_machine.MAX_INTEGER_KEYS
    assert len(run(pickle.dumps(dict.fromkeys(range(most)), 2))) == most
    with pytest.raises(UnsafeCheckpointError, match="integer keys"):
        run(pickle.dumps(dict.fromkeys(range(most + 1)), 2))


def test_names() -> None:
    assert run(PROTO + name("m" * 256, "n" * 256) + STOP).path == "m" * 256 + "." + "n" * 256
    for module, attribute in (("m" * 257, "n"), ("", "n"), ("m", ""), ("m\x07", "n")):
        with pytest.raises(CheckpointError, match="name"):
            run(PROTO + name(module, attribute) + STOP)


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_machine, "MAX_OBJECT_BYTES", 100 * stack_machine.SET)
    run(PROTO + MARK + b"\x8f" * 90 + b"t" + STOP)
    with pytest.raises(UnsafeCheckpointError, match="MB of memory"):
        run(PROTO + MARK + b"\x8f" * 110 + b"t" + STOP)


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"os\.system, a way to run code .*: refused as unsafe; get the"):
        run(PROTO + mapping(x=name("os", "system")) + STOP)
    with pytest.raises(UnsafeCheckpointError, match=r"is a NoneType; only .*: refused as unsafe; if the file is yours"):
        run(PROTO + b"}" + NONE + text("value") + b"s" + STOP)
