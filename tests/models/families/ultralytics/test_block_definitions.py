"""Blocks against a second definition: functions of named tensors, image by image and head by head.

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.ultralytics.blocks.attention import C2PSA, PSA, A2C2f, AAttn, Attention, PSABlock
from deploykit.models.families.ultralytics.blocks.c2f import C2, SPPF, Bottleneck, C2f, C3k, C3k2
from deploykit.models.families.ultralytics.blocks.cib import CIB, RepVGGDW, SCDown
from deploykit.models.families.ultralytics.blocks.elan import (
    ELAN1,
    SPPELAN,
    AConv,
    ADown,
    CBFuse,
    CBLinear,
    RepConv,
    RepNCSPELAN4,
)
from deploykit.models.layers.csp import C3
from tests.models.families.ultralytics.block_table import image, prepared

EPS = 1e-3


class Weights:
    """The tensors below a name."""

    def __init__(self, tensors: Mapping[str, Tensor], path: str = "") -> None:
        self.tensors, self.path = tensors, path

    def __truediv__(self, name: str | int) -> Weights:
        return Weights(self.tensors, f"{self.path}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.path + name]

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{self.path}{name}.") for key in self.tensors)


def conv(w: Weights, x: Tensor, stride: int = 1, *, act: bool = True) -> Tensor:
    """Convolution, batch norm, SiLU; the groups are what the weights' shape says."""
    kernel = w["conv.weight"]
    padding = kernel.shape[2] // 2, kernel.shape[3] // 2
    y = functional.conv2d(x, kernel, None, stride, padding, groups=x.shape[1] // kernel.shape[1])
    gain = w["bn.weight"] / (w["bn.running_var"] + EPS).sqrt()
    y = y * gain[:, None, None] + (w["bn.bias"] - w["bn.running_mean"] * gain)[:, None, None]
    return y / (1 + torch.exp(-y)) if act else y


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


def window(x: Tensor, k: int) -> Tensor:
    """The largest of the k x k values around each pixel."""
    around = functional.pad(x, (k // 2,) * 4, value=-math.inf)
    height, width = x.shape[2:]
    shifted = [around[:, :, i : i + height, j : j + width] for i in range(k) for j in range(k)]
    return torch.stack(shifted).amax(0)


def mean_of_four(x: Tensor) -> Tensor:
    return (x[:, :, :-1, :-1] + x[:, :, 1:, :-1] + x[:, :, :-1, 1:] + x[:, :, 1:, 1:]) / 4


def bottleneck(w: Weights, x: Tensor, *, add: bool = True) -> Tensor:
    y = conv(w / "cv2", conv(w / "cv1", x))
    return x + y if add else y


def c3(w: Weights, x: Tensor, block: Callable[[Weights, Tensor], Tensor] = bottleneck) -> Tensor:
    y, i = conv(w / "cv1", x), 0
    while w.has(f"m.{i}"):
        y, i = block(w / "m" / i, y), i + 1
    return conv(w / "cv3", torch.cat((y, conv(w / "cv2", x)), 1))


def c2(w: Weights, x: Tensor) -> Tensor:
    first, second = halves(conv(w / "cv1", x))
    i = 0
    while w.has(f"m.{i}"):
        first, i = bottleneck(w / "m" / i, first), i + 1
    return conv(w / "cv2", torch.cat((first, second), 1))


def c2f(w: Weights, x: Tensor, block: Callable[[Weights, Tensor], Tensor] = bottleneck) -> Tensor:
    kept, i = [*halves(conv(w / "cv1", x))], 0
    while w.has(f"m.{i}"):
        kept.append(block(w / "m" / i, kept[-1]))
        i += 1
    return conv(w / "cv2", torch.cat(kept, 1))


def c2f_without_shortcut(w: Weights, x: Tensor) -> Tensor:
    return c2f(w, x, lambda inner, y: bottleneck(inner, y, add=False))


def one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``(d, N)`` of a head: each query's mean of the values, weighted by exp of its product with each key."""
    outputs = []
    for i in range(q.shape[1]):
        scores = (q[:, i : i + 1] * k).sum(0) / math.sqrt(q.shape[0])
        weights = torch.exp(scores - scores.max())
        outputs.append((v * (weights / weights.sum())).sum(1))
    return torch.stack(outputs, 1)


def attention(w: Weights, x: Tensor, heads: int, *, keys: int, areas: int = 1) -> Tensor:
    """``keys``: channels of a head's queries, and of its keys; ``areas``: parts of the map that do not see others."""
    batch, channels, height, width = x.shape
    values = channels // heads
    qkv = conv(w / "qkv", x, act=False).flatten(2)
    seen, passed = torch.empty(batch, channels, height * width), torch.empty(batch, channels, height * width)
    length = height * width // areas
    for b in range(batch):
        for head in range(heads):
            start = head * (2 * keys + values)
            q, k, v = qkv[b, start : start + 2 * keys + values].split([keys, keys, values])
            rows = slice(head * values, (head + 1) * values)
            passed[b, rows] = v
            for area in range(areas):
                run = slice(area * length, (area + 1) * length)
                seen[b, rows, run] = one_head(q[:, run], k[:, run], v[:, run])
    maps = seen.view(x.shape) + conv(w / "pe", passed.view(x.shape), act=False)
    return conv(w / "proj", maps, act=False)


def psa_block(w: Weights, x: Tensor, heads: int = 1) -> Tensor:
    x = x + attention(w / "attn", x, heads, keys=x.shape[1] // heads // 2)
    return x + conv(w / "ffn" / 1, conv(w / "ffn" / 0, x), act=False)


def psa(w: Weights, x: Tensor) -> Tensor:
    first, second = halves(conv(w / "cv1", x))
    return conv(w / "cv2", torch.cat((first, psa_block(w, second)), 1))


def c2psa(w: Weights, x: Tensor) -> Tensor:
    first, second = halves(conv(w / "cv1", x))
    second = psa_block(w / "m" / 1, psa_block(w / "m" / 0, second))
    return conv(w / "cv2", torch.cat((first, second), 1))


def a_block(w: Weights, x: Tensor, areas: int) -> Tensor:
    x = x + attention(w / "attn", x, x.shape[1] // 32, keys=32, areas=areas)
    return x + conv(w / "mlp" / 1, conv(w / "mlp" / 0, x), act=False)


def a2c2f(w: Weights, x: Tensor) -> Tensor:
    kept = [conv(w / "cv1", x)]
    for i in range(2):
        kept.append(a_block(w / "m" / i / 1, a_block(w / "m" / i / 0, kept[-1], 4), 4))
    return x + w["gamma"][:, None, None] * conv(w / "cv2", torch.cat(kept, 1))


def a2c2f_of_c3k(w: Weights, x: Tensor) -> Tensor:
    first = conv(w / "cv1", x)
    return conv(w / "cv2", torch.cat((first, c3(w / "m" / 0, first)), 1))


def pooled(w: Weights, x: Tensor, last: str, *, act: bool, add: bool = False) -> Tensor:
    kept = [conv(w / "cv1", x, act=act)]
    kept += [window(kept[0], 5), window(kept[0], 9), window(kept[0], 13)]
    y = conv(w / last, torch.cat(kept, 1))
    return x + y if add else y


def two_branches(w: Weights, x: Tensor, first: str, second: str) -> Tensor:
    return functional.silu(conv(w / first, x, act=False) + conv(w / second, x, act=False))


def cib(w: Weights, x: Tensor) -> Tensor:
    y = conv(w / "cv1" / 1, conv(w / "cv1" / 0, x))
    y = two_branches(w / "cv1" / 2, y, "conv", "conv1")
    return x + conv(w / "cv1" / 4, conv(w / "cv1" / 3, y))


def rep_bottleneck(w: Weights, x: Tensor) -> Tensor:
    return x + conv(w / "cv2", two_branches(w / "cv1", x, "conv1", "conv2"))


def elan(w: Weights, x: Tensor, step: Callable[[Weights, Tensor], Tensor]) -> Tensor:
    first, second = halves(conv(w / "cv1", x))
    once = step(w / "cv2", second)
    twice = step(w / "cv3", once)
    return conv(w / "cv4", torch.cat((first, second, once, twice), 1))


def rep_elan(w: Weights, x: Tensor) -> Tensor:
    return elan(w, x, lambda v, y: conv(v / 1, c3(v / 0, y, rep_bottleneck)))


def a_down(w: Weights, x: Tensor) -> Tensor:
    first, second = halves(mean_of_four(x))
    largest = window(second, 3)[:, :, ::2, ::2]
    return torch.cat((conv(w / "cv1", first, 2), conv(w / "cv2", largest)), 1)


def c3k2_with_attention(w: Weights, x: Tensor) -> Tensor:
    return c2f(w, x, lambda v, y: psa_block(v / 1, bottleneck(v / 0, y)))


Second = Callable[[Weights, Tensor], Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], Second]] = {
    "Bottleneck": (lambda: Bottleneck(8, 8), bottleneck),
    "Bottleneck that cannot add": (lambda: Bottleneck(8, 6), lambda w, x: bottleneck(w, x, add=False)),
    "C2 works on the first half": (lambda: C2(8, 12, 2), c2),
    "C2f works on the second half": (lambda: C2f(8, 12, 2, True), c2f),
    "C2f does not add by itself": (lambda: C2f(8, 12, 2), c2f_without_shortcut),
    "C3": (lambda: C3(8, 12, 2), c3),
    "C3k": (lambda: C3k(8, 12, 2), c3),
    "C3k2 adds by itself": (lambda: C3k2(8, 12, 2), c2f),
    "C3k2 of C3k": (lambda: C3k2(8, 12, 2, True), lambda w, x: c2f(w, x, c3)),
    "C3k2 with attention": (lambda: C3k2(8, 16, 1, True, attn=True), c3k2_with_attention),
    "Attention": (lambda: Attention(24, 3), lambda w, x: attention(w, x, 3, keys=4)),
    "PSABlock": (lambda: PSABlock(16, heads=2), lambda w, x: psa_block(w, x, 2)),
    "PSA works on the second half": (lambda: PSA(16, 16), psa),
    "C2PSA works on the second half": (lambda: C2PSA(16, 16, 2), c2psa),
    "C2PSA has a head for 64 channels": (
        lambda: C2PSA(256, 256, 1),
        lambda w, x: conv(
            w / "cv2",
            torch.cat(((y := conv(w / "cv1", x))[:, :128], psa_block(w / "m" / 0, y[:, 128:], 2)), 1),
        ),
    ),
    "AAttn of the whole map": (lambda: AAttn(24, 3), lambda w, x: attention(w, x, 3, keys=8)),
    "AAttn within areas": (lambda: AAttn(24, 3, 4), lambda w, x: attention(w, x, 3, keys=8, areas=4)),
    "A2C2f with a residual": (lambda: A2C2f(128, 128, 2, True, 4, True, 1.2), a2c2f),
    "A2C2f of C3k": (lambda: A2C2f(8, 12, 1, False, -1), a2c2f_of_c3k),
    "SPPF": (lambda: SPPF(8, 12), lambda w, x: pooled(w, x, "cv2", act=True)),
    "SPPF of YOLO26": (
        lambda: SPPF(8, 8, 5, 3, True, nn.Identity()),
        lambda w, x: pooled(w, x, "cv2", act=False, add=True),
    ),
    "SPPELAN": (lambda: SPPELAN(8, 12, 6), lambda w, x: pooled(w, x, "cv5", act=True)),
    "SCDown": (lambda: SCDown(8, 12, 3, 2), lambda w, x: conv(w / "cv2", conv(w / "cv1", x), 2, act=False)),
    "RepVGGDW": (lambda: RepVGGDW(8), lambda w, x: two_branches(w, x, "conv", "conv1")),
    "RepConv": (lambda: RepConv(8, 12), lambda w, x: two_branches(w, x, "conv1", "conv2")),
    "CIB with a large kernel": (lambda: CIB(8, 8, True, 1.0, True), cib),
    "ELAN1": (lambda: ELAN1(8, 12, 8, 6), lambda w, x: elan(w, x, conv)),
    "RepNCSPELAN4": (lambda: RepNCSPELAN4(8, 12, 8, 6, 2), rep_elan),
    "AConv": (lambda: AConv(8, 12), lambda w, x: conv(w / "cv1", mean_of_four(x), 2)),
    "ADown": (lambda: ADown(8, 12), a_down),
}


@pytest.mark.parametrize(("make", "second"), CASES.values(), ids=CASES.keys())
def test_a_block_computes_what_its_second_definition_does(make: Callable[[], nn.Module], second: Second) -> None:
    module = prepared(make).double()
    state = module.state_dict()
    channels = next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    channels *= 2 if isinstance(module, ADown) else 1  # its first convolution sees a half
    x = image(channels, 8, 6).double()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            torch.testing.assert_close(module(x), second(Weights(state), x), rtol=1e-10, atol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [AConv, ADown])
@pytest.mark.parametrize(("before", "after"), [((8, 12), (4, 6)), ((7, 12), (3, 6)), ((2, 3), (1, 1))])
def test_the_ways_to_halve_a_map_round_down(
    kind: type[nn.Module], before: tuple[int, int], after: tuple[int, int]
) -> None:
    found = prepared(lambda: kind(8, 12))(image(8, *before))
    assert found.shape == (2, 12, *after)


def test_a_sum_of_parts_takes_the_named_part_of_each_input_and_the_nearest_pixel() -> None:
    parts = prepared(lambda: CBLinear(3, (2, 4)))
    x, small, last = image(3, 4, 6), image(4, 2, 3, seed=2), image(4, 8, 12, seed=3)
    first = parts(x)
    assert [tuple(part.shape) for part in first] == [(2, 2, 4, 6), (2, 4, 4, 6)]
    every = functional.conv2d(x, parts.conv.weight, parts.conv.bias)
    torch.testing.assert_close(torch.cat(first, 1), every)
    found = CBFuse((1, 0))(first, (small, image(9, 2, 3)), last)
    rows, columns = torch.arange(8), torch.arange(12)
    expected = (
        last + every[:, 2:][:, :, rows // 2][:, :, :, columns // 2] + small[:, :, rows // 4][:, :, :, columns // 4]
    )
    torch.testing.assert_close(found, expected)


def test_what_no_tensor_tells_is_a_plain_attribute() -> None:
    """A loader sets them to what a pickled module has, and the block computes with them from then on."""
    x = image(16, 4, 6)
    for block, name, value in (
        (Attention(16, 2), "scale", 2.0),
        (AAttn(16, 2), "area", 4),
        (SPPF(16, 16), "add", True),
        (Bottleneck(16, 16), "add", False),
        (CIB(16, 16), "add", False),
        (PSABlock(16, heads=2), "add", False),
    ):
        module = prepared(lambda block=block: block)
        with torch.no_grad():
            before = module(x)
            setattr(module, name, value)
            after = module(x)
        assert float((before - after).abs().max()) > 0.01, (type(block).__name__, name)
    with torch.no_grad():
        heads = prepared(lambda: Attention(16, 2))
        as_built = heads(x)
        heads.num_heads, heads.key_dim, heads.head_dim, heads.scale = 1, 8, 16, 8**-0.5
        torch.testing.assert_close(heads(x), attention(Weights(heads.state_dict()), x, 1, keys=8), rtol=1e-4, atol=1e-5)
        assert float((heads(x) - as_built).abs().max()) > 0.01


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_an_area_sees_nothing_of_the_others_but_through_the_convolution(
    heads: int, height: int, width: int, area: int, seed: int
) -> None:
    """With the convolution of the values at zero, another first area leaves the rest as it is."""
    block = cast(AAttn, prepared(lambda: AAttn(4 * heads, heads, area), seed))
    nn.init.zeros_(block.pe.conv.weight)
    x = image(4 * heads, area * height, width, 1, seed)
    other = x.clone()
    other[:, :, :height] += 1
    with torch.no_grad():
        before, after = block(x), block(other)
    torch.testing.assert_close(after[:, :, height:], before[:, :, height:])
    assert not torch.equal(after[:, :, :height], before[:, :, :height])
