"""CMT and FlyEgle's CMT: the originals' numbers, folds, other sizes, exports, and what a file must have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, FoldError, WeightsMismatchError
from deploykit.export.engine.build import build_engine
from deploykit.export.options import PrecisionOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.cmt import flyegle as cmt_flyegle
from deploykit.models.families.cmt import model as cmt
from deploykit.models.families.cmt.layers import resized_bias
from deploykit.models.fuse import fold_bn_into_next, fuse_model
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.runtime.session import open_session
from deploykit.spec import Dynamic
from tests.meta_model import meta_model
from tests.models.files import saved
from tests.reference.cmt import flyegle

PUBLISHED = {
    "cmt_ti": (9_492_426,),
    "cmt_xs": (15_247_208,),
    "cmt_s": (26_256_160,),
    "cmt_b": (45_715_076,),
    "cmt_flyegle_ti": (11_312_526,),
    "cmt_flyegle_xs": (18_281_917,),
    "cmt_flyegle_s": (31_754_121,),
    "cmt_flyegle_b": (55_616_316,),
}
"""Parameters of the originals' own code."""

KINDS = ("cmt", "flyegle")
slow = pytest.mark.slow


def narrow(kind: str, seed: int = 0) -> ReferenceModel:
    dims, depths, hidden = (8, 16, 16, 32), (1, 2, 1, 1), (20, 24, 28, 32)
    network: nn.Module
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "cmt":
            config = cmt.CmtConfig(64, dims, depths, hidden, 8, features=16, num_classes=5)
            network = cmt.Cmt(config)
        else:
            other = cmt_flyegle.FlyegleConfig(64, dims, depths, hidden, 8, 16, 5)
            network = cmt_flyegle.FlyegleCmt(other)
        randomise(network.eval())
    if isinstance(network, cmt.Cmt):
        return cmt.FAMILY.reference(config, network)
    assert isinstance(network, cmt_flyegle.FlyegleCmt)
    return cmt_flyegle.FAMILY.reference(other, network)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_originals(name: str) -> None:
    assert meta_model(name).parameters == PUBLISHED[name][0]


@pytest.mark.data
@pytest.mark.parametrize("folded", [False, True])
def test_it_gives_what_the_originals_code_gave(shared: Path, folded: bool) -> None:
    model = load_model(shared / "golden" / "cmt-narrow.pt")
    assert model.name == "cmt-d16-1-1-2-1"
    assert model.spec.input.size == (160, 160)
    network = fuse_model(model.module) if folded else model.module
    with np.load(shared / "golden" / "cmt-narrow.npz") as golden, torch.inference_mode():
        found = network(torch.from_numpy(golden["images"])).numpy()
        np.testing.assert_allclose(found, golden["output"], rtol=0, atol=5e-7)


@pytest.mark.parametrize("folded", [False, True])
def test_flyegles_is_its_definition(folded: bool) -> None:
    model = narrow("flyegle")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = (fuse_model(model.module) if folded else model.module)(images)
    expected = flyegle(images, model.module.state_dict(), (1, 2, 1, 1))
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_read_with_its_size(tmp_path: Path, kind: str) -> None:
    model = narrow(kind)
    found = load_model(saved(tmp_path, model.module.state_dict()))
    assert found.name == model.name == ("cmt-d8-1-2-1-1" if kind == "cmt" else "cmt-flyegle-d8-1-2-1-1")
    assert found.spec.input == model.spec.input
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found.module(images), model.module(images))


def test_a_published_model_of_another_size_says_so() -> None:
    assert cmt.FAMILY.name_of(replace(cmt.VARIANTS["cmt_s"], size=256, num_classes=7)) == "cmt-s-256"
    assert cmt_flyegle.FAMILY.name_of(replace(cmt_flyegle.VARIANTS["cmt_flyegle_ti"], size=224)) == "cmt-flyegle-ti-224"


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_a_bias_of_another_size_is_interpolated_on_both_grids(reduction: int) -> None:
    bias = torch.randn(2, 64, (8 // reduction) ** 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized_bias(bias, 8, 8, 8, reduction), bias)
    found = resized_bias(bias, 8, 12, 16, reduction)
    below = 8 // reduction
    for head in range(2):
        queries = torch.stack([  # one key's place after the other
            functional.interpolate(bias[head, :, key].reshape(1, 1, 8, 8), (12, 16), mode="bicubic").flatten()
            for key in range(below**2)
        ], 1)  # fmt: skip
        for place in (0, 37, 191):
            keys = queries[place].reshape(1, 1, below, below)
            expected = functional.interpolate(keys, (12 // reduction, 16 // reduction), mode="bicubic").flatten()
            torch.testing.assert_close(found[head, place], expected)


def test_a_batch_norm_before_a_padded_convolution_is_not_folded() -> None:
    norm = nn.BatchNorm2d(4).eval()
    with pytest.raises(FoldError, match="pads or has groups"):
        fold_bn_into_next(norm, nn.Conv2d(4, 4, 3, padding=1), "x")
    with pytest.raises(FoldError, match="pads or has groups"):
        fold_bn_into_next(norm, nn.Conv2d(4, 4, 1, groups=4), "x")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("img", "dynamic"),
    [pytest.param(64, "none", marks=slow), ((96, 64), "none"), pytest.param(64, "batch", marks=slow)],
    ids=str,
)
def test_its_export_is_verified(tmp_path: Path, kind: str, img: int | tuple[int, int], dynamic: Dynamic) -> None:
    report = onnx_from_model(narrow(kind), out=tmp_path / "m.onnx", img=img, dynamic=dynamic)
    assert report.parity is not None
    assert report.parity.ok
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert "BatchNormalization" not in operators
    assert "Resize" not in operators  # the biases are constants


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_file_of_any_size_gives_what_the_network_gives(tmp_path: Path, kind: str) -> None:
    model = narrow(kind)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=64, dynamic="shape")
    with open_session(report.path) as session, torch.inference_mode():
        for shape in ((1, 3, 64, 64), (3, 3, 32, 96), (2, 3, 128, 64)):
            images = torch.randn(shape)
            found = session.run({"images": images.numpy()})["logits"]
            np.testing.assert_allclose(found, model.module(images).numpy(), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fp16_is_verified_and_an_engine_built(tmp_path: Path, kind: str) -> None:
    report = onnx_from_model(
        narrow(kind), out=tmp_path / "m.onnx", img=64, precision=PrecisionOptions(precision="fp16")
    )
    assert report.parity is not None
    assert report.parity.ok
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path).record.layers > 0


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("cmt", "relative_pos_b", torch.zeros(2, 65, 4), "expected those of four square maps"),
        ("cmt", "relative_pos_b", torch.zeros(2, 16, 4), "expected those of four square maps"),
        ("cmt", "relative_pos_a", torch.zeros(2, 64), "relative_pos_a is"),
        ("cmt", "relative_pos_c", torch.zeros(3, 16, 4), "has 3 heads, expected a divisor of the stage's 16 channels"),
        ("flyegle", "pool4.patch_aggregation.weight", torch.zeros(30, 16, 2, 2), "expected multiples of"),
        ("cmt", "stem_conv1.weight", torch.zeros(8, 3), "stem_conv1.weight is"),
        ("flyegle", "stage1.block_list.0.LMHSA.position_embeeding", torch.zeros(31, 30), "expected 2 n - 1"),
        ("flyegle", "fc.weight", torch.zeros(3), "fc.weight is"),
    ],
)
def test_a_file_that_is_nearly_one_is_refused(tmp_path: Path, kind: str, key: str, value: Tensor, message: str) -> None:
    state = narrow(kind).module.state_dict()
    with pytest.raises(CheckpointError, match=message):
        load_model(saved(tmp_path, {**state, key: value}))
    with pytest.raises(WeightsMismatchError, match="holds the tensor extra"):
        load_model(saved(tmp_path, {**state, "extra": torch.zeros(1)}))
