"""What a seam costs: a NAFNet's restoration of a mosaic in tiles against that of the whole, over the overlap.

    python benchmarks/tiles.py --raw colorchart.dng [--weights nafnet.pth] [--side 352] [--tile 96] [--plot seams.png]

Each tile has a mean of its own for the channel attentions, so even a large overlap leaves a difference. With the
attentions of the whole image fixed what is left falls with the overlap, and is rounding once that covers the
receptive field: for this a shallow network (two halvings, a block each) is measured beside the full one. Printed are
the largest differences as a share of the largest correction that the network makes anywhere, how many tiles there are,
and the full network's time as a multiple of the whole image's. Without weights those of both are random (seed 0); a
random network's corrections are as large as the image, so the shares say more than grey levels would.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.nafnet import Nafnet, NafnetConfig, receptive_field, with_frozen_pool
from deploykit.models.registry import create_model, load_model
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.tiles import Tiling, run_tiled
from deploykit.runtime.machine import processor_name, versions
from deploykit.runtime.raw.mosaic import pack, read_raw

OVERLAPS = (0, 8, 16, 24, 32)
SHALLOW = NafnetConfig(16, (1, 1), 1, (1, 1), channels=4)


def main() -> None:
    """Measure, print a table, and draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--raw", type=Path, required=True, metavar="FILE", help="a RAW image; its middle is taken")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a NAFNet of four channels (default: random)")
    parser.add_argument("--side", type=int, default=352, help="of the square that is restored, in cells of 2 x 2")
    parser.add_argument("--tile", type=int, default=96, help="side of a tile, in cells")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the differences (needs matplotlib)")
    args = parser.parse_args()
    planes = pack(read_raw(args.raw))
    top, left = ((side - args.side) // 2 for side in planes.shape[1:])
    image = np.ascontiguousarray(planes[:, top : top + args.side, left : left + args.side])
    networks = {"full": _full(args.weights), "shallow": random_weights(Nafnet(SHALLOW))}
    fields = ", ".join(f"{name} {receptive_field(network)}" for name, network in networks.items())
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {versions()['torch']}")
    print(f"{args.side} x {args.side} cells, tiles of {args.tile}; receptive fields in cells: {fields}\n")
    with torch.inference_mode():
        found = {name: measured(network, image, args.tile) for name, network in networks.items()}
    names = [f"{name}, {what}" for name in networks for what in ("own means", "means of the whole")]
    print(f"| overlap | tiles | {' | '.join(names)} | time |\n|---|---|{'---|' * len(names)}---|")
    for i, overlap in enumerate(OVERLAPS):
        rows = [found[name][i] for name in networks]
        shares = " | ".join(f"{share:.1e}" for row in rows for share in row.shares)
        print(f"| {overlap} | {rows[0].tiles} | {shares} | {rows[0].time:.2f} |")
    if args.plot:
        _draw(found, args.plot)


@dataclass(frozen=True)
class Row:
    """One overlap: how many tiles, the differences with their own means and with those of the whole, and the time."""

    tiles: int
    shares: tuple[float, float]
    time: float


def _full(weights: Path | None) -> Nafnet:
    if weights is None:
        return random_weights(create_model("nafnet-w32-raw").module)
    module = load_model(weights).module
    assert isinstance(module, Nafnet)
    return module


def random_weights(module: torch.nn.Module) -> Nafnet:
    """A NAFNet with random weights (seed 0)."""
    torch.manual_seed(0)
    randomise(module)
    assert isinstance(module, Nafnet)
    return module.eval()


def measured(network: Nafnet, image: Array, tile: int, overlaps: Sequence[int] = OVERLAPS) -> list[Row]:
    """A row for each overlap of a network and planes ``(C, H, W)``."""
    batch = torch.from_numpy(image)[None]
    start = time.perf_counter()
    whole = network(batch)[0].numpy()
    seconds = time.perf_counter() - start
    correction = float(np.abs(whole - image).max())
    frozen = with_frozen_pool(network, batch)
    rows = []
    for overlap in overlaps:
        tiling = Tiling((tile, tile), overlap, 1, network.multiple)
        start = time.perf_counter()
        own = run_tiled(lambda x: network(torch.from_numpy(x)).numpy(), image, tiling)
        ratio = (time.perf_counter() - start) / seconds
        fixed = run_tiled(lambda x: frozen(torch.from_numpy(x)).numpy(), image, tiling)
        own_share, fixed_share = (float(np.abs(found - whole).max()) / correction for found in (own, fixed))
        rows.append(Row(len(tiling.places(image.shape[1:])), (own_share, fixed_share), ratio))
    return rows


def _draw(measured: dict[str, list[Row]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.5, 4.6))
    for (name, rows), colour in zip(measured.items(), ("#D55E00", "#0072B2"), strict=True):
        for place, (what, style) in enumerate((("each tile's own means", "-"), ("means of the whole image", "--"))):
            values = [max(row.shares[place], 1e-8) for row in rows]
            axis.plot(OVERLAPS, values, style, marker="o", color=colour, label=f"{name} network, {what}")
    axis.axhline(1e-5, color="#888888", lw=0.8)
    axis.set(yscale="log", xlabel="overlap, cells of 2 x 2 pixels", ylabel="largest difference, of the correction")
    axis.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="lower center", ncols=2, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
