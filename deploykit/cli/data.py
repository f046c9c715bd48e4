"""``deploykit data``: data sets in other forms."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploykit.cli._display import note, print_json

EXAMPLES = (
    ("deploykit data convert data.yaml --out val.json", "the split val of a YOLO data set as COCO annotations"),
    ("deploykit data convert data.yaml --split train --out train.json", "another split"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("action", choices=("convert",), help="write a YOLO data set as COCO annotations (JSON)")
    parser.add_argument("data", metavar="DATA", help="the data.yaml of a YOLO data set, or its folder")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the annotations to write")
    parser.add_argument("--split", metavar="NAME", help="train, val or test (default: val, else test, else train)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    import json

    from deploykit.atomic import write_atomic
    from deploykit.runtime.datasets.yolo import read_yolo
    from deploykit.runtime.evaluate.yolo_data import coco_from_yolo

    dataset = read_yolo(args.data)
    found = coco_from_yolo(dataset, args.split)
    write_atomic(args.out.expanduser(), json.dumps(found.to_dict()).encode())
    for each in found.notes:
        note(each)
    counts = {
        "images": len(found.images),
        "objects": len(found.annotations),
        "with_keypoints": sum(a.get("num_keypoints", 0) > 0 for a in found.annotations),
        "with_outlines": sum("segmentation" in a for a in found.annotations),
        "categories": len(found.categories),
    }
    if args.json:
        print_json({"out": args.out, "images_root": dataset.root, **counts})
        return 0
    classes = f"{counts['categories']} categor{'y' if counts['categories'] == 1 else 'ies'}"
    print(
        f"{args.out}: {counts['images']} images, {counts['objects']} objects of {classes} "
        f"({counts['with_keypoints']} with keypoints, {counts['with_outlines']} with outlines)"
    )
    print(f"file names are relative to {dataset.root}: deploykit eval MODEL --data {args.out} --images {dataset.root}")
    return 0
