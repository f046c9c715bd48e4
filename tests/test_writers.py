"""Files are opened for writing in ``deploykit/atomic.py``, ``partials.py`` or at a place below, with its reason."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MECHANISM = ("deploykit/atomic.py", "deploykit/partials.py")
FOLDERS = ("deploykit", "models", "export", "runtime", "cpp_plugins")

STAGED = "into a staging folder, which is published whole"
WORK = "a work file in a temporary folder"
ALLOWED = {
    ("deploykit/cli/__init__.py", "os.open"): "/dev/null in the place of a closed standard output",
    ("deploykit/cli/_predict_record.py", "open"): "a line is appended to the record of --resume",
    ("deploykit/doctor/probing.py", "TemporaryFile"): "a file without a name",
    ("deploykit/releases/download.py", "open"): "a download grows under its hidden name, and is continued there",
    ("deploykit/releases/download.py", "replace"): "the complete download, synchronised",
    ("export/engine/build.py", "write_bytes"): STAGED,
    ("export/engine/build.py", "write_text"): STAGED,
    ("export/foreign/quantize.py", "write_text"): STAGED,
    ("export/foreign/stages.py", "ir.save"): WORK,
    ("export/graph/finalize.py", "ir.save"): STAGED,
    ("export/graph/streaming.py", "open"): STAGED,
    ("export/output.py", "replace"): "what is staged is published",
    ("export/parity/onnx_file.py", "write_bytes"): STAGED,
    ("export/plugins_check.py", "write_bytes"): WORK,
    ("export/to_onnx.py", "write_text"): STAGED,
    ("runtime/cluster/parts.py", "ParquetWriter"): "into a partial file",
    ("runtime/cluster/parts.py", "open"): "into a partial file",
    ("runtime/cluster/run.py", "os.open"): "the plan is locked",
    ("runtime/images/decoder_messages.py", "TemporaryFile"): "a file without a name",
    ("runtime/images/opencv_path.py", "symlink_to"): WORK,
    ("runtime/images/video_writer.py", "VideoWriter"): "into a partial file",
    ("runtime/images/video_writer.py", "write_bytes"): "into a partial file, to see whether there is room",
    ("runtime/machine.py", "write_text"): "a switch of the kernel in /proc",
    ("runtime/package/writing.py", "shutil.copyfile"): STAGED,
    ("runtime/package/writing.py", "rename"): "what is staged is published",
    ("runtime/package/writing.py", "write_bytes"): STAGED,
    ("runtime/sources/opening.py", "open"): WORK,
    ("runtime/sources/standard_input.py", "open"): WORK,
}

WRITES = {
    "FileStorage", "NamedTemporaryFile", "ParquetWriter", "SpooledTemporaryFile", "TemporaryDirectory", "TemporaryFile",
    "VideoWriter", "copy2", "copyfile", "copytree", "hardlink_to", "imwrite", "imwritemulti", "mkdtemp",
    "mkstemp", "move", "rename", "renames", "savetxt", "symlink_to", "tofile", "touch", "write_bytes", "write_text",
}  # fmt: skip
"""Functions and methods that write a file, or change its name, whatever their arguments are."""

LIBRARIES = {"ir", "joblib", "np", "numpy", "onnx", "torch"}
BUFFERS = {"data", "stream"}  # names of io.BytesIO in memory


def called(call: ast.Call) -> str:
    """The name of the function, with its module where that tells more."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id
    if not isinstance(function, ast.Attribute):
        return ""
    base = function.value.id if isinstance(function.value, ast.Name) else ""
    return f"{base}.{function.attr}" if base in LIBRARIES | {"os", "shutil", "Path"} else function.attr


def mode_of(call: ast.Call, place: int) -> str:
    """The mode of an ``open``; one that is not written out may be any."""
    given = [k.value for k in call.keywords if k.arg == "mode"] or call.args[place : place + 1]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else "w"


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file or changes its name."""
    name = called(call)
    short = name.rpartition(".")[2]
    if name == "open" or short == "open":
        if name == "os.open":
            return any(isinstance(n, ast.Attribute) and n.attr in ("O_RDWR", "O_WRONLY") for n in ast.walk(call))
        method = isinstance(call.func, ast.Attribute)
        if method and call.args and not isinstance(call.args[0], ast.Constant):
            return False  # the open of something else, such as an image or a connection
        return bool(set(mode_of(call, 0 if method else 1)) & set("wax+"))
    if short == "replace":  # that of a path has one argument; dataclasses.replace has keywords
        return len(call.args) == 1 and not call.keywords and isinstance(call.func, ast.Attribute)
    if name in ("os.link", "os.symlink", "os.replace", "os.truncate", "os.mknod", "os.mkfifo", "shutil.copy"):
        return True
    if short in ("save", "savez", "savez_compressed", "save_model", "save_file"):
        library = name.partition(".")[0] in LIBRARIES
        to = [arg.id for arg in call.args if isinstance(arg, ast.Name)]
        return library and not BUFFERS & set(to)
    if short == "savefig":
        return not (isinstance(call.args[0], ast.Name) and call.args[0].id in BUFFERS)
    return short in WRITES


def found() -> Iterator[tuple[str, str, int]]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if name in MECHANISM or file.resolve() != file:  # through one of the links in the package
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and writes(node):
                    yield name, called(node), node.lineno


def test_files_are_written_by_the_mechanism_or_for_a_reason() -> None:
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for file, call, line in found():
        places[file, call].append(line)
    assert {place: lines for place, lines in places.items() if place not in ALLOWED} == {}
    assert sorted(ALLOWED.keys() - places.keys()) == []  # a reason without its place has gone


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(path, 'wb')", True),
        ("open(path)", False),
        ("path.open('a')", True),
        ("path.open()", False),
        ("path.open(mode)", False),
        ("open(path, mode)", True),
        ("os.open(path, os.O_RDWR | os.O_CREAT)", True),
        ("os.open(path, os.O_RDONLY)", False),
        ("path.write_text('x')", True),
        ("text.replace('a', 'b')", False),
        ("partial.replace(place)", True),
        ("dataclasses.replace(a, b=1)", False),
        ("np.savez(data, x=x)", False),
        ("np.savez(path, x=x)", True),
        ("torch.save(state, file)", True),
        ("tempfile.mkdtemp()", True),
        ("cv2.imwrite(name, image)", True),
        ("shutil.copy(a, b)", True),
        ("values.copy()", False),
    ],
)
def test_what_counts_as_writing(code: str, expected: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert writes(call) == expected
