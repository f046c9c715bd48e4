"""A configuration file gives the defaults of options; the command line overrides them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.cli import command_parser, main
from deploykit.cli._config import with_config
from deploykit.errors import DeployError, NotFoundError, UsageError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write deploykit.toml into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEPLOYKIT_CONFIG", raising=False)

    def written(text: str) -> Path:
        file = tmp_path / "deploykit.toml"
        file.write_text(text)
        return file

    return written


def words(line: str) -> list[str]:
    """The words of a command line with what is configured; they parse."""
    typed = line.split()
    found = with_config(command_parser(typed), typed).words
    command_parser(found).parse_args(found)
    return found


def added(line: str) -> list[str]:
    return words(line)[len(line.split()) :]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("[export]\nimg = 960", "export m.pt", ["--img", "960"]),
        ("[export]\nimg = [480, 640]", "export m.pt", ["--img", "480", "640"]),
        ("[export]\nimg = 960", "export m.pt --img 640", []),
        ("[export]\nimg = 960", "predict m.onnx a.jpg", []),
        ("[predict]\nconf = 0.4\nmax_det = 5", "predict m.onnx a.jpg", ["--conf=0.4", "--max-det=5"]),
        ("[predict]\nmax-det = 5", "predict m.onnx a.jpg", ["--max-det=5"]),
        ("[predict]\nconf = 1", "predict m.onnx a.jpg", ["--conf=1"]),
        ("[export]\nsimplify = false\ntf32 = true", "export m.pt", ["--no-simplify", "--tf32"]),
        ("[export]\nsimplify = false", "export m.pt --simplify", []),
        ("[export]\ntf32 = false", "export m.pt", []),
        ("[export]\nformat = 'onnx'", "export m.pt", ["--format=onnx"]),
        ("[export]\nformat = ['onnx', 'tensorrt']", "export m.pt", ["--format=onnx", "--format=tensorrt"]),
        ("[export]\nformat = ['onnx', 'tensorrt']", "export m.pt --format onnx", []),
        (
            "[export]\nprofile = [['1x8x8', '1x8x8', '2x8x8'], ['1x4x4', '1x4x4', '1x4x4']]",
            "export m.pt",
            ["--profile", "1x8x8", "1x8x8", "2x8x8", "--profile", "1x4x4", "1x4x4", "1x4x4"],
        ),
        ("[export]\nmean = [-0.5, 0.5, 0.5]", "export m.pt", ["--mean", "-0.5", "0.5", "0.5"]),
        ("[export]\nint8-keep = ['a.*', 'b']", "export m.pt", ["--keep", "a.*", "b"]),
        ("[export]\nint8_keep = 'a'", "export m.pt --keep none", []),
        ("[bench]\nduration = 2.5", "bench m.onnx", ["--duration=2.5"]),
        ("[bench]\nduration = 2.5", "bench m.onnx --runs 3", []),  # the two exclude each other
        ("[defaults]\nthreads = 3", "bench m.onnx", ["--threads=3"]),
        ("[defaults]\nthreads = 3\n[bench]\nthreads = 4", "bench m.onnx", ["--threads=4"]),
        ("[defaults]\ncalib_size = 3", "bench m.onnx", []),  # an option of another command
        ("[export]\nimg = 960", "export m.pt --no-config", []),
    ],
)
def test_what_is_not_typed_comes_from_the_file(text: str, line: str, expected: list[str], write: Write) -> None:
    write(text)
    assert added(line) == expected


def test_a_list_stands_for_an_option_that_takes_commas(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[0, 255]", '"0,255"', "['0', 255]"):
        write(f"[eval]\nmask_values = {text}")
        assert added("eval m.onnx --data d") == ["--mask-values=0,255"]
    write("[eval]\nmask_values = [0, true]")
    assert main(["eval", "m.onnx", "--data", "d"]) == 2
    assert "[eval] mask_values: expected a number or a text, got True" in capsys.readouterr().err


def test_what_is_configured_stands_before_the_end_of_options(write: Write) -> None:
    write("[predict]\nconf = 0.4")
    assert words("predict m.onnx -- a.jpg") == ["predict", "m.onnx", "--conf=0.4", "--", "a.jpg"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[export]\nimgsz = 960", "[export] imgsz: unknown key: did you mean img?"),
        ("[export]\nhalf = true", "[export] half: unknown key: did you mean precision = fp16?"),
        ("[export]\nduration = 3", "[export] duration: unknown key: an option of [bench]"),
        ("[export]\nzzz = 960", "[export] zzz: unknown key"),
        ("[export]\nno_simplify = true", "[export] no_simplify: unknown key: did you mean simplify?"),
        ("[exprot]\nimg = 960", "[exprot] is no command: did you mean [export]?"),
        ("[defaults]\nthread = 3", "[defaults] thread: unknown key: did you mean threads?"),
        ("export = 3", "export is not a table: write [export]"),
        ("[export]\nimg = 'big'", "[export] img: expected a whole number, got 'big'"),
        ("[export]\nimg = 9.5", "[export] img: expected a whole number, got 9.5"),
        ("[export]\nimg = true", "[export] img: expected a whole number, got True"),
        ("[export]\nimg = []", "[export] img: expected at least one value (N)"),
        ("[export]\nbatch = [1, 2]", "[export] batch: expected a whole number, got [1, 2]"),
        ("[export]\nconf = 'x'", "[export] conf: expected a number, got 'x'"),
        ("[export]\nconf = {a = 1}", "[export] conf: expected a number, got {'a': 1}"),
        ("[export]\ntf32 = 1", "[export] tf32: expected true or false, got 1"),
        ("[export]\nout = 3", "[export] out: expected a text, got 3"),
        (
            "[export]\nprecision = 'fp166'",
            "[export] precision: expected fp32, fp16, bf16, int8 or fp8, got 'fp166': did you mean fp16?",
        ),
        ("[export]\nprofile = ['1x8x8']", "[export] profile: expected 3 values (MIN OPT MAX)"),
        ("[export]\nmodel = 'm.pt'", "[export] model: --model is given on the command line only"),
        ("[export]\nhelp = true", "[export] help: --help is given on the command line only"),
        ("[export]\nimg = 9 9", "is not TOML: "),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_key(
    text: str, said: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(text)
    assert main(["export", "m.pt"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"deploykit: deploykit.toml{':' * (not said.startswith('is not TOML'))} {said}"), err
    assert err.count("\n") == 1


def test_what_was_taken_is_said_once_and_quiet_leaves_it_out(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("[models]\njson = true")
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("[")
    assert err == "deploykit: note: defaults from deploykit.toml: --json (--no-config leaves them out)\n"
    assert main(["models", "-q"]) == 0
    assert capsys.readouterr() == (out, "")
    assert main(["models", "--no-config"]) == 0
    assert not capsys.readouterr().out.startswith("[")


def test_a_table_of_pyproject_is_read_where_there_is_one(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.deploykit.export]\nimg = 320\n[tool.other]\nx = 1\n[project]\n")
    assert added("export m.pt") == ["--img", "320"]
    write("[export]\nimg = 960")
    assert added("export m.pt") == ["--img", "960"]


def test_keys_of_pyproject_are_named_with_their_table(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.deploykit.export]\nimgg = 320")
    with pytest.raises(
        UsageError, match=r"pyproject.toml: \[tool.deploykit.export\] imgg: unknown key: did you mean img"
    ):
        words("export m.pt")


def test_the_folders_above_are_searched_up_to_the_root_of_a_repository(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[export]\nimg = 960")
    inner = tmp_path / "repository" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert added("export m.pt") == []  # in no repository: only the folder itself
    (tmp_path / ".git").mkdir()
    assert added("export m.pt") == ["--img", "960"]
    (inner.parent / ".git").mkdir()
    assert added("export m.pt") == []
    (inner.parent / "pyproject.toml").write_text("[project]\nname = 'x'")
    assert added("export m.pt") == []


def test_the_home_folder_is_the_last_that_is_searched(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    write("[export]\nimg = 960")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert added("export m.pt") == ["--img", "960"]
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    assert added("export m.pt") == []


def test_a_file_that_is_named_is_the_one_that_is_read(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[export]\nimg = 960")
    (tmp_path / "other.toml").write_text("[export]\nimg = 320")
    assert words("export m.pt --config other.toml")[-2:] == ["--img", "320"]
    assert words("--config=other.toml export m.pt")[-2:] == ["--img", "320"]
    monkeypatch.setenv("DEPLOYKIT_CONFIG", str(tmp_path / "other.toml"))
    assert added("export m.pt") == ["--img", "320"]
    assert added("export m.pt --no-config") == []


def test_a_file_that_is_named_and_not_there(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--config", "none.toml"]) == 4
    assert "a configuration file was expected at none.toml, but there is no such file" in capsys.readouterr().err
    assert main(["models", "--config"]) == 2
    assert "--config: expected one value (FILE)" in capsys.readouterr().err


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("[eval]\ndata = 'sets/val.json'\nimages = '/data/val'")
    (tmp_path / ".git").mkdir()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert added("eval m.onnx") == [
        f"--data={Path('..', 'sets', 'val.json')}",
        f"--images={os.path.relpath('/data/val')}",
    ]


@pytest.mark.parametrize("key", ["force = true", "url = 'https://a.b/c'", "sha256 = 'aa'"])
def test_a_file_that_was_found_neither_replaces_nor_downloads(key: str, write: Write, tmp_path: Path) -> None:
    file = write(f"[fetch]\n{key}")
    with pytest.raises(UsageError, match="is given on the command line, or by a file that --config names"):
        words("fetch yolov5n")
    assert words(f"fetch yolov5n --config {file}")[-1].startswith(f"--{key.split(maxsplit=1)[0]}")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_a_file_that_others_may_write_is_not_read(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("[models]\njson = true")
    file.chmod(0o666)
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert not out.startswith("[")
    assert err == (
        "deploykit: note: deploykit.toml is not read: another user may write it; --config deploykit.toml reads it\n"
    )
    assert main(["models", "--config", "deploykit.toml"]) == 0
    assert capsys.readouterr().out.startswith("[")
    file.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: 12345678)
    if file.stat().st_uid != 0:
        assert added("models") == []


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x = " + b"[" * 100_000, b"#" * (1 << 20) + b"##"])
def test_a_file_that_is_no_configuration_is_one_line(data: bytes, write: Write) -> None:
    write("").write_bytes(data)
    with pytest.raises(DeployError, match=r"deploykit.toml is (not TOML|larger than 1 MiB)"):
        words("models")


def test_a_strangers_pyproject_is_no_matter_of_ours(write: Write, tmp_path: Path) -> None:
    for text in ("[tool.deploy]\nx = 1", "not TOML at all [", "# tool.deploykit\n[project]\n"):
        (tmp_path / "pyproject.toml").write_text(text)
        assert added("models") == []


def test_every_variable_that_is_read_is_in_the_page(root: Path) -> None:
    page = (root / "docs" / "command-line.md").read_text()
    sources = [file for part in ("deploykit", "runtime", "models", "export") for file in (root / part).rglob("*.py")]
    read = {
        name
        for file in sources
        if file.name != "build.py"  # those are CMake's
        for name in re.findall(r'"(DEPLOYKIT_[A-Z_]+)"', file.read_text())
    }
    assert len(read) >= 4
    assert not [name for name in read if f"| `{name}` |" not in page]


def test_the_example_of_the_page_is_read(root: Path, write: Write) -> None:
    page = (root / "docs" / "command-line.md").read_text()
    write(page.partition("```toml\n")[2].partition("```")[0])
    assert added("export m.pt") == ["--img", "960", "--precision=fp16", "--simplify"]
    assert added("predict m.onnx a.jpg") == ["--conf=0.4", "--out=results", "--threads=4"]
    assert added("bench m.onnx") == ["--threads=4"]


def test_a_user_without_a_home_folder_and_a_folder_that_is_gone(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    write("[export]\nimg = 960\nout = '~x/y'")
    monkeypatch.setattr(Path, "expanduser", none)
    assert added("export m.pt") == ["--img", "960", "--out=~x/y"]
    monkeypatch.undo()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["help", "42"]) == 0


def test_a_fault_while_words_are_read_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("index")

    monkeypatch.setattr("deploykit.cli.with_config", fail)
    assert main(["models"]) == 90
    assert capsys.readouterr().err.startswith("deploykit: unexpected IndexError: index (test_config.py:")
    with pytest.raises(IndexError):
        main(["models", "--traceback"])


def test_a_number_that_python_does_not_read_is_no_toml(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(f"[predict]\nconf = {'9' * 5000}\n")
    with pytest.raises(UsageError, match=r"deploykit\.toml is not TOML: .*4300 digits"):
        words("predict m.onnx a.jpg")
    assert main(["predict", "m.onnx", "a.jpg", "--config", str(file)]) == UsageError.exit_code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_that_no_file_can_have_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="a configuration file was expected at xxx"):
        words(f"predict m.onnx a.jpg --config {'x' * 300}")
