"""Hostile archives, legacy files and safetensors files, and files that are no checkpoints at all."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from tests.models.checkpoint.hostile import (
    CANARY,
    FLOATS,
    GOOD_LEGACY,
    GOOD_ZIP,
    LEGACY_TENSOR,
    NEWOBJ,
    NONE,
    PROTO,
    STOP,
    Case,
    ZipEntry,
    beside,
    described,
    group,
    integer,
    mapping,
    name,
    safetensors,
    storage,
    tensor,
    text,
    torch_legacy,
    zip_file,
)


def files() -> Iterator[Case]:
    """Every case."""
    yield from _zips()
    yield from _others()


def _zips() -> Iterator[Case]:
    good = PROTO + mapping(model=mapping(w=tensor())) + STOP
    body, weights = ZipEntry("archive/data.pkl", good), ZipEntry("archive/data/0", FLOATS)
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = bomb.compress(bytes(10**8)) + bomb.flush()
    yield Case(
        "a deflated bomb", lambda: zip_file(body, ZipEntry("archive/data/0", deflated, 8, 0, 10**8)), "compressed"
    )
    yield Case(
        "a compressed pickle", lambda: zip_file(ZipEntry("archive/data.pkl", deflated, 8), weights), "compressed"
    )
    yield Case("an encrypted entry", lambda: zip_file(body, ZipEntry("archive/data/0", FLOATS, 0, 1)), "encrypted")
    over = ZipEntry("archive/data.pkx", b"", claims=9, offset=0)
    yield Case("an entry over another", lambda: zip_file(body, weights, over), "another name")
    same = ZipEntry("archive/data.pkl", good, inner_name="archive/data.pkl")
    inside = zip_file(ZipEntry("archive/data/1", FLOATS))[: 30 + 14 + 16]
    nested = ZipEntry("archive/data/0", inside)
    yield Case(
        "an entry inside an entry", lambda: zip_file(same, nested, _at("archive/data/1", same, nested)), "overlap"
    )
    for claims in (17, 10**6, 1 << 31, 0xFFFFFFFF):
        entry = ZipEntry("archive/data/0", FLOATS, claims=claims)
        yield Case(f"an entry of {claims} bytes", lambda e=entry: zip_file(body, e), "reaches outside")
    yield Case(
        "an entry that begins outside", lambda: zip_file(body, ZipEntry("archive/x", b"", offset=1 << 30)), "outside"
    )
    for path in ("../../x", "/etc/passwd", "archive/../../x", "archive\\x", "archive/a\0b", "archive/\x1b[2J"):
        yield Case(
            f"an entry named {path!r}", lambda p=path: zip_file(body, weights, ZipEntry(p, b"")), "no plain path"
        )
    yield Case("two entries of one name", lambda: zip_file(body, weights, weights), "two entries")
    yield Case("two pickles", lambda: zip_file(body, weights, ZipEntry("other/data.pkl", good)), "2 data.pkl")
    other = ZipEntry("archive/data/0", FLOATS, inner_name="archive/data/9")
    yield Case("another name in the header", lambda: zip_file(body, other), "another name")
    yield Case("more entries than there are", lambda: zip_file(body, weights, count=3), "fewer entries")
    yield Case("sixty thousand entries that are not there", lambda: zip_file(body, count=60_000), "fewer entries")
    yield Case("bytes behind the end", lambda: GOOD_ZIP + b"more", "follows the end")
    yield Case("bytes before the directory", lambda: GOOD_ZIP[:-22] + b"x" + GOOD_ZIP[-22:], "not where it says")
    yield Case("no pickle", lambda: zip_file(weights), "no data.pkl")
    yield Case("a checkpoint in an archive", lambda: zip_file(ZipEntry("model.pt", GOOD_ZIP)), "unpack it first")
    script = ZipEntry("archive/code/a.py", b"")
    yield Case("a TorchScript program", lambda: zip_file(body, weights, script), "TorchScript")
    big = ZipEntry("archive/byteorder", b"big")
    yield Case("big-endian weights", lambda: zip_file(body, weights, big), "big-endian")
    wrong = ZipEntry("archive/data/0", FLOATS, crc=1)
    yield Case("a wrong checksum", lambda: zip_file(body, wrong), "checksum")
    yield Case(
        "a wrong checksum of the pickle", lambda: zip_file(ZipEntry("archive/data.pkl", good, crc=1)), "checksum"
    )
    unchecked = ZipEntry("archive/data/0", FLOATS, crc=0)  # torch.serialization.set_crc32_options(False)
    yield Case("no checksum", lambda: zip_file(body, unchecked), None)


def _at(inner: str, first: ZipEntry, second: ZipEntry) -> ZipEntry:
    """An entry that claims the local header inside the data of ``second``."""
    offset = 30 + len(first.name) + len(first.data) + 30 + len(second.name)
    return ZipEntry(inner, FLOATS, offset=offset)


def _others() -> Iterator[Case]:
    good = PROTO + mapping(w=LEGACY_TENSOR) + STOP
    keys = PROTO + b"](" + text("0") * 3 + b"e" + STOP
    yield Case("legacy: storages named three times", lambda: torch_legacy(good, keys), "does not agree")
    yield Case("legacy: no list of storages", lambda: torch_legacy(good, PROTO + NONE + STOP), "does not agree")
    lies = struct.pack("<Q", 1 << 60) + FLOATS
    yield Case("legacy: a storage of 2**60 elements", lambda: torch_legacy(good, storages=lies), "another size")
    huge = tensor(source=storage("FloatStorage", 1 << 40, text("0"), NONE))
    yield Case(
        "legacy: a storage that is declared huge", lambda: torch_legacy(PROTO + mapping(w=huge) + STOP), "bytes less"
    )
    yield Case("legacy: a million keys", lambda: torch_legacy(good, PROTO + b"](" + text("0") * 10**6 + b"e."), "agree")
    view = group(text("0"), integer(2), integer(3))
    viewed = tensor((1,), source=storage("FloatStorage", 4, text("0"), view))
    yield Case("legacy: a view outside", lambda: torch_legacy(PROTO + mapping(w=viewed) + STOP), "reaches outside")
    yield Case("legacy: bytes behind the end", lambda: GOOD_LEGACY + b"more", "follow the last storage")
    source = group(text("module"), name(CANARY, "Net"), text("a.py"), text("import os")) + b"Q)" + NEWOBJ
    carried = PROTO + mapping(w=LEGACY_TENSOR, net=source) + STOP
    yield Case("legacy: embedded source code", lambda: torch_legacy(carried), None)
    yield Case("a pickle with bytes behind it", lambda: PROTO + b"}" + STOP + b"more", "ends at byte", ".pkl")
    yield Case("a pickle of a storage", lambda: beside(b"]"), "refers to a storage", ".pkl")
    for length in (0, 1, 1 << 20, 1 << 39):
        data = safetensors({"w": described([4], 0, 16)}, length=length)
        expects = "claims" if length > 1 else "not JSON"
        yield Case(f"safetensors: a header of {length} bytes", lambda d=data: d, expects, ".safetensors")
    for label, (header, expects) in {
        "overlap": ({"a": described([4], 0, 16), "b": described([4], 0, 16)}, "overlaps"),
        "hole": ({"a": described([2], 8, 16)}, "hole"),
        "backwards": ({"a": described([4], 16, 0)}, "does not fit -16 bytes"),
        "short": ({"a": described([8], 0, 32)}, "end at byte"),
        "a size that is none": ({"a": described([-4], 0, 16)}, "shape or place"),
        "an overflowing size": ({"a": described([1 << 40, 1 << 40], 0, 16)}, "does not fit"),
        "a size of True": ({"a": described([True, 4], 0, 16)}, "shape or place"),
        "an unknown type": ({"a": described([4], 0, 16, "F4")}, "type 'F4'"),
        "a type of another kind": ({"a": described([4], 0, 16, {"a": {}})}, "type 'dict'"),
        "no description": ({"a": 3}, "does not describe"),
        "metadata that is none": ({"__metadata__": {"a": 3}, "a": described([4], 0, 16)}, "metadata"),
        "no object": ([], "begins with"),
        "deep": (b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}", "not JSON"),
        "a long number": (b'{"a":' + b"1" * 10**6 + b"}", "not JSON"),
        "a name twice": (b'{"a":{}, "a":{}}', "not JSON"),
        "not UTF-8": (b'{"\xff":3}', "not JSON"),
        "too long": (b'{"a":[' + b"[]," * 3 * 10**6 + b"0]}", "the limit is"),
        "long and empty": (b'{"a":[' + b"[]," * (10**6 + 3 * 10**5) + b"0]}", "does not describe"),
    }.items():
        yield Case(f"safetensors: {label}", lambda h=header: safetensors(h), expects, ".safetensors")
    for label, content in {
        "JPEG": b"\xff\xd8\xff\xe0" + bytes(100),
        "web page": b"<!DOCTYPE html><html></html>",
        "git-LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n",
        "empty": b"",
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "zeros": bytes(1000),
        "text": b"Access denied, please log in first",
        "JSON": b'{"error": 404}',
        "ONNX": b"\x08\x08\x12\x07pytorch" + bytes(40),
        "tar": b"weights.pt" + bytes(247) + b"ustar",
        "noise": b"\x13\x37" * 40,
    }.items():
        expects = {"noise": "13 37", "zeros": "zeros"}.get(label, label)
        yield Case(f"not a checkpoint: {label}", lambda c=content: c, expects)
