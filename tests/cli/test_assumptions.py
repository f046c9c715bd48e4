"""What no tensor tells and is therefore assumed: printed by the commands, and kept in the spec."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit.cli import main
from deploykit.errors import CheckpointError, ParityError, UsageError
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.models.families.vit import VitConfig
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import load_model
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.session import open_session
from tests.models.families.test_vit import narrow
from tests.models.files import saved

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = narrow(config=VitConfig(192, 1, 3, 48, patch=8, grid=2, num_classes=3, head="token")).module.state_dict()
HEADS = "3 heads for 192 channels, as published ViTs of that width have (MAE-Lite's has 12): no tensor tells"


def test_an_assumption_is_a_note_and_is_in_the_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, file = saved(tmp_path, STATE), tmp_path / "m.onnx"
    words = ["export", "--weights", str(weights), "--exporter", "legacy", "--out", str(file), "--json"]
    assert main(words) == 0
    said = f"assumed: {HEADS}; choose with --heads"
    assert said in json.loads(capsys.readouterr().out)["notes"]
    with open_session(file) as session:
        assert said in session_spec(session, "m.onnx").assumption_notes
    for inspected in (weights, file):
        assert main(["inspect", str(inspected), "--json"]) == 0
        assert said in json.loads(capsys.readouterr().out)["notes"]
        assert main(["inspect", str(inspected)]) == 0
        assert "assumed: 3 heads for 192 channels" in capsys.readouterr().out


def test_every_command_takes_the_number_of_heads_of_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network with 12 heads is another one than that with 3, and each command runs the one that is asked for."""
    weights, file, image = saved(tmp_path, STATE), tmp_path / "m.onnx", tmp_path / "a.png"
    assert cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype("uint8"))
    words = ["export", "--weights", str(weights), "--exporter", "legacy", "--out", str(file), "--heads", "12"]
    assert main(words) == 0
    assert "heads for" not in capsys.readouterr().out
    assert main(["compare", str(weights), str(file), "--heads", "12"]) == 0
    assert main(["compare", str(weights), str(file)]) == ParityError.exit_code
    (tmp_path / "0").mkdir()
    image.rename(tmp_path / "0" / "a.png")
    for words in (
        ["inspect", str(weights)],
        ["predict", "--model", str(weights), "--source", str(tmp_path / "0")],
        ["bench", "--engine", str(weights), "--runs", "1", "--warmup", "0"],
    ):
        capsys.readouterr()
        assert main([*words, "--heads", "12"]) == 0
        said = "".join(capsys.readouterr())
        assert "3 heads" not in said
        assert main([*words, "--heads", "5"]) == UsageError.exit_code
        assert "--heads 5 does not divide the 192 channels" in capsys.readouterr().err
    for words in (["inspect", str(file)], ["predict", "--model", str(file), "--source", str(tmp_path / "0")]):
        assert main([*words, "--heads", "12"]) == UsageError.exit_code
        assert "m.onnx is no checkpoint: how one is loaded (--heads 12) is not" in capsys.readouterr().err


def test_the_number_of_heads_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.pth"
    for beside in (
        {"args": argparse.Namespace(num_heads=12, device=torch.device("cpu"), folder=tmp_path)},
        {"hyper_parameters": {"model": {"n_heads": 12}}},
        {"config": {"num_attention_heads": "12"}},
        {"model_args": {"num_heads": 12}},
    ):
        torch.save({"state_dict": STATE, **beside}, file)
        for options in (LoadOptions(), LoadOptions(heads=12)):
            model = load_model(file, loading=options)
            assert model.module.config.heads == 12  # type: ignore[union-attr]  # a VisionTransformer
            assert model.name == "vit-d192-1-p8-h12"
            assert not any("heads" in note for note in model.all_notes)
        with pytest.raises(UsageError, match=r"--heads 3 contradicts .*m.pth, whose \w+\.[\w.]+ says 12"):
            load_model(file, loading=LoadOptions(heads=3))
    torch.save({"state_dict": STATE, "args": {"num_heads": 5}}, file)
    with pytest.raises(CheckpointError, match=r"args.num_heads says 5 heads, which do not divide its 192 channels"):
        load_model(file)


def test_an_unknown_width_needs_the_number_of_heads(tmp_path: Path) -> None:
    file = saved(tmp_path, narrow().module.state_dict())
    with pytest.raises(CheckpointError, match="of 32 channels, and no tensor tells its number of heads: give it with"):
        load_model(file)
    with pytest.raises(UsageError, match="--heads 0 does not divide the 32 channels"):
        load_model(file, loading=LoadOptions(heads=0))
    with pytest.raises(UsageError, match="--heads has no meaning for resnet18: it leaves nothing open there"):
        load_model(create_checkpoint("resnet18", tmp_path / "r.pth", num_classes=2), loading=LoadOptions(heads=2))
