"""Every family says what it computes with and no tensor tells; a new family must be added here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.families.vitdet import model as vitdet
from deploykit.models.families.vitdet import vit_mask_rcnn
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import NAMES, create_model, load_model
from tests.narrow import few_layers, write_checkpoint
from tests.narrow_dense import narrow_dense

IMAGES = ("RGB pixels of 0 to 1 with the mean 0.485", "the middle ")
SAID: dict[str, tuple[str, tuple[str, ...]]] = {
    "cmt.model": ("cmt-ti", ("GELU, SiLU before the head, and layer norms with an eps of 1e-06", *IMAGES)),
    "cmt.flyegle": ("cmt-flyegle-ti", ("1, 2, 4, 8 heads in its stages", "GELU and layer norms with an eps", *IMAGES)),
    "crossformer.model": ("crossformer-t", ("groups of 7 and intervals 8, 4, 2, 1", "GELU and layer norms", *IMAGES)),
    "dynopool.model": ("dynopool-vgg16", ("RGB pixels of 0 to 1 with the mean", "the middle 1 ")),
    "fcn.model": ("fcn8s", ("ReLU, as VGG", "streams that were trained one after the other", "BGR pixels of 0 to 255")),
    "nafnet": ("nafnet-w32-gopro", ("layer norms with an eps of 1e-06", "RGB pixels of 0 to 1, without a mean")),
    "resnet": ("resnet18", ("torchvision's ResNet: an anti-aliased", *IMAGES)),
    "ultralytics.model": (
        "yolov8n",
        ("SiLU activations and a batch-norm eps of 0.001, as ", "SPPF's first convolution has an activation, as "),
    ),
    "unet.model": ("unet", ("ReLU, as the original has it", "RGB pixels of 0 to 1, without a mean")),
    "vit": (
        "mae-vit-b16",
        ("GELU by the error function", "layer norms with an eps of 1e-06", *IMAGES),
    ),
    "kapao": ("kapao-s", ("SiLU activations and a batch-norm eps of 0.001, as ",)),
    "yolov3": ("yolov3-tiny", ("SiLU activations and a batch-norm eps of 0.001, as ",)),
    "yolov5": ("yolov5n", ("SiLU activations and a batch-norm eps of 0.001, as ",)),
    "yolov7": ("yolov7-tiny", ("LeakyReLU activations and a batch-norm eps of 0.001, as ",)),
    "yolov6.model": ("yolov6n", ("ReLU and SiLU activations and a batch-norm eps of 0.001, as ",)),
    "yolox.model": ("yolox-nano", ("SiLU activations and a batch-norm eps of 0.001, as ",)),
}
"""The family's module -> one of its models, and how what is assumed begins when its tensors alone are given."""

ELSEWHERE = {"vitdet.model", "vitdet.vit_mask_rcnn"}
"""Families whose files are large: their sentences are asked for without a file."""


def state_of(name: str) -> dict[str, Tensor]:
    if name in variants():
        return build_graph(variants()[name].description).state_dict()
    try:
        return narrow_dense(name).module.state_dict()
    except KeyError:
        return create_model(name).module.state_dict()


def test_every_family_is_here() -> None:
    assert {*SAID, *ELSEWHERE} == set(NAMES)


@pytest.mark.parametrize("family", SAID)
def test_a_family_says_what_its_tensors_do_not_tell(tmp_path: Path, family: str) -> None:
    name, beginnings = SAID[family]
    extra = {"names": ["person", *(f"point {i}" for i in range(17))]} if family == "kapao" else {}
    torch.save({"model": state_of(name), **extra}, tmp_path / "m.pth")
    loading = LoadOptions(heads=2) if family == "vit" else None
    model = load_model(tmp_path / "m.pth", loading=loading)
    said = model.spec.assumptions
    assert [text for text, begins in zip(said, beginnings, strict=True) if not text.startswith(begins)] == []
    assert model.all_notes[-len(said) :] == tuple(f"assumed: {text}" for text in said)


@pytest.mark.parametrize(
    ("family", "beginnings"),
    [(vitdet.FAMILY, ("windows of 14x14 cells", "GELU and norms with an eps of 1e-06")), (vit_mask_rcnn.FAMILY, ())],
)
def test_detectors_in_two_stages_say_it_too(
    family: vitdet.MaskRcnnFamily, beginnings: tuple[str, ...], tmp_path: Path
) -> None:
    shapes = None  # neither looks at them
    said = family.assumed(next(iter(family.variants.values())), shapes)  # type: ignore[arg-type]
    assert len(said) == len(beginnings)
    assert all(text.startswith(begins) for text, begins in zip(said, beginnings, strict=True))


def test_pickled_modules_leave_nothing_open(tmp_path: Path) -> None:
    assert load_model(write_checkpoint(tmp_path / "m.pt", few_layers())).spec.assumptions == ()


def test_a_rewrite_settles_what_it_is_about(tmp_path: Path) -> None:
    torch.save({"model": state_of("fcn8s")}, tmp_path / "m.pth")
    for rewrite in ("", "at-once"):
        model = load_model(tmp_path / "m.pth", rewrite=rewrite)
        assert any("--rewrite at-once" in text for text in model.spec.assumptions) == (not rewrite)
        assert any(text.startswith("ReLU, as VGG") for text in model.spec.assumptions)
