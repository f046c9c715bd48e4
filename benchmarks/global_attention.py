"""What ViTDet's attention over a whole map takes in memory and time, in each of its forms.

    python benchmarks/global_attention.py [--cells 64] [--device cuda] [--rounds 10]

One block's attention of ViT-B (12 heads of 64 channels) on ``cells x cells`` cells, one image, in PyTorch: as it is
defined, with the positions of rows and columns added to the logits; folded into one softmax between two products, with
the queries in parts, as exports have it; and that with PyTorch's fused attention. On a GPU in float32 and float16 with
the peak of CUDA's memory; on a CPU in float32 with the peak of the process, each form in a process of its own. The
time is of forms in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
from interleaved import interleaved
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.vitdet import relative_attention
from deploykit.models.families.vitdet.relative_attention import RelativeAttention
from deploykit.runtime.machine import peak_memory, processor_name, reset_peak_memory, resident_memory, versions

DIM, HEADS = 768, 12
FORMS = ("as defined", "folded, in parts", "folded, whole", "folded, fused kernel")


class Folded(nn.Module):
    """The folded attention, with other constants of its module."""

    def __init__(self, folded: nn.Module, patches: Mapping[str, Any]) -> None:
        super().__init__()
        self.folded, self.patches = folded, patches

    def forward(self, x: Tensor) -> Tensor:
        with mock.patch.multiple(relative_attention, **self.patches):
            out: Tensor = self.folded(x)
        return out


def form(name: str, cells: int) -> nn.Module:
    """A module on maps ``(1, cells, cells, DIM)``."""
    torch.manual_seed(0)
    plain = RelativeAttention(DIM, HEADS, cells).eval().requires_grad_(False)
    plain.random_weights(1.0)
    if name == "as defined":
        return plain
    patches: dict[str, Any] = {"LOGITS": relative_attention.LOGITS if name == "folded, in parts" else 1 << 62}
    if name == "folded, fused kernel":
        patches["attend"] = lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return Folded(plain.fuse(""), patches)


def peak_of(name: str, cells: int) -> int:
    """Bytes that the process grew by at most, on the CPU."""
    torch.set_num_threads(1)
    run = form(name, cells)
    x = torch.randn(1, cells, cells, DIM)
    with torch.inference_mode():
        run(x[:, :8, :8])
        before = resident_memory()
        reset_peak_memory()
        run(x)
    return (peak_memory() or 0) - (before or 0)


def _sum(network: nn.Module, x: Tensor) -> float:
    """A run whose end is waited for."""
    return float(network(x).float().sum())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{processor_name()}, {torch.get_num_threads()} threads"
    print(f"{where}, torch {versions()['torch']}; {args.cells} x {args.cells} cells, {HEADS} heads of {DIM // HEADS}")
    print(f"logits: {HEADS * args.cells**4 * 4 / 2**30:.2f} GiB in float32\n")
    print("| type | form | peak memory | median time | of the first | largest difference |\n|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.float16) if cuda else (torch.float32,):
        x = torch.randn(1, args.cells, args.cells, DIM, device=args.device, dtype=dtype)
        runs = {name: form(name, args.cells).to(args.device, dtype) for name in FORMS}
        with torch.inference_mode():
            expected = runs[FORMS[0]](x)
            differences = {
                name: float((run(x) - expected).abs().max() / expected.abs().max()) for name, run in runs.items()
            }
            times = interleaved({name: partial(_sum, run, x) for name, run in runs.items()}, args.rounds)
            for name, run in runs.items():
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    run(x)
                    peak = torch.cuda.max_memory_allocated() - before
                else:
                    with multiprocessing.get_context("spawn").Pool(1) as pool:
                        peak = pool.apply(peak_of, (name, args.cells))
                ratio = statistics.median(a / b for a, b in zip(times[name], times[FORMS[0]], strict=True))
                print(
                    f"| {str(dtype).removeprefix('torch.')} | {name} | {peak / 2**30:.2f} GiB | "
                    f"{statistics.median(times[name]):.1f} ms | {ratio:.2f} x | {differences[name]:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
