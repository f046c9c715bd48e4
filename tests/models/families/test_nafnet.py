"""NAFNet: numbers of the original's own code, the local form, and what a file must have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploykit.errors import CheckpointError, FoldError, UsageError, WeightsMismatchError
from deploykit.export.engine.build import build_engine
from deploykit.export.graph.trace import example_input, export_to_ir
from deploykit.export.options import PrecisionOptions
from deploykit.export.precision.half_rules import LARGEST_SQUARED
from deploykit.export.to_onnx import export_onnx, onnx_from_model
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.create.random_weights import create_checkpoint, randomise
from deploykit.models.families import nafnet
from deploykit.models.families.nafnet import Nafnet, NafnetConfig, receptive_field, with_frozen_pool, with_local_pool
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.naf import BoxMean, NafBlock
from deploykit.models.layers.norm import LayerNorm2d
from deploykit.models.layers.pool import GlobalMean
from deploykit.models.registry import ReferenceModel, create_model, load_model, with_rewrite
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.tiles import Tiling, run_tiled
from deploykit.runtime.session import open_session
from deploykit.spec import DenseOutput, InputSpec, ModelSpec
from tests.meta_model import meta_model

PUBLISHED = {
    "nafnet_w32_gopro": (17_111_907,),
    "nafnet_w64_gopro": (67_888_835,),
    "nafnet_w64_reds": (67_888_835,),
    "nafnet_w32_sidd": (29_159_715,),
    "nafnet_w64_sidd": (115_982_915,),
}
"""Parameters of the original's own code."""

NARROW = NafnetConfig(8, (1, 2), 1, (1, 1))


def narrow(config: NafnetConfig = NARROW, seed: int = 0) -> ReferenceModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Nafnet(config).eval()
        randomise(network)
    return replace(nafnet.FAMILY.reference(config, network), name="narrow")


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_originals(name: str) -> None:
    assert meta_model(name).parameters == PUBLISHED[name][0]


def test_a_mosaic_has_four_channels() -> None:
    spec = meta_model("nafnet-w32-raw").spec
    assert (spec.task, spec.input.channels, len(spec.input.mean)) == ("restore", 4, 4)


@pytest.mark.data
@pytest.mark.parametrize("folded", [False, True])
def test_it_gives_what_the_originals_code_gave(shared: Path, folded: bool) -> None:
    model = load_model(shared / "golden" / "nafnet-width8.pt")
    network = fuse_model(model.module) if folded else model.module
    with np.load(shared / "golden" / "nafnet-width8.npz") as golden, torch.inference_mode():
        found = network(torch.from_numpy(golden["images"])).numpy()
        np.testing.assert_allclose(found, golden["output"], rtol=0, atol=2e-6)


@pytest.mark.data
def test_its_export_gives_what_the_originals_code_gave(shared: Path, tmp_path: Path) -> None:
    report = onnx_from_model(load_model(shared / "golden" / "nafnet-width8.pt"), out=tmp_path / "n.onnx", img=(90, 150))
    assert report.parity is not None
    with np.load(shared / "golden" / "nafnet-width8.npz") as golden, open_session(report.path) as session:
        found = session.run({"images": golden["images"]})["image"]
        np.testing.assert_allclose(found, golden["output"], rtol=0, atol=5e-6)


