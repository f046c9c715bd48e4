"""YOLOv6: published numbers, and checkpoints of every version told apart by their tensors, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.yolov6.checkpoint import plain_name
from deploykit.models.families.yolov6.config import Stage, YOLOv6Config, config_from_shapes
from deploykit.models.families.yolov6.model import VARIANTS, from_checkpoint
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolov6.rep_vgg import QARepVGG, RepVGG
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv
from deploykit.models.registry import create_model, load_model, model_from_checkpoint
from tests.narrow import yolov6_config

State = dict[str, Tensor]

# (parameters of the training graph, weights of the folded convolutions, published millions): the first two exact, and
# confirmed with the original's own code at 0.1.0, 0.2.1 and the newest commit. The 0.2-T that was published has 15.0
# million and so another graph than its description (0.25 deep and 0.5 wide, as in 0.1).
PUBLISHED: dict[str, tuple[int, int, float | None]] = {
    "yolov6n": (5_058_270, 4_646_940, 4.7),
    "yolov6s": (20_147_358, 18_537_276, 18.5),
    "yolov6m": (37_740_982, 34_855_900, 34.9),
    "yolov6l": (59_638_731, 59_607_484, 59.6),
    "yolov6n6": (11_239_346, 10_373_936, 10.4),
    "yolov6s6": (44_797_426, 41_394_448, 41.4),
    "yolov6m6": (85_490_770, 79_640_048, 79.6),
    "yolov6l6": (140_413_550, 140_359_248, 140.4),
    "yolov6n_qa": (5_052_766, 4_646_940, None),
    "yolov6s_qa": (20_136_350, 18_537_276, None),
    "yolov6m_qa": (37_722_806, 34_855_900, None),
    "yolov6n_v2": (4_737_566, 4_317_212, 4.3),
    "yolov6t_v2": (10_629_022, 9_695_532, None),
    "yolov6s_v2": (18_869_022, 17_220_412, 17.2),
    "yolov6m_v2": (37_170_358, 34_286_428, 34.3),
    "yolov6l_v2": (58_589_195, 58_540_988, 58.5),
    "yolov6l_relu_v2": (63_539_723, 58_540_988, 58.5),
    "yolov6n_v1": (4_737_759, 4_317_439, 4.3),
    "yolov6t_v1": (16_363_583, 14_970_943, 15.0),
    "yolov6s_v1": (18_869_439, 17_220_863, 17.2),
}
CLASSES = 3


def on_meta(layout: YOLOv6Config) -> YOLOv6:
    with torch.device("meta"):
        return YOLOv6(layout)


def narrow(name: str, **changes: Any) -> YOLOv6:
    """A variant at a fraction of its width, with seeded weights that half precision holds exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = YOLOv6(replace(yolov6_config(name, CLASSES, width=0.0625), **changes))
        randomise(network)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return network.requires_grad_(False)


def bare(state: State, **changes: Any) -> Checkpoint:
    nothing = {"yaml": None, "names": None, "stride": None, "modules": (), "metadata": {}, "notes": ()}
    facts = {"path": Path("best.pt"), "size": 0, "sha256": "0" * 64, "format": "torch-zip", "entry": "model"}
    return Checkpoint(**{**facts, **nothing, "state_dict": state, **changes})  # type: ignore[arg-type]


def wrapped(state: State) -> State:
    """The names of 0.4: a wrapper around each convolution that is no branch of a block, and one around the pooling."""
    alone = {key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")}
    alone = {path for path in alone if not path.endswith(("rbr_dense", "rbr_1x1"))}
    named = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"(.+)(\.(?:conv|bn)\.\w+)", key)
        name = f"{match[1]}.block{match[2]}" if match and match[1] in alone else key
        named[re.sub(r"(ERBlock_\d\.2)(?=\.cv)", r"\1.cspsppf", name)] = tensor
    return named


def layer_rows(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))  # type: ignore[no-any-return]


# Published numbers


