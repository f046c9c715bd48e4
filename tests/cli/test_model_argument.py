"""The model is the first word of a command, or the value of an option; sources are the words behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.cli import command_parser, main
from deploykit.cli._model import model_of, sources_of
from deploykit.cli.export import onnx_options


@pytest.mark.parametrize(
    "line",
    [
        "export yolov7-w6-pose.pt --img 960",
        "export --weights yolov7-w6-pose.pt --img 960",
        "export --model yolov7-w6-pose.pt --img 960",
        "export --batch 2 yolov7-w6-pose.pt --img 960",
        "export --img 960 --weights=yolov7-w6-pose.pt",
    ],
)
def test_the_checkpoint_of_an_export(line: str) -> None:
    args = command_parser(line.split()).parse_args(line.split())
    assert model_of(args) == "yolov7-w6-pose.pt"
    assert onnx_options(args).img == (960, 960)


@pytest.mark.parametrize(
    "line",
    [
        "bench model.trt",
        "bench --engine model.trt",
        "bench --model model.trt --runs 3",
        "bench --runs 3 model.trt --source a.jpg b.jpg",
        "eval model.trt --data a.json",
        "eval --data a.json --model model.trt",
        "inspect model.trt --json",
        "inspect --model model.trt",
    ],
)
def test_the_model_of_the_other_commands(line: str) -> None:
    assert model_of(command_parser(line.split()).parse_args(line.split())) == "model.trt"


@pytest.mark.parametrize(
    "line",
    [
        "m.onnx a.jpg folder/ 0",
        "--model m.onnx --source a.jpg folder/ 0",
        "m.onnx --source a.jpg folder/ 0",
        "--source a.jpg folder/ 0 --model m.onnx",
        "m.onnx --source a.jpg --source folder/ 0",
        "--model m.onnx a.jpg folder/ 0",
        "--model m.onnx a.jpg --conf 0.5 folder/ --json 0",  # words between options
        "--json m.onnx --conf 0.5 a.jpg folder/ 0",
        "m.onnx a.jpg --source folder/ 0",
    ],
)
def test_sources_follow_the_model(line: str) -> None:
    words = ["predict", *line.split()]
    args = command_parser(words).parse_args(words)
    assert (model_of(args), sources_of(args)) == ("m.onnx", ["a.jpg", "folder/", "0"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export", "no model was given: name it first, as in deploykit export MODEL, or with --model MODEL"),
        ("bench --runs 3", "no model was given: name it first, as in deploykit bench MODEL, or with --model MODEL"),
        ("export a.pt --weights b.pt", "one model was expected, got 2: a.pt, b.pt"),
        ("bench --model a.trt --engine b.trt", "one model was expected, got 2: a.trt, b.trt"),
        ("eval a.onnx --model a.onnx --data d.json", "one model was expected, got 2: a.onnx, a.onnx"),
        ("predict a.onnx --model b.onnx x.jpg", "one model was expected, got 2: a.onnx, b.onnx"),
        ("predict a.onnx", "name what a.onnx is run on after it: an image, a folder, a video or a camera number"),
        (
            "predict --source x.jpg a.onnx",
            "no model was given: a.onnx was read as a value of --source; put the model first",
        ),
    ],
)
def test_a_model_given_twice_or_not_at_all_is_one_line(
    line: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"deploykit: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict m.onnx --jsn a.jpg", "unknown option --jsn: did you mean --json?"),
        ("bench m.onnx a.jpg", "unexpected argument 'a.jpg'"),
        ("export a.pt b.pt", "unexpected argument 'b.pt'"),
    ],
)
def test_words_that_a_command_does_not_take_are_refused(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.startswith(f"deploykit: {said} (see deploykit ")
