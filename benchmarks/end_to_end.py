"""One exported file end to end, beside what people write themselves, and what its precisions cost in accuracy.

    python benchmarks/end_to_end.py [--weights yolov5n.pt --images val2017 --data instances.json --json FILE]

All runs are of one ONNX file of a YOLOv5 model, from encoded images in memory to boxes in source pixels: deploykit, a
plain script of ONNX Runtime and OpenCV (its whole text is :func:`plain`), and deploykit's predictor with other
sessions: OpenVINO where it is installed, and the checkpoint in torch. The script says how many boxes the first two
share. With ``--calib`` the file's precisions follow, each with its time and, with ``--data``, its AP: accuracy and
latency are of the same file. Without ``--weights`` the weights are random, and nothing is said about accuracy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from interleaved import interleaved
from measured import Row, Table, medians, show

import deploykit
from deploykit import Calibration, PrecisionOptions, export_onnx, facade
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.runtime.arrays import Array
from deploykit.runtime.bench.images import encoded_images
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result
from deploykit.runtime.session import Session, TensorInfo
from deploykit.spec import METADATA_KEY, ModelSpec

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "deploykit" / "assets" / "apollo11_crew.jpg"
CONF, IOU = 0.25, 0.45
SAME = 0.9  # IoU from which two boxes are the same
REST = 0.05  # seconds before each run, in which the threads of the one before stop to look for work


def plain(session: Any, size: int, data: bytes) -> tuple[Array, Array]:
    """What a script does by hand: boxes in source pixels, and their scores."""
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    new_width, new_height = round(width * scale), round(height * scale)
    resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    left, top = (size - new_width) // 2, (size - new_height) // 2
    canvas = cv2.copyMakeBorder(
        resized, top, size - new_height - top, left, size - new_width - left, cv2.BORDER_CONSTANT, value=(114,) * 3
    )
    blob = np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1)[None], np.float32) / 255.0
    rows = session.run(None, {session.get_inputs()[0].name: blob})[0][0]
    rows = rows[rows[:, 4] > CONF]
    classes = rows[:, 5:].argmax(1)
    scores = rows[:, 4] * rows[np.arange(len(rows)), 5 + classes]
    rows, classes, scores = rows[scores > CONF], classes[scores > CONF], scores[scores > CONF]
    corners = rows[:, :2] - rows[:, 2:4] / 2
    # OpenCV's types say lists; it takes arrays.
    found: Any = cv2.dnn.NMSBoxesBatched(np.hstack((corners, rows[:, 2:4])), scores, classes, CONF, IOU)  # type: ignore[arg-type]
    kept = np.asarray(found, np.int64).reshape(-1)
    boxes = np.hstack((corners, corners + rows[:, 2:4]))[kept]
    return (boxes - (left, top, left, top)) / scale, scores[kept]


class OpenVinoSession(Session):
    """The same ONNX file in OpenVINO."""

    def __init__(self, file: Path, spec: ModelSpec, threads: int) -> None:
        from openvino import Core  # type: ignore[import-not-found]  # it may not be installed

        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._model = Core().compile_model(str(file), "CPU", config)
        self.inputs = (TensorInfo(spec.input.name, (1, spec.input.channels, *spec.input.size), "float32"),)
        self.outputs, self.providers, self.threads = (), ("OpenVINO",), threads
        self.metadata = {METADATA_KEY: spec.to_json()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        found = self._model(dict(inputs))
        return {next(iter(port.get_names())): np.asarray(found[port]) for port in self._model.outputs}

    def close(self) -> None:
        """Drop the network."""
        self._model = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a YOLOv5 checkpoint (default: yolov5n with random weights)")
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--images", type=Path, default=PHOTO, help="an image, or a folder of them")
    parser.add_argument("--data", type=Path, metavar="FILE", help="COCO annotations of the images, for AP")
    parser.add_argument("--calib", type=Path, metavar="DIR", help="measure int8 too, calibrated with these images")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N images")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = args.weights or create_checkpoint("yolov5n", folder / "yolov5n.pt")
        base = folder / "fp32.onnx"
        model = export_onnx(weights, img=args.img, out=base, check=args.weights is not None).model
        images = encoded_images(args.images).data
        ways, shared = beside(weights, base, images, args), ""
        times = interleaved({way: turn(run, images) for way, run in ways.items()}, args.rounds, warmup=2, rest=REST)
        if args.weights is not None:
            shared = f" Ours and the script's share {agreement(ways, images)} boxes."
        trained = "" if args.weights else ", random weights"
        columns = dict.fromkeys(times, "{:.1f}")
        rows = (
            Row(("fastest",), {way: round(min(values), 4) for way, values in times.items()}),
            Row(("median",), medians(times)),
        )
        title = f"{model} at {args.img}{trained}: encoded image to boxes, ms"
        tables = [Table(title, ("",), columns, rows, "deploykit")]
        if args.calib is not None:
            tables.append(precisions(weights, base, images, args, folder))
    how = f"{args.rounds} rounds, {args.threads} threads, {len(images)} images in turn, load {load:.1f} before.{shared}"
    show(tables, "End to end", "end_to_end.py", how, args.json)


def beside(
    weights: Path, file: Path, images: tuple[bytes, ...], args: argparse.Namespace
) -> dict[str, Callable[[bytes], Any]]:
    """Every way to run the file that is installed, as a function of an encoded image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    ours = deploykit.load(file, threads=args.threads, conf=CONF, iou=IOU)
    wanted = PredictOptions(conf=CONF, iou=IOU)
    ways: dict[str, Callable[[bytes], Any]] = {"deploykit": ours, "plain script": partial(plain, session, args.img)}
    if find_spec("openvino"):
        ways["OpenVINO"] = Predictor(OpenVinoSession(file, ours.spec, args.threads), ours.spec, wanted)
    else:
        print("OpenVINO is not installed: not measured")
    ways["torch"] = Predictor(facade.open_session(weights, threads=args.threads), ours.spec, wanted)
    return ways


