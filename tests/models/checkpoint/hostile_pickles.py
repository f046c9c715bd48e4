"""Hostile pickles, and what must become of each."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.models.checkpoint.hostile import (
    BUILD,
    CANARY,
    MARK,
    NEWOBJ,
    NONE,
    PROTO,
    REDUCE,
    STOP,
    Case,
    beside,
    call,
    group,
    integer,
    mapping,
    module,
    name,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
)


def pickles() -> Iterator[Case]:
    """Every case; the large ones are made only when asked for."""
    yield from _code()
    yield from _opcodes()
    yield from _volume()
    yield from _sharing()
    yield from _tensors()


def _case(label: str, value: bytes, expects: str | None) -> Case:
    return Case(label, lambda: torch_zip(beside(value)), expects)


def _raw(label: str, make: Callable[[], bytes], expects: str | None) -> Case:
    return Case(label, lambda: torch_zip(PROTO + make()), expects)


def _code() -> Iterator[Case]:
    command = text(f"touch {CANARY}")
    for module_name, function in (
        *(("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("pty", "spawn")),
        *(("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("builtins", "__import__")),
        *(("runpy", "_run_code"), ("shutil", "rmtree"), ("socket", "create_connection"), ("os.path", "os.system")),
    ):
        full = f"{module_name}.{function}".replace(".", r"\.")
        yield _case(f"calls {module_name}.{function}", call(name(module_name, function), command), f"{full}.*refused")
    stack_global = text("os") + text("system") + b"\x93"
    yield _case("names os.system from the stack", call(stack_global, command), r"os\.system.*refused")
    yield _case("names os.system and never calls it", name("os", "system"), r"os\.system.*refused")
    yield Case(
        "os.system in a plain pickle", lambda: beside(call(name("os", "system"), command)), r"os\.system.*", ".pkl"
    )
    yield Case(
        "os.system in a legacy file", lambda: torch_legacy(beside(call(name("os", "system"), command))), r"os\.system"
    )
    for module_name, function in (
        *((CANARY, "run"), ("builtins", "getattr"), ("builtins", "setattr"), ("dill._dill", "_load_type")),
        *(("torch.hub", "load"), ("torch", "load"), ("torch.storage", "_load_from_bytes"), ("timeit", "timeit")),
        *(("copyreg", "_reconstructor"), ("functools", "partial"), ("operator", "methodcaller")),
    ):
        yield _case(f"calls {module_name}.{function}", call(name(module_name, function), command), None)
    getattr_ = name("builtins", "getattr")
    nested = call(call(getattr_, call(getattr_, name("torch", "os"), text("path")), text("os")), command)
    yield _case("calls what a call returned", nested, None)
    yield _case("makes a canary class", name(CANARY, "Run") + b")" + NEWOBJ + mapping(a=NONE) + BUILD, None)
    torch_class = name("torch.nn", "Linear") + mapping(a=NONE) + BUILD
    yield _case("sets the state of a torch class", torch_class, r"sets the state of a torch\.nn\.Linear")
    yield _case("sets the state of torch.nn.Module", module(("torch.nn", "Linear"), forward=getattr_), None)
    yield _case("calls a string", text("os.system") + group(command) + REDUCE, "calls a str")
    yield _case("names with an escape sequence", name("a\x1b[31m", "b"), "no name")
    yield _case("extension registry", b"\x82\x01", "registry of extensions")
    yield _case("opcodes of protocol 0", b"I1\n", "protocols 0 and 1")
    yield _case("INST", MARK + b"ios\nsystem\n", "protocols 0 and 1")
    yield _case("next buffer", b"\x97", "buffer outside the file")


def _opcodes() -> Iterator[Case]:
    huge = b"\xff\xff\xff\xff"
    yield _raw("LONG_BINPUT of 4294967295", lambda: b"Nr" + huge + STOP, "memorises object 4,294,967,295")
    yield _raw("LONG_BINGET of 4294967295", lambda: b"j" + huge + STOP, "not there")
    yield _raw("BINGET of a hole", lambda: b"Nq\x02h\x01" + STOP, "not there")
    for label, opcode, size in (
        *(("BINUNICODE", b"X", 4), ("BINBYTES", b"B", 4), ("BINSTRING", b"T", 4)),
        *(("BINUNICODE8", b"\x8d", 8), ("BINBYTES8", b"\x8e", 8), ("BYTEARRAY8", b"\x96", 8), ("FRAME", b"\x95", 8)),
    ):
        for length in (b"\xff" * size, struct.pack("<Q", 2 << 30)[:size]):
            yield _raw(f"{label} of {length.hex()}", lambda o=opcode, n=length: o + n + STOP, "are left")
    yield _raw("LONG4 of 4294967295 bytes", lambda: b"\x8b" + huge + STOP, "the limit is 255")
    yield _raw("LONG4 of a million bytes", lambda: b"\x8b" + struct.pack("<I", 10**6) + bytes(10**6) + STOP, "limit")
    yield _raw("INT of a million digits", lambda: b"I" + b"1" * 10**6 + b"\n" + STOP, "protocols 0 and 1")
    yield _raw("LONG of a million digits", lambda: b"L" + b"1" * 10**6 + b"L\n" + STOP, "protocols 0 and 1")
    yield _raw("a name of a million characters", lambda: b"c" + b"a" * 10**6 + b"\nb\n" + STOP, "without an end")
    yield _raw("a string that is not UTF-8", lambda: b"X\x02\0\0\0\xff\xfe" + STOP, "not UTF-8")
    yield _raw("a lone surrogate", lambda: b"X\x03\0\0\0\xed\xa0\x80" + STOP, "not UTF-8")
    yield _raw("no STOP", lambda: b"}", "ends before its STOP")
    yield _raw("nothing at all", lambda: STOP, "empty stack")
    yield _raw("protocol 9", lambda: b"\x80\x09" + STOP, "protocol 9")
    yield _raw("an opcode that does not exist", lambda: b"\xff" + STOP, "0xff")
    for opcode in (b"R", b"b", b"a", b"s", b"\x85", b"\x87", b"\x93", b"0", b"2", b"q\0", b"Q", b"\x81", b"\x92"):
        yield _raw(f"opcode {opcode!r} on an empty stack", lambda o=opcode: o + STOP, "empty stack")
    for opcode in (b"t", b"u", b"e", b"1", b"\x90", b"\x91"):
        yield _raw(f"opcode {opcode!r} without a mark", lambda o=opcode: b"}" + o + STOP, "mark that is not there")
    yield _raw("a mark below the stack", lambda: b"}N(00t" + STOP, "mark that is not there")
    yield _raw("an odd number of items", lambda: b"}(N" + b"u" + STOP, "key without a value")
    yield _raw("an unhashable key", lambda: b"}]Ns" + STOP, "key or set element is a list")
    yield _raw("a float as a key", lambda: b"}G" + bytes(8) + b"Ns" + STOP, "is a float")
    yield _raw("sets an item of None", lambda: b"NNNs" + STOP, "sets items of a NoneType")
    yield _raw("arguments that are no tuple", lambda: name("a", "b") + b"]R" + STOP, "without a tuple")
    deep = 10**4
    yield _raw("a deep tuple as a key", lambda: b"})" + b"\x85" * 2_000_000 + b"Ns" + STOP, "opcodes|memory|is a tuple")
    for label, make in {
        "lists": lambda: b"]" * deep + b"a" * (deep - 1),
        "tuples": lambda: b")" + b"\x85" * deep,
        "dicts": lambda: text("k") + b"q\0" + b"0" + b"}" + b"h\0}" * deep + b"s" * deep,
        "marks": lambda: MARK * deep + b"t" * deep,
        "calls": lambda: name("a", "B") + b"q\0" + b"0" + b"h\0" * deep + b")" + b"R\x85" * (deep - 1) + b"R",
        "states": lambda: (name("a", "B") + b")R") * 2000 + b"b" * 1999,
    }.items():
        yield Case(f"deep {label}", lambda m=make: torch_zip(beside(m())), "nests deeper than 500")


def _volume() -> Iterator[Case]:
    million = 10**6
    limits = "memory|opcodes"
    yield _raw("five million sets", lambda: MARK + b"\x8f" * 5 * million + b"t" + STOP, limits)
    yield _raw("two million dictionaries", lambda: MARK + b"}" * (2 * million - 9) + b"t" + STOP, limits)
    yield _raw("two million integers", lambda: b"](" + b"M\0\x10" * (2 * million - 9) + b"e" + STOP, "no weights")
    yield _raw("two million marks and pops", lambda: b"](" + b"N0" * (million - 9) + b"e" + STOP, "no weights")
    calls = name("a", "B") + b"q\0(" + b"h\0)R" * 300_000 + b"t" + STOP
    yield _raw("three hundred thousand calls", lambda: calls, "no weights")
    yield _raw("a million integer keys", lambda: b"}(" + _keys(range(million // 4)) + b"u" + STOP, "integer keys")
    yield _raw("colliding integer keys", lambda: b"}(" + _keys(_colliding(20_000)) + b"u" + STOP, "60 bits")
    yield _raw("a wide string", lambda: text("a" * 60 * million + "\U0001f600") + STOP, "memory")
    yield _raw("a long key", lambda: b"}" + text("k" * million) + b"Ns" + STOP, "key has 1,000,000 characters")
    encode = name("_codecs", "encode") + b"q\0" + group(text("a" * million), text("latin1")) + b"q\x010("
    yield _raw("encodes one string over and over", lambda: encode + b"h\0h\x01R" * 1000 + b"t" + STOP, "memory")
    rebuild = name("collections", "OrderedDict") + b"q\0" + group(b"]" + MARK + _pairs(20_000) + b"e") + b"q\x010("
    yield _raw("copies one dictionary over and over", lambda: rebuild + b"h\0h\x01R" * 1000 + b"t" + STOP, "memory")
    wide = name("torch", "Size") + group(b"](" + b"K\x01" * 1000 + b"e") + REDUCE + STOP
    yield _raw("a torch.Size of a thousand", lambda: wide, "at most 64")
    dtype = name("numpy", "dtype") + b"q\0" + group(text("<" * million)) + REDUCE + b"q\x010"
    scalar = name("numpy.core.multiarray", "scalar") + b"q\x020("
    yield _raw("a numpy type of a million characters", lambda: dtype + scalar + _scalars(20_000), "no weights")


def _scalars(count: int) -> bytes:
    return b"h\x02h\x01C\x00\x86R" * count + b"t" + STOP


def _keys(values: range | list[int]) -> bytes:
    return b"".join(integer(value) + NONE for value in values)


def _pairs(count: int) -> bytes:
    return b"".join(text(str(i)) + b"N\x86" for i in range(count))


def _colliding(count: int) -> list[int]:
    return [i * (2**61 - 1) for i in range(1, count)]


def _laughs(levels: int, opening: bytes, closing: bytes) -> bytes:
    """``levels`` levels of ten references each to the level below."""
    made = [opening + NONE * 10 + closing + b"q\x000"]
    made += [opening + bytes((0x68, i)) * 10 + closing + bytes((0x71, i + 1)) + b"0" for i in range(levels)]
    return b"".join(made) + bytes((0x68, levels))


def _sharing() -> Iterator[Case]:
    yield _case("a billion laughs of tuples", _laughs(20, b"(", b"t"), None)
    yield _case("a billion laughs of lists", _laughs(20, b"](", b"e"), None)
    yield _raw("a billion laughs in a model", lambda: module(yaml=_laughs(20, b"(", b"t")) + STOP, None)
    yield _raw("one long string a hundred thousand times", _long_strings, None)
    yield _case("a list inside itself", b"]q\0h\0a", None)
    yield _case("a dictionary inside itself", b"}q\0" + text("a") + b"h\0s", None)
    yield _raw("a model of a dictionary inside itself", lambda: b"}q\0" + text("model") + b"h\0s" + STOP, "no weights")
    itself = name("a", "M") + b")" + NEWOBJ + b"q\0" + mapping(_modules=mapping(a=b"h\0")) + BUILD
    yield _raw("a module inside itself", lambda: itself + STOP, "limit|in each other")
    twice = name("a", "M") + b")" + NEWOBJ + b"q\0" + mapping(_modules=mapping(a=b"h\0", b=b"h\0")) + BUILD
    yield _raw("a module twice inside itself", lambda: twice + STOP, "limit|in each other")
    yield _raw("modules that share modules", lambda: _shared_modules(40) + STOP, "limit|in each other")
    yield _raw("modules that share a large state", _shared_states, "limit|in each other")
    yield _raw("modules that share many attributes", _shared_attributes, None)
    long = module(_modules=mapping(**{"m" * 1000: module(_modules=mapping(**{"n" * 1000: module()}))}))
    for value in (NONE, integer(5), b"]"):
        for table in ("_parameters", "_buffers", "_modules"):
            broken = module(**{table: value})
            yield _raw(f"a module whose {table} are {value!r}", lambda b=broken: b + STOP, "no dictionary")
    numbered = module(_modules=b"}" + integer(1) + module() + b"s")
    yield _raw("a submodule with a number as its name", lambda: numbered + STOP, "a name of type int")
    yield _raw("a submodule that is a string", lambda: module(_modules=mapping(a=text("x"))) + STOP, "a is a str")
    yield _raw(
        "a weight that is a call", lambda: module(_parameters=mapping(w=module())) + STOP, "weight w is a models"
    )
    yield _raw("names that add up", lambda: long + STOP, "name of a weight or module")
    yield _raw("a name that does not print", lambda: mapping(**{"w\x1b[2J": tensor()}) + STOP, "do not print")


def _long_strings() -> bytes:
    shared = text("a" * 10**6) + b"q\x000](" + b"h\0" * 10**5 + b"e"
    return mapping(hyp=shared, model=mapping(w=tensor())) + STOP


def _shared_modules(levels: int) -> bytes:
    made = [module() + b"q\x000"]
    for i in range(levels):
        below = bytes((0x68, i))
        made.append(module(_modules=mapping(a=below, b=below)) + bytes((0x71, i + 1)) + b"0")
    return b"".join(made) + bytes((0x68, levels))


def _shared_states() -> bytes:
    names = b"".join(text(str(i)) + NONE for i in range(100_000))
    state = b"}q\0(" + text("_parameters") + b"}(" + names + b"u" + text("_modules") + b"}u0"
    children = b"".join(text(str(i)) + name("a", "M") + b")" + NEWOBJ + b"h\0b" for i in range(10_000))
    return state + module(_modules=b"}(" + children + b"u") + STOP


def _shared_attributes() -> bytes:
    values = b"](" + b"M\0\x10" * 90_000 + b"eq\x000"
    children = b"".join(text(str(i)) + module(value=b"h\0") for i in range(2000))
    return values + module(_modules=b"}(" + children + b"u") + STOP


def _tensors() -> Iterator[Case]:
    outside = r"outside its storage|expected a number from 0|2\*\*48 elements"
    for label, built in {
        "offset": tensor(offset=1),
        "size": tensor((5,)),
        "stride": tensor((4,), (2,)),
        "huge size": tensor((1 << 62,)),
        "overflowing size": tensor((1 << 33, 1 << 31), (1, 1)),
        "overflowing stride": tensor((2, 2), (1 << 62, 1 << 62)),
        "negative offset": tensor(offset=-1),
        "negative size": tensor((-1,)),
        "negative stride": tensor((2,), (-1,), 2),
        "integer of 200 bytes": tensor((1 << 1590,)),
    }.items():
        yield _case(f"a tensor outside its storage: {label}", built, outside)
    yield _case("an empty tensor with a huge size", tensor((0, 1 << 40, 1 << 40), (1, 1, 1)), r"2\*\*48 elements")
    yield _case("a tensor of 100 dimensions", tensor((1,) * 100, (1,) * 100), "at most 64")
    yield _case("sizes and strides of other lengths", tensor((1, 1), (1,)), "2 sizes and 1 strides")
    yield _case("a tensor without a storage", tensor(source=NONE), "storage is a NoneType")
    yield _case(
        "a tensor over bytes from a call", tensor(source=call(name("torch.storage", "x"))), r"torch\.storage\.x"
    )
    expanded = PROTO + mapping(w=tensor((1 << 20, 1 << 10), (0, 0))) + STOP
    yield Case("a tensor of 4 GB in 16 bytes", lambda: torch_zip(expanded), "views that add up")
    many = b"".join(text(str(i)) + tensor(((1 << 18) - i,), (0,)) for i in range(100))
    yield _raw("many tensors over one storage", lambda: b"}(" + many + b"u" + STOP, "views that add up")
    yield _raw("a hundred thousand tensors", _many_tensors, "limit")
    for numel in (5, 3, 0, 1 << 47, 1 << 62, -1):
        broken = tensor((1,), source=storage(numel=numel))
        yield _case(f"a storage that claims {numel} elements", broken, "claims|make no sense|outside")
    yield _case("a storage that is not there", tensor(source=storage(key=text("../../w"))), "not in the file")
    yield _case("a storage with a number as its name", tensor(source=storage(key=integer(0))), "wrong type")
    yield _case("a storage of an unknown kind", tensor(source=storage("QInt8Storage")), "QInt8Storage")
    for label, reference in {
        "a string": text("storage"),
        "an empty tuple": b")",
        "too short": group(text("storage")),
        "of None": group(*[NONE] * 5),
        "a list": b"]",
    }.items():
        yield _case(f"a persistent id that is {label}", reference + b"Q", "persistent id")
    dtype = call(name("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
    array = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b")", b"C\0")
    lying = array + group(b"K\x01", group(integer(1 << 30)), dtype, b"\x89", b"C\x04abcd") + BUILD
    yield _case("a numpy array that lies about its size", lying, "comes with 4 bytes")
    yield _case("a numpy array with a strange state", array + NONE + BUILD, "unknown form")
    objects = call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88")
    pointers = array + group(b"K\x01", group(integer(1)), objects, b"\x89", b"C\x08abcdefgh") + BUILD
    yield _case("a numpy array of pointers", pointers, None)
    yield _raw("a numpy array of pointers as a weight", lambda: mapping(w=tensor(), v=pointers) + STOP, "not read")


def _many_tensors() -> bytes:
    shared = tensor((1,)) + b"q\x000"
    return shared + b"}(" + b"".join(text(str(i)) + b"h\0" for i in range(100_000)) + b"u" + STOP
