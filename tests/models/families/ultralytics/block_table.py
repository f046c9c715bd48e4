"""Every block of the ultralytics-format families, small, with the names that its weights have in the originals' files.

A name with ``conv`` stands for a convolution and its batch norm where it ends in ``+``, and for itself otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.blocks.attention import (
    C2PSA,
    PSA,
    A2C2f,
    AAttn,
    ABlock,
    Attention,
    C2fPSA,
    PSABlock,
)
from deploykit.models.families.ultralytics.blocks.c2f import C1, C2, C3, SPP, SPPF, Bottleneck, C2f, C3k, C3k2, C3x
from deploykit.models.families.ultralytics.blocks.cib import CIB, C2fCIB, RepVGGDW, SCDown
from deploykit.models.families.ultralytics.blocks.elan import (
    ELAN1,
    SPPELAN,
    AConv,
    ADown,
    CBLinear,
    RepBottleneck,
    RepConv,
    RepCSP,
    RepNCSPELAN4,
)

__all__ = ["BLOCKS", "Case", "image", "prepared"]

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
C3_NAMES = "cv1+ cv2+ cv3+ m.0.cv1+ m.0.cv2+ m.1.cv1+ m.1.cv2+"
ATTENTION = "attn.qkv+ attn.proj+ attn.pe+"
REP_CSP = "cv1+ cv2+ cv3+ m.0.cv1.conv1+ m.0.cv1.conv2+ m.0.cv2+"


@dataclass(frozen=True)
class Case:
    """``names``: the block's convolutions (``+``: with a batch norm) and other tensors, apart by spaces."""

    make: Callable[[], nn.Module]
    names: str
    channels: int = 8

    @property
    def keys(self) -> set[str]:
        """The state dict's names."""
        return set(self._keys())

    def _keys(self) -> Iterator[str]:
        for name in self.names.split():
            if name.endswith("+"):
                yield f"{name[:-1]}.conv.weight"
                yield from (f"{name[:-1]}.bn.{each}" for each in BN)
            else:
                yield name


def within(prefix: str, names: str) -> str:
    return " ".join(f"{prefix}.{name}" for name in names.split())


