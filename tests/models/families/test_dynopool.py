"""DynOPool: the points that it looks at, its frozen form, what its ratios learn, and the networks with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.export.engine.build import build_engine
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.dynopool import model as dynopool
from deploykit.models.families.dynopool.hrnet import HrNet
from deploykit.models.families.dynopool.model import EfficientNet, Stage, Vgg, complexity_loss, layer_macs
from deploykit.models.families.dynopool.resize import CLOSE, DynOPool, FixedPool, in_units, output_side, resize_and_pool
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import open_session
from tests.meta_model import meta_model
from tests.narrow_dense import narrow_dense

NAMES = ("dynopool-vgg16", "dynopool-efficientnet-b0", "dynopool-hrnet-w48")


def pool_of(rows: float, columns: float) -> DynOPool:
    pool = DynOPool()
    with torch.no_grad():
        pool.alpha.copy_(torch.tensor([1 / rows, 1 / columns]))
    return pool


def four_points(x: Array, size: tuple[int, int]) -> Array:
    """The definition, cell by cell: the largest of four interpolated values ``(H, W)``."""
    height, width = x.shape
    out = np.empty(size)

    def at(row: float, column: float) -> float:
        row, column = (min(max(v, 0.0), n - 1.0) for v, n in ((row, height), (column, width)))
        top, left = math.floor(row), math.floor(column)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        a, b = row - top, column - left
        upper = (1 - b) * x[top, left] + b * x[top, right]
        lower = (1 - b) * x[below, left] + b * x[below, right]
        return float((1 - a) * upper + a * lower)

    tall, wide = height / size[0], width / size[1]  # of a cell
    for i, j in np.ndindex(*size):
        middle = ((i + 0.5) * tall - 0.5, (j + 0.5) * wide - 0.5)
        out[i, j] = max(at(middle[0] + a * tall / 4, middle[1] + b * wide / 4) for a in (-1, 1) for b in (-1, 1))
    return out


RATIOS = st.floats(0.05, 1.6)


@given(height=st.integers(1, 40), width=st.integers(1, 40), rows=RATIOS, columns=RATIOS)
@settings(max_examples=100)
def test_both_forms_are_of_one_size_and_give_the_definitions_values(
    height: int, width: int, rows: float, columns: float
) -> None:
    pool = pool_of(rows, columns)
    frozen = pool.fuse("it")
    x = torch.from_numpy(np.random.default_rng(height).random((1, 2, height, width), np.float32))
    with torch.no_grad():
        found, same = pool(x), frozen(x)
    assert tuple(found.shape[2:]) == tuple(same.shape[2:]) == pool.size_of(height, width)
    expected = np.stack([four_points(channel.double().numpy(), pool.size_of(height, width)) for channel in x[0]])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(same[0].numpy(), expected, atol=1e-5)


@given(height=st.integers(1, 60), width=st.integers(1, 60), rows=RATIOS, columns=RATIOS)
@settings(max_examples=60)
def test_in_float64_both_forms_give_the_same_numbers(height: int, width: int, rows: float, columns: float) -> None:
    pool = pool_of(rows, columns).double()
    x = torch.from_numpy(np.random.default_rng(width).normal(size=(1, 1, height, width)))
    with torch.no_grad():
        assert (pool(x) - pool.fuse("it")(x)).abs().max() < 1e-11


@given(side=st.integers(1, 4000), above=st.integers(1, 64), below=st.integers(1, 64))
@settings(max_examples=300)
def test_sides_are_those_of_a_fraction_whatever_float32_makes_of_it(side: int, above: int, below: int) -> None:
    alpha = float(np.float32(below / above))
    if above <= 2 * below:
        assert output_side(side, in_units(1 / alpha)) == max((2 * side * above + below) // (2 * below), 1)


@given(side=st.integers(1, 100_000), ratio=st.floats(0.01, 2.0))
@settings(max_examples=300)
def test_sides_are_rounded_to_the_nearest(side: int, ratio: float) -> None:
    """In exact arithmetic: halves go up, and so does what float32 cannot tell from a half."""
    found, exact = output_side(side, in_units(ratio)), side * Fraction(ratio)
    half, little = Fraction(1, 2), Fraction(side, 2**32)
    assert found == 1 or exact - half - little < found <= exact * Fraction(CLOSE) + half + little


def test_at_one_it_is_the_largest_of_four_blends_and_not_the_map_itself() -> None:
    """Points lie a quarter of a pixel off: 9/16 of the pixel, 3/16 of two neighbours and 1/16 of a third."""
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    wide = functional.pad(x, (1, 1, 1, 1), mode="replicate")

    def shifted(rows: int, columns: int) -> Tensor:
        return wide[:, :, 1 + rows : 6 + rows, 1 + columns : 7 + columns]

    blends = [(9 * x + 3 * shifted(a, 0) + 3 * shifted(0, b) + shifted(a, b)) / 16 for a in (-1, 1) for b in (-1, 1)]
    expected = torch.stack(blends).amax(0)
    pool = DynOPool(1.0).double()
    with torch.no_grad():
        assert torch.allclose(pool(x), expected, atol=1e-12)
        assert torch.allclose(pool.fuse("it")(x), expected, atol=1e-12)
    assert not torch.allclose(expected, x, atol=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_ratio_grows_where_the_values_want_a_larger_map(sign: int) -> None:
    """The end of a row is far off in a small cell's terms: a falling ramp is seen higher up by a larger map."""
    ramp = (-torch.arange(40.0) / 40).expand(1, 1, 12, 40)
    pool = DynOPool(0.4)
    before = pool.ratio.detach().clone()
    optimiser = torch.optim.SGD(pool.parameters(), lr=0.02)
    for _ in range(20):
        optimiser.zero_grad()
        (-sign * pool(ramp).mean()).backward()
        optimiser.step()
    after = pool.ratio.detach()
    assert (after[1] - before[1]) * sign > 0.01
    assert abs(after[0] - before[0]) < 1e-6  # nothing changes along the other axis


