"""Folds: the numbers stay, the original stays, and a fold that is wrong does not pass."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploykit.errors import FoldError
from deploykit.models import fuse
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import yolov5
from deploykit.models.families.yolov6 import rep_vgg
from deploykit.models.families.yolov6.bep import CSPSPPF, BepC3, BottleRep
from deploykit.models.families.yolov6.rep_vgg import QARepVGG, RepVGG
from deploykit.models.families.yolov7 import config_of
from deploykit.models.fuse import check_fold, fuse_model
from deploykit.models.layers import csp, focus, rep
from deploykit.models.layers.anchor_head import Detect, IDetect, IKeypoint, Keypoint
from deploykit.models.layers.conv import Concat, Conv, DownC, DWConv, FoldingSequential, ReOrg, batch_norm
from deploykit.models.layers.csp import C3, BottleneckCSP
from deploykit.models.layers.focus import ConvFocus, Focus
from deploykit.models.layers.ghost import C3Ghost, GhostBottleneck, GhostConv
from deploykit.models.layers.lite import ConvBnReluMaxpool, DWConvblock, ShuffleBlock, StemBlock
from deploykit.models.layers.pool import SPP, SPPCSPC, SPPF, SPPFCSPC
from deploykit.models.layers.rep import RepConv
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph

RELATIVE = 1e-5  # of max |y|
ANCHORS = ((12.0, 16.0, 19.0, 36.0, 40.0, 28.0),)

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "Conv": lambda: Conv(6, 10, 3, 2),
    "Conv depthwise": lambda: Conv(6, 6, 3, g=6),
    "RepConv": lambda: RepConv(6, 10),
    "RepConv with identity": lambda: RepConv(6, 6),
    "RepConv with identity in groups": lambda: RepConv(6, 6, g=3),
    "RepConv stride 2": lambda: RepConv(6, 6, s=2),
    "DownC": lambda: DownC(6, 10),
    "SPPCSPC": lambda: SPPCSPC(6, 10),
    "SPPFCSPC": lambda: SPPFCSPC(6, 10),
    "SPPF": lambda: SPPF(6, 10),
    "SPP": lambda: SPP(6, 10),
    "Focus": lambda: Focus(6, 8, 3),
    "Focus in groups": lambda: Focus(6, 8, 3, g=2),
    "ConvFocus": lambda: ConvFocus(6, 8, 3),
    "DWConv": lambda: DWConv(6, 4, 3),
    "C3": lambda: C3(6, 8, 2),
    "BottleneckCSP": lambda: BottleneckCSP(6, 8, 2),
    "GhostConv": lambda: GhostConv(6, 8, 3, 2),
    "GhostBottleneck stride 2": lambda: GhostBottleneck(6, 8, 3, 2),
    "C3Ghost": lambda: C3Ghost(6, 8, 2),
    "StemBlock": lambda: StemBlock(6, 8),
    "conv_bn_relu_maxpool": lambda: ConvBnReluMaxpool(6, 8),
    "Shuffle_Block stride 1": lambda: ShuffleBlock(6, 6, 1),
    "Shuffle_Block stride 2": lambda: ShuffleBlock(6, 10, 2),
    "DWConvblock": lambda: DWConvblock(6, 10, 3, 1),
    "RepVGG": lambda: RepVGG(6, 10),
    "RepVGG with identity": lambda: RepVGG(6, 6),
    "RepVGG stride 2": lambda: RepVGG(6, 6, 2),
    "QARepVGG": lambda: QARepVGG(6, 10),
    "QARepVGG with identity": lambda: QARepVGG(6, 6),
    "QARepVGG with mean": lambda: QARepVGG(6, 6, mean=True),
    "BottleRep": lambda: BottleRep(6, 6, RepVGG),
    "BepC3": lambda: BepC3(6, 8, 2, RepVGG, 4),
    "CSPSPPF": lambda: CSPSPPF(6, 8),
}
HEADS: dict[str, Callable[[], nn.Module]] = {
    "IDetect": lambda: _head(IDetect(2, ANCHORS, [6])),
    "Keypoint depthwise": lambda: _head(Keypoint(1, ANCHORS, [6], 4, depthwise=True)),
    "IKeypoint": lambda: _head(IKeypoint(1, ANCHORS, [6], 4)),
    "IKeypoint depthwise": lambda: _head(IKeypoint(1, ANCHORS, [6], 4, depthwise=True)),
}


def _head(head: Detect) -> nn.Module:
    head.set_stride([8])
    return head


def prepared(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = make().eval()
    randomise(module)
    return module


def narrow(name: str, *, training: bool = True) -> LayerGraph:
    graph = prepared(lambda: build_graph(config_of(name, 3, width=0.125, training=training)))
    assert isinstance(graph, LayerGraph)
    return graph


def narrow_yolov5(generation: int) -> LayerGraph:
    graph = prepared(lambda: build_graph(yolov5.config_of("yolov5s6", 3, width=0.125, generation=generation)))
    assert isinstance(graph, LayerGraph)
    return graph


def assert_same(before: nn.Module, after: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, found = before(x), after(x)
    assert found.dtype == expected.dtype == torch.float32
    assert float((found - expected).abs().max()) <= RELATIVE * float(expected.abs().max())


def snapshot(module: nn.Module) -> tuple[dict[str, Tensor], list[tuple[str, type, bool]]]:
    state = {key: t.clone() for key, t in module.state_dict().items()}
    return state, [(path, type(m), m.training) for path, m in module.named_modules()]


@pytest.mark.parametrize("make", [*BLOCKS.values(), *HEADS.values()], ids=[*BLOCKS, *HEADS])
def test_a_fold_keeps_the_numbers_and_leaves_no_batch_norm(make: Callable[[], nn.Module]) -> None:
    module = prepared(make)
    fused = fuse_model(module)
    assert any(isinstance(m, nn.BatchNorm2d | rep.ImplicitA) for m in module.modules())
    assert not any(isinstance(m, nn.BatchNorm2d | rep.ImplicitA | rep.ImplicitM) for m in fused.modules())
    assert_same(module, fused, torch.randn(2, 6, 16, 16))


@settings(max_examples=40)
@given(
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    groups=st.integers(1, 4),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 3),
    padding=st.one_of(st.none(), st.integers(0, 3)),
    seed=st.integers(0, 99),
)
def test_any_convolution_takes_its_batch_norm_in(
    inputs: int, outputs: int, groups: int, kernel: int, stride: int, padding: int | None, seed: int
) -> None:
    module = prepared(lambda: Conv(inputs * groups, outputs * groups, kernel, stride, padding, groups), seed)
    assert_same(module, fuse_model(module), torch.randn(2, inputs * groups, 11, 9))


@settings(max_examples=30)
@given(
    channels=st.integers(1, 5),
    groups=st.integers(1, 4),
    stride=st.integers(1, 2),
    identity=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_rep_conv_becomes_one_convolution(
    channels: int, groups: int, stride: int, identity: bool, seed: int
) -> None:
    c1, c2 = channels * groups, channels * groups + (0 if identity else groups)
    module = prepared(lambda: RepConv(c1, c2, 3, stride, g=groups), seed)
    assert isinstance(module, RepConv)
    assert (module.rbr_identity is not None) == (identity and stride == 1)
    fused = fuse_model(module)
    assert [type(m) for m in fused.modules() if not list(m.children())] == [nn.Conv2d, nn.SiLU]
    assert_same(module, fused, torch.randn(2, c1, 9, 7))


@settings(max_examples=25)
@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 5),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    rows_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_focus_becomes_one_convolution_on_the_image(
    inputs: int, outputs: int, kernel: int, stride: int, rows_first: bool, seed: int
) -> None:
    module = prepared(lambda: Focus(inputs, outputs, kernel, stride), seed)
    assert isinstance(module, Focus)
    module.rows_first = rows_first
    fused = fuse_model(module)
    assert isinstance(fused, Conv)
    assert fused.conv.kernel_size == (2 * kernel, 2 * kernel)
    assert fused.conv.stride == (2 * stride, 2 * stride)
    assert_same(module, fused, torch.randn(2, inputs, 10, 14))


REORG: dict[str, tuple[list[list[Any]], list[type[nn.Module]]]] = {
    "a convolution alone": (
        [[-1, 1, "Conv", [8, 3, 1]], [-1, 1, "Conv", [8, 3, 2]]],
        [nn.Identity, Conv, Conv, Detect],
    ),
    "two layers": (
        [[-1, 1, "Conv", [8, 3, 1]], [[1, 0], 1, "Concat", [1]]],
        [ReOrg, Conv, Concat, Detect],
    ),
    "a convolution in groups": ([[-1, 1, "Conv", [8, 3, 1, "None", 2]]], [nn.Identity, Focus, Detect]),
    "another kind of layer": ([[-1, 1, "RepConv", [8, 3, 1]]], [ReOrg, nn.Sequential, Detect]),
}


@pytest.mark.parametrize(("rows", "kinds"), REORG.values(), ids=REORG)
def test_a_space_to_depth_and_the_convolution_that_alone_takes_it_become_one(
    rows: list[list[Any]], kinds: list[type[nn.Module]]
) -> None:
    """As yolov7-w6 begins; what another layer takes too stays as it is, and all layers keep their numbers."""
    head = [[len(rows)], 1, "Detect", ["nc", "anchors"]]
    config = GraphConfig(rows=([-1, 1, "ReOrg", []], *rows, head), num_classes=2, anchors=(ANCHORS[0],))
    graph = prepared(lambda: build_graph(config))
    fused = fuse_model(graph)
    assert [type(layer) for layer in fused.get_submodule("model").children()] == kinds
    assert_same(graph, fused, torch.rand(2, 3, 32, 48))


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["conv", "norm", "act", "norm"]), min_size=1, max_size=6))
def test_a_sequence_folds_the_batch_norms_right_after_a_convolution_and_no_others(kinds: list[str]) -> None:
    make = {"conv": lambda: nn.Conv2d(4, 4, 3, padding=1), "norm": lambda: batch_norm(4), "act": nn.SiLU}
    module = prepared(lambda: FoldingSequential(*(make[kind]() for kind in kinds)))
    fused = fuse_model(module)
    for i, (kind, layer) in enumerate(zip(kinds, fused.children(), strict=True)):
        if kind == "norm":
            assert isinstance(layer, nn.Identity if i and kinds[i - 1] == "conv" else nn.BatchNorm2d)
    assert_same(module, fused, torch.randn(2, 4, 6, 6))


def test_a_batch_norm_without_weights_is_folded() -> None:
    norm = nn.BatchNorm2d(6, affine=False)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    module = FoldingSequential(nn.Conv2d(4, 6, 3), norm).eval()
    assert_same(module, fuse_model(module), torch.randn(2, 4, 6, 6))


@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(narrow, name) for name in ("yolov7_tiny", "yolov7", "yolov7_w6_pose", "yolov7_e6e")),
        *(functools.partial(narrow_yolov5, generation) for generation in yolov5.GENERATIONS),
    ],
    ids=lambda make: str(make.args[0]),
)
def test_folding_a_graph_keeps_its_rows_and_the_original(make: Callable[[], LayerGraph]) -> None:
    graph = make().train()
    graph.model[3].bn.eval()  # a mixed state, as fine-tuning leaves it
    state, modules = snapshot(graph)
    fused = fuse_model(graph)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not any(m.training for m in fused.modules())
    after_state, after_modules = snapshot(graph)
    assert after_modules == modules
    assert state.keys() == after_state.keys()
    assert all(torch.equal(state[key], after_state[key]) for key in state)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = graph.eval()(x), fused(x)
    assert float((found - expected).abs().max()) <= 1e-3


@pytest.mark.parametrize("name", ["yolov7_tiny", "yolov7_w6_pose"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "deploy"])
def test_converting_the_folded_copy_leaves_the_original(name: str, training: bool) -> None:
    graph = narrow(name, training=training)
    state, _ = snapshot(graph)
    fuse_model(graph).half()
    assert all(torch.equal(state[key], t) and state[key].dtype == t.dtype for key, t in graph.state_dict().items())


@pytest.mark.parametrize("make", [*BLOCKS.values(), *HEADS.values()], ids=[*BLOCKS, *HEADS])
def test_folding_twice_is_folding_once(make: Callable[[], nn.Module]) -> None:
    once = fuse_model(prepared(make))
    twice = fuse_model(once)
    x = torch.randn(1, 6, 16, 16)
    with torch.no_grad():
        assert torch.equal(once(x), twice(x))
    state = once.state_dict()
    assert list(state) == list(twice.half().state_dict())
    assert all(t.dtype != torch.float16 for t in state.values())


def test_folding_does_not_touch_torchs_random_state_or_threads() -> None:
    graph, first = narrow("yolov7_tiny"), prepared(BLOCKS["Focus"])
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    fuse_model(graph)
    fuse_model(first)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


# Wrong folds. Each is a mistake in the arithmetic that somebody could make, and each must stop the export.

fold = fuse._Affine.fold
of = fuse._Affine.of


def _a_little_off(self: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    w, b = fold(self, weight, bias)
    return w * (1 + 1e-4), b


def _without_bias(self: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    w, b = fold(self, weight, bias)
    return w, torch.zeros_like(b)


def _mean_not_scaled(self: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    w, b = fold(self, weight, bias)
    return w, b / self.scale


def _eps_of_torch(bn: nn.BatchNorm2d) -> Any:
    other = copy.deepcopy(bn)
    other.eps = 1e-5
    return of(other)


def _eps_outside_the_root(bn: nn.BatchNorm2d) -> Any:
    affine = of(bn)
    right = torch.rsqrt(bn.running_var.double() + bn.eps)
    wrong = 1 / (bn.running_var.double().sqrt() + bn.eps)
    return fuse._Affine(affine.scale * wrong / right, affine.shift)


WRONG: dict[str, tuple[str, Any]] = {
    "the scale is 1e-4 off": ("fold", _a_little_off),
    "the bias is dropped": ("fold", _without_bias),
    "the shift is scaled once too little": ("fold", _mean_not_scaled),
    "eps is torch's default": ("of", staticmethod(_eps_of_torch)),
    "eps is outside the root": ("of", staticmethod(_eps_outside_the_root)),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["trained", "fresh statistics"])
@pytest.mark.parametrize(("name", "wrong"), WRONG.values(), ids=WRONG)
def test_a_wrong_fold_stops_and_names_its_place(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, fresh: bool
) -> None:
    """Fresh batch norms (mean 0, variance 1, weight 1, bias 0) hide several of these: they are moved for the check."""
    graph = narrow("yolov7_tiny")
    if fresh:
        for m in graph.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.reset_running_stats()
                m.reset_parameters()
    monkeypatch.setattr(fuse._Affine, name, wrong)
    with pytest.raises(
        FoldError, match=r"folding the batch norm of model\.0 changed its output by .*or a variance of a batch norm"
    ):
        fuse_model(graph)


def test_a_rep_conv_with_its_one_by_one_in_the_corner_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    pad = nn.functional.pad
    monkeypatch.setattr(rep.F, "pad", lambda kernel, _: pad(kernel, (0, 2, 0, 2)))
    with pytest.raises(FoldError, match=r"folding the three branches of model\.102 changed"):
        fuse_model(narrow("yolov7"))


def test_an_identity_branch_in_the_wrong_channel_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = rep.unit_conv

    def shifted(like: nn.Conv2d) -> nn.Conv2d:
        found = unit(like)
        found.weight.data = found.weight.data.roll(1, 0)
        return found

    monkeypatch.setattr(rep, "unit_conv", shifted)
    with pytest.raises(FoldError, match=r"folding the three branches of block changed"):
        fuse_model(prepared(lambda: RepConv(6, 6)), "block")


@pytest.mark.parametrize("mean", [False, True], ids=["identity", "identity and mean"])
def test_a_branch_of_qarepvgg_in_the_wrong_channel_stops(monkeypatch: pytest.MonkeyPatch, mean: bool) -> None:
    unit = rep_vgg.unit_conv

    def shifted(like: nn.Conv2d) -> nn.Conv2d:
        conv = unit(like)
        conv.weight.data = conv.weight.data.roll(1, 0)
        return conv

    monkeypatch.setattr(rep_vgg, "unit_conv", shifted)
    with pytest.raises(FoldError, match="folding the branches of the model changed its output"):
        fuse_model(prepared(lambda: QARepVGG(6, 6, mean=mean)))


def test_the_batch_norm_behind_the_branches_is_folded_after_them() -> None:
    """Folded into the 3x3 alone, before the branches are added, it would be another function."""
    module = prepared(lambda: QARepVGG(6, 6, mean=True))
    fused = fuse_model(module)
    dense = fuse_model(module.get_submodule("rbr_dense"))
    scale = module.bn.weight / torch.sqrt(module.bn.running_var + module.bn.eps)  # type: ignore[union-attr, operator]
    corner = fused[0].weight[:, 0, 0, 0] - scale * (dense.conv.weight[:, 0, 0, 0] + torch.eye(6)[0] / 9)  # type: ignore[index]
    assert float(corner.detach().abs().max()) < 1e-6


def test_the_wrong_half_of_a_shared_batch_norm_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = csp._channels
    monkeypatch.setattr(csp, "_channels", lambda bn, first, last: channels(bn, 0, last - first))
    with pytest.raises(FoldError, match=r"folding the shared batch norm of block changed"):
        fuse_model(prepared(BLOCKS["BottleneckCSP"]), "block")


def test_a_focus_with_rows_for_columns_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    fold_into = focus.fold_into
    monkeypatch.setattr(focus, "fold_into", lambda conv, weight, bias: fold_into(conv, weight.transpose(2, 3), bias))
    with pytest.raises(FoldError, match=r"folding the space to depth of block changed"):
        fuse_model(prepared(BLOCKS["Focus"]), "block")


def test_an_implicit_that_is_folded_wrongly_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    fold_into = rep.fold_into
    monkeypatch.setattr(rep, "fold_into", lambda conv, weight, bias: fold_into(conv, weight, bias * 1.01))
    with pytest.raises(FoldError, match=r"folding the implicits of head\.m\.0 changed"):
        fuse_model(prepared(HEADS["IDetect"]), "head")


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, v)
            for key in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean")
            for v in (NAN, INFINITY, -INFINITY)
        ),
        ("bn.running_var", NAN),
        ("bn.running_var", -INFINITY),
    ],
)
def test_a_weight_that_is_not_finite_stops(key: str, value: float) -> None:
    graph = narrow("yolov7_tiny")
    with torch.no_grad():
        graph.get_submodule("model.10").state_dict()[key].view(-1)[0] = value
    with pytest.raises(FoldError, match=r"folding the batch norm of model\.10 gives values that are not finite"):
        fuse_model(graph)


def test_a_negative_variance_stops() -> None:
    graph = narrow("yolov7_tiny")
    graph.get_submodule("model.10.bn").running_var[3] = -0.5
    with pytest.raises(FoldError, match=r"model\.10 gives values that are not finite"):
        fuse_model(graph)


def test_the_place_in_a_message_is_the_key_in_the_state_dict() -> None:
    graph = narrow("yolov7_w6_pose")
    graph.get_submodule("model.118.m_kpt.2.5.bn").running_mean[0] = float("nan")
    with pytest.raises(FoldError) as caught:
        fuse_model(graph)
    place = re.search(r"of (model\S+) gives", str(caught.value))
    assert place is not None
    assert f"{place[1]}.bn.running_mean" in graph.state_dict()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.ones(4), torch.ones(4) * (1 + 2e-5)),
        (torch.zeros(4), torch.full((4,), 1e-30)),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.inf])),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])),
    ],
    ids=["over the limit", "something instead of nothing", "infinite", "infinite before", "NaN after"],
)
def test_check_fold_refuses(before: Tensor, after: Tensor) -> None:
    with pytest.raises(FoldError, match="folding the thing of somewhere"):
        check_fold("somewhere", "thing", lambda _: before.double(), lambda _: after.double(), torch.zeros(1))


@pytest.mark.parametrize("before", [torch.ones(4), torch.zeros(4), torch.tensor([1e-30, -1e20])])
def test_check_fold_accepts_rounding(before: Tensor) -> None:
    check_fold("somewhere", "thing", lambda _: before.double(), lambda _: before.double() * (1 + 5e-6), torch.zeros(1))


class Waiting(nn.Module):
    """Says that its fold has begun, and waits for something."""

    def __init__(self, begun: threading.Event, wait: Callable[[], object]) -> None:
        super().__init__()
        self.begun, self.wait = begun, wait

    def fuse(self, path: str) -> nn.Module:
        self.begun.set()
        self.wait()
        return nn.Identity()


def test_two_threads_that_fold_leave_torchs_number_of_threads_alone() -> None:
    """What a thread computes with that begins afterwards: threads that have asked before keep a number of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    first_begun, second_begun = threading.Event(), threading.Event()
    first = threading.Thread(target=fuse_model, args=[Waiting(first_begun, lambda: second_begun.wait(0.3))])
    second = threading.Thread(target=fuse_model, args=[Waiting(second_begun, first.join)])
    found: list[int] = []
    third = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    try:
        first.start()
        assert first_begun.wait(5)
        second.start()  # without a lock it finds the first one's single thread, and puts that back at its end
        second.join(5)
        third.start()
        third.join(5)
        assert found == [2]
    finally:
        torch.set_num_threads(before)


def test_threads_are_put_back_after_an_error_and_inside_of_one_another() -> None:
    before = torch.get_num_threads()

    def fail(path: str) -> None:
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError(path)

    with fuse.torch_threads(3):
        with pytest.raises(ZeroDivisionError):
            fuse_model(Waiting(threading.Event(), lambda: fail("")))
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
