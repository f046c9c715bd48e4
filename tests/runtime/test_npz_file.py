"""Arrays from a .npz file: what numpy writes is read, what is damaged or hostile is refused before it is allocated."""

from __future__ import annotations

import resource
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploykit.runtime.arrays import Array
from deploykit.runtime.npz_file import opened_npz

NUMBERS = st.sampled_from(("float32", "float64", "float16", "uint8", "int32", "<i8", ">f4"))


def read(path: Path, name: str = "a", **limits: int) -> Array:
    with opened_npz(path, **limits) as array:
        return array(name)


@given(arrays.arrays(NUMBERS, arrays.array_shapes(min_dims=0, min_side=0)), st.booleans(), st.booleans())
def test_what_numpy_writes_is_read_and_can_be_written_to(values: Array, by_column: bool, packed: bool) -> None:
    data = BytesIO()
    values = np.asarray(values, order="F" if by_column else "C")
    (np.savez_compressed if packed else np.savez)(data, a=values, b=values[None])
    with opened_npz(data) as array:  # type: ignore[arg-type]  # zipfile takes both
        np.testing.assert_array_equal(array("a"), values)
        assert array("b").dtype == values.dtype
        array("a")[...] = 1


@contextmanager
def little_memory(size: int) -> Iterator[None]:
    """Allow the process ``size`` bytes more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def entry(path: Path, content: bytes, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", content)
    return path


def header(text: str, *, version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text.encode() + b"\n"


def described(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    content = header(described("'|u1'", f"({200 << 20},)")) + bytes(200 << 20)
    file = entry(tmp_path / "bomb.npz", content)
    assert file.stat().st_size < 300_000
    with little_memory(100 << 20), pytest.raises(ValueError, match=r"a\.npy has 209\.7 MB, and 100\.0 MB are left"):
        read(file, most=100_000_000)


def test_the_limit_is_of_all_arrays_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(1000, np.uint8), b=np.zeros(1000, np.uint8))
    with opened_npz(tmp_path / "a.npz", most=2500) as array:
        assert len(array("a")) == len(array("b")) == 1000
        with pytest.raises(ValueError, match=r"a\.npy has 1\.1 kB, and 500 bytes are left of the limit"):
            array("a")
    with opened_npz(tmp_path / "a.npz") as array, pytest.raises(ValueError, match="500 bytes are left of the limit"):
        array("a", most=500)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF"),
        (b"text", "EOF"),
        (b"PK\x03\x04 and more", "magic string"),
        (header(described("'<f4'", "(4,)")) + bytes(12), "claims to be float32 .*, but has 12 bytes"),
        (header(described("'<f4'", "(4,)")) + bytes(20), "but has 20 bytes"),
        (header(described("'<f4'", "(1000000000000,)")) + bytes(16), "but has 16 bytes"),
        (header(described("'<f4'", "(-2, -2)")) + bytes(16), "but has 16 bytes"),
        (
            header(described("'<f4'", "(0, 4611686018427387904)")),
            "array is too big|maximum supported dimension|too large",
        ),
        (header(described("'|O'", "(1,)")) + b"\x80\x04N.", "holds object and not numbers"),
        (header(described("'<M8[s]'", "(1,)")) + bytes(8), "and not numbers"),
        (header(described("[('x', '<f4')]", "(1,)")) + bytes(4), "and not numbers"),
        (header(described("'|b1'", "(1,)")) + bytes(1), "holds bool and not numbers"),
        (header(described("'nothing'", "(1,)")) + bytes(4), "not a valid"),
        (header("(" * 9000 + ")" * 9000), "header"),
        (header("-" * 9000 + "1"), "recursion|header|MemoryError"),
        (header(described("'<f4'", "(1,)"), version=b"\x02\x00") + bytes(4), r"not in version 1\.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", r"not in version 1\.0"),
        (b"\x93NUMPY\x09\x00" + bytes(20), "only support|not in version"),
    ],
)
def test_what_is_damaged_or_hostile_is_a_value_error(tmp_path: Path, content: bytes, message: str) -> None:
    with little_memory(200 << 20), pytest.raises(ValueError, match=message):
        read(entry(tmp_path / "a.npz", content))


def test_other_archives_are_refused(tmp_path: Path) -> None:
    good = header(described("'|u1'", "(2,)")) + b"ab"
    with pytest.raises(ValueError, match="compressed by another method"):
        read(entry(tmp_path / "lzma.npz", good, method=zipfile.ZIP_LZMA))
    with pytest.raises(ValueError, match=r"it has no b\.npy"):
        read(entry(tmp_path / "a.npz", good), "b")
    (tmp_path / "text.npz").write_text("what")
    with pytest.raises(ValueError, match="not a zip file"):
        read(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.npz")


@given(st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = BytesIO()
    np.savez_compressed(whole, a=np.arange(50, dtype=np.float32))
    changed = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        with opened_npz(BytesIO(changed)) as array:  # type: ignore[arg-type]  # zipfile takes both
            found = array("a")
    except ValueError:
        return
    assert found.nbytes <= 200


@pytest.mark.parametrize(
    "text", ["{'descr': '<f4', 'shape': (1,", "{'descr': '''", "(\n", "\n  1\n 2\n", "{'descr': '<f4'}]"]
)
def test_a_header_that_is_no_python_is_refused(text: str, tmp_path: Path) -> None:
    file = entry(tmp_path / "a.npz", header(text) + bytes(16))
    with pytest.raises(ValueError, match=r"\w"):
        read(file)