@given(height=st.integers(1, 40), width=st.integers(1, 40), side=st.integers(1, 50))
@settings(max_examples=60)
def test_a_box_mean_is_the_mean_of_the_nearest_whole_window(height: int, width: int, side: int) -> None:
    x = torch.from_numpy(np.random.default_rng(side).random((2, 3, height, width), np.float32))
    found = BoxMean(side)(x)
    rows, columns = min(side, height), min(side, width)
    if side >= height and side >= width:
        assert found.shape == (2, 3, 1, 1)
    exact = x.double().numpy()
    expected = np.empty_like(exact)
    for i in range(height):
        top = min(max(i - (rows - 1) // 2, 0), height - rows)
        for j in range(width):
            left = min(max(j - (columns - 1) // 2, 0), width - columns)
            expected[:, :, i, j] = exact[:, :, top : top + rows, left : left + columns].mean((2, 3))
    np.testing.assert_allclose(np.broadcast_to(found.numpy(), expected.shape), expected, rtol=0, atol=2e-5)


def test_the_windows_of_tlc_are_halved_from_level_to_level() -> None:
    network = create_on_meta("nafnet_w32_gopro")
    local = with_local_pool(network)
    windows = [(level, block.sca[0].side) for level, block in local.levels()]  # type: ignore[index,union-attr]  # a Sequential of a BoxMean
    assert {window for level, window in windows if level == 0} == {384}
    assert dict(windows) == {level: 384 >> level for level in range(5)}
    assert all(block.sca[0].side == 288 >> level for level, block in with_local_pool(network, 192).levels())  # type: ignore[index,union-attr]  # as above
    for size in (15, 0):
        with pytest.raises(UsageError, match="at least 16 pixels"):
            with_local_pool(network, size)
    with pytest.raises(UsageError, match="positive multiple"):
        with_local_pool(network, 256, 0.0)


def create_on_meta(name: str) -> Nafnet:
    module = meta_model(name).module
    assert isinstance(module, Nafnet)
    return module


def test_tlc_is_the_network_itself_where_the_windows_cover_the_image() -> None:
    model = narrow()
    local = with_rewrite(model, "tlc:32")
    assert local.notes[-1] == "rewritten as tlc:32 (--rewrite)"
    small, large = torch.rand(1, 3, 45, 48), torch.rand(1, 3, 70, 52)
    with torch.inference_mode():
        assert torch.equal(local.module(small), model.module(small))
        assert (local.module(large) - model.module(large)).abs().max() > 1e-4
    with pytest.raises(UsageError, match="tlc:N takes the side"):
        with_rewrite(model, "tlc:many")
    with pytest.raises(UsageError, match="tlc:N takes the side"):
        with_rewrite(model, "tlc:" + "9" * 5000)
    with pytest.raises(UsageError, match="narrow has no rewrite 'fast'; it has tlc"):
        with_rewrite(model, "fast")


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_tlc_is_exported(tmp_path: Path, precision: str) -> None:
    model = with_rewrite(narrow(), "tlc:32")
    asked = PrecisionOptions(precision=precision)  # type: ignore[arg-type]  # a str
    report = onnx_from_model(model, out=tmp_path / "t.onnx", img=(75, 110), precision=asked)
    assert report.parity is not None
    assert report.parity.ok
    graph = onnx.load(str(report.path)).graph
    assert "CumSum" in {node.op_type for node in graph.node}
    if precision == "fp16":
        assert report.precision is not None
        assert report.precision.half is not None
        kept = set(report.precision.half.kept["operator"])
        assert {node.name for node in graph.node if node.op_type == "CumSum"} <= kept
        assert max(d.max_abs for d in report.parity.differences) < 5e-3
        with pytest.raises(AssertionError):  # of a lower precision at all
            assert max(d.max_abs for d in report.parity.differences) < 1e-6
    else:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
        assert build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path / "t.trt").record.layers


@pytest.mark.slow
def test_a_file_of_free_shape_takes_any_size(tmp_path: Path) -> None:
    """Around and below the windows of the local form, which is the larger graph."""
    model = with_rewrite(narrow(NafnetConfig(4, (1,), 0, (1,))), "tlc:32")
    report = onnx_from_model(model, out=tmp_path / "t.onnx", img=(70, 90), dynamic="shape")
    with open_session(report.path) as session, torch.inference_mode():
        for size in ((121, 90), (48, 48), (40, 60), (20, 20), (31, 100), (4, 9)):
            image = np.random.default_rng(0).random((1, 3, *size), np.float32)
            expected = model.module(torch.from_numpy(image)).numpy()
            np.testing.assert_allclose(session.run({"images": image})["image"], expected, rtol=0, atol=5e-6)


def test_layer_norm_is_that_of_every_pixels_channels() -> None:
    norm = LayerNorm2d(5)
    norm.random_weights(1.0)
    x = 3 + 2 * torch.randn(2, 5, 4, 3)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    assert (norm(x) - expected).abs().max() < 1e-5


def test_layer_norms_with_large_sums_stay_fp32(tmp_path: Path) -> None:
    """With a residual stream of some hundreds, whose squares add up to more than fp16 can hold."""
    model = narrow()
    assert isinstance(model.module, Nafnet)
    with torch.no_grad():
        model.module.intro.weight.mul_(500)
        model.module.ending.weight.div_(500)
    largest: list[float] = []
    norms = [m for m in model.module.modules() if isinstance(m, LayerNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda _, x: largest.append(float(x[0].abs().max()))) for norm in norms]
    with torch.inference_mode():
        model.module(torch.rand(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    assert max(largest) > 256  # whose square is over 65504
    report = onnx_from_model(model, out=tmp_path / "n.onnx", img=64, precision=PrecisionOptions(precision="fp16"))
    assert report.parity is not None
    assert report.parity.ok
    assert report.precision is not None
    assert report.precision.half is not None
    nodes = [n.name for n in onnx.load(str(report.path)).graph.node if n.op_type == "LayerNormalization"]
    assert len(nodes) == 2 * 6
    wide = [norm for norm, most in zip(norms, largest, strict=True) if most > LARGEST_SQUARED]
    assert len(set(nodes) & set(report.precision.half.kept["range"])) >= len(wide) > 0


def test_factors_are_folded() -> None:
    block = narrow().module.middle_blks[0]  # type: ignore[index,union-attr]  # a Sequential
    assert isinstance(block, NafBlock)
    folded = block.fuse("it")
    assert folded.beta is None
    assert folded.gamma is None
    x = torch.randn(1, 32, 6, 7)
    with torch.inference_mode():
        assert (folded(x) - block(x)).abs().max() < 1e-5
    assert block.beta is not None
    block.beta.data[0, 3] = float("nan")
    with pytest.raises(FoldError, match=r"it\.conv3 gives values that are not finite"):
        block.fuse("it")


def test_random_weights_neither_fade_nor_grow() -> None:
    model = narrow(replace(NARROW, encoders=(2, 2, 4, 8), middle=6, decoders=(2, 2, 2, 2)))
    x = torch.rand(1, 3, 64, 64)
    other = x.clone()
    other[..., 32, 32] += 0.1
    with torch.inference_mode():
        found, exact = model.module(x), model.module.double()(x.double())
        model.module.float()
        changed = (model.module(other) - found).abs()
    assert 0.02 < (found - x).abs().max() < 2
    assert (found - exact).abs().max() < 1e-4
    assert changed[..., 30:35, 30:35].max() > 0.05
    assert changed[..., :8, :8].max() > 0  # by the channel attention


class Probe:
    """How far around a pixel the input changes the output."""

    def __init__(self, network: Nafnet, side: int) -> None:
        self.network, self.side = network, side
        self.images = torch.rand(1, 3, side, side)

    def reach(self) -> int:
        most = 0
        for row, column in ((self.side // 2, self.side // 2), (self.side // 2 - 5, self.side // 2 + 3)):
            images = self.images.clone().requires_grad_()
            self.network(images)[0, :, row, column].sum().backward()
            assert images.grad is not None
            rows, columns = images.grad.abs().sum((0, 1)).nonzero().T
            far = [int(abs(rows - row).max()), int(abs(columns - column).max())]
            most = max(most, *far)
        return most


def test_with_fixed_attention_it_sees_its_receptive_field_only() -> None:
    network = narrow().module
    assert isinstance(network, Nafnet)
    image = torch.rand(1, 3, 96, 96)
    frozen = with_frozen_pool(network, image)
    with torch.inference_mode():
        assert torch.equal(frozen(image), network(image))
        assert not torch.equal(frozen(image[..., :64]), network(image[..., :64]))
    field = receptive_field(network)
    found = Probe(frozen, 96).reach()
    assert found <= field
    assert found > field // 2
    assert Probe(network, 96).reach() > 48  # the whole image, without
    with pytest.raises(UsageError, match="one image, got 2"):
        with_frozen_pool(network, torch.cat((image, image)))


@pytest.mark.parametrize("size", [(150, 203), (128, 64)])
def test_tiles_have_no_seam_with_fixed_attention(size: tuple[int, int]) -> None:
    """Where the overlap covers the receptive field; with a mean of its own in each tile they do."""
    network = narrow(NafnetConfig(4, (1, 1), 1, (1, 1))).module
    assert isinstance(network, Nafnet)
    field = receptive_field(network)
    array = np.random.default_rng(0).random((3, *size), np.float32)
    image = torch.from_numpy(array)[None]
    with torch.inference_mode():
        whole = network(image)[0].numpy()

    def seam(module: Nafnet, overlap: int) -> float:
        def run(tiles: Array) -> Array:
            with torch.inference_mode():
                return module(torch.from_numpy(tiles)).numpy()

        tiling = Tiling((64, 64), overlap, 3, network.multiple)
        return float(np.abs(run_tiled(run, array, tiling) - whole).max())

    frozen = with_frozen_pool(network, image)
    assert seam(frozen, field) <= 1e-5
    assert seam(frozen, 0) > 1e-4
    assert seam(network, field) > 1e-4


def saved(model: ReferenceModel, path: Path, **changes: Tensor | None) -> Path:
    state = {**model.module.state_dict(), **changes}
    torch.save({"params": {k: v for k, v in state.items() if v is not None}}, path)
    return path


@pytest.mark.parametrize("config", [NARROW, NafnetConfig(4, (1, 0, 3), 2, (2, 1, 1), channels=4, wide=4, wide_ffn=6)])
def test_any_layout_is_read_from_its_tensors(config: NafnetConfig, tmp_path: Path) -> None:
    model = narrow(config)
    again = load_model(saved(model, tmp_path / "n.pth"))
    x = torch.rand(1, config.channels, 20, 30)
    with torch.inference_mode():
        assert torch.equal(again.module(x), model.module(x))
    assert again.name.startswith(f"nafnet-w{config.width}-")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"intro.weight": torch.zeros(3)}, CheckpointError, "intro.weight is \\[3\\]: expected 4 axes"),
        ({"middle_blks.0.conv4.weight": None}, CheckpointError, "middle_blks.0.conv4.weight is missing"),
        ({"encoders.1.0.beta": None}, WeightsMismatchError, "lacks the tensor encoders.1.0.beta"),
        ({"encoders.1.0.beta": torch.zeros(2)}, WeightsMismatchError, "encoders.1.0.beta is \\[2\\], expected"),
        ({"more": torch.zeros(1)}, WeightsMismatchError, "holds the tensor more"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Tensor | None], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        load_model(saved(narrow(), tmp_path / "n.pth", **changes))


def test_a_created_checkpoint_loads(tmp_path: Path) -> None:
    path = create_checkpoint("nafnet-w32-sidd", tmp_path / "n.pth", seed=3)
    model = load_model(path)
    assert model.name == "nafnet-w32-sidd"
    assert "random weights (seed 3)" in model.notes[-1]


def test_layouts_that_are_two_models_are_said_to_be() -> None:
    with torch.device("meta"):
        network = Nafnet(nafnet.VARIANTS["nafnet_w64_reds"])
    state = network.state_dict()
    shapes = nafnet.FAMILY.shapes_of(
        Checkpoint(Path("w.pth"), 0, "", "torch-zip", "", state, None, None, None, (), {}, ())
    )
    assert shapes is not None
    model = nafnet.FAMILY.loaded(nafnet.FAMILY.config_of(shapes), network, shapes)
    assert model.name == "nafnet-w64-gopro"
    assert model.notes == ("nafnet-w64-reds has the same layout: no tensor tells which of them it is",)


def test_it_has_no_classes() -> None:
    with pytest.raises(UsageError, match="nafnet-w32-gopro restores images and has no classes"):
        create_model("nafnet-w32-gopro", num_classes=2)


def test_an_array_of_any_size(tmp_path: Path) -> None:
    """The zeros that are added inside are not seen outside: sizes that need none give the same in a larger one."""
    network = narrow().module
    with torch.inference_mode():
        for height, width in ((1, 1), (5, 4), (4, 8), (31, 33)):
            image: Array = np.random.default_rng(0).random((1, 3, height, width), np.float32)
            assert network(torch.from_numpy(image)).shape == image.shape


def test_the_mean_of_a_dark_image_is_that_of_float64_in_onnx_runtime(tmp_path: Path) -> None:
    """Value by value, float32 loses 1e-4 of the mean of such a map."""
    spec = ModelSpec("restore", InputSpec(size=(256, 256)), DenseOutput(name="image"))
    graph = export_to_ir(GlobalMean().eval(), example_input(spec.input), spec, "dynamo", True, ["image"])
    ir.save(graph, tmp_path / "m.onnx")
    x = np.full((1, 3, 256, 256), 0.1, np.float32)
    x[..., :64, :] = np.random.default_rng(0).random((64, 256))
    with open_session(tmp_path / "m.onnx") as session:
        (found,) = session.run({spec.input.name: x}).values()
    np.testing.assert_allclose(found, x.astype(np.float64).mean((2, 3), keepdims=True), rtol=3e-6)


@pytest.mark.slow
def test_a_published_network_is_verified_on_inputs_with_dark_parts(tmp_path: Path) -> None:
    weights = create_checkpoint("nafnet-w32-gopro", tmp_path / "m.pt")
    report = export_onnx(weights, img=256, out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok
