"""Intact files that hold no plain weights are named for what they are, and never called damaged."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import read_checkpoint
from tests.cell_model import cell_spec, write_cell_model

Save = Callable[[Any], Path]
ONE = torch.ones(2, 2)


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "damaged" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            "base_model.model.q.lora_A.weight base_model.model.q.lora_B.weight",
            "a LoRA adapter, not a network's weights",
        ),
        ("lora_unet_q.lora_down.weight lora_unet_q.lora_up.weight lora_unet_q.alpha", "a LoRA adapter"),
        ("q.lora_A.default.weight q.base_layer.weight", "a LoRA adapter"),
        ("q.hada_w1_a q.hada_w1_b", "an adapter"),
        ("q.qweight q.qzeros q.scales q.g_idx", r"quantized weights \(GPTQ or AWQ\)"),
        ("q.weight q.weight.absmax q.weight.quant_map", r"quantized weights \(bitsandbytes\)"),
        ("q.weight q.SCB", r"quantized weights \(bitsandbytes\)"),
        ("q._packed_params.dtype q.scale", r"quantized weights \(torch\.ao"),
        ("conv.weight conv.scale conv.zero_point", r"quantized weights \(a scale and a zero_point\)"),
        ("q.weight q.weight_fake_quant.scale q.activation_post_process.min_val", "quantization-aware training"),
    ],
)
def test_adapters_and_quantized_weights_are_refused_by_their_names(save: Save, names: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(save(dict.fromkeys(names.split(), ONE)))
    refusal(save({"state_dict": dict.fromkeys(names.split(), ONE)}))


def test_a_layer_with_a_scale_of_its_own_is_none_of_them(save: Save) -> None:
    names = ("norm.scale", "gamma.scale", "lora.weight", "attn.qweights.weight")
    assert read_checkpoint(save(dict.fromkeys(names, ONE))).state_dict.keys() == set(names)


def test_quantized_tensors_are_refused(save: Save) -> None:
    packed = torch.quantize_per_tensor(ONE, 0.1, 0, torch.quint8)
    for content in ({"w": ONE, "q": packed}, {"model": {"w": ONE, "q": packed}}):
        assert "a quantized tensor (torch." in refusal(save(content))
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})
    assert "quantized" in refusal(save(model.state_dict()))


def test_the_state_of_an_optimizer_is_not_a_model(save: Save) -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(ONE).sum().backward()
    optimizer.step()
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 3}):
        assert "the state of an optimizer" in refusal(save(content))


def test_parts_of_deepspeed_are_named_and_a_whole_one_is_read(save: Save) -> None:
    shard = {"optimizer_state_dict": {"zero_stage": 2, "fp32": [ONE]}, "ds_config": {}, "ds_version": "0.16"}
    assert "DeepSpeed's files (ZeRO), without whole weights: run zero_to_fp32.py" in refusal(save(shard))
    facts = {"param_shapes": [{"w": torch.Size([2, 2])}], "ds_version": "0.16", "optimizer": None}
    assert "ZeRO" in refusal(save({"module": {"w": torch.empty(0)}, **facts}))
    found = read_checkpoint(save({"module": {"w": ONE.half()}, **facts}))
    assert (found.entry, found.state_dict["w"].tolist()) == ("module", ONE.tolist())


def zipped(path: Path, *names: str, compressed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(name, b"0" * 100)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("m/data.pkl m/code/__torch__.py m/constants.pkl", "a TorchScript program"),
        ("archive_format models/model.json data/weights/w0", "a program of torch.export"),
        ("metadata.json config.json model.weights.h5", "a Keras model"),
        ("saved/saved_model.pb saved/variables/variables.index", "a TensorFlow SavedModel"),
        ("MAR-INF/MANIFEST.json model.pt", "an archive of TorchServe"),
        ("m.mlpackage/Data/com.apple.CoreML/model.mlmodel", "a Core ML model"),
        ("a.npy b.npy", r"a numpy archive \(\.npz\)"),
    ],
)
def test_archives_of_other_kinds_are_named(tmp_path: Path, names: str, told: str, compressed: bool) -> None:
    path = zipped(tmp_path / "a.pt", *names.split(), compressed=compressed)
    assert re.search(f"it is {told}, not weights; pass the checkpoint that it was made from", refusal(path))


def test_an_archive_around_a_checkpoint_is_to_be_unpacked(tmp_path: Path) -> None:
    said = refusal(zipped(tmp_path / "a.pt", "weights/best.pt", compressed=True))
    assert "a zip archive around something else than weights (it holds weights/best.pt)" in said
    assert "unpack it" in refusal(zipped(tmp_path / "a.pt", "weights/best.pt"))


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"\x08\x08\x12\x07pytorch", "is an ONNX model"),
        (b"\x08\x0a\x12\x09deploykit", "is an ONNX model"),
        (b"\x08\x07:\xff\xff\x01\n", "is an ONNX model"),
        (b"\x08\x08\x3a\x10graph", "is an ONNX model"),
        (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model"),
        (b"\x1c\0\0\0ET12", "is an ExecuTorch program"),
        (b"\x89HDF\r\n", "is an HDF5 file (Keras)"),
        (b'<?xml version="1.0"?>\n<net name="m" version="11">', "is an OpenVINO model"),
        (b"<?xml version='1.0'?><html>", "is a web page"),
        (b"7767517\n75 83\n", "is an ncnn model"),
        (b"\0\0\0\0\x02\0\0\0\x05\0\0\0", "is a Darknet weights file"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, head: bytes, told: str) -> None:
    (tmp_path / "a.pt").write_bytes(head + bytes(100))
    assert told in refusal(tmp_path / "a.pt")


def test_a_real_onnx_file_under_a_checkpoints_name(tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    path.rename(tmp_path / "cells.pt")
    assert "is an ONNX model, which is already exported" in refusal(tmp_path / "cells.pt")


def test_a_shard_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    torch.save(ONE, tmp_path / "__0_0.distcp")
    assert "dcp_to_torch FOLDER FILE.pt" in refusal(tmp_path / "__0_0.distcp")
