"""The checkpoint reader on checkpoints that other projects wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
REAL = {
    "golden/cmt-narrow.pt": ("model", 253, 454133),
    "golden/crossformer-narrow.pt": ("model", 162, 433093),
    "golden/kapao-s-narrow.pt": ("model", 472, 839913),
    "golden/nafnet-width8.pt": ("params", 214, 440411),
    "golden/unet-narrow.pt": ("", 118, 488052),
    "golden/vitdet-backbone-narrow.pkl": ("model", 91, 101000),
    "golden/yolov5s6-pose-narrow.pt": ("model", 744, 1024917),
    "golden/yolov6n-narrow.pt": ("model", 756, 1278413),
    "golden/yolov7-tiny-training-narrow.pt": ("model", 344, 387331),
    "golden/yolov7-training-narrow.pt": ("model", 566, 651826),
    "golden/yolov7-w6-pose-narrow.pt": ("model", 908, 1346871),
    "golden/yolox-s-narrow.pt": ("model", 462, 570181),
    "data/weights/dncnn_wholemodel_main.pth": ("", 93, 558031),
    "data/weights/official_yolov7-tiny.structure-randomfill.pt": ("model", 338, 6241976),
    "data/weights/resnet20_cifar10.th": ("state_dict", 97, 271098),
    "data/weights/unet_carvana_small.pth": ("", 40, 102311),
    "data/weights/unet_clouds_4ch.pth": ("", 90, 539593),
    "data/weights/yolo-pose-ghost_coco17kpt.pt": ("model", 470, 636229),
    "data/weights/yolov5n_official_coco.pt": ("model", 349, 1881736),
    "data/weights/yolov7-lite-e_face5kpt.pt": ("model", 398, 746486),
    "data/weights/yolov7-lite-s_plate4kpt.pt": ("model", 464, 1089240),
    "data/weights/yolov8n_dill_globals.pt": ("model", 355, 3021695),
    "data/weights/yolox_nano_bubbliiiing.pth": ("", 642, 912250),
}


def real(name: str) -> Path:
    path = ROOT.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_a_real_checkpoint_is_read(name: str) -> None:
    entry, keys, parameters = REAL[name]

    checkpoint = read_checkpoint(real(name))

    assert (checkpoint.entry, len(checkpoint.state_dict)) == (entry, keys)
    assert sum(tensor.numel() for tensor in checkpoint.state_dict.values()) == parameters
    assert "dill" not in sys.modules


@pytest.mark.data
@pytest.mark.parametrize(
    "name", [name for name, (entry, *_) in REAL.items() if entry != "model" and "dncnn" not in name]
)
def test_a_real_state_dict_equals_what_torch_reads(name: str) -> None:
    entry = REAL[name][0]
    loaded = torch.load(real(name), map_location="cpu", weights_only=True)
    expected = loaded[entry] if entry else {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}

    found = read_checkpoint(real(name)).state_dict

    assert list(found) == [key.removeprefix("module.") for key in expected]
    for tensor, other in zip(found.values(), expected.values(), strict=True):
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor, other)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "yaml", "stride", "names"),
    [
        ("golden/yolov7-w6-pose-narrow.pt", {"nc": 1, "nkpt": 17}, (8, 16, 32, 64), ("person",)),
        ("data/weights/yolov7-lite-s_plate4kpt.pt", {"nc": 2, "nkpt": 4}, (8, 16, 32), ("single", "double")),
        ("data/weights/yolov8n_dill_globals.pt", {"nc": 2}, (8, 16, 32), ("Keratin Pearl", "keratin pearls")),
    ],
)
def test_a_real_model_describes_itself(
    name: str, yaml: dict[str, int], stride: tuple[int, ...], names: tuple[str, ...]
) -> None:
    checkpoint = read_checkpoint(real(name))

    assert checkpoint.yaml is not None
    assert {key: checkpoint.yaml[key] for key in yaml} == yaml
    assert (checkpoint.stride, checkpoint.names) == (stride, names)
    norms = [module for module in checkpoint.modules if module.kind.endswith("BatchNorm2d")]
    assert norms
    assert {module.attributes["eps"] for module in norms} == {1e-3}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("yolov8n_dill_globals.pt", r"names dill\._dill\._load_type.*: not imported, not called"),
        ("resnet20_cifar10.th", r"DataParallel prefix 'module\.' removed"),
        ("dncnn_wholemodel_main.pth", r"embedded source code of __main__\.DnCNN.*: ignored"),
    ],
)
def test_what_is_unusual_about_a_real_file_is_said(name: str, note: str) -> None:
    notes = read_checkpoint(real(f"data/weights/{name}")).notes

    assert any(re.fullmatch(note, found) for found in notes), notes


@pytest.mark.data
def test_a_real_truncated_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(real("data/weights/official_yolov7-tiny.truncated.pt"))
