"""Multiply-adds of the networks with DynOPool over the ratio of their resizings, all of one ratio.

    python benchmarks/dynopool_macs.py [--plot macs.png]

Counted, not timed: convolutions and linear layers, for the size of each network's spec. At a ratio of 1/2 a network is
the one that its resizings replace strides and poolings of.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from deploykit.models.families.dynopool.model import layer_macs
from deploykit.models.families.dynopool.resize import DynOPool
from deploykit.models.registry import create_model

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7)
NAMES = ("dynopool-vgg16", "dynopool-efficientnet-b0", "dynopool-hrnet-w48")


def main() -> None:
    """Count, print a table, and draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the numbers (needs matplotlib)")
    args = parser.parse_args()
    counted = {name: _counted(name) for name in NAMES}
    print(f"| network, size | {' | '.join(f'r = {ratio}' for ratio in RATIOS)} |\n|---|{'---|' * len(RATIOS)}")
    for (name, size), values in zip(((n, create_size(n)) for n in NAMES), counted.values(), strict=True):
        print(f"| {name}, {size[0]} | {' | '.join(f'{value:.3g}' for value in values)} |")
    if args.plot:
        _draw(counted, args.plot)


def create_size(name: str) -> tuple[int, int]:
    """(height, width) of the network's spec."""
    return create_model(name).spec.input.size


def _counted(name: str) -> list[float]:
    model = create_model(name)
    found = []
    for ratio in RATIOS:
        for pool in (m for m in model.module.modules() if isinstance(m, DynOPool)):
            with torch.no_grad():
                pool.alpha.fill_(1 / ratio)
        found.append(sum(layer_macs(model.module, model.spec.input.size).values()) / 1e9)
    return found


def _draw(counted: dict[str, list[float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for (name, values), colour in zip(counted.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
        axis.plot(RATIOS, [v / values[RATIOS.index(0.5)] for v in values], marker="o", color=colour, label=name)
    axis.set(yscale="log", xlabel="ratio r of every resizing", ylabel="multiply-adds, of those at r = 1/2")
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
