"""What each precision costs in accuracy, on annotated images; writes docs/accuracy.md.

    python benchmarks/accuracy.py --weights yolov5n.pt --data instances_val2017.json --images val2017 \\
        --faces face.pt --face-images wider --out docs/accuracy.md

Of the annotated images 16, spread over their sorted names, are for calibration and all others for evaluation. Every
file is made by the export that users call; every number comes from ``deploykit.evaluate`` and the paired bootstrap of
``deploykit.evaluate_against``. Times are interleaved runs of ONNX Runtime on the CPU and are quoted as ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from interleaved import interleaved

import deploykit
from deploykit import Calibration, PrecisionOptions, export_onnx
from deploykit.runtime.datasets.coco import read_coco
from deploykit.runtime.evaluate.compare import compare_evaluations, interval_of
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.machine import Machine, cpu_features, versions

CALIBRATED, DRAWS, ROUNDS = 16, 1000, 30
CPU = "int8 --target cpu"


def split(data: Path, images: Path, folder: Path) -> tuple[Calibration, Path]:
    """The images for calibration, and an annotation file of the others."""
    coco = json.loads(data.read_text())
    names = sorted(entry["file_name"] for entry in coco["images"])
    chosen = [names[i * len(names) // CALIBRATED] for i in range(CALIBRATED)]
    rest = {entry["id"] for entry in coco["images"] if entry["file_name"] not in chosen}
    coco["images"] = [entry for entry in coco["images"] if entry["id"] in rest]
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] in rest]
    file = folder / "evaluated.json"
    file.write_text(json.dumps(coco))
    return Calibration(tuple(images / name for name in chosen), size=CALIBRATED), file


def precisions(calibration: Calibration) -> dict[str, PrecisionOptions]:
    """Every precision, and of int8 every calibration."""
    found = {kind: PrecisionOptions(kind) for kind in ("fp32", "fp16", "bf16")}
    for method in ("minmax", "percentile", "entropy", "mse"):
        found[f"int8 {method}"] = PrecisionOptions(
            "int8", calibration=replace(calibration, method=method), nodes_to_exclude="none"
        )
    found["int8"] = PrecisionOptions("int8", calibration=calibration)
    found[CPU] = PrecisionOptions("int8", calibration=calibration, target="cpu")
    found["fp8"] = PrecisionOptions("fp8", calibration=calibration)
    return found


def ort_session(file: Path, folder: Path) -> tuple[Any, dict[str, int]]:
    """An ONNX Runtime session that may use its int8 kernels, and the convolutions it has after optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return session, {
        name: counts[name] for name in ("Conv", "QLinearConv", "QuickGelu", "DequantizeLinear") if counts[name]
    }


def timed(files: dict[str, Path], folder: Path) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Median milliseconds of each file, interleaved, and its nodes after ONNX Runtime's optimisation."""
    opened = {name: ort_session(file, folder) for name, file in files.items()}
    sessions = {name: session for name, (session, _) in opened.items()}
    (info,) = next(iter(sessions.values())).get_inputs()
    image = np.random.default_rng(0).random(info.shape, np.float32)
    runs = {name: (lambda s=session: s.run(None, {info.name: image})) for name, session in sessions.items()}
    times = interleaved(runs, rounds=ROUNDS, warmup=3)
    return {name: statistics.median(t) for name, t in times.items()}, {
        name: nodes for name, (_, nodes) in opened.items()
    }


def kept_by(report: Any) -> str:
    """What the search of an int8 export chose."""
    chosen = report.precision.quantised
    kept, count = chosen.done.kept, len(chosen.done.kept) + len(chosen.done.layers)
    names = ", ".join(chosen.labels[name] for name in kept) or "none"
    return f"of the calibrations {chosen.method} was chosen, and {len(kept)} of\n{count} layers stay fp32 ({names})"


def points(value: float) -> str:
    return f"{100 * value:.2f}"


def detector(weights: Path, data: Path, images: Path, img: int, folder: Path) -> list[str]:
    """The tables of a detector."""
    calibration, evaluated = split(data, images, folder)
    reports, files = {}, {}
    for name, precision in precisions(calibration).items():
        out = folder / f"{name.replace(' ', '-')}.onnx"
        reports[name] = export_onnx(weights, img=img, out=out, precision=precision)
        files[name] = out
        print(f"exported {name}", flush=True)
    cases: list[tuple[str, Path, str]] = [("the checkpoint, in PyTorch", weights, "auto")]
    for name, file in files.items():
        if name.split()[0] not in ("bf16", "fp8"):
            cases.append((f"{name}, ONNX Runtime", file, "auto"))
        if name.split()[0] in ("fp16", "bf16", "fp8"):
            cases.append((f"{name}, by its types in PyTorch", file, "torch"))
    source = None
    table = ["| | AP | difference | 95 % interval | AP50 | AR100 |", "|---|---|---|---|---|---|"]
    for label, file, backend in cases:
        found = deploykit.evaluate(file, evaluated, images=images, backend=backend)
        assert isinstance(found, DetectionEvaluation)
        if source is None:
            source = found
            low, high = interval_of(found, samples=DRAWS)["AP"]
            told = f"| | (AP itself: {points(low)} to {points(high)})"
        else:
            comparison = compare_evaluations(found, source, samples=DRAWS)
            low, high = (100 * end for end in comparison.intervals["AP"])
            told = f"| {100 * comparison.difference['AP']:+.2f} | {low:+.2f} to {high:+.2f}"
        ap, ap50, ar = (points(found.metrics[name]) for name in ("AP", "AP50", "AR100"))
        table.append(f"| {label} | {ap} {told} | {ap50} | {ar} |")
        print(table[-1], flush=True)
    runnable = {name: files[name] for name in ("fp32", "fp16", "int8 mse", "int8", CPU)}
    times, nodes = timed(runnable, folder)
    speed = ["| ONNX Runtime, CPU | speed | MB | nodes of its optimised graph |", "|---|---|---|---|"]
    for name, file in runnable.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in nodes[name].items())
        speed.append(f"| {name} | {times['fp32'] / times[name]:.2f} | {file.stat().st_size / 1e6:.2f} | {counts} |")
    searches = [kept_by(reports[name]) for name in ("int8", CPU)]
    count = len(read_coco(evaluated).images)
    return [
        f"## {reports['fp32'].model} at {img}x{img}",
        "",
        f"{CALIBRATED} images for calibration, {count} others evaluated.",
        "",
        *table,
        "",
        f"`int8` alone is the default: {searches[0]}.",
        f"`{CPU}` rounds the outputs of layers too, for the kernels of a CPU: {searches[1]}.",
        "The other int8 rows quantize every layer. `fp8` is calibrated and kept likewise.",
        "",
        *speed,
        "",
        f"Speeds are ratios to fp32, medians of {ROUNDS} interleaved runs on two threads.",
        "",
    ]


