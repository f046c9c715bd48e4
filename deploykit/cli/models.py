"""``deploykit models``: what can be built by name."""

from __future__ import annotations

import argparse
from itertools import groupby
from typing import Any

from deploykit.cli._display import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print the list as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print every family with its models: task, published size, parameters, and whether weights were released."""
    rows = _rows()
    if args.json:
        print_json(rows)
        return 0
    width = max(len(row["name"]) for row in rows)
    for (family, licence), models in groupby(rows, lambda row: (row["family"], row["weights_licence"])):
        print(f"{family} (weights by its authors: {licence})")
        for row in models:
            released = "  deploykit fetch" if row["released"] else ""
            million = f"{row['parameters'] / 1e6:.1f} M"
            print(f"  {row['name']:<{width}}  {row['task']:<9}  {row['size']:>4} px  {million:>7}{released}")
    print(
        "parameters: as the authors' files hold them, batch norms not folded; deploykit fetch: a released file is known"
    )
    return 0


def _rows() -> list[dict[str, Any]]:
    """One entry a model, ordered by family and name; no weights are made."""
    from deploykit.fetch import RELEASED
    from deploykit.models._registry import list_models, outline_of_model, weights_licence

    rows = []
    for name in list_models():
        model = outline_of_model(name)
        rows.append(
            {
                "name": name,
                "family": model.family,
                "task": model.spec.task,
                "size": model.spec.input.size[0],
                "parameters": model.parameters,
                "weights_licence": weights_licence(name),
                "released": name in RELEASED,
            }
        )
    return sorted(rows, key=lambda row: (row["family"], row["name"]))
