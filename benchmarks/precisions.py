"""What each precision costs every family of models; writes the table of docs/precision.md.

    python benchmarks/precisions.py --data ../shared/data --only yolov5n unet-carvana

measures rows and keeps them in benchmarks/precisions.json, beside those of other runs; without ``--data`` it
measures nothing and writes the table of what is kept. Every file is made by the export that users call.

The error is that of :meth:`ExportAdapter.error` against the fp32 file, a mean over images that calibrated nothing;
fp16, bf16 and fp8 are computed in PyTorch as their types say. AP is of annotated images that calibrated nothing. Times
are interleaved runs of the network alone in ONNX Runtime, as ratios to fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import split
from interleaved import interleaved

import deploykit
from deploykit import Calibration, PrecisionOptions, export_onnx, open_session
from deploykit.errors import DeployError
from deploykit.export.options import Precision
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.inputs import image_for, preprocess_for_parity
from deploykit.export.report import ExportReport
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.runtime.arrays import Array
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.machine import Machine, cpu_features, versions
from deploykit.spec import EndToEndRows, NmsOutputs

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "precisions.json"
PAGE = ROOT / "docs" / "precision.md"
BEGIN, END = "<!-- begin: benchmarks/precisions.py -->", "<!-- end: benchmarks/precisions.py -->"
CALIBRATED, MEASURED, ROUNDS = 16, 4, 12
CPU = "int8 --target cpu"
PRECISIONS = ("fp16", "bf16", "int8", CPU, "fp8")
RUN_ON_CPU = ("fp16", "int8", CPU)  # ONNX Runtime's CPU provider has no bf16 convolutions and no fp8 layers
CHOSEN = (EndToEndRows, NmsOutputs)  # decisions: rows come and go, so the error is that which int8 measured before them
POINTS = 100  # AP is said in hundredths


@dataclass(frozen=True)
class Case:
    """A model: a file of trained weights, or the name of a model that gets random ones; and images for it.

    ``data`` is the annotations that give AP; empty: there are none.
    """

    name: str
    weights: str
    img: int
    images: str = "images/coco-mini/val2017"
    data: str = ""


COCO = "annotations/coco-mini/instances_val2017.json"
PEOPLE = "annotations/coco-mini/person_keypoints_val2017.json"
CASES = (
    Case("yolov5n", "weights/yolov5n_official_coco.pt", 640, data=COCO),
    Case("yolox-nano, one class", "weights/yolox_nano_bubbliiiing.pth", 416),
    Case("yolo-pose, ghost blocks", "weights/yolo-pose-ghost_coco17kpt.pt", 192, data=PEOPLE),
    Case("yolov7-lite-e, faces", "weights/yolov7-lite-e_face5kpt.pt", 640, "images/faces-wider"),
    Case("yolov7-lite-s, plates", "weights/yolov7-lite-s_plate4kpt.pt", 640, "images/plates"),
    Case("unet, cars", "weights/unet_carvana_small.pth", 320),
    Case("resnet20-cifar10", "weights/resnet20_cifar10.th", 32),
    *(
        Case(name, "", img)
        for name, img in (
            ("yolov7-tiny", 320),
            ("yolov7-w6-pose", 320),
            ("yolov6n", 320),
            ("kapao-s", 320),
            ("yolov3-tinyu", 320),
            ("yolov8n", 320),
            ("yolov8n-seg", 320),
            ("yolov8n-obb", 320),
            ("yolo11n", 320),
            ("yolo12n", 320),
            ("yolo26n", 320),
            ("yolo26n-pose", 320),
            ("vitdet-b", 320),
            ("mae-vit-b16", 224),
            ("cmt-ti", 160),
            ("crossformer-t", 224),
            ("nafnet-w32-gopro", 256),
            ("fcn32s", 320),
            ("parsenet", 320),
            ("unet", 320),
            ("dynopool-efficientnet-b0", 224),
            ("dynopool-hrnet-w48", 256),
            ("resnet18", 224),
        )
    ),
)


@dataclass(frozen=True)
class Row:
    """A family in one precision. None: not measured, or there is nothing to measure.

    ``kept``: convolutions and matrix products that compute in fp32, ``layers``: all of them. ``ap`` and ``fall`` are in
    points. ``ratio``: the time of the network, fp32 = 1. ``refused``: why there is no file.
    """

    name: str
    trained: bool
    img: int
    precision: str
    error: float | None = None
    ap: float | None = None
    kept: int | None = None
    layers: int | None = None
    size: int | None = None
    ratio: float | None = None
    refused: str = ""


def options_of(precision: str, calibration: Calibration) -> PrecisionOptions:
    """The options of a row."""
    if precision == CPU:
        return PrecisionOptions("int8", calibration=calibration, target="cpu")
    kind: Precision = precision  # type: ignore[assignment]  # one of PRECISIONS
    return PrecisionOptions(kind, calibration=calibration if kind in ("int8", "fp8") else None)


def outputs(file: Path, precision: str, images: list[Array]) -> list[dict[str, torch.Tensor]]:
    """The outputs of a file for each image, computed as the types of its graph say."""
    backend = "torch" if precision in ("fp16", "bf16", "fp8") else "auto"
    with open_session(file, backend=backend) as session:
        name = session.inputs[0].name
        return [{n: torch.from_numpy(x) for n, x in session.run({name: image}).items()} for image in images]


def measure(case: Case, shared: Path, precisions: tuple[str, ...], folder: Path) -> list[Row]:
    """The rows of a family, fp32 first."""
    weights = shared / case.weights if case.weights else create_checkpoint(case.name, folder / f"{case.name}.pt")
    place = shared / case.images
    names = sorted(p for p in place.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    evaluated = None
    if case.data:
        calibration, evaluated = split(shared / case.data, place, folder)
    else:
        count = min(CALIBRATED, len(names) - MEASURED)
        calibration = Calibration(tuple(names[:count]), size=count)
    reports: dict[str, ExportReport] = {}
    refused: dict[str, str] = {}
    for precision in ("fp32", *precisions):
        began = time.process_time()
        out = folder / f"{precision.replace(' ', '-')}.onnx"
        try:
            reports[precision] = export_onnx(
                weights, img=case.img, out=out, precision=options_of(precision, calibration)
            )
        except DeployError as e:
            if precision == "fp32":  # there is nothing to compare with
                raise
            refused[precision] = " ".join(str(e).split())
        print(f"{case.name} {precision}: {time.process_time() - began:.0f} s of the processor", flush=True)
    spec = reports["fp32"].spec
    others = [n for n in names if n not in set(calibration.images())][-MEASURED:]
    images = [preprocess_for_parity(image_for(n, spec.input), spec.input, auto=False) for n in others]
    exact = outputs(reports["fp32"].path, "fp32", images)
    ratios = timed({name: reports[name].path for name in ("fp32", *RUN_ON_CPU) if name in reports}, images[0])
    return [
        Row(case.name, bool(case.weights), case.img, precision, refused=refused[precision])
        if precision in refused
        else row(case, precision, reports[precision], exact, images, ratios.get(precision), evaluated, place)
        for precision in ("fp32", *precisions)
    ]


def row(
    case: Case,
    precision: str,
    report: ExportReport,
    exact: list[dict[str, torch.Tensor]],
    images: list[Array],
    ratio: float | None,
    evaluated: Path | None,
    place: Path,
) -> Row:
    """The row of a file."""
    ap, error = None, None
    if precision != "fp32" and isinstance(report.spec.output, CHOSEN):
        quantised = None if report.precision is None else report.precision.quantised
        error = None if quantised is None else quantised.error
    elif precision != "fp32":
        adapter = export_adapter_of(report.spec)
        found = outputs(report.path, precision, images)
        error = statistics.fmean(float(adapter.error(a, b)) for a, b in zip(exact, found, strict=True))
    if evaluated is not None:
        backend = "torch" if precision in ("bf16", "fp8", "fp16") else "auto"
        evaluation = deploykit.evaluate(report.path, evaluated, images=place, backend=backend)
        assert isinstance(evaluation, DetectionEvaluation)
        ap = POINTS * evaluation.metrics["AP"]
    computes = report.precision.computes if report.precision is not None else {}
    layers = sum(computes.values()) or None
    kept = computes.get("fp32", 0) if computes and precision != "fp32" else None
    return Row(case.name, bool(case.weights), case.img, precision, error, ap, kept, layers, report.size, ratio)


def timed(files: Mapping[str, Path], image: Array) -> dict[str, float]:
    """The time of each network alone, fp32 = 1: the median of the ratios of one round each."""
    sessions = {name: open_session(file) for name, file in files.items()}
    runs = {name: (lambda s=session: s.run({s.inputs[0].name: image})) for name, session in sessions.items()}
    times = interleaved(runs, rounds=ROUNDS, warmup=2)
    for session in sessions.values():
        session.close()
    return {
        name: statistics.median(np.divide(each, times["fp32"]).tolist())
        for name, each in times.items()
        if name != "fp32"
    }


def number(value: float | None, form: str) -> str:
    """A number in a cell; nothing where there is none."""
    return "" if value is None else format(value, form)


def table(rows: list[dict[str, Any]], said: Mapping[str, str]) -> str:
    """The table, in Markdown, with the sentences on how it was made."""
    lines = [
        "| model | | error | AP | layers in fp32 | MB | time, fp32 = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for each in rows:
        first = each["precision"] == "fp32"
        weights = "" if each["trained"] else ", random weights"
        name = f"**{each['name']}** at {each['img']}{weights}" if first else ""
        if each["refused"]:
            notes.append(each["refused"])
            lines.append(f"| {name} | {each['precision']} | refused ({len(notes)}) | | | | |")
            continue
        kept = "" if each["kept"] is None else f"{each['kept']} of {each['layers']}"
        error = "" if first else number(each["error"], ".2g")
        ratio = number(each["ratio"], ".2f")
        size = number(each["size"] / 1e6, ".2f")
        lines.append(
            f"| {name} | {each['precision']} | {error} | {number(each['ap'], '.2f')} | {kept} | {size} | {ratio} |"
        )
    return "\n".join(
        [
            f"{said['machine']}, {said['versions']}, {said['date']}. Other programs shared the machine. "
            "No GPU ran any of it.",
            "",
            *lines,
            *([""] if notes else []),
            *(f"({i}) {note}" for i, note in enumerate(notes, 1)),
        ]
    )


def written(page: str, text: str) -> str:
    """The page with the text between the two comments."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of weights, images and annotations")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models; by default those that are not kept yet")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    args = parser.parse_args()
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.is_file() else {"rows": []}
    measured = {each["name"] for each in kept["rows"]}
    wanted = args.only or [case.name for case in CASES if case.name not in measured]
    for case in CASES if args.data else ():
        if case.name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as place:
            rows = measure(case, args.data, tuple(args.precisions), Path(place))
        machine = Machine.here()
        kept["machine"] = f"{machine.cores} cores of {machine.processor} ({', '.join(cpu_features())})"
        kept["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
        kept["date"] = datetime.now(UTC).date().isoformat()
        others = [each for each in kept["rows"] if each["name"] != case.name]
        found = [*others, *map(asdict, rows)]
        order = [c.name for c in CASES]
        kept["rows"] = sorted(found, key=lambda each: order.index(each["name"]))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text(), table(kept["rows"], kept)))


if __name__ == "__main__":
    main()
