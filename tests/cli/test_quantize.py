"""``deploykit quantize``: what it prints, its options and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.cli._commands import Command
from deploykit.cli.quantize import preparation_flags
from deploykit.export.options import ImagePreparation
from tests.cell_model import BLUE, RED, planted
from tests.foreign_networks import write_blocks, write_by_hand


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), planted((number, 2, RED), (5, number, BLUE)))
    return folder


def test_an_end_to_end_file_in_int8(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write_blocks(tmp_path / "m.onnx"), tmp_path / "new.onnx"
    words = ["--precision", "int8", "--calib", str(images), "--keep", "none", "--out", str(out)]
    assert main(["quantize", str(file), *words]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "everything from the first choice on: ArgMax (1), TopK (1)" in text
    assert "4 in int8 (read from the file)" in text
    assert "1 batch norm folded" in text
    assert "note assumed: its six columns are x1, y1, x2, y2, score, class" in text
    assert "limits: 25% of the results may have no partner" in text
    assert f"{out} is verified against {file}" in text
    assert main(["inspect", str(out), "--verify"]) == 0
    assert (
        main(
            [
                "verify",
                str(file),
                str(out),
                "--tolerance",
                "pixels=1,probability=0.1",
                "--sample",
                str(images / "0.png"),
            ]
        )
        == 0
    )


def test_the_report_as_json(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_by_hand(tmp_path / "m.onnx", "two inputs")
    words = ["--input", "factor=1,2", "--fp16", "--mean", "0.5", "--std", "0.25", "--scale", "1/255", "--colour", "bgr"]
    assert main(["quantize", str(file), *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"]["computes"] == {"fp16": 3}
    assert report["spec"]["input"]["mean"] == [0.5] * 3
    assert report["spec"]["input"]["scale"] == 1 / 255
    assert (report["stamped"], report["source"]) == (False, str(file))
    assert Path(report["path"]).name == "m.fp16.onnx"


def test_the_help_says_that_a_precision_has_to_be_given() -> None:
    help_of = {name: " ".join(Command(name).format_help().split()) for name in ("quantize", "export")}
    assert "(no default: it has to be given)" in help_of["quantize"]
    assert "stay in fp32 (default fp32)" in help_of["export"]
    assert "(default fp32)" not in help_of["quantize"]


def test_every_way_to_prepare_images_has_an_option() -> None:
    args = Command("quantize").parse_args(
        ["m.onnx", "--img", "32", "64", "--colour", "rgb", "--scale", "1", "--mean", "1", "--std", "2", "--fit", "crop"]
    )
    assert preparation_flags().fill(args) == ImagePreparation((32, 64), "rgb", 1.0, (1.0,), (2.0,), "crop")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "in fp32 already: ask for fp16, bf16, int8 or fp8"),
        (["--precision", "int8"], 2, "needs images to measure ranges on"),
        (
            ["--precision", "int8", "--calib", "images", "--tolerance", "dense=1e-9"],
            42,
            "does not agree with its source",
        ),
        (["--precision", "fp16", "--scale", "x"], 2, "invalid number: 'x'"),
        (["--precision", "fp16", "--input", "factor"], 2, "--input takes NAME=NUMBER,NUMBER"),
        (["--precision", "fp16", "--input", "nothing=1"], 2, "there is no input 'nothing'"),
        (["--precision", "fp16", "--keep", "nothing*"], 2, "no layer is called 'nothing*'"),
        (["--precision", "fp16", "--max-drop", "1"], 2, "missing: --data"),
    ],
)
def test_what_goes_wrong_has_its_exit_code(
    words: list[str],
    code: int,
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_by_hand(tmp_path / "m.onnx")
    assert main(["quantize", "m.onnx", *words]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("m.*.onnx"))


def test_export_says_who_converts_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_by_hand(tmp_path / "m.onnx")
    assert main(["export", str(file), "--precision", "fp16"]) == 2
    assert "deploykit quantize converts an ONNX file" in capsys.readouterr().err


def test_a_calibration_on_black_images_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranges that were measured on black images clip everything, and the samples tell."""
    (tmp_path / "black").mkdir()
    cv2.imwrite(str(tmp_path / "black" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "real.png"), planted((1, 2, RED), (5, 3, BLUE)))
    file = write_blocks(tmp_path / "m.onnx")
    words = ["--precision", "int8", "--calib", str(tmp_path / "black"), "--keep", "none", "--no-calib-cache"]
    assert main(["quantize", str(file), *words, "--sample", str(tmp_path / "real.png")]) in (42, 80)
    assert not list(tmp_path.glob("m.*.onnx"))
