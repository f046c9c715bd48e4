"""Changes of pickles: opcodes left out, doubled and exchanged, other numbers and names; and pickles from nothing."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz.mutate import INTEGERS, changed_bytes
from tests.models.checkpoint.hostile import (
    BUILD,
    NEWOBJ,
    NONE,
    PROTO,
    STOP,
    call,
    group,
    integer,
    mapping,
    module,
    name,
    storage,
    tensor,
    text,
)  # fmt: skip

__all__ = ["changed_pickle", "opcodes", "pickle_from_nothing"]

NAMES = (
    "os.system", "posix.system", "builtins.eval", "builtins.getattr", "subprocess.Popen", "collections.OrderedDict",
    "torch.Size", "torch.FloatStorage", "torch.HalfStorage", "torch.BFloat16Storage", "torch.QInt8Storage",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch._utils._rebuild_qtensor",
    "torch.device", "torch.float16", "torch.nn.modules.conv.Conv2d", "models.yolo.Model", "numpy.dtype",
    "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy.ndarray", "_codecs.encode",
    "builtins.set", "builtins.bytearray", "pathlib.PosixPath", "argparse.Namespace", "a.B", "..", "\x1b[2J.x",
    "copyreg._reconstructor", "dill._dill._load_type",
)  # fmt: skip
SIMPLE = tuple(bytes([code]) for code in b"(012N)]}aestub.R\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94Q")


def opcodes(data: bytes) -> list[bytes]:
    """Return a pickle cut into its opcodes with their arguments.

    Raises:
        ValueError: it is none.
    """
    starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def changed_pickle(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a pickle with one to six opcodes changed; its length stays right unless that is what is changed."""
    if random.random() < 0.1:
        return changed_bytes(random, data)
    try:
        program = opcodes(data)
    except ValueError:
        return changed_bytes(random, data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        _change(random, program, others)
    return b"".join(program)


def _change(random: Random, program: list[bytes], others: Sequence[bytes]) -> None:
    place = random.randrange(len(program))
    kind = random.randrange(10)
    if kind == 0:
        del program[place : place + random.choice((1, 1, 2, 5))]
    elif kind == 1:
        program[place:place] = program[place : place + random.choice((1, 2, 5))] * random.choice((1, 2, 30))
    elif kind == 2:
        other = random.randrange(len(program))
        program[place], program[other] = program[other], program[place]
    elif kind == 3:
        program.insert(place, random.choice(SIMPLE))
    elif kind == 4:
        program.insert(place, _value(random, 2))
    elif kind == 5:
        program.insert(place, _named(random))
    elif kind == 6 and others:
        other_program = opcodes(random.choice(others))
        start = random.randrange(len(other_program))
        program[place:place] = other_program[start : start + random.randint(1, 12)]
    else:
        program[place] = _argument(random, program[place])
    if not program:
        program.append(STOP)


def _argument(random: Random, opcode: bytes) -> bytes:
    """Return an opcode with another argument of its own type."""
    code, number = opcode[:1], random.choice(INTEGERS)
    if code in b"JIKM\x8a\x8b":
        return integer(number)
    if code in b"q h".replace(b" ", b""):
        return code + bytes([number % 256])
    if code in b"rj":
        return code + struct.pack("<I", number % 2**32)
    if code == b"X":
        return random.choice((text(random.choice(NAMES)), text("x" * random.choice((0, 1, 70_000))), text(str(number))))
    if code == b"c":
        return _named(random)
    return random.choice((changed_bytes(random, opcode), random.choice(SIMPLE)))


def _named(random: Random) -> bytes:
    return name(*random.choice(NAMES).rpartition(".")[::2])


def pickle_from_nothing(random: Random) -> bytes:
    """Return a pickle of random values with tensors and modules among them, none of which needs to make sense."""
    entries = {random.choice(("model", "ema", "state_dict", "x", "epoch")): _value(random, 4) for _ in range(3)}
    if random.random() < 0.7:
        entries["model"] = mapping(w=tensor())
    return PROTO + mapping(**entries) + STOP


def _value(random: Random, depth: int) -> bytes:
    plain: list[Callable[[], bytes]] = [
        lambda: NONE,
        lambda: integer(random.choice(INTEGERS)),
        lambda: text(random.choice(NAMES)),
        lambda: _tensor(random),
        lambda: _named(random),
        lambda: b"G" + random.randbytes(8),
    ]
    if depth == 0:
        return random.choice(plain)()
    inner = [_value(random, depth - 1) for _ in range(random.randint(0, 3))]
    deeper: list[Callable[[], bytes]] = [
        lambda: group(*inner),
        lambda: b"](" + b"".join(inner) + b"e",
        lambda: mapping(**dict(zip("abc", inner, strict=False))),
        lambda: call(_named(random), *inner),
        lambda: module(("a", "M"), **dict(zip(("_parameters", "_buffers", "_modules"), inner, strict=False))),
        lambda: _named(random) + group(*inner) + NEWOBJ + mapping(**dict(zip("abc", inner, strict=False))) + BUILD,
    ]
    return random.choice((*plain, *deeper, *deeper))()


def _tensor(random: Random) -> bytes:
    def few(*usual: int) -> tuple[int, ...]:
        return tuple(random.choice((*usual, *usual, *INTEGERS)) for _ in range(random.choice((0, 1, 1, 2, 3))))

    kind = random.choice(("FloatStorage", "HalfStorage", "LongStorage", "BoolStorage", "ByteStorage", "XStorage"))
    source = storage(kind, random.choice((4, 8, 2, *INTEGERS)), text(random.choice("0001x")))
    return tensor(few(1, 2, 4), few(0, 1, 2), random.choice((0, 0, 0, *INTEGERS)), source)
