"""The options of every command that loads a checkpoint."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, get_args

from deploykit.cli._options import Flag, Flags

if TYPE_CHECKING:
    from deploykit.models.load_options import LoadOptions


def loading_flags() -> Flags[LoadOptions]:
    """Return the options that fill :class:`deploykit.models.load_options.LoadOptions`."""
    from deploykit.models.load_options import LoadOptions

    return Flags(
        LoadOptions,
        {
            "checkpoints (docs/checkpoints.md)": (
                Flag(
                    "--entry",
                    "entry",
                    "the entry whose weights are taken, such as model or ema.module (default: an average of the "
                    "weights, else the model's own; inspect lists the entries)",
                    metavar="NAME",
                ),
                _branch_flag(),
                *_untold_flags(),
            )
        },
    )


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Declare the option that takes only verified exports."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="take an exported model only if its parity report has its SHA-256",
    )


def _branch_flag() -> Flag:
    """Return the option of heads with two branches."""
    return Flag(
        "--head",
        "head",
        "of a head with two branches (YOLO26, YOLOv10): one2one: its detections need no NMS (default); one2many",
        choices=("one2one", "one2many"),
    )


def _untold_flags() -> tuple[Flag, ...]:
    """Return the options of what no tensor tells."""
    from deploykit.models.load_options import Interpolation

    return (
        Flag(
            "--heads",
            "heads",
            "heads of each attention of a vision transformer (default: as the file tells, or assumed)",
            metavar="N",
            type=int,
        ),
        Flag(
            "--score",
            "score",
            "of a detector of one class: obj: the objectness alone, as in YOLOv7; obj*cls: as in YOLOv5 "
            "(default: as the file tells, or assumed)",
            choices=("obj", "obj*cls"),
        ),
        Flag(
            "--pool",
            "pool",
            "what a vision transformer classifies: its class token, or the average of the patches",
            choices=("token", "avg"),
        ),
        Flag(
            "--activation",
            "activation",
            "in the blocks of a vision transformer: gelu, gelu-tanh or quick-gelu",
            metavar="NAME",
        ),
        Flag(
            "--head-activation",
            "head_activation",
            "between the layers of a classifier's head: relu, gelu, silu, tanh or none",
            metavar="NAME",
        ),
        Flag(
            "--mean",
            "mean",
            "mean of the pixels, one number or one per channel (default: as the file tells, or assumed)",
            metavar="X",
            type=float,
            nargs="+",
            fills=tuple,
        ),
        Flag("--std", "std", "their standard deviation", metavar="X", type=float, nargs="+", fills=tuple),
        Flag(
            "--crop",
            "crop",
            "share of an image's shorter side whose middle a classifier is given",
            metavar="X",
            type=float,
        ),
        Flag(
            "--interpolation",
            "interpolation",
            "Pillow's filter that scales a classifier's images",
            choices=get_args(Interpolation),
        ),
    )


def loading_of(args: argparse.Namespace) -> LoadOptions | None:
    """Return the options of a checkpoint's loading; None: none was typed."""
    flags = loading_flags()
    return flags.fill(args) if flags.given(args) else None
