"""The structs that ctypes hands to the libraries, held against the compiled ones, member by member."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from deploykit.runtime.native.build import source_folder
from deploykit.runtime.native.cuda_library import MOST_ANCHORS, MOST_LEVELS, Grid, Head, Plan
from deploykit.runtime.native.library import Choice, Layout, Limits
from tests.cpp_plugins.conftest import compiler

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "nms::Layout": Layout,
    "nms::Limits": Limits,
    "nms::Choice": Choice,
    "decode::Head": Head,
    "decode::Grid": Grid,
    "letterbox::Plan": Plan,
}
HEADERS = ("nms_kpt/candidates.h", "decode/kernel.cuh", "letterbox/kernel.cuh")


def compiled(statements: str, folder: Path, *, run: bool = True) -> list[int]:
    """What a program with these statements prints, or nothing of one that is only looked through.

    The headers of every kernel are included.
    """
    source = folder / "probe.cpp"
    includes = "".join(f'#include "{name}"\n' for name in HEADERS)
    body = f"using namespace deploykit;\nint main() {{\n{statements}}}\n"
    source.write_text(f"{includes}#include <cstdio>\n{body}")
    program = folder / "probe"
    command = [compiler(), "-std=c++17", f"-I{source_folder().resolve()}", str(source)]
    subprocess.run([*command, *(("-o", str(program)) if run else ("-fsyntax-only",))], check=True)
    if not run:
        return []
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", STRUCTS)
def test_every_member_lies_where_the_compiler_puts_it(tmp_path: Path, name: str) -> None:
    struct = STRUCTS[name]
    members = [field[0] for field in struct._fields_]
    asked = [f"sizeof({name})"]
    asked += [f"{what}" for m in members for what in (f"offsetof({name}, {m})", f"sizeof({name}::{m})")]
    found = compiled("".join(f'  std::printf("%zu\\n", {what});\n' for what in asked), tmp_path)
    expected = [ctypes.sizeof(struct)]
    expected += [n for m in members for n in (getattr(struct, m).offset, getattr(struct, m).size)]
    assert dict(zip(asked, found, strict=True)) == dict(zip(asked, expected, strict=True))


def test_no_member_is_missing(tmp_path: Path) -> None:
    """Aggregates take one value a member: with one more than ctypes knows they do not compile."""
    values = {name: ", ".join("{}" for _ in struct._fields_) for name, struct in STRUCTS.items()}
    whole = "".join(f"  {{ {name} one{{{given}}}; (void)one; }}\n" for name, given in values.items())
    assert compiled(whole, tmp_path, run=False) == []
    for name, given in values.items():
        with pytest.raises(subprocess.CalledProcessError):
            compiled(f"  {name} one{{{given}, {{}}}};\n  (void)one;\n", tmp_path, run=False)


def test_the_most_levels_and_anchors_are_the_same(tmp_path: Path) -> None:
    asked = ("decode::most_levels", "decode::most_anchors")
    found = compiled("".join(f'  std::printf("%d\\n", {what});\n' for what in asked), tmp_path)
    assert found == [MOST_LEVELS, MOST_ANCHORS]


def test_the_outputs_are_six_pointers(tmp_path: Path) -> None:
    found = compiled('  std::printf("%zu\\n", sizeof(nms::Outputs));\n', tmp_path)
    assert found == [ctypes.sizeof(ctypes.c_void_p * 6)]