@pytest.mark.parametrize("size", [(2, 2), (8, 12), (32, 6)])
def test_at_a_half_it_is_max_pooling_of_even_sides(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    pool = DynOPool(0.5)
    with torch.no_grad():
        assert (pool(x) - functional.max_pool2d(x, 2)).abs().max() < 1e-6
        assert torch.equal(pool.fuse("it")(x), functional.max_pool2d(x, 2))


def test_at_a_half_of_an_odd_side_it_is_not() -> None:
    """Its cells are 7 / 3 pixels then, and cover all of the map, where max pooling leaves out the last."""
    x = torch.zeros(1, 1, 7, 7)
    x[..., 6, 6] = 1
    with torch.no_grad():
        assert DynOPool()(x).max() > 0.3
    assert functional.max_pool2d(x, 2).max() == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_ratios_learn(sign: int) -> None:
    """Larger where a large map is rewarded, and smaller where the term for its cost is the loss."""
    network = Vgg(((4,), (4,)), 3)
    before = [pool.ratio.detach().clone() for pool in pools_in(network)]
    optimiser = torch.optim.SGD((pool.alpha for pool in pools_in(network)), lr=1000.0)
    for _ in range(20):
        optimiser.zero_grad()
        (-sign * complexity_loss(network, (32, 32))).backward()
        optimiser.step()
    for pool, ratio in zip(pools_in(network)[:1], before, strict=False):
        assert ((pool.ratio.detach() - ratio) * sign > 0.01).all()


def pools_in(network: nn.Module) -> list[DynOPool]:
    return [m for m in network.modules() if isinstance(m, DynOPool)]


def test_the_gradient_of_a_ratio_is_that_of_the_points_places() -> None:
    """Against a finite difference of the same points with the ratio a little larger, the number of cells kept."""
    x = torch.randn(1, 2, 15, 15, dtype=torch.float64)  # whose points lie between the pixels
    weight = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    pool = DynOPool(0.5).double()
    with torch.no_grad():
        pool.alpha.mul_(torch.tensor([0.97, 0.95]))
    (pool(x) * weight).sum().backward()
    assert pool.alpha.grad is not None

    def at(change: float) -> float:
        real = torch.full((2,), 8 / 15, dtype=torch.float64)
        ratio = 1 / (pool.alpha.detach() + torch.tensor([change, 0.0]))
        moved = real + ratio - 1 / pool.alpha.detach()
        y = x
        for axis in (2, 3):
            middles = (torch.arange(16, dtype=torch.float64) + 0.5) / (2 * moved[axis - 2])
            y = _sampled(y, axis, middles - 0.5)
        return float((functional.max_pool2d(y, 2) * weight).sum())

    step = 1e-6
    assert pool.alpha.grad[0].item() == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-3, abs=1e-4)


def _sampled(x: Tensor, axis: int, places: Tensor) -> Tensor:
    last = x.shape[axis] - 1
    columns = []
    for place in places.clamp(0, last):
        below = int(place.floor())
        share = place - below
        columns.append((1 - share) * x.select(axis, below) + share * x.select(axis, min(below + 1, last)))
    return torch.stack(columns, axis)


def test_efficientnet_has_its_papers_parameters() -> None:
    model = meta_model("dynopool-efficientnet-b0")
    assert model.parameters - 2 * 4 == 5_288_548


