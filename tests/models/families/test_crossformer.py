"""CrossFormer: the original's numbers, groups by their definition, other sizes, exports, and what a file must have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import CheckpointError, UsageError, WeightsMismatchError
from deploykit.export.options import PrecisionOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.crossformer import model as crossformer
from deploykit.models.families.crossformer.layers import CrossBlock, grouped, ungrouped
from deploykit.models.families.crossformer.model import CrossFormer, CrossFormerConfig, backbone_of
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.spec import Dynamic
from tests.meta_model import meta_model
from tests.models.families.attention_kernels import attention_kernels
from tests.models.files import saved
from tests.reference import crossformer as reference

PUBLISHED = {
    "crossformer_t": (27_776_794,),
    "crossformer_s": (30_657_394,),
    "crossformer_b": (51_971_554,),
    "crossformer_l": (91_971_184,),
}
"""Parameters of the original's own code."""

slow = pytest.mark.slow


def narrow(seed: int = 0) -> ReferenceModel:
    config = CrossFormerConfig(32, (2, 1, 2, 1), (1, 2, 2, 4), num_classes=5, ratio=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CrossFormer(config).eval()
        randomise(network)
        for parameter in (p for name, p in network.named_parameters() if ".pos." in name):
            nn.init.normal_(parameter, std=0.5)  # so that the places matter
    return crossformer.FAMILY.reference(config, network)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_originals(name: str) -> None:
    assert meta_model(name).parameters == PUBLISHED[name][0]


@pytest.mark.data
@pytest.mark.parametrize("folded", [False, True])
def test_it_gives_what_the_originals_code_gave(shared: Path, folded: bool) -> None:
    model = load_model(shared / "golden" / "crossformer-narrow.pt")
    network = fuse_model(model.module) if folded else model.module
    with np.load(shared / "golden" / "crossformer-narrow.npz") as golden, torch.inference_mode():
        found = network(torch.from_numpy(golden["images"])).numpy()
        np.testing.assert_allclose(found, golden["output"], rtol=0, atol=3e-6)


@settings(max_examples=40)
@given(group=st.integers(1, 4), interval=st.integers(1, 4), down=st.integers(1, 3), right=st.integers(1, 3))
def test_groups_hold_the_tokens_that_lie_an_interval_apart(group: int, interval: int, down: int, right: int) -> None:
    side = group * interval
    rows, columns = down * side, right * side
    places = torch.arange(2 * rows * columns).reshape(2, rows, columns, 1)
    found = grouped(places, group, interval)
    assert torch.equal(ungrouped(found, group, interval, rows, columns), places)
    for tokens in found[..., 0].tolist():
        image, cells = tokens[0] // (rows * columns), [divmod(t % (rows * columns), columns) for t in tokens]
        assert {t // (rows * columns) for t in tokens} == {image}
        top, left = cells[0]
        assert cells == [(top + i * interval, left + j * interval) for i in range(group) for j in range(group)]
        assert {(r // side, c // side) for r, c in cells} == {(top // side, left // side)}


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("size", [(9, 9), (6, 12), (7, 10), (13, 5), (3, 8), (2, 2)], ids=str)
def test_a_block_of_any_size_is_its_definition(size: tuple[int, int], far: bool) -> None:
    block = CrossBlock(32, 2, 48, group=3, interval=2, far=far).eval()
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, *size, 32)
    group, interval = block.layout(*size)
    assert (group, interval) == ((max(size), 1) if min(size) <= 3 else (3, 2 if far else 1))
    with torch.inference_mode():
        for found in (block(x), fuse_model(block)(x)):
            expected = torch.stack([reference.block(one, block.state_dict(), 2, group, interval) for one in x])
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_read_without_the_buffers_of_older_files(tmp_path: Path) -> None:
    model = narrow()
    buffers = {
        "layers.0.blocks.0.attn.biases": torch.zeros(169, 2),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
    }
    found = load_model(saved(tmp_path, model.module.state_dict() | buffers))
    assert found.name == "crossformer-d32-2-1-2-1"
    assert found.spec.assumptions[0].startswith("groups of 7 and intervals 8, 4, 2, 1")
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(found.module(images), model.module(images))


@pytest.mark.parametrize(
    ("img", "dynamic"),
    [pytest.param(224, "none", marks=slow), ((96, 128), "none"), pytest.param(64, "batch", marks=slow)],
    ids=str,
)
def test_its_export_is_verified(tmp_path: Path, img: int | tuple[int, int], dynamic: Dynamic) -> None:
    report = onnx_from_model(narrow(), out=tmp_path / "m.onnx", img=img, dynamic=dynamic)
    assert report.parity is not None
    assert report.parity.ok
    graph = onnx.load(report.path).graph
    operators = [node.op_type for node in graph.node]
    # The networks of the biases are gone: what is left of layer norms and ReLUs is the blocks' own.
    assert operators.count("LayerNormalization") == 1 + 2 * 6 + 3 + 1
    assert "Relu" not in operators
    assert operators.count("Softmax") == 6
    permutations = [a.ints for node in graph.node if node.op_type == "Transpose" for a in node.attribute]
    shapes = {i.name: i.dims[0] for i in graph.initializer if len(i.dims) == 1}
    targets = [shapes.get(node.input[1], 0) for node in graph.node if node.op_type == "Reshape"]
    assert max(map(len, permutations)) <= 6
    assert 0 < max(targets) <= 6


def test_a_free_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a fixed image size, because the groups of its attentions"):
        onnx_from_model(narrow(), out=tmp_path / "m.onnx", dynamic="shape")
    with pytest.raises(UsageError, match="multiples of 32"), torch.inference_mode():
        narrow().module(torch.zeros(1, 3, 64, 48))


@pytest.mark.slow
def test_fp16_is_verified_and_an_engine_built(tmp_path: Path) -> None:
    report = onnx_from_model(narrow(), out=tmp_path / "m.onnx", img=64, precision=PrecisionOptions(precision="fp16"))
    assert report.parity is not None
    assert report.parity.ok
    assert attention_kernels(report.path, tmp_path) == 6


def test_a_backbone_has_the_classifiers_weights_and_its_own_groups() -> None:
    network = narrow().module
    assert isinstance(network, CrossFormer)
    images = torch.randn(2, 3, 128, 192)
    with torch.inference_mode():
        same = backbone_of(network)(images)
        assert [tuple(x.shape) for x in same] == [(2, 32 << i, 32 >> i, 48 >> i) for i in range(4)]
        logits = network.head(network.norm(same[-1].permute(0, 2, 3, 1)).mean((1, 2)))
        assert torch.equal(logits, network(images))
        groups, intervals = crossformer.DETECTION
        other = backbone_of(network, groups, intervals)
        found = other(images)
        assert [x.shape for x in found] == [x.shape for x in same]
        assert not torch.equal(found[0], same[0])
        first = other.layers[0].blocks[0]  # type: ignore[union-attr,index]  # a Stage's Sequential
        assert (first.group, first.interval) == (14, 16)
        again = backbone_of(network, groups, intervals)(images[:, :, :, :128])  # another size, after the larger one
        assert torch.equal(again[0], other(images[:, :, :, :128])[0])
    with pytest.raises(UsageError, match="groups are 4 positive numbers"):
        backbone_of(network, (7, 7))


def test_a_file_that_is_nearly_one_is_refused(tmp_path: Path) -> None:
    state = narrow().module.state_dict()
    for key, value, message in (
        ("layers.0.blocks.0.ex_conv.weight", torch.zeros(1), "CrossFormer\\+\\+ or a variant"),
        ("layers.4.blocks.0.norm1.weight", torch.zeros(1), "has 5 stages, expected the four"),
        ("head.weight", torch.zeros(3), "head.weight is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(saved(tmp_path, {**state, key: value}))
    with pytest.raises(WeightsMismatchError, match="holds the tensor extra"):
        load_model(saved(tmp_path, {**state, "extra": torch.zeros(1)}))


@pytest.mark.parametrize("heads", [3, 100])
def test_heads_that_do_not_divide_the_channels_are_refused(heads: int, tmp_path: Path) -> None:
    """In the second stage, of 64 channels; as many rows as that say nothing of other tensors' shapes."""
    last = "layers.1.blocks.0.attn.pos.pos3.2"
    state = narrow().module.state_dict()
    state |= {f"{last}.weight": torch.zeros(heads, 4), f"{last}.bias": torch.zeros(heads)}
    with pytest.raises(CheckpointError, match=f"{heads} rows, one per head, expected a divisor of the stage's 64"):
        load_model(saved(tmp_path, state))
