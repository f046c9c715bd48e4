"""``deploykit demo``: find the codes on an image with the small trained model that ships with deploykit."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
EXAMPLES = (("deploykit demo", "the model, an image and the drawing in the folder demo"),)
FILES = ("markers.onnx", "markers.pt", "markers.jpg")
"""The exported model, the checkpoint that it was exported from, and an image to try it on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder of the files and the drawing (default demo)",
    )


def run(args: argparse.Namespace) -> int:
    """Copy the model and the image, predict as ``deploykit predict`` does, and say what to try next."""
    from deploykit.cli._commands import command_parser

    folder: Path = args.out
    onnx, checkpoint, image = (_copied(name, folder) for name in FILES)
    print(f"{folder} has a model that finds QR codes and ArUco markers, and an image: {', '.join(FILES)}")
    words = ["predict", str(onnx), str(image), "--out", str(folder / "results")]
    print(f"\n$ {shlex.join(['deploykit', *words])}")
    predict = command_parser(words).parse_args(words)
    code = int(predict.run(predict))
    print(
        f"\nThe drawing: {folder / 'results' / image.name}. Each code has a box, its class and score, and four corners."
    )
    print("\nTo try next:")
    python = f"import deploykit; print(deploykit.load({str(onnx)!r})({str(image)!r}).keypoints)"
    for command, what in (
        (
            ["deploykit", "predict", str(onnx), "YOUR_IMAGE", "--out", "results"],
            "your own image, folder, video or camera",
        ),
        (["deploykit", "bench", str(onnx)], "how fast it is here"),
        (f'python -c "{python}"', "the corners in Python"),
        (
            ["deploykit", "export", str(checkpoint), "--img", "320"],
            "export it yourself, verified; needs torch: '.[export]'",
        ),
        (
            ["deploykit", "compare", str(checkpoint), str(onnx)],
            "the checkpoint and the exported model; needs torch too",
        ),
    ):
        print(f"  # {what}\n  {command if isinstance(command, str) else shlex.join(command)}")
    return code


def _copied(name: str, folder: Path) -> Path:
    """Return the copy of a shipped file in ``folder``; a file of that name that is another stays."""
    from deploykit.atomic import write_atomic
    from deploykit.errors import OutputError

    place, data = folder / name, (ASSETS / name).read_bytes()
    if not place.is_file():
        write_atomic(place, data)
    elif place.read_bytes() != data:
        raise OutputError(
            f"{place} exists and is not the file that ships with deploykit: choose another folder with --out"
        )
    return place
