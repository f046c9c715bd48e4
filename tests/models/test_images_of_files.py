"""How images are prepared for a checkpoint: as asked, as the file tells, as assumed, which is said."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.cli import main
from deploykit.errors import UsageError
from deploykit.export.sessions.torch_module import open_torch_session
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD
from deploykit.models.families.vit import VitConfig
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from tests.models.families.test_vit import narrow
from tests.narrow import few_layers, write_checkpoint
from tests.narrow_dense import narrow_dense

STATE = narrow(config=VitConfig(192, 1, 3, 48, patch=8, grid=2, num_classes=3, head="token")).module.state_dict()
HALF = (0.5, 0.5, 0.5)


def loaded(folder: Path, beside: dict[str, Any], **options: Any) -> ReferenceModel:
    torch.save({"state_dict": STATE, **beside}, folder / "m.pth")
    return load_model(folder / "m.pth", loading=LoadOptions(**options))


def assumed(model: ReferenceModel) -> list[str]:
    return [text for text in model.spec.assumptions if any(flag in text for flag in ("--mean", "--crop", "--interp"))]


def test_imagenets_values_are_assumed_and_said(tmp_path: Path) -> None:
    model = loaded(tmp_path, {})
    assert (model.spec.input.mean, model.spec.input.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert assumed(model) == [
        "RGB pixels of 0 to 1 with the mean 0.485 0.456 0.406 and the deviation 0.229 0.224 0.225 (ImageNet's): no "
        "tensor tells; choose with --mean and --std",
        "the middle 0.875 of an image's shorter side, scaled by Pillow's bicubic filter: no tensor tells; choose with "
        "--crop and --interpolation",
    ]


def test_what_is_asked_for_is_taken_and_nothing_assumed(tmp_path: Path) -> None:
    model = loaded(tmp_path, {}, mean=(0.5,), std=HALF, crop=0.9, interpolation="lanczos")
    canvas = model.spec.input
    assert (canvas.mean, canvas.std, canvas.fit.crop_share, canvas.fit.resample) == (HALF, HALF, 0.9, "lanczos")
    assert not assumed(model)
    half = assumed(loaded(tmp_path, {}, mean=HALF, crop=0.9))  # of each is assumed still
    assert half[0].startswith("RGB pixels of 0 to 1 with the mean 0.5 0.5 0.5 and the deviation 0.229")
    assert half[1] == "scaled by Pillow's bicubic filter: no tensor tells; choose with --interpolation"


TIMM = {"mean": list(HALF), "std": list(HALF), "crop_pct": 0.9, "interpolation": "bilinear", "epochs": 3}
TORCHVISION = {"val_resize_size": 250, "val_crop_size": 225, "interpolation": "BILINEAR"}


@pytest.mark.parametrize(
    "beside",
    [
        {"args": argparse.Namespace(**TIMM)},
        {"config": {"pretrained_cfg": TIMM}},
        {"pretrained_cfg": TIMM},
        {"args": {**TIMM, "mean": [127.5] * 3, "std": [127.5] * 3}},
        {
            "args": {
                "mean": HALF,
                "std": HALF,
                "val_resize_size": 250,
                "val_crop_size": 225,
                "interpolation": "bilinear",
            }
        },
    ],
)
def test_what_the_file_tells_is_believed(tmp_path: Path, beside: dict[str, Any]) -> None:
    model = loaded(tmp_path, beside)
    canvas = model.spec.input
    assert (canvas.mean, canvas.std, canvas.fit.crop_share, canvas.fit.resample) == (HALF, HALF, 0.9, "bilinear")
    assert not assumed(model)
    canvas = loaded(tmp_path, beside, crop=1.0).spec.input
    assert (canvas.mean, canvas.fit.crop_share) == (HALF, 1.0)


@pytest.mark.parametrize(
    "args",
    [
        {"mean": None, "std": None, "crop_pct": None, "interpolation": ""},
        {"mean": [0.5, 0.5], "std": "0.5", "crop_pct": 1.5, "interpolation": "random"},
        {"mean": [-1.0, 0.5, 0.5], "std": [0.0, 1.0, 1.0], "crop_pct": True},
    ],
)
def test_what_is_no_value_is_not_taken(tmp_path: Path, args: dict[str, Any]) -> None:
    model = loaded(tmp_path, {"args": args})
    assert model.spec.input == loaded(tmp_path, {}).spec.input
    assert len(assumed(model)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.5)}, "one value, or one of each of the 3 channels, got 2"),
        ({"mean": (123.7,)}, "--mean has values of 0 to 1 for this network, got 123.7"),
        ({"std": (0.0,)}, "--std has values over 0 and up to 1"),
        ({"crop": 0.0}, "--crop is a share"),
        ({"interpolation": "nearest"}, "must be one of bilinear, bicubic, lanczos"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loaded(tmp_path, {}, **options)


def test_other_tasks_take_what_has_a_meaning_for_them(tmp_path: Path) -> None:
    detector = write_checkpoint(tmp_path / "d.pt", few_layers())
    spec = open_torch_session(detector, loading=LoadOptions(mean=(0.5,), std=(0.25,)))[1]
    assert (spec.input.mean, spec.input.std, spec.assumptions) == (HALF, (0.25,) * 3, ())
    with pytest.raises(UsageError, match="images of this network are placed by letterbox"):
        load_model(detector, loading=LoadOptions(crop=0.9))
    torch.save({"params": narrow_dense("nafnet-w32-gopro").module.state_dict()}, tmp_path / "n.pth")
    with pytest.raises(UsageError, match="no meaning where an image is restored"):
        load_model(tmp_path / "n.pth", loading=LoadOptions(mean=(0.5,)))


def test_the_command_line_prints_what_an_export_assumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "m.pth")
    words = ["export", "--weights", str(tmp_path / "m.pth"), "--exporter", "legacy", "--no-check"]
    assert main(words) == 0
    assert "assumed: RGB pixels of 0 to 1 with the mean 0.485" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--mean", "0.5", "--std", "0.5", "--crop", "0.9", "--interpolation", "bicubic"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "ImageNet" not in out
    assert "the middle 0.9 of the shorter side" in out
    assert "minus (0.5, 0.5, 0.5), over (0.5, 0.5, 0.5)" in out
