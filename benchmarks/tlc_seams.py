"""What TLC does for tiles: seams and PSNR of a NAFNet that is trained here, with means of tiles and with local ones.

    python benchmarks/tlc_seams.py --images FOLDER [--steps 1500] [--test IMAGE]

A small network learns to remove noise (a deviation of 25 grey levels) from crops of 64 pixels of a folder's images:
published weights are not available, and of random ones no grey level means anything. Then a larger image, whole and in
tiles, goes through it with global means and through its local form (``--rewrite tlc:64``: windows of 96 pixels).
Printed are, for each tile and overlap, the largest difference from the same network on the whole image and the step
across borders of tiles in excess of other pixels' (both in grey levels), and the PSNR against the clean image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploykit.export.parity.inputs import sample_image
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.nafnet import Nafnet, NafnetConfig, receptive_field, with_local_pool
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.folders import list_images
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.tiles import Tiling, run_tiled

CROP, NOISE, BATCH = 64, 25.0 / 255.0, 4
CONFIG = NafnetConfig(8, (1, 1, 1), 1, (1, 1, 1))
TILES = ((64, 16), (128, 0), (128, 16), (128, 32), (192, 32))


def main() -> None:
    """Train, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="what the network learns from")
    parser.add_argument("--test", type=Path, default=sample_image(), metavar="IMAGE")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    network = trained([planes(path) for path in list_images(args.images)], args.steps)
    clean = planes(args.test)
    noisy = clean + NOISE * np.random.default_rng(1).standard_normal(clean.shape, np.float32)
    forms = {"global means": network, "TLC": with_local_pool(network, CROP)}
    print(f"receptive field {receptive_field(network)} pixels, noisy image {psnr(noisy, clean):.2f} dB\n")
    print("| network | tiles | overlap | largest difference | step at borders | PSNR |\n|---|---|---|---|---|---|")
    for name, form in forms.items():
        whole = run(form, noisy[None])[0]
        print(f"| {name} | the whole image | | | | {psnr(whole, clean):.2f} |")
        for tile, overlap in TILES:
            tiling = Tiling((tile, tile), overlap, 1, form.multiple)
            found = run_tiled(lambda x, form=form: run(form, x), noisy, tiling)  # type: ignore[misc]  # form is bound
            most = 255 * float(np.abs(found - whole).max())
            step = 255 * step_at_borders(found - whole, tiling)
            print(f"| {name} | {tile} | {overlap} | {most:.2f} | {step:.3f} | {psnr(found, clean):.2f} |")


def planes(path: Path) -> Array:
    """An image as ``(3, H, W)`` of 0 to 1, red first."""
    found: Array = np.ascontiguousarray(read_image(path)[..., ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)
    return found


def trained(images: Sequence[Array], steps: int) -> Nafnet:
    """A network that removes noise, from seeded weights, crops and noise."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = Nafnet(CONFIG)
    randomise(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    large = [image for image in images if min(image.shape[1:]) > CROP]
    for _ in range(steps):
        clean = torch.from_numpy(np.stack([crop(large[int(rng.integers(len(large)))], rng) for _ in range(BATCH)]))
        loss = nn.functional.l1_loss(network(clean + NOISE * torch.randn(clean.shape)), clean)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimiser.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def crop(image: Array, rng: np.random.Generator) -> Array:
    """A crop of :data:`CROP` pixels at random."""
    top, left = (int(rng.integers(side - CROP)) for side in image.shape[1:])
    return image[:, top : top + CROP, left : left + CROP]


def run(network: nn.Module, images: Array) -> Array:
    """The restored images."""
    with torch.inference_mode():
        found: Array = network(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    return found


def step_at_borders(difference: Array, tiling: Tiling) -> float:
    """The mean step of a difference ``(C, H, W)`` across the borders of kept parts, less that between other columns."""
    steps = np.abs(np.diff(difference, axis=2)).mean((0, 1))
    height, width = difference.shape[1:]
    borders = sorted({columns.first - 1 for _, columns in tiling.places((height, width)) if columns.first > 0})
    others = np.delete(steps, borders)
    return float(steps[borders].mean() - others.mean())


def psnr(image: Array, clean: Array) -> float:
    """Decibels, of values of 0 to 1."""
    return float(-10 * np.log10(np.square(np.clip(image, 0, 1) - clean).mean()))


if __name__ == "__main__":
    main()