def faces(weights: Path, images: Path, img: int, folder: Path) -> list[str]:
    """How far a keypoint model's detections in lower precision agree with its fp32 export's."""
    names = sorted(p for p in images.iterdir() if p.suffix.lower() == ".jpg")
    calibration = Calibration(tuple(names[::2]))
    rest = names[1::2]
    made = {kind: PrecisionOptions(kind) for kind in ("fp32", "fp16", "bf16")}
    made |= {
        "int8, every layer": PrecisionOptions("int8", calibration=calibration, nodes_to_exclude="none"),
        "int8": PrecisionOptions("int8", calibration=calibration),
    }
    made["fp8"] = PrecisionOptions("fp8", calibration=calibration)
    results = {}
    for kind, precision in made.items():
        file = folder / f"face-{kind.replace(' ', '-').replace(',', '')}.onnx"
        report = export_onnx(weights, img=img, out=file, precision=precision)
        backend = "torch" if kind in ("bf16", "fp8") else "auto"
        with deploykit.load(file, task="keypoints", backend=backend) as predictor:
            results[kind] = [predictor(image) for image in rest]
        print(f"faces in {kind}: {sum(len(r) for r in results[kind])}", flush=True)
    table = [
        "| | found | found again | mean IoU | largest score difference | mean keypoint distance / longer side |",
        "|---|---|---|---|---|---|",
    ]
    for kind, found in results.items():
        pairs = [pair for a, b in zip(results["fp32"], found, strict=True) for pair in matched(a, b)]
        overlap, score, distance = (np.array(values) for values in zip(*pairs, strict=True))
        total = sum(len(r) for r in results["fp32"])
        table.append(
            f"| {kind} | {sum(len(r) for r in found)} | {len(pairs)} of {total} | {overlap.mean():.4f} | "
            f"{score.max():.4f} | {100 * distance.mean():.2f} % |"
        )
    return [
        f"## {report.model}, faces with five keypoints, at {img}x{img}",
        "",
        f"Nothing is annotated here: this is agreement with the fp32 export, of faces in {len(rest)} images at the",
        f"spec's thresholds, calibrated with {len(names[::2])} others. A face is found again if a box overlaps it by",
        "half.",
        "",
        *table,
        "",
    ]


def matched(a: Any, b: Any) -> list[tuple[float, float, float]]:
    """(IoU, score difference, keypoint distance over the longer side) of each object of a with its best in b."""
    pairs, free = [], np.ones(len(b), bool)
    for i, box in enumerate(a.boxes):
        sides = np.clip(np.minimum(box[2:], b.boxes[:, 2:]) - np.maximum(box[:2], b.boxes[:, :2]), 0, None)
        inter = sides.prod(1)
        areas = (b.boxes[:, 2:] - b.boxes[:, :2]).prod(1)
        overlap = np.where(free, inter / ((box[2:] - box[:2]).prod() + areas - inter), 0.0)
        if len(overlap) and overlap.max() >= 0.5:
            j = int(overlap.argmax())
            free[j] = False
            distance = np.linalg.norm(a.keypoints[i, :, :2] - b.keypoints[j, :, :2], axis=1).mean()
            side = float((box[2:] - box[:2]).max())
            pairs.append((float(overlap[j]), float(abs(a.scores[i] - b.scores[j])), float(distance / side)))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--weights", "--data", "--images", "--faces", "--face-images", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--img", type=int, default=640)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        parts = detector(args.weights, args.data, args.images, args.img, Path(place))
        parts += faces(args.faces, args.face_images, args.img, Path(place))
    machine = Machine.here()
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    head = [
        "# What each precision costs",
        "",
        "<!-- Written by benchmarks/accuracy.py. What follows from these numbers is in precision.md. -->",
        "",
        f"{machine.cores} cores of {machine.processor} ({', '.join(cpu_features())}), {known}.",
        "No GPU: fp16, bf16 and fp8 are computed in PyTorch as their types say, and fp16 in ONNX Runtime too, which",
        "computes its convolutions in fp32. AP in points (hundredths); intervals are a paired bootstrap over images",
        f"({DRAWS} draws). So few images compare forms of one model; they do not rate it.",
        "",
    ]
    args.out.write_text("\n".join([*head, *parts]))


if __name__ == "__main__":
    main()
