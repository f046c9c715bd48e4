"""``deploykit create``: write a checkpoint with seeded random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = (
    ("deploykit create yolov7-w6-pose --out new.pt", "to try an export without trained weights"),
    ("deploykit create unet --classes 3 --seed 1", "other classes, other weights"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="MODEL", help="a model name, see deploykit models")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random weights (default 0)")
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes (default: as published)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the checkpoint to write (default: MODEL.pt)")


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and report that its weights are random."""
    from deploykit.errors import OutputError
    from deploykit.models.create.random_weights import create_checkpoint
    from deploykit.runtime.files import exists

    name = args.name.replace("_", "-")
    out = args.out or Path(f"{name}.pt")
    if exists(out) and not args.force:
        raise OutputError(f"{out} exists, and random weights would replace it: choose another --out, or pass --force")
    path = create_checkpoint(name, out, seed=args.seed, num_classes=args.classes)
    print(f"{path}: {name} with random weights (seed {args.seed}); predictions are meaningless")
    return 0
