"""Verify an exported file against its checkpoint, or any two models against each other, as a gate of a pipeline.

    python examples/compare_exports.py [REFERENCE CANDIDATE] [--images FILE...] [--tolerance fp16] [--junit verify.xml]

Without arguments it verifies the small model that ships with deploykit against its checkpoint. A checkpoint needs
torch, two exported models only onnx. The exit code is 0 if every check passed, else 1.
"""

import argparse
from pathlib import Path

import deploykit

ASSETS = Path(deploykit.__file__).with_name("assets")


def main() -> int:
    """Verify, print every check, and write the JUnit file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", nargs="?", default=str(ASSETS / "markers.pt"))
    parser.add_argument("candidate", nargs="?", default=str(ASSETS / "markers.onnx"))
    parser.add_argument("--images", nargs="+", default=[str(ASSETS / "markers.jpg")], help="with objects on them")
    parser.add_argument("--tolerance", help="a precision, or FIELD=NUMBER; without it that of the lower precision")
    parser.add_argument("--junit", default="verify.xml")
    args = parser.parse_args()

    report = deploykit.verify(args.reference, args.candidate, images=args.images, tolerance=args.tolerance)
    for check in report.checks:
        print(f"{'passed' if check.ok else 'FAILED'}: {check.says}")
    for note in report.parity.notes:
        print(f"note: {note}")
    report.junit(args.junit)
    print(f"{Path(args.candidate).name} is {'' if report.ok else 'not '}verified against {Path(args.reference).name}")
    return 0 if report.ok else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except deploykit.DeployError as error:
        raise SystemExit(f"compare_exports.py: {error}") from None
