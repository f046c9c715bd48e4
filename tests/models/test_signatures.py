"""Networks that deploykit does not build are named by their tensors; no network that it builds is one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import CheckpointError, UnknownLayerError
from deploykit.models.registry import list_models, load_model
from deploykit.models.signatures import ANCHOR_FREE, SIGNATURES, signature_of
from tests.meta_model import meta_model
from tests.narrow import few_layers, with_layer, write_checkpoint
from tests.narrow_free import group_of

Save = Callable[[Any], Path]
ONE = torch.ones(2, 2)


@pytest.mark.slow
def test_no_model_of_ours_has_a_signature() -> None:
    """Of networks of the ultralytics package that have the same layers, one size each; they share theirs with others
    that have no anchors, and are recognised before a signature is looked for."""
    for name in (name for name in list_models() if group_of().get(name, name) == name):
        names = meta_model(name).module.state_dict().keys()
        assert signature_of(names) in ((None, ANCHOR_FREE) if name in group_of() else (None,)), name


def test_every_row_finds_itself_and_none_hides_behind_an_earlier_one() -> None:
    for signature in SIGNATURES:
        assert signature_of([*signature.keys, "other.weight"]) is signature
        assert signature_of(list(signature.keys)[1:]) is not signature


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("heads.head1.cls_pred.weight heads.head1.reg_pred.weight", "of YOLO-NAS"),
        ("decoder.enc_score_head.weight decoder.dec_score_head.0.weight", "RT-DETR, D-FINE or DEIM"),
        ("encoder.conv1.weight segmentation_head.0.weight", "segmentation_models_pytorch"),
        ("rpn.head.cls_logits.weight rpn.head.bbox_pred.weight", "Faster or Mask R-CNN of torchvision"),
        ("conv_stem.weight blocks.0.0.conv_dw.weight", "--weights FILE --timm-model NAME"),
        ("features.0.0.weight features.1.0.block.0.0.weight", "EfficientNet of torchvision"),
        ("swin.embeddings.patch_embeddings.projection.weight", "Hugging Face"),
        ("backbone.conv1.weight head.fc.weight", "MMPretrain"),
    ],
)
def test_a_network_of_the_table_is_named(save: Save, prefix: str, names: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        load_model(save({"state_dict": {f"{prefix}{name}": ONE for name in names.split()}}))
    assert "deploykit does not build it" in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_an_anchor_free_yolo_is_named_by_its_head(save: Save) -> None:
    with pytest.raises(CheckpointError, match="an anchor-free YOLO"):
        load_model(save({"model": {"model.22.dfl.conv.weight": ONE, "model.0.conv.weight": ONE}}))


@pytest.mark.parametrize(("layer", "told"), [("RepNCSPELAN4", "YOLOv9"), ("C2f", "YOLOv8 or a later model")])
def test_a_description_is_named_by_its_layers(tmp_path: Path, layer: str, told: str) -> None:
    config = few_layers()
    path = write_checkpoint(tmp_path / "m.pt", config, described=with_layer(config, layer))
    with pytest.raises(UnknownLayerError, match=rf"{told}.*, by the layers of its description"):
        load_model(path)


def test_a_layer_of_nobody_is_named_as_before(tmp_path: Path) -> None:
    config = few_layers()
    path = write_checkpoint(tmp_path / "m.pt", config, described=with_layer(config, "Mystery"))
    with pytest.raises(UnknownLayerError, match="Mystery"):
        load_model(path)