def turn(run: Callable[[bytes], Any], images: tuple[bytes, ...]) -> Callable[[], Any]:
    """A function that runs on the next image each time, from the first one on."""
    count = 0

    def next_image() -> Any:
        nonlocal count
        count += 1
        return run(images[(count - 1) % len(images)])

    return next_image


def agreement(ways: Mapping[str, Callable[[bytes], Any]], images: tuple[bytes, ...]) -> str:
    """How many boxes of ours the plain script finds too."""
    same = total = 0
    for image in images[:20]:
        ours, theirs = ways["deploykit"](image), ways["plain script"](image)[0]
        assert isinstance(ours, Result)
        total += max(len(ours.boxes), len(theirs))
        for box in ours.boxes:
            sides = np.clip(np.minimum(box[2:], theirs[:, 2:]) - np.maximum(box[:2], theirs[:, :2]), 0, None)
            inter = sides.prod(1)
            areas = (theirs[:, 2:] - theirs[:, :2]).prod(1)
            same += bool((inter / ((box[2:] - box[:2]).prod() + areas - inter) >= SAME).any())
    return f"{same} of {total}"


def precisions(weights: Path, base: Path, images: tuple[bytes, ...], args: argparse.Namespace, folder: Path) -> Table:
    """Time, size and accuracy of the same files."""
    calibration = Calibration(args.calib)
    kinds = {
        "fp16": PrecisionOptions("fp16"),
        "int8": PrecisionOptions("int8", calibration=calibration),
        "int8 --target cpu": PrecisionOptions("int8", calibration=calibration, target="cpu"),
    }
    files = {"fp32": base}
    for kind, precision in kinds.items():
        files[kind] = folder / f"{kind.replace(' ', '-')}.onnx"
        export_onnx(weights, img=args.img, out=files[kind], precision=precision)
    runs = {kind: turn(deploykit.load(file, threads=args.threads), images) for kind, file in files.items()}
    times = interleaved(runs, args.rounds, warmup=2, rest=REST)
    columns = {"ms": "{:.1f}", "MB": "{:.2f}", **({"AP, points": "{:.2f}"} if args.data else {})}
    rows = []
    for kind, file in files.items():
        values = {"ms": round(statistics.median(times[kind]), 4), "MB": round(file.stat().st_size / 1e6, 3)}
        if args.data:
            values["AP, points"] = round(accuracy(file, args), 3)
        rows.append(Row((kind,), values))
    return Table("the same files: end to end, and how accurate", ("",), columns, tuple(rows))


def accuracy(file: Path, args: argparse.Namespace) -> float:
    """AP in points."""
    found = deploykit.evaluate(file, args.data, images=args.images, limit=args.limit, threads=args.threads)
    return 100 * float(found.metrics["AP"])


if __name__ == "__main__":
    main()
