"""Find objects on one image: print them, and write the image with them drawn.

    python examples/detect.py [IMAGE] [--model FILE] [--conf 0.5] [--out drawn.jpg]

Without arguments it takes the image and the small model that ship with deploykit: QR codes and markers on a desk.
IMAGE is a file or a web address.
"""

import argparse
from pathlib import Path

import deploykit

ASSETS = Path(deploykit.__file__).with_name("assets")


def main() -> None:
    """Predict on the image that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", default=str(ASSETS / "markers.jpg"))
    parser.add_argument("--model", default=str(ASSETS / "markers.onnx"), help="a model that finds objects")
    parser.add_argument("--conf", type=float, help="keep scores above this; the model has a default")
    parser.add_argument("--out", default="drawn.jpg")
    args = parser.parse_args()

    with deploykit.load(args.model, conf=args.conf) as model:
        result = model(args.image)
    if not isinstance(result, deploykit.Result):  # a classifier, for example, finds no objects
        raise SystemExit(f"expected a model that finds objects; {args.model} is for {model.spec.task!r}")

    print(f"{Path(result.name).name}: {result.summary()}")
    for found in result:  # the highest score first; boxes are in pixels of the source image
        x1, y1, x2, y2 = found.box
        print(f"{found.name} {found.score:.2f} at {x1:.0f},{y1:.0f} to {x2:.0f},{y2:.0f}")
    print(f"drawn: {result.save(args.out)}")


if __name__ == "__main__":
    try:
        main()
    except deploykit.DeployError as error:
        raise SystemExit(f"detect.py: {error}") from None
