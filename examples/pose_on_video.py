"""Draw keypoints on a video, a camera or a live stream, and write the drawn video.

    python examples/pose_on_video.py SOURCE [--model FILE] [--out drawn.mp4] [--frames N] [--fps F]

SOURCE is a video file, the number of a camera (0), or an address (rtsp://user:password@host/path, https://...).
Ctrl-C ends a camera and keeps what was written. Nothing is skipped silently: frames that cannot be decoded, and frames
of a live source that came while the network was busy, are counted; the exit code is 1 if a frame could not be decoded.
"""

import argparse
import contextlib
import itertools
import logging
import sys
from pathlib import Path

import cv2

import deploykit

ASSETS = Path(deploykit.__file__).with_name("assets")


def main() -> int:
    """Predict frame by frame, as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", default=str(ASSETS / "markers.onnx"), help="a model with keypoints")
    parser.add_argument("--out", default="drawn.mp4")
    parser.add_argument("--frames", type=int, help="stop after this many")
    parser.add_argument("--fps", type=float, help="of the drawn video; without it that of the file, and 25 for others")
    args = parser.parse_args()
    logging.basicConfig(format="note: %(message)s")  # what deploykit notices, such as a stream that broke off
    source = int(args.source) if args.source.isdecimal() else args.source
    fps = args.fps or (Path(args.source).is_file() and cv2.VideoCapture(args.source).get(cv2.CAP_PROP_FPS)) or 25.0

    errors: list[deploykit.DeployError] = []
    numbers: list[int] = []
    writer, size = cv2.VideoWriter(), (0, 0)
    with deploykit.load(args.model, task="keypoints") as model, contextlib.suppress(KeyboardInterrupt):
        for result in itertools.islice(model.stream(source, skip=errors.append), args.frames):
            if not numbers:
                size = result.size
                writer.open(args.out, cv2.VideoWriter.fourcc(*"mp4v"), fps, size[::-1])
            if not writer.isOpened() or result.size != size:  # OpenCV would drop the frame without a word
                raise SystemExit(f"cannot write a frame of {result.size} (height, width) to {args.out}")
            writer.write(result.draw())
            numbers.append(result.frame or 0)
            points = result.keypoints
            seen = 0 if points is None else int((points[..., 2] >= result.keypoint_threshold).sum())
            print(f"frame {result.frame}: {result.summary()}, {seen} keypoints")
    writer.release()

    dropped = numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0
    print(f"{args.out}: {len(numbers)} frames at {fps:g} fps; {dropped} between them were not drawn")
    for error in errors:
        print(f"pose_on_video.py: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except deploykit.DeployError as error:
        raise SystemExit(f"pose_on_video.py: {error}") from None
