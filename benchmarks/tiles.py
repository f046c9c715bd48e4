"""What a seam costs: a NAFNet's restoration of a mosaic in tiles against that of the whole, over the overlap.

    python benchmarks/tiles.py --raw colorchart.dng [--weights nafnet.pth] [--side 320] [--tile 128] [--plot seams.png]

Each tile has a mean of its own for the channel attentions, so even a large overlap leaves a difference; with the
attentions of the whole picture fixed what is left falls with the overlap, and is rounding once it covers the receptive
field. Printed are the largest and the mean difference of both, in parts of the range from black to white, how many
tiles there are, and the time as a multiple of the whole picture's. Without weights they are random (seed 0), of the
layout of nafnet-w32-raw.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from deploykit.models._random import randomise
from deploykit.models._registry import create_model, load_model
from deploykit.models.nafnet import Nafnet, receptive_field, with_frozen_pool
from deploykit.runtime.machine import processor_name, versions
from deploykit.runtime.raw import pack, read_raw
from deploykit.runtime.session import Array
from deploykit.runtime.tiles import Tiling, run_tiled

OVERLAPS = (0, 8, 16, 24, 32)


def main() -> None:
    """Measure, print a table, and draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--raw", type=Path, required=True, metavar="FILE", help="a RAW picture; its middle is taken")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a NAFNet of four channels (default: random)")
    parser.add_argument("--side", type=int, default=352, help="of the square that is restored, in cells of 2 x 2")
    parser.add_argument("--tile", type=int, default=96, help="side of a tile, in cells")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the differences (needs matplotlib)")
    args = parser.parse_args()
    network = _network(args.weights)
    planes = pack(read_raw(args.raw))
    top, left = ((side - args.side) // 2 for side in planes.shape[1:])
    picture = np.ascontiguousarray(planes[:, top : top + args.side, left : left + args.side])
    image = torch.from_numpy(picture)[None]
    known = versions()
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {known['torch']}")
    print(f"{args.side} x {args.side} cells, tiles of {args.tile}; receptive field {receptive_field(network)} cells\n")
    with torch.inference_mode():
        start = time.perf_counter()
        whole = network(image)[0].numpy()
        seconds = time.perf_counter() - start
        frozen = with_frozen_pool(network, image)
        rows = [_row(network, frozen, picture, whole, args.tile, overlap, seconds) for overlap in OVERLAPS]
    print("| overlap | tiles | own means, largest | mean | means of the whole, largest | mean | time |")
    print("|---|---|---|---|---|---|---|")
    for overlap, tiles, own, fixed, ratio in rows:
        cells = (f"{overlap}", f"{tiles}", *(f"{v:.1e}" for v in (*own, *fixed)), f"{ratio:.2f}")
        print(f"| {' | '.join(cells)} |")
    if args.plot:
        _draw(rows, args.plot)


Row = tuple[int, int, tuple[float, float], tuple[float, float], float]


def _network(weights: Path | None) -> Nafnet:
    if weights is not None:
        module = load_model(weights).module
    else:
        torch.manual_seed(0)
        module = create_model("nafnet-w32-raw").module
        randomise(module)
    assert isinstance(module, Nafnet)
    return module.eval()


def _row(network: Nafnet, frozen: Nafnet, picture: Array, whole: Array, tile: int, overlap: int, seconds: float) -> Row:
    tiling = Tiling((tile, tile), overlap, 1, network.multiple)

    def differences(module: Nafnet) -> tuple[float, float]:
        found = run_tiled(lambda x: module(torch.from_numpy(x)).numpy(), picture, tiling)
        error = np.abs(found - whole)
        return float(error.max()), float(error.mean())

    start = time.perf_counter()
    own = differences(network)
    ratio = (time.perf_counter() - start) / seconds
    return overlap, len(tiling.places(picture.shape[1:])), own, differences(frozen), ratio


def _draw(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.2))
    overlaps = [row[0] for row in rows]
    for place, name, colour in ((2, "each tile's own means", "#D55E00"), (3, "means of the whole picture", "#0072B2")):
        axis.plot(overlaps, [row[place][0] for row in rows], marker="o", color=colour, label=f"{name}, largest")
        axis.plot(overlaps, [row[place][1] for row in rows], ls="--", color=colour, label=f"{name}, mean")
    axis.set(yscale="log", xlabel="overlap, cells of 2 x 2 pixels", ylabel="difference to the whole, of the range")
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
