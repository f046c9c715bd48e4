"""``deploykit models``: the models that can be built by name."""

from __future__ import annotations

import argparse
from importlib import resources
from itertools import groupby
from typing import Any

from deploykit.cli._display import print_json

EXAMPLES = (
    ("deploykit models", "all of them"),
    ("deploykit models --timm 'resnet*'", "those of timm by a pattern"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--timm", metavar="PATTERN", help="list timm's models whose name matches, for example 'densenet*'"
    )
    parser.add_argument("--json", action="store_true", help="print the list as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print every family with its models: task, published size, parameters, and whether weights were released."""
    if args.timm is not None:
        return _list_timm(args.timm, as_json=args.json)
    found = listed_models()
    if args.json:
        print_json(found)
        return 0
    width = max(len(row["name"]) for row in found)
    for (family, licence), models in groupby(found, lambda row: (row["family"], row["weights_licence"])):
        print(f"{family} (weights by its authors: {licence})")
        for row in models:
            released = "  deploykit fetch" if row["released"] else ""
            million = f"{row['parameters'] / 1e6:.1f} M"
            print(f"  {row['name']:<{width}}  {row['task']:<9}  {row['size']:>4} px  {million:>7}{released}")
    print("parameters: as in the authors' files, batch norms not fused; deploykit fetch: there is a released file")
    return 0


def _list_timm(pattern: str, *, as_json: bool) -> int:
    from deploykit.errors import NotFoundError
    from deploykit.models.timm_models import list_timm

    names = list_timm(pattern)
    if not names:
        raise NotFoundError(f"timm has no model whose name matches {pattern!r}; * stands for any characters")
    if as_json:
        print_json(names)
    else:
        print("\n".join(f"timm:{name}" for name in names))
    return 0


def listed_models() -> list[dict[str, Any]]:
    """Return one entry per model, by family and name: the packaged facts, and whether it is released."""
    from deploykit.releases.table import RELEASED
    from deploykit.strict_json import parse_json

    facts = parse_json(resources.files("deploykit").joinpath("assets", "models.json").read_text(encoding="utf-8"))
    return [{**entry, "released": entry["name"] in RELEASED} for entry in facts]
