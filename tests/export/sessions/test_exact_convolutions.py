"""The convolutions of reference values: torch's own numbers in float64, by other sums."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from deploykit.export.sessions import exact_convolutions
from deploykit.export.sessions.exact_convolutions import (
    ExactConvolutions,
    NarrowedError,
    convolve_3x3,
    convolve_in_bands,
    widened,
)
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.models.create.random_weights import randomise
from deploykit.models.layers.conv import Conv, DWConv
from tests.narrow import model_of

ROUNDING = 2.0**-53


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40)
@given(
    sides=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    batch=st.integers(1, 3),
    biased=st.booleans(),
    band=st.sampled_from([1, 2**10, 2**19]),
)
def test_tiles_give_the_sums_within_their_bound(
    sides: tuple[int, int],
    channels: tuple[int, int],
    padding: tuple[int, int],
    batch: int,
    biased: bool,
    band: int,
) -> None:
    given, out = channels
    images, weight = random(0, batch, given, *sides), random(1, out, given, 3, 3)
    bias = random(2, out) if biased else None
    expected = functional.conv2d(images, weight, bias, 1, padding)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exact_convolutions, "BAND", band)
        patched.setattr(exact_convolutions, "LEAST_TILES", 1)
        found = convolve_3x3(images, weight, bias, padding)
    bound = 36100 * (given + 72) * ROUNDING * given * float(images.abs().max() * weight.abs().max())
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert float((found - expected).abs().max()) < bound / 100  # the bound is for the worst signs


@settings(max_examples=40)
@given(
    sides=st.tuples(st.integers(7, 40), st.integers(7, 40)),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    windows=st.sampled_from([1, 500, 2**18]),
)
def test_bands_give_torchs_numbers(
    sides: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    windows: int,
) -> None:
    images, weight, bias = random(0, 2, 3, *sides), random(1, 5, 3, *kernel), random(2, 5)
    expected = functional.conv2d(images, weight, bias, stride, padding)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exact_convolutions, "WINDOWS", windows)
        patched.setattr(exact_convolutions, "LEAST_TILES", 1)
        found = convolve_in_bands(images, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


BLOCKS = [
    lambda: Conv(32, 40, 3),
    lambda: Conv(32, 40, 3, 2, act=nn.LeakyReLU(0.1)),
    lambda: Conv(32, 40, 1, act=nn.Hardswish()),
    lambda: Conv(32, 40, 1, 2, act=nn.SiLU(inplace=True)),
    lambda: Conv(32, 40, 3, d=2, act=nn.Identity()),
    lambda: Conv(8, 40, (5, 1), act=nn.ReLU(inplace=True)),
    lambda: Conv(32, 40, 3).fuse(""),
    lambda: Conv.folded(nn.Conv2d(32, 33, 1), nn.Identity()),
    lambda: DWConv(32, 32, 3),
]


@pytest.mark.parametrize("sides", [(45, 46), (9, 6), (36, 40)], ids=str)
@pytest.mark.parametrize("made", BLOCKS)
def test_a_block_in_parts_gives_the_numbers_of_the_whole(made: Callable[[], Conv], sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = made().eval()
    randomise(block)
    network = nn.Sequential(block)
    before, images = copy.deepcopy(network.state_dict()), random(3, 2, block.conv.in_channels, *sides)
    new = widened(network)
    assert type(new[0]) is not type(block)
    with torch.inference_mode():
        expected = copy.deepcopy(network).double()(images.clone())
        with ExactConvolutions():
            found = new(images)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)
            assert torch.equal(new(images), found)
    assert found.is_contiguous()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class _Softmaxed(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


def _hooked() -> Conv:
    block = Conv(32, 32, 3)
    block.bn.register_forward_hook(lambda module, given, found: found * 2.0)
    return block


def _without_statistics() -> Conv:
    block = Conv(32, 32, 3)
    block.bn = nn.BatchNorm2d(32, track_running_stats=False)
    return block


@pytest.mark.parametrize(
    "made",
    [lambda: Conv(32, 32, 3, act=nn.Softmax(-1)), lambda: _Softmaxed(32, 32, 3), _hooked, _without_statistics],
    ids=["another activation", "another block", "a hook", "statistics of the map"],
)
def test_what_is_not_done_value_by_value_stays_a_block(made: Callable[[], Conv]) -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(made()).eval(), random(3, 1, 32, 45, 46)
    new = widened(network)
    assert type(new[0]) is type(network[0])
    with torch.inference_mode(), ExactConvolutions():
        torch.testing.assert_close(new(images), network.double()(images), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_large_map_is_normalised_and_activated_in_parts(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    new = widened(nn.Sequential(Conv(64, 64, kernel)).eval())
    sizes: list[int] = []
    silu = functional.silu

    def activated(x: Tensor, inplace: bool = False) -> Tensor:
        assert inplace
        sizes.append(x.numel())
        return silu(x, inplace)

    monkeypatch.setattr(functional, "silu", activated)
    with torch.inference_mode(), ExactConvolutions():
        found = new(random(3, 1, 64, 160, 160))
    assert sum(sizes) == found.numel()
    assert max(sizes) < found.numel() / 4


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 8, (5, 1), padding=(2, 0)),
        nn.Conv2d(32, 32, 3),
    ],
    ids=str,
)
def test_every_convolution_of_a_network_is_exact_and_its_float32_weights_are_taken(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    images = random(3, 2, 32, 45, 46)
    with torch.inference_mode():
        expected = torch.nn.Sequential(layer).double()(images)
        layer.float()
        with ExactConvolutions():
            found = layer(images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


class Follower(nn.Module):
    """A network that computes in the type of its first weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.first(images.to(self.first.weight.dtype))))
        return out