def test_hrnet_has_the_originals_parameters() -> None:
    with torch.device("meta"):
        network = HrNet(48, 19)  # as it was published for Cityscapes: 65.9 million
    assert sum(p.numel() for name, p in network.named_parameters() if not name.endswith("alpha")) == 65_859_379


def test_multiply_adds_are_those_of_vgg16_and_grow_with_the_ratios() -> None:
    macs = layer_macs(Vgg(dynopool.VGG16, 100), (32, 32))
    assert sum(macs.values()) == pytest.approx(0.313e9, rel=0.01)  # of VGG16 at 32 pixels
    real = Vgg(((4,), (8,), (8,)), 5)
    loss = complexity_loss(real, (32, 32))
    assert loss.item() == pytest.approx(sum(layer_macs(real, (32, 32)).values()) / 1e9)
    loss.backward()
    real.train()
    real.blocks[0].eval()  # frozen statistics stay frozen
    complexity_loss(real, (32, 32))
    assert (real.training, real.blocks[0].training, real.blocks[1].training) == (True, False, True)
    first, second = (pool.alpha.grad for pool in pools_in(real)[:2])
    assert first is not None
    assert second is not None
    assert (first < second).all()  # what is earlier scales more
    assert (second < 0).all()  # a larger alpha is a smaller map


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_knows_its_resizings(name: str) -> None:
    model = narrow_dense(name).module
    assert isinstance(model, (Vgg, EfficientNet, HrNet))
    chains = [len(model.pools_before(layer)) for layer in layer_macs(model, (64, 64))]
    total = sum(isinstance(m, DynOPool) for m in model.modules())
    assert max(chains) == total
    assert chains[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_folding_freezes_and_changes_nothing(name: str) -> None:
    model = narrow_dense(name)
    folded = fuse_model(model.module)
    assert not any(isinstance(m, (DynOPool, nn.BatchNorm2d)) for m in folded.modules())
    assert any(isinstance(m, FixedPool) for m in folded.modules())
    x = torch.randn(1, 3, 70, 58)
    with torch.inference_mode():
        found, expected = folded(x), model.module(x)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exported_and_built(name: str, tmp_path: Path) -> None:
    report = onnx_from_model(
        narrow_dense(name), out=tmp_path / "d.onnx", img=(50, 67), options=OnnxOptions(exporter="legacy")
    )
    assert report.parity is not None
    assert report.parity.ok
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path / "d.trt").record.layers


SMALL = ((4,), (6,), (8,))  # a VGG of three resizings, which exports fast


def small_vgg(*alphas: float) -> ReferenceModel:
    """With these alphas on both axes, or those before training."""
    network = Vgg(SMALL, 5).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        randomise(network)
    with torch.no_grad():
        for pool, alpha in zip(pools_in(network), alphas or (2.0, 2.0, 2.0), strict=True):
            pool.alpha.fill_(alpha)
    model = narrow_dense("dynopool-vgg16")
    return replace(model, module=network.requires_grad_(False))


def test_the_default_exporter_writes_two_operators_a_resizing(tmp_path: Path) -> None:
    import onnx

    report = onnx_from_model(small_vgg(1.9, 2.1, 2.3), out=tmp_path / "d.onnx", img=(50, 31))
    found = [node.op_type for node in onnx.load(str(report.path)).graph.node]
    assert found.count("Resize") == found.count("MaxPool") == 3


def test_at_a_half_and_a_fixed_even_size_only_max_pooling_is_written(tmp_path: Path) -> None:
    import onnx

    report = onnx_from_model(small_vgg(), out=tmp_path / "d.onnx", img=(32, 48))
    found = [node.op_type for node in onnx.load(str(report.path)).graph.node]
    assert (found.count("Resize"), found.count("MaxPool")) == (0, 3)


# Before training, where the example's sides are even and others' are not; close to a half; maps of one cell.
FREE = [((2.0, 1.2000003, 2.1), "dynamo"), ((2.0, 1.2000003, 7.3), "legacy")]