BLOCKS: dict[str, Case] = {
    "Bottleneck": Case(lambda: Bottleneck(8, 8), "cv1+ cv2+"),
    "Bottleneck of other widths": Case(lambda: Bottleneck(8, 12, g=2), "cv1+ cv2+"),
    "C1": Case(lambda: C1(8, 12, 2), "cv1+ m.0+ m.1+"),
    "C2": Case(lambda: C2(8, 12, 2), "cv1+ cv2+ m.0.cv1+ m.0.cv2+ m.1.cv1+ m.1.cv2+"),
    "C2f": Case(lambda: C2f(8, 12, 2, True), "cv1+ cv2+ m.0.cv1+ m.0.cv2+ m.1.cv1+ m.1.cv2+"),
    "C3": Case(lambda: C3(8, 12, 2), C3_NAMES),
    "C3k": Case(lambda: C3k(8, 12, 2), C3_NAMES),
    "C3x": Case(lambda: C3x(8, 12, 2), C3_NAMES),
    "C3k2": Case(lambda: C3k2(8, 12, 2), "cv1+ cv2+ m.0.cv1+ m.0.cv2+ m.1.cv1+ m.1.cv2+"),
    "C3k2 of C3k": Case(lambda: C3k2(8, 12, 1, True), f"cv1+ cv2+ {within('m.0', C3_NAMES)}"),
    "C3k2 with attention": Case(
        lambda: C3k2(8, 16, 1, True, attn=True),
        f"cv1+ cv2+ m.0.0.cv1+ m.0.0.cv2+ {within('m.0.1', f'{ATTENTION} ffn.0+ ffn.1+')}",
    ),
    "SPP": Case(lambda: SPP(8, 12), "cv1+ cv2+"),
    "SPPF": Case(lambda: SPPF(8, 12), "cv1+ cv2+"),
    "SPPF of YOLO26": Case(lambda: SPPF(8, 8, 5, 3, True, nn.Identity()), "cv1+ cv2+"),
    "Attention": Case(lambda: Attention(8, 2), "qkv+ proj+ pe+"),
    "PSABlock": Case(lambda: PSABlock(8, heads=2), f"{ATTENTION} ffn.0+ ffn.1+"),
    "PSA": Case(lambda: PSA(8, 8), f"cv1+ cv2+ {ATTENTION} ffn.0+ ffn.1+"),
    "C2PSA": Case(lambda: C2PSA(8, 8, 1), f"cv1+ cv2+ {within('m.0', f'{ATTENTION} ffn.0+ ffn.1+')}"),
    "C2fPSA": Case(lambda: C2fPSA(8, 8, 1), f"cv1+ cv2+ {within('m.0', f'{ATTENTION} ffn.0+ ffn.1+')}"),
    "AAttn": Case(lambda: AAttn(8, 2, 4), "qkv+ proj+ pe+"),
    "ABlock": Case(lambda: ABlock(8, 2, 1.2, 4), f"{ATTENTION} mlp.0+ mlp.1+"),
    "A2C2f": Case(
        lambda: A2C2f(8, 64, 1, True, 4),
        f"cv1+ cv2+ {within('m.0.0', f'{ATTENTION} mlp.0+ mlp.1+')} {within('m.0.1', f'{ATTENTION} mlp.0+ mlp.1+')}",
    ),
    "A2C2f with a residual": Case(
        lambda: A2C2f(64, 64, 1, True, 1, True, 1.2),
        f"gamma cv1+ cv2+ {within('m.0.0', f'{ATTENTION} mlp.0+ mlp.1+')} "
        f"{within('m.0.1', f'{ATTENTION} mlp.0+ mlp.1+')}",
        64,
    ),
    "A2C2f of C3k": Case(lambda: A2C2f(8, 12, 1, False, -1), f"cv1+ cv2+ {within('m.0', C3_NAMES)}"),
    "SCDown": Case(lambda: SCDown(8, 12, 3, 2), "cv1+ cv2+"),
    "RepVGGDW": Case(lambda: RepVGGDW(8), "conv+ conv1+"),
    "CIB": Case(lambda: CIB(8, 8), "cv1.0+ cv1.1+ cv1.2+ cv1.3+ cv1.4+"),
    "CIB with a large kernel": Case(
        lambda: CIB(8, 8, True, 1.0, True), "cv1.0+ cv1.1+ cv1.2.conv+ cv1.2.conv1+ cv1.3+ cv1.4+"
    ),
    "C2fCIB": Case(lambda: C2fCIB(8, 12, 1, True), f"cv1+ cv2+ {within('m.0', 'cv1.0+ cv1.1+ cv1.2+ cv1.3+ cv1.4+')}"),
    "RepConv": Case(lambda: RepConv(8, 12), "conv1+ conv2+"),
    "RepBottleneck": Case(lambda: RepBottleneck(8, 8), "cv1.conv1+ cv1.conv2+ cv2+"),
    "RepCSP": Case(lambda: RepCSP(8, 12, 1), REP_CSP),
    "RepNCSPELAN4": Case(
        lambda: RepNCSPELAN4(8, 12, 8, 6, 1),
        f"cv1+ {within('cv2.0', REP_CSP)} cv2.1+ {within('cv3.0', REP_CSP)} cv3.1+ cv4+",
    ),
    "ELAN1": Case(lambda: ELAN1(8, 12, 8, 6), "cv1+ cv2+ cv3+ cv4+"),
    "AConv": Case(lambda: AConv(8, 12), "cv1+"),
    "ADown": Case(lambda: ADown(8, 12), "cv1+ cv2+"),
    "SPPELAN": Case(lambda: SPPELAN(8, 12, 6), "cv1+ cv5+"),
    "CBLinear": Case(lambda: CBLinear(8, (4, 6)), "conv.weight conv.bias"),
}
"""``CBFuse`` has no weights."""


def prepared(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A block with random weights, for inference."""
    torch.manual_seed(seed)
    module = make().eval()
    randomise(module)
    return module


def image(channels: int, height: int = 8, width: int = 12, batch: int = 2, seed: int = 1) -> Tensor:
    """Seeded normal values ``(batch, channels, height, width)``."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
