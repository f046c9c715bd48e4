"""Predict on all images of a folder and its sub-folders, into one table.

    python examples/folder_to_csv.py FOLDER [--csv results.csv] [--model FILE]

A row is an object; an image without objects has one row with empty cells. After an interruption, run it again with the
same model: images that have rows are left out, except the last one, whose rows may be incomplete. Remove the table to
begin again. Images that cannot be read are named, and the exit code is 1.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import deploykit

ASSETS = Path(deploykit.__file__).with_name("assets")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def finished(table: Path) -> list[list[str]]:
    """Cut off a broken line and the rows of the last image; return what is left: the header and rows, or nothing."""
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    kept = [*rows[:1], *(row for row in rows[1:] if row[0] != rows[-1][0])]
    partial = table.with_name(f"{table.name}.part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(kept)
    partial.replace(table)
    return kept


def main() -> int:
    """Predict on what is left, and append it to the table image by image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("results.csv"))
    parser.add_argument("--model", default=str(ASSETS / "markers.onnx"))
    args = parser.parse_args()
    images = [str(file) for file in sorted(args.folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    known = finished(args.csv)
    done = {row[0] for row in known[1:]}
    left = [image for image in images if image not in done]
    print(f"{len(images)} images in {args.folder}, {len(images) - len(left)} of them in {args.csv} already")

    errors: list[deploykit.DeployError] = []
    with deploykit.load(args.model) as model, args.csv.open("a", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        for result in model.stream(left, skip=errors.append) if left else ():
            header, *rows = csv.reader(io.StringIO(result.to_csv()))
            if known[:1] not in ([], [header]):
                raise SystemExit(f"{args.csv} has other columns: it is of another model, choose another file (--csv)")
            table.writerows([] if known else [header])
            table.writerows(rows or [[result.name, *[""] * (len(header) - 1)]])
            file.flush()
            known = known or [header]
    for error in errors:
        print(f"folder_to_csv.py: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except deploykit.DeployError as error:
        raise SystemExit(f"folder_to_csv.py: {error}") from None