@pytest.mark.parametrize(("alphas", "exporter"), FREE)
def test_a_free_shape_has_the_rule_in_its_graph(alphas: tuple[float, ...], exporter: str, tmp_path: Path) -> None:
    model = small_vgg(*alphas)
    report = onnx_from_model(
        model, out=tmp_path / "d.onnx", img=64, dynamic="shape", options=OnnxOptions(exporter=exporter)
    )  # type: ignore[arg-type]  # one of two words
    with open_session(report.path) as session, torch.inference_mode():
        for size in ((64, 64), (33, 50), (97, 41), (21, 120), (8, 201)):
            x = torch.randn(2, 3, *size)
            expected = model.module(x).numpy()
            found = session.run({"images": x.numpy()})["logits"]
            np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("exporter", ["legacy", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_hrnets_branches_take_a_free_shape(exporter: Any, tmp_path: Path) -> None:
    """Its branches have other sides, which meet again at those of the largest: odd ones, and maps of one cell."""
    model = narrow_dense("dynopool-hrnet-w48")
    report = onnx_from_model(
        model, out=tmp_path / "h.onnx", img=64, dynamic="shape", options=OnnxOptions(exporter=exporter)
    )
    with open_session(report.path) as session, torch.inference_mode():
        for size in ((64, 64), (33, 50), (97, 41), (8, 201)):
            x = torch.randn(2, 3, *size)
            expected = model.module(x).numpy()
            found = session.run({"images": x.numpy()})["logits"]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


def exported_pool(alpha: float, path: Path) -> tuple[FixedPool, Path]:
    pool = pool_of(1 / alpha, 1 / alpha).fuse("it").eval()
    free = {2: torch.export.Dim("height", min=2, max=4096), 3: torch.export.Dim("width", min=2, max=4096)}
    x = torch.zeros(1, 1, 32, 48)
    torch.onnx.export(
        pool, (x,), path, dynamo=True, opset_version=18, dynamic_shapes=(free,), input_names=["images"], verbose=False
    )
    return pool, path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's own exporter
@pytest.mark.parametrize("alpha", [2.0, 1.2000003])
def test_sides_in_a_graph_are_those_of_training(alpha: float, tmp_path: Path) -> None:
    """A branch taken by the example gives others at the first ratio, a rule in float32 at some sides of the second."""
    import onnxruntime

    pool, path = exported_pool(alpha, tmp_path / "pool.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for height, width in sides():
        x = torch.randn(1, 1, height, width)
        (found,) = session.run(None, {"images": x.numpy()})
        assert found.shape == tuple(pool(x).shape)
        np.testing.assert_allclose(found, pool(x).numpy(), atol=2e-6 * max(height, width, 10))


def sides() -> Iterator[tuple[int, int]]:
    yield from ((side, 5 + side % 7) for side in range(2, 200))
    yield from ((3, side) for side in range(200, 4096, 97))


def saved(model: ReferenceModel, path: Path, **changes: Tensor | None) -> Path:
    state = {**model.module.state_dict(), **changes}
    torch.save({k: v for k, v in state.items() if v is not None}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_any_layout_is_read_from_its_tensors(name: str, tmp_path: Path) -> None:
    model = narrow_dense(name)
    again = load_model(saved(model, tmp_path / "d.pth"))
    assert again.spec.task == model.spec.task
    x = torch.randn(1, 3, 64, 50)
    with torch.inference_mode():
        assert torch.equal(again.module(x), model.module(x))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"classifier.weight": None}, CheckpointError, r"classifier\.weight is missing"),
        ({"blocks.1.0.0.weight": torch.zeros(2)}, CheckpointError, r"blocks\.1\.0\.0\.weight is \[2\]"),
        ({"pools.1.alpha": torch.tensor([2.0, 0.0])}, CheckpointError, r"pools\.1\.alpha is .* expected two values of"),
        ({"pools.0.alpha": torch.tensor([float("nan"), 2.0])}, CheckpointError, r"pools\.0\.alpha is \[nan, 2\.0\]"),
        ({"pools.1.alpha": torch.zeros(3)}, WeightsMismatchError, r"pools\.1\.alpha is \[3\], expected \[2\]"),
        ({"more": torch.zeros(1)}, WeightsMismatchError, "holds the tensor more"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Tensor | None], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        load_model(saved(narrow_dense("dynopool-vgg16"), tmp_path / "d.pth", **changes))


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_see_the_image(name: str) -> None:
    model = narrow_dense(name)
    x = torch.randn(1, 3, 64, 64)
    other = x.clone()
    other[..., 20:40, 20:40] += 1
    with torch.inference_mode():
        found, exact = model.module(x), randomised_copy(name).module.double()(x.double())
        changed = (model.module(other) - found).abs().max()
    assert (found - exact).abs().max() < 1e-4 * found.abs().max()
    assert changed > 1e-3 * found.abs().max()


def randomised_copy(name: str) -> ReferenceModel:
    model = narrow_dense.__wrapped__(name)
    assert isinstance(model, ReferenceModel)
    return model


def test_sizes_by_which_it_is_known() -> None:
    assert dynopool.B0[1] == Stage(24, 2, 3, 6, True)
    assert resize_and_pool(torch.zeros(1, 1, 5, 5), (3, 2)).shape == (1, 1, 3, 2)
    randomise(DynOPool())
