"""The options of every command that runs a model: what computes it, and with how many threads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deploykit.cli._options import Flag, Flags

if TYPE_CHECKING:
    from deploykit.runtime.compute import ComputeOptions
    from deploykit.runtime.options import ComputeKeywords


def compute_flags() -> Flags[ComputeOptions]:
    """Return the options that fill :class:`deploykit.runtime.compute.ComputeOptions`."""
    from deploykit.runtime.compute import ComputeOptions

    return Flags(
        ComputeOptions,
        {
            "device": (
                Flag(
                    "--device",
                    "device",
                    "auto, cpu, cuda, cuda:1 or 1 (the second GPU), or a provider of ONNX Runtime such as openvino "
                    "(default: $DEPLOYKIT_DEVICE, else auto)",
                    "DEVICE",
                ),
                Flag(
                    "--threads",
                    "threads",
                    "CPU threads within one operator (default: $DEPLOYKIT_THREADS, else what a CPU quota allows, else "
                    "one per core)",
                    "N",
                    int,
                ),
            )
        },
    )


def compute_of(args: argparse.Namespace) -> ComputeKeywords:
    """Return what computes, as keyword arguments."""
    chosen = compute_flags().fill(args)
    return {"device": chosen.device, "threads": chosen.threads}
