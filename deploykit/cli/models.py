"""``deploykit models``: what can be built by name."""

from __future__ import annotations

import argparse

from deploykit.cli._display import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print the list as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print one model a line, with its task, its default size and where its weights were released."""
    from deploykit.fetch import RELEASED
    from deploykit.models._registry import list_models, spec_of_model

    rows = []
    for name in list_models():
        spec = spec_of_model(name)
        rows.append({"name": name, "task": spec.task, "size": spec.input.size[0], "released": name in RELEASED})
    if args.json:
        print_json(rows)
        return 0
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        released = "deploykit fetch" if row["released"] else ""
        print(f"{row['name']:<{width}}  {row['task']:<9}  {row['size']:>4} px  {released}".rstrip())
    return 0
