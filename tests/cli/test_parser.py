"""Usage errors say what was probably meant; options are not abbreviated; words and options mix."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, main
from deploykit.cli._commands import Command
from deploykit.cli._help import HelpParser
from deploykit.cli._parser import Parser
from deploykit.cli._suggest import FOREIGN, FOREIGN_COMMANDS, FOREIGN_VALUES, nearest, option_for
from deploykit.errors import UsageError


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_of_any_command_can_be_abbreviated(name: str) -> None:
    """All but the last letter is what an abbreviation is understood by if any is; three are what people type."""
    command = Command(name)
    options = [option for option in command.options if option.startswith("--")]
    shorter = {short for option in options for short in (option[:-1], option[:5])} - set(command.options)
    assert len(shorter) > 10
    for short in sorted(shorter):
        with pytest.raises(UsageError, match=f"unknown option {short}"):
            command.parse_args([short])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_understood_as_it_is(name: str) -> None:
    command = Command(name)
    for option in command.options:
        command._refuse_unknown_options([option])
        assert option_for(option, command.options) == (option if option.startswith("--") else None)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("export --use-fp16", "--precision fp16"),
        ("predict --masks", "--maps"),
        ("predict --save-mask", "--maps"),
        ("export --img_size 640", "--img"),
        ("export --include onnx", "--format"),
        ("export --minShapes 1x3x8x8", "--profile"),
        ("export --saveEngine x", "--out"),
        ("export --Batch 4", "--batch"),
        ("export --max_det 4", "--max-det"),
        ("export -img 640", "--img"),
        ("export --half-oi none", "--half-io"),
        ("export --prec fp16", "--precision"),
        ("predict --threshold 0.4", "--conf"),
        ("predict --iou_thres 0.4", "--iou"),
        ("predict --view-img", "--show"),
        ("predict --save-dir x", "--out"),
        ("bench --iterations 4", "--runs"),
        ("eval --annotations x", "--data"),
        ("models --silent", "--quiet"),
        ("models -quiet", "--quiet"),
        ("models -verbose", "--verbose"),
        ("--silent models", "--quiet"),
    ],
)
def test_a_foreign_or_mistyped_option_has_its_name_here(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    words = typed.replace("=", " ").split()
    option = next(word for word in words if word.startswith("-"))
    where = f" {words[0]}" if words[0] in COMMANDS else ""
    assert capsys.readouterr() == (
        "",
        f"deploykit: unknown option {option}: did you mean {meant}? (see deploykit{where} --help) [deploykit help 2]\n",
    )


def test_an_option_of_another_command_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "x.pt", "--calib", "images"]) == 2
    assert "unknown option --calib: an option of deploykit export (see" in capsys.readouterr().err


def test_an_option_that_nobody_has_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "x.pt", "--zzz"]) == 2
    assert capsys.readouterr().err.startswith("deploykit: unknown option --zzz (see deploykit inspect --help)")


def test_every_foreign_name_leads_to_an_option_of_some_command() -> None:
    known = {option for name in COMMANDS for option in Command(name).options}
    lost = {name: options for name, options in FOREIGN.items() if not any(o.split()[0] in known for o in options)}
    assert not {name for name in lost if name != "classes"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("export imgsz=640", "'imgsz=640' has no dashes: did you mean --img 640?"),
        ("export half=True", "'half=True' has no dashes: did you mean --precision fp16?"),
        ("export json=True", "'json=True' has no dashes: did you mean --json?"),
        ("predict conf=0.25 source=bus.jpg", "'conf=0.25' has no dashes: did you mean --conf 0.25 --source bus.jpg?"),
        (
            "export model=a.pt format=engine half=True dynamic=True nms=True simplify=False",
            "'model=a.pt' has no dashes: did you mean --model a.pt --format tensorrt --precision fp16 --dynamic batch "
            "--nms graph?",
        ),
        ("export half=False", "'half=False' has no dashes: leave it out"),
    ],
)
def test_names_without_dashes_are_recognised(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    assert capsys.readouterr().err.startswith(f"deploykit: {said} (see deploykit {typed.split(maxsplit=1)[0]} --help)")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("export a.pt --format plan", "tensorrt"),
        ("export a.pt --precision half", "fp16"),
        ("export a.pt --dynamic true", "batch"),
        ("preflight a.onnx --target jetson", "tensorrt-10"),
        ("preflight a.onnx --target trt", "tensorrt-10"),
        ("preflight a.onnx --target rtx", "tensorrt-rtx"),
        ("preflight a.onnx --target ort", "onnxruntime"),
    ],
)
def test_a_foreign_value_has_its_name_here(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    assert f", got {typed.rsplit(maxsplit=1)[-1]!r}: did you mean {meant}? (see" in capsys.readouterr().err


def test_every_foreign_value_leads_to_a_value_of_some_option() -> None:
    actions = [action for name in COMMANDS for action in Command(name).options.values()]
    known = {str(choice) for action in actions for choice in action.choices or ()}
    assert not {value for values in FOREIGN_VALUES.values() for value in values} - known


@pytest.mark.parametrize(
    ("typed", "said"),
    [("plugins", "missing: action (build, info or test) (see"), ("preflight", "missing: FILE (see")],
)
def test_what_is_missing_is_listed_where_it_is_a_choice(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    assert capsys.readouterr().err.startswith(f"deploykit: {said}")


def test_a_file_or_a_value_with_an_equals_sign_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").touch()
    assert Command("create").parse_args(["seed=1"]).name == "seed=1"
    assert str(Command("create").parse_args(["unet", "--out", "classes=3"]).out) == "classes=3"


def test_short_options_may_be_one_word() -> None:
    assert Command("models").parse_args(["-vq"]).level == Command("models").parse_args(["-q"]).level


def mixed() -> Parser:
    parser = Parser(prog="mixed")
    parser.add_argument("model")
    parser.add_argument("more", nargs="*", type=int)
    parser.add_argument("--img", nargs="+", type=int)
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--conf", type=float)
    return parser


@pytest.mark.parametrize(
    "words", ["m 1 2 --conf -0.5", "m --conf -0.5 1 2", "--conf -0.5 m 1 2", "m 1 --conf=-0.5 2", "m 1 --conf -.5 -- 2"]
)
def test_words_and_options_mix(words: str) -> None:
    found = mixed().parse_args(words.split())
    assert (found.model, found.more, found.conf) == ("m", [1, 2], -0.5)


@pytest.mark.parametrize(
    "words", ["--img 640 480 m", "m --img 640 480", "--img 640 480 m --conf 0", "--img 640 480 -- m"]
)
def test_an_option_of_numbers_ends_where_they_do(words: str) -> None:
    found = mixed().parse_args(words.split())
    assert (found.model, found.img) == ("m", [640, 480])


def test_words_that_are_left_over_are_converted_as_the_first_are() -> None:
    with pytest.raises(UsageError, match=r"more: expected a whole number, got 'x' \(see mixed --help\)"):
        mixed().parse_args(["m", "1", "--conf", "0", "x"])


def test_a_parser_that_takes_no_more_words_refuses_them() -> None:
    parser = Parser(prog="one")
    parser.add_argument("model")
    with pytest.raises(UsageError, match="unexpected argument 'b'"):
        parser.parse_args(["a", "b"])


def test_options_that_exclude_each_other_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", "x", "--runs", "3", "--duration", "1"]) == 2
    assert "--duration: not allowed with argument --runs (see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("yolov5n.pt", "inspect yolov5n.pt"),
        ("folder/M.ONNX", "inspect folder/M.ONNX"),
        ("bus.jpg", "predict MODEL bus.jpg"),
    ],
)
def test_a_file_as_a_command_leads_to_what_takes_it(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert f"{word!r} is a file, not a command: did you mean deploykit {meant}? (see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "meant"),
    [("track", "predict"), ("val", "eval"), ("benchmark", "bench"), ("convert", "export"), ("version", "--version")],
)
def test_a_command_of_another_tool_has_its_name_here(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "x"]) == 2
    assert f"unknown command {word!r}: did you mean deploykit {meant}? (see" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["pose", "Detect", "obb"])
def test_a_task_before_the_command_is_said_to_be_needless(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "predict", "model=best.pt"]) == 2
    said = f"{word!r} is no command: the model tells its task; write deploykit predict MODEL SOURCE (see"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict m.onnx a.jpg save=True", "'save=True' has no dashes: did you mean --out? (see"),
        ("predict m.onnx a.jpg project=runs", "'project=runs' has no dashes: did you mean --out runs? (see"),
        ("predict m.onnx a.jpg --save-crop", "unknown option --save-crop: did you mean --crops? (see"),
        ("predict m.onnx a.jpg --vid-stride 2", "unknown option --vid-stride: did you mean --every? (see"),
        ("predict m.onnx a.jpg --txt", "unknown option --txt: did you mean --save-txt? (see"),
        ("data check data.yaml", "expected convert, got 'check' (see"),
    ],
)
def test_what_another_tool_takes_has_its_name_here(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_training_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "deploykit does not train: it exports and runs what other projects have trained" in capsys.readouterr().err


def test_foreign_commands_lead_to_commands() -> None:
    assert not {meant for meant in FOREIGN_COMMANDS.values() if meant not in COMMANDS} - {"--version", "doctor"}


def test_the_command_line_without_words_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert alone == capsys.readouterr()
    assert alone.err == ""


@pytest.mark.parametrize("words", [["--help", "create"], ["-h", "create"], ["create", "-h"], ["help", "create"]])
def test_the_help_of_a_command_can_be_asked_for_in_any_way(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
    assert capsys.readouterr().out.startswith("usage: deploykit create MODEL [options]\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_is_one_line_of_what_is_needed(name: str) -> None:
    usage = Command(name).format_usage()
    assert usage.startswith(f"usage: deploykit {name} ")
    assert usage.endswith("[options]\n")
    assert len(usage) < 80


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_the_width_of_the_terminal(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = Command(name).format_help("all").partition("examples:")[0]
    lines = [line for line in text.splitlines()[1:] if not line.lstrip().startswith("-")]
    assert lines
    assert max(map(len, lines)) <= width


def test_topics_are_listed_by_the_help_and_explained_on_request() -> None:
    parser = HelpParser(prog="cook", description="Cook.", examples=(("cook egg", "soft"), ("cook rice", "plain")))
    parser.add_argument("what", metavar="WHAT")
    parser.add_argument_group("graph (a page)").add_argument("--opset", help="the operator set")
    short, full, topic = parser.format_help(), parser.format_help("all"), parser.format_help("graph")
    assert "--opset" in short
    assert "the operator set" not in short
    assert "the operator set" in full
    assert "the operator set" in topic
    assert "Cook." not in topic
    assert short.endswith("examples:\n  # soft\n  cook egg\n  # plain\n  cook rice\n")


def test_usage_shows_what_is_needed() -> None:
    parser = HelpParser(prog="cook")
    parser.add_argument("what", metavar="WHAT", nargs="?")
    parser.add_argument("more", metavar="MORE", nargs="*")
    parser.add_argument("--pan", metavar="PAN", required=True)
    assert parser.format_usage() == "usage: cook [WHAT] [MORE...] --pan PAN [options]\n"
    parser.add_argument("--what", dest="named")
    assert parser.format_usage() == "usage: cook WHAT [MORE...] --pan PAN [options]\n"


def test_the_nearest_word() -> None:
    assert nearest("exprot", COMMANDS) == "export"
    assert nearest("comp", COMMANDS) == "compare"
    assert nearest("cm", COMMANDS) is None


def test_a_converted_value_is_of_the_type_and_count_of_its_option() -> None:
    parser = mixed()
    assert parser.converted(parser.options["--img"], ["1", "2"]) == [1, 2]
    assert parser.converted(parser.options["--conf"], ["1"]) == 1.0
    for option, words in (("--conf", ["1", "2"]), ("--conf", []), ("--img", ["x"])):
        with pytest.raises(argparse.ArgumentError):
            parser.converted(parser.options[option], words)


LONG = "x" * 300  # no file can have this name, and to ask for one is an error of the system


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([LONG], 2, "unknown command 'xxx"),
        (["9" * 5000], 2, "unknown command '999"),
        (["help", "9" * 5000], 4, "no help about '999"),
        (["predict", "-=x"], 2, "unknown option -"),
        (["predict", "m.onnx", f"conf={LONG}"], 2, "has no dashes"),
        (["predict", "m.onnx", "a.png", "--out", LONG], 4, "expected at a.png, which does not exist"),
        (["predict", "m.onnx", "9" * 5000], 4, "999, which does not exist"),
        (["create", "yolov5n", "--out", f"{LONG}.pt"], 30, "cannot write xxx"),
        (["bench", "m.onnx", "--compare", LONG], 4, "does not exist"),
        (["bench", "m.onnx", "--quiet", "--report", LONG], 4, "a model was expected at m.onnx"),
        (["export", "m.pt", "--profile", "9" * 5000 + "x8x8", "1x8x8", "1x8x8"], 2, "--profile takes shapes"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_words_that_name_no_file_and_numbers_without_end_are_one_line(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code, capsys.readouterr().err[-300:]
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
