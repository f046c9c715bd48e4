"""Options that people type out of habit mean what they expect, or are refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli import COMMANDS, main
from deploykit.cli._aliases import ALIASES, BARE, SIZES, VALUES, unaliased
from deploykit.cli._commands import Command, command_parser
from deploykit.cli._engine import gpu_number
from deploykit.errors import MissingDependencyError, UsageError
from deploykit.export import formats as module
from deploykit.export.formats import formats_for


def parsed(line: str) -> argparse.Namespace:
    return command_parser(line.split()).parse_args(line.split())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("export --imgsz 640 x.pt", "export --img 640 x.pt"),
        ("export x.pt --imgsz=640", "export x.pt --img 640"),
        ("export x.pt --img-size 640 480", "export x.pt --img 640 480"),
        ("export x.pt --img 640x480", "export x.pt --img 640 480"),
        ("export --imgsz=640,480 x.pt", "export --img 640 480 x.pt"),
        ("export x.pt --half", "export x.pt --precision fp16"),
        ("export --int8 x.pt --calib a", "export --precision int8 x.pt --calib a"),
        ("export --fp16 --precision fp16 x.pt", "export --precision fp16 x.pt"),
        ("export --dynamic x.pt", "export --dynamic batch x.pt"),
        ("export x.pt --dynamic", "export x.pt --dynamic batch"),
        ("export x.pt --dynamic shape", "export x.pt --dynamic shape"),
        ("export x.pt --format engine", "export x.pt --format tensorrt"),
        ("export x.pt --format=rtx --format onnx", "export x.pt --format tensorrt-rtx --format onnx"),
        ("predict --weights x.onnx --conf-thres 0.4 a.jpg", "predict --model x.onnx --conf 0.4 a.jpg"),
        ("export x.pt --int8-keep none", "export x.pt --keep none"),
        ("bench x.onnx --batch-size=4", "bench x.onnx --batch 4"),
        ("eval x.onnx --data a --iou-thres 0.7", "eval x.onnx --data a --iou 0.7"),
    ],
)
def test_what_is_typed_out_of_habit_is_understood(typed: str, meant: str) -> None:
    assert vars(parsed(typed)) == vars(parsed(meant))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("export x.pt --half --int8", "--half contradicts --int8: keep one of them"),
        ("export x.pt --precision int8 --half", "--precision int8 contradicts --half: keep one of them"),
        ("export x.pt --fp16 --precision=bf16", "--fp16 contradicts --precision bf16: keep one of them"),
    ],
)
def test_contradictions_are_refused(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    assert capsys.readouterr() == ("", f"deploykit: {said} [deploykit help 2]\n")


def test_a_size_that_could_be_meant_otherwise_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "nowhere.pt", "--img", "640x480"])
    assert capsys.readouterr().err.count("note: --img 640x480: height 640, width 480") == 1
    main(["export", "nowhere.pt", "--img", "640x640"])
    assert "note" not in capsys.readouterr().err


def test_an_alias_never_hides_an_option_and_leads_to_one() -> None:
    commands = [Command(name) for name in COMMANDS]
    for alias, meant in ALIASES.items():
        assert any(meant[0] in command.options and alias not in command.options for command in commands), alias
    for option in (*VALUES, *BARE, *SIZES):
        assert any(option in command.options for command in commands)
    assert unaliased(["--weights", "a", "--", "--half"], {"--weights"}) == (["--weights", "a", "--", "--half"], [])


def test_the_page_names_every_alias(root: Path) -> None:
    page = (root / "docs" / "command-line.md").read_text()
    assert not [name for name in (*ALIASES, *VALUES["--format"]) if f"`{name}`" not in page and f" {name}`" not in page]


@pytest.mark.parametrize(
    ("formats", "out", "chosen"),
    [
        ((), None, ("onnx",)),
        ((), "x.onnx", ("onnx",)),
        ((), "folder/", ("onnx",)),
        ((), "x.engine", ("tensorrt-rtx",)),
        ((), "x.plan", ("tensorrt-rtx",)),
        (("tensorrt",), "x.trt", ("tensorrt",)),
        (("tensorrt", "onnx"), "folder/", ("tensorrt", "onnx")),
    ],
)
def test_the_format_follows_the_suffix(
    formats: tuple[str, ...], out: str | None, chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "chosen_flavour", lambda flavour: {"auto": "tensorrt-rtx"}[flavour])
    assert formats_for(formats, out) == chosen


@pytest.mark.parametrize(
    ("formats", "out", "said"),
    [
        (("onnx",), "x.engine", "--out x.engine is an engine by its name, and --format is onnx"),
        (("tensorrt",), "x.onnx", "--out x.onnx is an ONNX file by its name, and --format is tensorrt"),
    ],
)
def test_a_suffix_that_contradicts_the_format_is_refused(formats: tuple[str, ...], out: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        formats_for(formats, out)


def test_an_engine_by_its_name_needs_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> Any:
        raise MissingDependencyError("not installed")

    monkeypatch.setattr(module, "chosen_flavour", none)
    with pytest.raises(MissingDependencyError):
        formats_for((), "x.trt")


@pytest.mark.parametrize(("typed", "number"), [("0", 0), ("1", 1), ("cuda", 0), ("cuda:2", 2)])
def test_an_engines_gpu_is_named_as_everywhere(typed: str, number: int) -> None:
    assert gpu_number(typed) == number
    assert parsed(f"export x.pt --format tensorrt --device {typed}").device == number


def test_an_engine_is_not_built_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "x.pt", "--device", "cpu"]) == 2
    assert "ONNX files are made on the CPU: leave it out" in capsys.readouterr().err