def test_every_variant_has_published_numbers() -> None:
    assert sorted(PUBLISHED) == sorted(VARIANTS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    network = on_meta(VARIANTS[name].config(80))
    parameters, folded, millions = PUBLISHED[name]
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert folded_weights(network) == folded
    assert millions is None or abs(folded / 1e6 - millions) < 0.06
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def folded_weights(network: nn.Module) -> int:
    """Counted from widths alone: each block leaves one convolution with a bias."""
    total, inside = 0, set()
    for path, module in network.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside) or path.endswith("proj_conv"):
            continue
        if isinstance(module, RepVGG | QARepVGG | Conv):
            inside.add(path)
            conv = module.conv if isinstance(module, Conv) else module.rbr_dense.conv
            total += conv.weight.numel() + conv.out_channels
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            total += sum(p.numel() for p in module.parameters())
    return total


@pytest.mark.parametrize("name", ["yolov6n", "yolov6n_qa", "yolov6n_v1"])
def test_folding_for_real_leaves_the_published_number_of_parameters(name: str) -> None:
    fused = fuse_model(create_model(name).module)
    assert sum(p.numel() for p in fused.parameters()) == PUBLISHED[name][1]
    assert not any(isinstance(m, nn.BatchNorm2d | RepVGG | QARepVGG) for m in fused.modules())


