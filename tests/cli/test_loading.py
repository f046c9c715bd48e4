"""``--entry``: every command that loads a checkpoint takes it, and refuses it of what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deploykit import LoadOptions, load
from deploykit.cli import main
from deploykit.errors import UsageError
from tests.cell_model import cell_spec, write_cell_model
from tests.narrow_dense import narrow_dense

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = "deploykit/assets/apollo11_crew.jpg"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose raw weights are zeros, beside an average that is not."""
    state = narrow_dense("resnet20-cifar10").module.state_dict()
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = tmp_path_factory.mktemp("both") / "m.pth.tar"
    torch.save({"state_dict": raw, "state_dict_ema": state}, path)
    return path


def scores(capsys: pytest.CaptureFixture[str], *words: str) -> list[float]:
    assert main([*words]) == 0
    out, _ = capsys.readouterr()
    return [entry["score"] for entry in json.loads(out.splitlines()[-1])["classes"]]


def test_predict_takes_the_average_or_the_entry_that_is_named(
    both: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("predict", "--model", str(both), "--source", str(root / IMAGE), "--json")
    assert max(scores(capsys, *words)) > 0.11
    assert scores(capsys, *words, "--entry", "state_dict") == pytest.approx([0.1] * 5)


def test_compare_and_eval_apply_it_to_the_checkpoint(
    both: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "raw.onnx")
    assert main(["export", "--weights", str(both), "--entry", "state_dict", "--no-check", "--out", out]) == 0
    assert "the weights of state_dict are taken (--entry)" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(both), out, "--entry", "state_dict"]) == 0
    assert main(["compare", str(both), out]) == 42
    folder = tmp_path / "images" / "airplane"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes((root / IMAGE).read_bytes())
    capsys.readouterr()
    words = [
        "eval",
        "--model",
        str(both),
        "--against",
        out,
        "--data",
        str(tmp_path / "images"),
        "--entry",
        "state_dict",
    ]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"]


def test_bench_and_inspect_take_it(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", str(both), "--runs", "1", "--warmup", "0", "--entry", "state_dict"]) == 0
    assert main(["bench", "--engine", str(both), "--runs", "1", "--warmup", "0", "--entry", "none"]) == 2
    assert "they are in state_dict (" in capsys.readouterr().err
    assert main(["inspect", str(both), "--entry", "state_dict", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights from"] == "state_dict"
    assert [line.partition(" ")[0] for line in found["weights in"]] == ["state_dict", "state_dict_ema"]
    assert found["weights in"][0].endswith("tensors, taken)")


def test_an_export_has_no_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_cell_model(tmp_path / "cells.onnx", spec=cell_spec()))
    for words in (
        ["predict", "--model", file, "--source", IMAGE],
        ["bench", "--engine", file],
        ["eval", "--model", file, "--data", "x"],
        ["eval", "--model", file, "--against", file, "--data", "x"],
        ["compare", file, file + "x"],
        ["inspect", file],
        ["export", "--weights", file, "--format", "tensorrt-rtx"],
    ):
        assert main([*words, "--entry", "ema"]) == 2, words
        assert "--entry" in capsys.readouterr().err


def test_python_takes_the_same_option(both: Path, root: Path) -> None:
    with load(both, loading=LoadOptions(entry="state_dict"), task="classify") as predictor:
        assert predictor(root / IMAGE).scores.tolist() == pytest.approx([0.1] * 5)
    with pytest.raises(UsageError, match="no weights are in the entry 'x'"):
        load(both, loading=LoadOptions(entry="x"))
