"""``deploykit package``: files for servers around exported models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._display import print_json
from deploykit.cli._options import Flag, Flags

if TYPE_CHECKING:
    from deploykit.runtime.package.options import TritonOptions

EXAMPLES = (("deploykit package best.onnx --triton repository", "a model repository: images in, JSON and arrays out"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="exported models, each as FILE or NAME=FILE (name: that of the file)"
    )
    target = parser.add_argument_group("what is written").add_mutually_exclusive_group(required=True)
    target.add_argument("--triton", type=Path, metavar="DIR", help="a model repository for Triton")
    triton_flags().add(parser)
    others = parser.add_argument_group("others")
    others.add_argument("--spec", metavar="FILE", help="the spec of models that do not carry their own (JSON)")
    others.add_argument("--force", action="store_true", help="replace what exists")
    others.add_argument("--json", action="store_true", help="print what was written as one JSON document")


def triton_flags() -> Flags[TritonOptions]:
    """Return the options that fill :class:`deploykit.runtime.package.options.TritonOptions`."""
    from deploykit.runtime.package.options import TritonOptions

    return Flags(
        TritonOptions,
        {
            "the server": (
                Flag("--device", "device", "what runs the network", choices=("auto", "cpu", "cuda")),
                Flag("--max-batch", "max_batch", "images in one run of a network with a dynamic batch", "N", int),
                Flag("--batch-window", "batch_window", "how long an image waits for others to run with", "MS", float),
                Flag("--workers", "workers", "processes for each step around the network", "N", int),
                Flag("--instances", "instances", "copies of the network that run at the same time", "N", int),
            )
        },
    )


def run(args: argparse.Namespace) -> int:
    """Write the files, and say which."""
    from deploykit.runtime.package.models import packaged_models

    models = packaged_models(args.models)
    written = _triton(args, models)
    if args.json:
        print_json({"written": written, "models": {model.name: model.file for model in models}})
    else:
        print("\n".join(map(str, written)))
    return 0


def _triton(args: argparse.Namespace, models: Sequence[Any]) -> list[Path]:
    from deploykit.runtime.package.models import network_of
    from deploykit.runtime.package.triton import repository_files
    from deploykit.runtime.package.writing import Content, write_tree

    options = triton_flags().fill(args)
    files: dict[str, Content] = {}
    for model in models:
        files |= repository_files(model, network_of(model, args.spec), options)
    return write_tree(args.triton.expanduser(), files, replace=args.force)