@pytest.mark.parametrize(
    ("name", "conf", "size", "rows"),
    [("yolov6n", 0.4, 640, 8400), ("yolov6n_v1", 0.25, 640, 8400), ("yolov6n6", 0.4, 1280, 34_000)],
)
def test_the_spec_says_size_rows_and_thresholds(name: str, conf: float, size: int, rows: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
        found = model.module(torch.empty(1, 3, size, size))
    assert found.shape == (1, rows, 85)
    assert model.spec.input.size == (size, size)
    thresholds = model.spec.thresholds
    assert (thresholds.conf, thresholds.iou, thresholds.max_det) == (conf, 0.45, 1000)


# Recognised by tensors


@pytest.mark.parametrize("name", VARIANTS)
def test_a_state_dict_of_full_size_is_recognised(name: str) -> None:
    model = from_checkpoint(bare(on_meta(VARIANTS[name].config(80)).state_dict()))
    assert model is not None
    assert model.name == name.replace("_", "-")
    assert model.spec.classes[0] == "person"
    assert model.module.config == replace(VARIANTS[name].config(80))


def test_the_02_t_is_what_its_tensors_say() -> None:
    """Its description gives one width; what was published has the depth and the width of 0.1's."""
    published = replace(VARIANTS["yolov6t_v1"].config(80), objectness=False)
    model = from_checkpoint(bare(on_meta(published).state_dict()))
    assert model is not None
    assert model.name == "yolov6t-v2"
    assert folded_weights(model.module) == 14_970_943 - (64 + 128 + 256 + 3)


stages = st.tuples(st.integers(1, 48), st.integers(1, 3)).map(lambda drawn: Stage(*drawn))


@st.composite
def layouts(draw: st.DrawFn) -> YOLOv6Config:
    levels = draw(st.sampled_from([3, 4]))
    csp = draw(st.booleans())

    def some(count: int) -> tuple[Stage, ...]:
        plain = draw(st.lists(stages, min_size=count, max_size=count))
        return tuple(s._replace(hidden=draw(st.integers(1, s.width))) if csp else s for s in plain)

    block = draw(st.sampled_from(["repvgg", "qarepvgg", "conv"]))
    up = some(levels - 1)
    objectness = draw(st.booleans())
    return YOLOv6Config(
        block=block,
        stem=draw(st.integers(1, 32)),
        stages=some(levels + 1),
        down=some(levels - 1),
        ways=tuple(draw(st.lists(st.integers(1, 32), min_size=levels - 1, max_size=levels - 1))),
        up=up,
        bifusion=draw(st.booleans()),
        cspsppf=draw(st.booleans()),
        num_classes=draw(st.integers(1, 90)),
        objectness=objectness,
        reg_max=0 if objectness else draw(st.sampled_from([0, 16])),
        biased=block == "conv" and draw(st.booleans()),
    )


@settings(max_examples=8, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink takes long
@given(layouts())
def test_any_width_depth_and_number_of_classes_is_read_from_shapes(layout: YOLOv6Config) -> None:
    state = on_meta(layout).state_dict()
    assert config_from_shapes({key: tuple(t.shape) for key, t in state.items()}) == layout


@pytest.mark.parametrize("name", ["yolov6n", "yolov6n_qa", "yolov6l_v2", "yolov6n_v1"])
def test_the_names_of_every_version_are_read(name: str, tmp_path: Path) -> None:
    network = narrow(name)
    state = network.state_dict()
    expected = layer_rows(network)
    save_file(state, tmp_path / "plain.safetensors")
    torch.save({"ema": None, "model": wrapped(state), "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({k: t.half() if t.is_floating_point() else t for k, t in state.items()}, tmp_path / "half.pt")
    for path in tmp_path.iterdir():
        model = load_model(path)
        assert model.name == f"{name.replace('_', '-')}-width-0.0625", path
        assert torch.equal(layer_rows(model.module), expected), path


def test_wrappers_come_off_names_and_nothing_else() -> None:
    names = {
        "neck.reduce_layer0.block.conv.weight": "neck.reduce_layer0.conv.weight",
        "backbone.ERBlock_5.2.cspsppf.cv1.block.bn.bias": "backbone.ERBlock_5.2.cv1.bn.bias",
        "backbone.ERBlock_5.2.sppf.m": "backbone.ERBlock_5.2.m",
        "backbone.ERBlock_2.1.block.0.block.conv.weight": "backbone.ERBlock_2.1.block.0.conv.weight",
        "backbone.ERBlock_2.1.block.0.rbr_dense.conv.weight": "backbone.ERBlock_2.1.block.0.rbr_dense.conv.weight",
        "backbone.ERBlock_2.1.m.block.1.conv1.block.bn.weight": "backbone.ERBlock_2.1.m.block.1.conv1.bn.weight",
        "detect.cls_preds_af.1.bias": "detect.cls_preds.1.bias",
        "detect.reg_preds_lrtb.0.weight": "detect.reg_preds.0.weight",
    }
    assert {name: plain_name(name) for name in names} == names
    assert wrapped({"neck.reduce_layer0.conv.weight": torch.zeros(1)}).keys() == {
        "neck.reduce_layer0.block.conv.weight"
    }


# What only training uses


def with_auxiliary(state: State, version: str) -> State:
    """The heads beside, as 0.4 and 0.3.0 name them; those of 0.3.0's distillation take the name of the real one."""
    junk = torch.full((12, 8, 1, 1), 7.0)
    beside = {f"detect.{kind}_preds_ab.{i}.weight": junk for kind in ("cls", "reg") for i in range(3)}
    if version == "0.4":
        return {**state, **beside, "detect.reg_preds_dist.0.weight": junk}
    if version == "0.3.0":
        return {**{re.sub(r"(cls|reg)_preds\.", r"\1_preds_af.", key): t for key, t in state.items()}, **beside}
    assert version == "0.3.0 distilled"
    named = {key.replace("reg_preds.", "reg_preds_lrtb."): t for key, t in state.items()}
    return {**named, **{f"detect.reg_preds.{i}.weight": torch.full((68, 8, 1, 1), 7.0) for i in range(3)}}


@pytest.mark.parametrize("version", ["0.4", "0.3.0", "0.3.0 distilled"])
def test_auxiliary_heads_are_dropped(version: str) -> None:
    network = narrow("yolov6n")
    model = from_checkpoint(bare(with_auxiliary(network.state_dict(), version)))
    assert model is not None
    assert model.notes == ("a training checkpoint: its auxiliary heads are dropped",)
    assert torch.equal(layer_rows(model.module), layer_rows(network))


# Folded by the project


def folded_state(network: YOLOv6, *, switched: bool, norms: bool) -> State:
    """What ``fuse_model`` and ``switch_to_deploy`` of the project leave: convolutions, and a QARepVGG's last norm."""
    state = dict(network.state_dict())

    def put(path: str, name: str, conv: nn.Conv2d, keep: str = "") -> None:
        for key in [key for key in state if key.startswith(f"{path}.") and not (keep and key.startswith(keep))]:
            del state[key]
        assert conv.bias is not None
        state[f"{path}.{name}.weight"], state[f"{path}.{name}.bias"] = conv.weight, conv.bias

    blocks = [path for path, m in network.named_modules() if isinstance(m, RepVGG | QARepVGG)]
    for path, module in network.named_modules():
        if isinstance(module, RepVGG) and switched:
            put(path, "rbr_reparam", module.fuse("")[0])  # type: ignore[arg-type]
        elif isinstance(module, QARepVGG) and switched:
            conv = module.fuse("")[0]
            assert isinstance(conv, nn.Conv2d)
            conv.weight, conv.bias = nn.Parameter(conv.weight / 2), nn.Parameter((conv.bias - 0.5) / 2)  # type: ignore
            put(path, "rbr_reparam", conv, keep=f"{path}.bn.")
            state[f"{path}.bn.running_mean"] = torch.zeros(len(conv.weight))
            state[f"{path}.bn.running_var"] = torch.full((len(conv.weight),), 1 - 1e-3)
            state[f"{path}.bn.weight"] = torch.full((len(conv.weight),), 2.0)
            state[f"{path}.bn.bias"] = torch.full((len(conv.weight),), 0.5)
        elif isinstance(module, Conv) and norms and not path.startswith(tuple(f"{b}." for b in blocks)):
            put(path, "conv", module.fuse("").conv)
    return state


@pytest.mark.parametrize(("switched", "norms"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["yolov6n", "yolov6m", "yolov6n_qa", "yolov6l"])
def test_a_model_that_its_project_folded_computes_the_same(name: str, switched: bool, norms: bool) -> None:
    network = narrow(name)
    state = folded_state(network, switched=switched, norms=norms)
    model = from_checkpoint(bare(wrapped(state)))
    assert model is not None
    assert model.name == f"{name.replace('_', '-')}-width-0.0625"
    folded = "it was saved after its project fused its batch norms: taken as it is"
    assert model.notes == ((folded,) if state.keys() != network.state_dict().keys() else ())
    expected = layer_rows(network)
    for form in (model.module, fuse_model(model.module)):
        torch.testing.assert_close(layer_rows(form), expected, rtol=1e-5, atol=1e-3)
    open_version = "the second version of QARepVGG, as published: no tensor tells" in model.spec.assumptions
    assert open_version is (name == "yolov6n_qa" and not switched)


# What no tensor says


def record(path: str, kind: str, **attributes: Any) -> Module:
    return Module(path, kind, attributes)


@pytest.mark.parametrize(
    ("name", "modules", "expected", "assumed"),
    [
        ("yolov6l", (record("backbone.stem.block.act", "torch.nn.modules.activation.SiLU"),), "yolov6l", ()),
        ("yolov6l", (record("backbone.stem.block.act", "torch.nn.modules.activation.ReLU"),), "yolov6l-base", ()),
        ("yolov6l", (), "yolov6l", ("SiLU and ReLU activations and a batch-norm eps of 0.001, as yolov6l has them",)),
        ("yolov6n_qa", (record("backbone.stem", "yolov6.layers.common.QARepVGGBlockV2"),), "yolov6n-qa", ()),
        ("yolov6n_qa", (record("backbone.stem", "yolov6.layers.common.QARepVGGBlock"),), "yolov6-custom", ()),
        (
            "yolov6n_qa",
            (),
            "yolov6n-qa",
            (
                "ReLU and SiLU activations and a batch-norm eps of 0.001, as yolov6n-qa has them",
                "the second version of QARepVGG, as published",
            ),
        ),
    ],
    ids=["SiLU", "ReLU", "activation unknown", "second version", "first version", "version unknown"],
)
def test_activations_and_versions_are_those_of_the_pickled_modules(
    name: str, modules: tuple[Module, ...], expected: str, assumed: tuple[str, ...]
) -> None:
    state = on_meta(yolov6_config(name, CLASSES)).state_dict()
    model = from_checkpoint(bare(state, modules=modules))
    assert model is not None
    assert (model.name, model.notes) == (expected, ())
    assert model.spec.assumptions == tuple(f"{said}: no tensor tells" for said in assumed)
    layout = model.module.config
    assert layout.mean is (expected == "yolov6n-qa")
    assert layout.activation == ("silu" if expected == "yolov6l" else "relu")


def test_an_activation_that_no_description_knows_is_taken_over() -> None:
    state = on_meta(yolov6_config("yolov6n", CLASSES)).state_dict()
    changed = record("neck.reduce_layer0.block.act", "torch.nn.modules.activation.Hardswish")
    model = from_checkpoint(bare(state, modules=(changed,)))
    assert model is not None
    assert type(model.module.neck.reduce_layer0.act) is nn.Hardswish
    assert model.notes == ("1 activation is Hardswish, as in the pickled model",)


def test_class_names_of_another_number_are_not_guessed_at() -> None:
    state = on_meta(yolov6_config("yolov6n", CLASSES)).state_dict()
    model = from_checkpoint(bare(state, names=("cat", "dog")))
    assert model is not None
    assert model.spec.classes == ("class 0", "class 1", "class 2")
    assert model.notes == ("it names 2 classes and has 3: they are numbered instead",)


# Refused


def changed(change: Callable[[State], Any]) -> State:
    state = dict(on_meta(yolov6_config("yolov6n", CLASSES)).state_dict())
    change(state)
    return state


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def as_face(state: State) -> None:
    for i in range(3):
        state[f"detect.reg_preds.{i}.weight"] = empty(14, 1, 1, 1)


def beside(key: str) -> Callable[[State], Any]:
    """A tensor more."""
    return lambda state: state.update({key: empty(1)})


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "lite": (beside("backbone.lite_effiblock_1.0.x"), "is a YOLOv6-lite model: deploykit does not"),
    "face": (as_face, "is a YOLOv6-face model, whose head gives five landmarks beside each box"),
    "segmentation": (beside("detect.seg_preds.0.weight"), "is a YOLOv6-seg model, which segments"),
    "mbla": (beside("neck.Rep_p4.m.0.0.conv3.x"), "is a YOLOv6 model with MBLA blocks"),
    "hyper-search": (beside("backbone.stem.scale_conv.weight"), "in hyper-search training"),
    "quantised": (beside("neck.upsample_feat0_quantizer._amax"), "is a quantized YOLOv6 model"),
    "Gold-YOLO": (beside("neck.low_IFM.0.conv.weight"), "is a Gold-YOLO model: deploykit does not have it"),
    "another box": (
        lambda state: state.update({"detect.reg_preds.0.weight": empty(5, 16, 1, 1)}),
        "but its head predicts 5 values per box, where a YOLOv6 detector has 4 or 68",
    ),
    "no classes": (
        lambda state: state.pop("detect.cls_preds.0.weight"),
        r"but the tensor detect\.cls_preds\.0\.weight, which says how wide it is, is missing",
    ),
    "no shape": (
        lambda state: state.update({"neck.downsample2.conv.weight": empty()}),
        r"downsample2\.conv\.weight, .* is \[\]",
    ),
    "no stem": (
        lambda state: state.pop("backbone.stem.rbr_dense.conv.weight"),
        r"it has no convolution at backbone\.stem",
    ),
    "two versions": (beside("neck.downsample2.block.conv.weight"), "under the names of two versions of YOLOv6"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_nearly_one_of_ours_is_refused_by_name(change: Callable[[State], Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"best\.pt.*{words}") as caught:
        model_from_checkpoint(bare(changed(change)))
    assert type(caught.value) is CheckpointError


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("detect.cls_preds.1.weight", (4, 64, 1, 1), r"is \[4, 64, 1, 1\], expected \[3, 64, 1, 1\]"),
        ("detect.reg_preds.2.weight", (68, 128, 1, 1), r"is \[68, 128, 1, 1\], expected \[4, 128, 1, 1\]"),
        ("detect.stems.2.conv.weight", (64, 64, 1, 1), r"is \[64, 64, 1, 1\], expected \[128, 128, 1, 1\]"),
        ("detect.extra.weight", (1,), r"holds the tensor detect\.extra\.weight, which yolov6n does not have"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_its_tensor(key: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(WeightsMismatchError, match=words):
        model_from_checkpoint(bare(changed(lambda s: s.update({key: empty(*shape)}))))


def test_strides_that_no_head_of_this_kind_has_are_refused() -> None:
    state = on_meta(yolov6_config("yolov6n", CLASSES)).state_dict()
    head = record("detect", "yolov6.models.effidehead.Detect", stride=[4, 8, 16])
    with pytest.raises(CheckpointError, match=r"strides \[4, 8, 16\], where .* of 3 levels has \[8, 16, 32\]"):
        from_checkpoint(bare(state, modules=(head,)))


def test_another_familys_state_dict_is_none_of_ours() -> None:
    assert from_checkpoint(bare({"backbone.stem.conv.weight": empty(8, 3, 3, 3)})) is None
