"""Heads in torch.export and in ONNX Runtime, with a free batch and with free sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deploykit.export.graph.two_stage_ops import TRANSLATIONS
from deploykit.models.fuse import fuse_model
from tests.models.families.ultralytics.small_heads import CHANNELS, HEADS, STRIDES, rows_of, seeded


class Levels(nn.Module):
    """Feature maps that follow from one image, as in a network, and the head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.levels = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in zip(CHANNELS, STRIDES, strict=True))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out: Tensor | tuple[Tensor, Tensor] = self.head(*(level(images) for level in self.levels))
        return out


def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Levels(fuse_model(seeded(HEADS[name]))).eval().requires_grad_(False)


def image(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch + width))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Within 1e-3 pixels."""
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def assert_same_best(found: Tensor, expected: Tensor) -> None:
    """The same but for rows of almost equal scores, which may change places, or go at the end."""
    assert found.shape == expected.shape
    assert torch.allclose(found[..., 4], expected[..., 4], rtol=0, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        distance = (ours[:, None] - theirs).abs().amax(2)
        sure = theirs[:, 4] > theirs[-1, 4] + 1e-5
        assert float(distance.amin(0)[sure].max()) < 2e-3


@pytest.mark.parametrize("name", HEADS)
def test_one_program_serves_every_batch(name: str) -> None:
    module = network(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (image(2, 64, 96),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        images = image(size, 64, 96)
        assert_same(rows_of(program, (images,)), rows_of(module, (images,)))


@pytest.mark.parametrize(
    ("name", "free"),
    [
        pytest.param("detect", "shape", marks=pytest.mark.slow),  # tests/export/test_end_to_end.py has a free shape
        ("v10", "batch"),
        pytest.param("pose26", "shape", marks=pytest.mark.slow),
        pytest.param("segment26", "batch", marks=pytest.mark.slow),
        pytest.param("oriented26", "shape", marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_agrees(name: str, free: str, tmp_path: Path) -> None:
    module, dim = network(name), torch.export.Dim
    axes = {0: dim("batch", min=1, max=64)}
    if free == "shape":
        axes |= {2: 32 * dim("h", min=1, max=64), 3: 32 * dim("w", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (image(2, 128, 160),),
            tmp_path / "head.onnx",
            dynamo=True,
            dynamic_shapes=(axes,),
            custom_translation_table=TRANSLATIONS,
            input_names=["images"],
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    sizes = [(1, 128, 160), (3, 128, 160)] if free == "batch" else [(1, 32, 64), (2, 256, 192)]
    for size in sizes:
        images = image(*size)
        found = torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0]))
        same = assert_same if name == "detect" else assert_same_best
        same(found, rows_of(module, (images,)))