class Reader(Follower):
    """A network that multiplies by a linear layer's weights itself."""

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.first(images)) @ self.last.weight.t() + self.last.bias
        return out


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), out=st.integers(1, 9), bias=st.booleans())
def test_a_linear_layer_is_exact_with_float32_weights(sizes: list[int], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, values = nn.Linear(sizes[-1], out, bias=bias), random(3, *sizes)
    new = widened(layer)
    with torch.inference_mode(), ExactConvolutions():
        assert torch.equal(new(values), functional.linear(values, layer.weight.double(), getattr(new, "bias", None)))
        with pytest.raises(NarrowedError, match="linear layer"):
            new(values.float())


def test_plain_convolutions_share_their_weights_and_all_else_is_wide() -> None:
    network = Follower().eval()
    new = widened(network)
    types = {name: p.dtype for name, p in new.named_parameters()}
    assert {types.pop("first.weight"), types.pop("last.weight")} == {torch.float32}
    assert set(types.values()) == {torch.float64}
    assert new.get_parameter("first.weight") is network.first.weight
    assert {p.dtype for p in widened(network, whole=True).parameters()} == {torch.float64}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("kind", "error"), [(Follower, NarrowedError), (Reader, RuntimeError)])
def test_a_network_that_reads_its_weights_is_noticed_and_then_widened_whole(
    kind: type[Follower], error: type[Exception]
) -> None:
    model = model_of("few")
    follower = kind().eval()
    with pytest.raises(error, match=r"got torch\.float32|same dtype"), ExactConvolutions():
        widened(follower)(random(0, 1, 3, 8, 8))
    session = TorchSession(follower, spec_of_module(model), exact=True)
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    with torch.inference_mode():
        expected = widened(follower, whole=True)(torch.from_numpy(image).double()).numpy()
    assert session.run({"images": image})["output"].tobytes() == expected.tobytes()


def test_images_that_run_at_the_same_time_give_what_each_gives_alone() -> None:
    model = model_of("few")
    images = [np.random.default_rng(seed).random((1, 3, 64, 64), np.float32) for seed in range(6)]
    session = TorchSession(model.module, spec_of_module(model), exact=True, threads=3)
    alone = [session.run({"images": image})["output"] for image in images]
    before = torch.get_num_threads()
    with session.side_by_side(len(images)) as count, ThreadPoolExecutor(count) as pool:
        together = list(pool.map(lambda image: session.run({"images": image})["output"], images))
    assert count == 3
    assert torch.get_num_threads() == before
    for a, b in zip(alone, together, strict=True):
        assert np.abs(a - b).max() < 1e-9
