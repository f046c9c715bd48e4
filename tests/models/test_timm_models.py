"""Models of timm: what is taken over of them, what a file may hold, the export, and where timm is not installed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.cli import main
from deploykit.errors import MissingDependencyError, NotFoundError, UsageError, WeightsMismatchError
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import export_onnx
from deploykit.models import timm_models
from deploykit.models.timm_models import TimmModel, list_timm, load_timm, name_in, resample_of
from deploykit.models.timm_options import TimmOptions


@pytest.fixture
def timm() -> Any:
    from tests.torchvision_shim import install

    with contextlib.suppress(Exception):  # then the import below says what is wrong
        install()
    try:
        import timm as module
    except Exception as e:  # beside a torchvision that does not fit, anything
        pytest.skip(f"timm does not load here: {type(e).__name__}: {e}")
    return module


def config(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 96, 128),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        **changes,
    }


def test_a_preprocessing_is_taken_over() -> None:
    canvas, notes = timm_models._canvas(config(), 3)
    assert (canvas.size, canvas.mean, canvas.std) == ((96, 128), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert (canvas.fit.kind, canvas.fit.crop_share, notes) == ("crop", 0.9, [])


def test_what_has_no_equal_is_told() -> None:
    canvas, notes = timm_models._canvas(config(crop_mode="border", interpolation="bicubic"), 1)
    assert canvas.mean == pytest.approx((0.2,))
    assert [word in note for word, note in zip(("averages", "border"), notes, strict=True)] == [True] * 2
    assert canvas.fit.resample == "bicubic"
    assert timm_models._canvas(config(crop_mode="squash"), 3)[0].fit.kind == "resize"
    assert timm_models._canvas(config(crop_pct=1.14), 3)[0].fit.crop_share == 1.0


def test_an_interpolation_that_is_drawn_is_bilinear() -> None:
    assert [resample_of(name) for name in ("bicubic", "lanczos", "random")] == ["bicubic", "lanczos", "bilinear"]


def test_random_weights_are_none_that_do_nothing() -> None:
    """As timm leaves a new network: a head of zeros behind a norm that is off."""
    torch.manual_seed(0)
    last = nn.BatchNorm2d(8)
    nn.init.zeros_(last.weight)
    head = nn.Linear(8, 5)
    nn.init.zeros_(head.weight)
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), last, mean, head)
    network = network.eval().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32) * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    assert torch.equal(*network(images).chunk(2))
    TimmModel(network, (3, 32, 32)).random_weights(1.0)
    first, second = network(images).chunk(2)
    assert 0.01 < (first - second).abs().max() < 10
    assert not any(module.training for module in network.modules())
    middle = network[:5](images)
    assert 0.01 < middle.std() < 1.0  # the last norm is small, as in a residual branch, and not off


def test_a_name_is_no_file() -> None:
    assert name_in("timm:resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert name_in("folder/timm.pth") is None


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for name in ("timm", "timm.utils", "timm.utils.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit-vision\[timm\]'"):
        load_timm("timm:resnet18")
    assert main(["models", "--timm", "resnet*"]) == 3
    assert "deploykit-vision[timm]" in capsys.readouterr().err


def test_a_torchvision_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str, extra: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(timm_models, "import_extra", broken)
    with pytest.raises(MissingDependencyError, match="torchvision that was built for torch"):
        load_timm("timm:resnet18")


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("timm:resnet18", TimmOptions(model="resnet18")),
        ("file.pth", TimmOptions()),
        ("file.pth", TimmOptions(model="resnet18", pretrained=True)),
        ("timm:resnet18", TimmOptions(num_classes=0)),
        ("timm:resnet18", TimmOptions(in_chans=-1)),
    ],
)
def test_options_that_do_not_go_together(weights: str, options: TimmOptions) -> None:
    with pytest.raises(UsageError):
        load_timm(weights, options)


def test_its_options_are_of_no_other_model(capsys: pytest.CaptureFixture) -> None:
    assert main(["export", "--weights", "file.pth", "--num-classes", "3"]) == 2
    assert "timm:NAME" in capsys.readouterr().err


def test_a_name_exports(timm: Any, tmp_path: Path) -> None:
    options = TimmOptions(num_classes=10, in_chans=1)
    report = export_onnx(
        "timm:test_resnet.r160_in1k", options=OnnxOptions(timm=options), img=64, out=tmp_path / "m.onnx"
    )
    assert report.parity is not None
    assert (len(report.spec.classes), report.spec.input.channels) == (10, 1)
    assert any("random" in note for note in report.notes)
    assert any("are under" in note for note in report.notes)


def test_a_file_tells_its_classes_and_channels(timm: Any, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=7, in_chans=2).eval()
    torch.save(network.state_dict(), tmp_path / "m.pth")
    model = load_timm(tmp_path / "m.pth", TimmOptions(model="test_resnet"))
    assert (len(model.spec.classes), model.spec.input.channels) == (7, 2)
    images = torch.rand(1, 2, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.module(images), network(images))
    with pytest.raises(WeightsMismatchError):
        load_timm(tmp_path / "m.pth", TimmOptions(model="test_vit"))


def test_merged_branches_give_the_same(timm: Any) -> None:
    model = load_timm("timm:repvgg_a0")
    images = torch.rand(1, 3, 64, 64)
    merged = model.module.fuse("")  # type: ignore[operator]  # a TimmModel
    with torch.inference_mode():
        expected = model.module(images)
        torch.testing.assert_close(merged(images), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert len(list(merged.modules())) < len(list(model.module.modules()))


def test_names_are_listed_by_pattern_and_misspelt_ones_found(timm: Any) -> None:
    assert "densenet121" in list_timm("densenet*")
    with pytest.raises(NotFoundError, match="did you mean resnet34"):
        load_timm("timm:resnet3")
