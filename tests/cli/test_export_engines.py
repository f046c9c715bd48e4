"""``deploykit export --format tensorrt-rtx`` as a user types it, and what other commands say to an engine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.runtime.cuda import gpu_unavailable_reason
from tests.cell_model import cell_spec, write_cell_model

rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
no_gpu = pytest.mark.skipif(
    gpu_unavailable_reason() is None, reason="this machine has a GPU, where engines run at once"
)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine beside its ONNX file; nobody writes there."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")
    from deploykit.export.engine.build import build_engine

    folder = tmp_path_factory.mktemp("engine")
    return build_engine(write_cell_model(folder / "cells.onnx", spec=cell_spec()), flavour="tensorrt-rtx").path


def words(text: str) -> str:
    return " ".join(text.split())


@rtx
@no_gpu
def test_an_engine_from_a_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    command = ["export", "--weights", str(checkpoint), "--img", "64", "--exporter", "legacy", "--out", f"{tmp_path}/"]
    assert main([*command, "--format", "onnx", "--format", "tensorrt-rtx", "--workspace", "64"]) == 0
    out, err = capsys.readouterr()
    said = words(out)
    assert "built by TensorRT for RTX" in said
    assert "from few.onnx, without a GPU" in said
    assert "TF32 off; workspace 64 MiB" in said
    assert "parity: built, not run: no GPU (" in said
    assert "best rows" in said  # the ONNX file's own verification
    assert f"deploykit compare {tmp_path}/few.trt.parity.npz {tmp_path}/few.trt" in out
    assert "tensorrt-rtx, building" in err
    files = {p.name for p in tmp_path.iterdir()}
    engine_files = {"few.trt", "few.trt.json", "few.trt.log", "few.trt.parity.npz"}
    assert files == {"few.onnx", "few.onnx.parity.json", *engine_files}


@rtx
@no_gpu
def test_json_has_the_engines_beside_the_onnx_export(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--weights", str(cells), "--format", "tensorrt-rtx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["engines"]
    (engine,) = found["engines"]
    assert (engine["flavour"], engine["verified"], engine["parity"]) == ("tensorrt-rtx", False, None)
    assert engine["spec"]["classes"] == ["red", "blue"]
    assert engine["path"].endswith("cells.trt")


@rtx
@no_gpu
def test_a_profile_is_what_the_user_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_cell_model(tmp_path / "d.onnx", batch="batch", spec=cell_spec(dynamic=True))
    command = ["export", "--weights", str(path), "--format", "tensorrt-rtx", "--profile"]
    assert main([*command, "1x64x64", "2x3x64x64", "images:3x3x64x64"]) == 0  # also as trtexec takes it
    assert "1x3x64x64 .. 2x3x64x64 .. 3x3x64x64" in words(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--tf32", "--workspace", "5"], 2, "--workspace, --tf32: for engines; add --format tensorrt or --format"),
        (
            ["--format", "tensorrt-rtx", "--img", "64", "--nms", "graph"],
            2,
            "--img, --nms: for a checkpoint; ",
        ),
        (["--format", "onnx"], 2, "is already an ONNX file: take --format tensorrt or --format tensorrt-rtx"),
        (
            ["--format", "tensorrt-rtx", "--profile", "1x64", "1x64x64", "1x64x64"],
            2,
            "--profile takes shapes such as 1x640x640 (batch, height, width), got '1x64'",
        ),
        (
            ["--format", "tensorrt-rtx", "--profile", "2x64x64", "1x64x64", "1x64x64"],
            2,
            "must be at least 1 and not decrease",
        ),
        (
            ["--format", "tensorrt-rtx", "--format", "tensorrt", "--out", "m.trt"],
            2,
            "--out must be a folder for several formats",
        ),
        (["--format", "tensorrt-rtx", "--version-compatible"], 2, "builds no version-compatible engines"),
    ],
)
def test_options_that_do_not_go_together(
    cells: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    assert main(["export", "--weights", str(cells), *options]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("deploykit: ")
    assert said in err
    assert err.count("\n") == 1


@no_gpu
def test_tensorrt_proper_is_refused_before_anything_is_exported(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--weights", str(checkpoint), "--out", f"{tmp_path}/"]
    assert main([*command, "--format", "tensorrt"]) == 61
    assert "take --format tensorrt-rtx, which builds without one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@no_gpu
@pytest.mark.parametrize("command", ["predict", "compare"])
def test_a_command_that_would_run_an_engine_names_what_runs_here(
    engine: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    onnx = engine.with_suffix(".onnx")
    arguments = {"predict": ["--model", str(engine), "--source", str(onnx)], "compare": [str(onnx), str(engine)]}
    if command == "predict":
        arguments["predict"][-1] = str(Path(__file__).parents[2] / "deploykit" / "assets" / "apollo11_crew.jpg")
    assert main([command, *arguments[command]]) == 61
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"deploykit: {engine} is a TensorRT engine: an NVIDIA GPU is required, but ")
    assert err.endswith(f"; {onnx} is the same network and runs here [deploykit help 61]")


def test_inspect_tells_what_an_engine_is_without_running_it(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(engine)]) == 0
    said = words(capsys.readouterr().out)
    assert "kind TensorRT engine" in said
    assert "flavour tensorrt-rtx" in said
    assert "classes red, blue" in said
    assert "built from cells.onnx" in said


def test_inspect_notices_an_engine_that_is_not_the_records(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "cells.trt"
    copy.write_bytes(engine.read_bytes()[:-1])
    assert main(["inspect", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [
        "there is no record (cells.trt.json) beside it, which describes the engine"
    ]
    (tmp_path / "cells.trt.json").write_bytes(engine.with_name("cells.trt.json").read_bytes())
    assert main(["inspect", str(copy), "--json"]) == 0
    assert any("this is another one, or damaged" in n for n in json.loads(capsys.readouterr().out)["notes"])
