"""NMS of one image's raw rows by several implementations, over rows, classes, keypoints and candidates.

    python benchmarks/nms.py [--rounds 30] [--plot nms.png] [--json benchmarks/results/nms.json]

Every round runs each implementation once, in an order of its own; printed are medians in milliseconds and, in brackets,
the ratio to ours in numpy. Each gets the same array and gives back boxes (corners), scores, labels and keypoints of
what is kept; thresholds are the defaults (0.25, 0.45, 1000 candidates, 300 objects). What is compared:

* ours in numpy, and the native library (where it is built: deploykit plugins build), which give the same bits;
* the YOLO projects' algorithm, written here from its definition in torch: objectness filter, scores, one class a row,
  sort, boxes moved apart by 4096 pixels a class, greedy NMS. Theirs calls torchvision's compiled NMS at that point;
* OpenCV's cv2.dnn.NMSBoxesBatched after the same selection in numpy, which leaves out rows of NaN and infinity too; it
  moves classes apart, and does not say which equal scores come first;
* NMS in the graph, in ONNX Runtime: what ``--nms graph`` and ``--nms basic`` add to a network, from the same rows, and
  the operator NmsKpt (where it is built). What they save by never decoding most rows is in selection.py.

The floor is one pass over the objectness column in numpy, or over the classes where there is none: no NMS of raw rows
can do with less. The next two tables have ours in numpy and OpenCV's path alone, in milliseconds of the processor.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from interleaved import interleaved
from measured import Row, Table, medians, show
from pre_post import COCO, POSE, _rows
from selection import exported
from yolo_nms import yolo_nms

from deploykit.export.nms.graph import candidates_for
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.options import NmsMode
from deploykit.export.plugins_check import nms_kpt_model
from deploykit.runtime.arrays import Array
from deploykit.runtime.native.library import cpu_library, find_library
from deploykit.runtime.postprocess.nms import Choice, Kept, nms, numpy_nms
from deploykit.runtime.session import open_session
from deploykit.spec import InputSpec, KeypointSpec, ModelSpec, NmsOutputs, RawDetections, Thresholds

PLAIN = RawDetections(obj=None, cls=(4, 84))
BY_COLUMNS = replace(PLAIN, columns_first=True)
PROBLEMS = {
    "pose, 57375 rows, 1 class, 17 keypoints": (57375, POSE),
    "pose, 8400 rows, 1 class, 17 keypoints": (8400, POSE),
    "COCO, 25200 rows, 80 classes": (25200, COCO),
    "COCO, 8400 rows, 80 classes": (8400, COCO),
    "8400 rows, 80 classes, no objectness": (8400, PLAIN),
    "the same, columns first": (8400, BY_COLUMNS),
}
CANDIDATES = (0, 10, 50, 200, 500, 3000)
FEW = 500  # candidates, up to which OpenCV's path is compared alone
THRESHOLDS = Thresholds()
OURS, FLOOR, YOLO, OPENCV = "ours, numpy", "floor", "YOLO's, torch", "cv2.dnn"


def main() -> None:
    """Measure, print one table, and draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="how often each variant runs (default 30)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the medians (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    results: dict[tuple[str, int], dict[str, float]] = {}
    for name, (count, layout) in PROBLEMS.items():
        for candidates in CANDIDATES:
            rows = _problem(count, layout, candidates)
            results[name, candidates] = medians(interleaved(_variants(rows, layout), args.rounds))
    columns = dict.fromkeys(next(iter(results.values())), "{:.2f}")
    lines = tuple(Row((name, str(candidates)), times) for (name, candidates), times in results.items())
    tables = [Table("raw rows of one image to what is kept, ms", ("", "candidates"), columns, lines, OURS)]
    tables += _against_opencv(4 * args.rounds)
    if cpu_library() is not None:
        tables += [_several_labels(args.rounds), *_against_floor(2 * args.rounds)]
    how = f"Medians of {args.rounds} rounds (alone {4 * args.rounds}, against the floor {2 * args.rounds})"
    how += f", {torch.get_num_threads()} threads"
    show(tables, "NMS", f"nms.py --rounds {args.rounds}", f"{how}, load {load:.1f} before.", args.json)
    if args.plot:
        _draw(results, args.plot)


def _problem(count: int, layout: RawDetections, candidates: int) -> Array:
    """Rows as the runtime gives them to NMS: of a head without objectness, the class scores are the products."""
    if layout.obj is not None:
        return _rows(count, layout, candidates)
    rows = _rows(count, COCO, candidates)
    rows[:, 5:] *= rows[:, 4:5]
    rows = np.delete(rows, 4, axis=1)
    return np.asfortranarray(rows) if layout.columns_first else rows


def _floor(rows: Array, layout: RawDetections) -> Callable[[], object]:
    return rows[:, 4].max if layout.obj is not None else rows[:, slice(*layout.cls)].max


def _taken(choose: Callable[..., Kept], rows: Array, layout: RawDetections) -> tuple[Kept, Array | None]:
    kept = choose(rows, layout, THRESHOLDS)
    return kept, rows.take(kept.rows, 0)[:, slice(*layout.keypoints)] if layout.keypoints else None


def _variants(rows: Array, layout: RawDetections) -> dict[str, Callable[[], object]]:
    variants: dict[str, Callable[[], object]] = {
        FLOOR: _floor(rows, layout),
        OURS: partial(_taken, numpy_nms, rows, layout),
    }
    if cpu_library() is not None:
        variants["ours, native"] = partial(_taken, nms, rows, layout)
    tensor = torch.from_numpy(rows)
    variants[YOLO] = lambda: yolo_nms(tensor, layout, THRESHOLDS, _greedy)
    variants[OPENCV] = partial(_opencv_nms, rows, layout)
    if layout.obj is not None:
        variants.update(_in_graph(rows, layout))
    return variants


def _against_opencv(rounds: int) -> list[Table]:
    """Ours in numpy and OpenCV's path alone, so that nothing else takes the caches and cores from either."""
    usual, least = [], []
    for name, (count, layout) in PROBLEMS.items():
        for candidates in (each for each in CANDIDATES if each <= FEW):
            rows = _problem(count, layout, candidates)
            variants: dict[str, Callable[[], object]] = {
                FLOOR: _floor(rows, layout),
                OURS: partial(_taken, numpy_nms, rows, layout),
                OPENCV: partial(_opencv_nms, rows, layout),
            }
            times = interleaved(variants, rounds, 3, clock=time.process_time)
            usual.append(Row((name, str(candidates)), medians(times)))
            least.append(Row((name, str(candidates)), {each: round(min(values), 4) for each, values in times.items()}))
    columns = dict.fromkeys(variants, "{:.3f}")
    title = "numpy and OpenCV's path alone, ms of the processor, {} of the rounds"
    return [
        Table(title.format(which), ("", "candidates"), columns, tuple(lines), OURS)
        for which, lines in (("median", usual), ("least", least))
    ]


def _in_graph(rows: Array, layout: RawDetections) -> dict[str, Callable[[], object]]:
    """NMS as part of an ONNX graph: variants by name."""
    points = (layout.keypoints[1] - layout.keypoints[0]) // layout.kpt_dims if layout.keypoints else 0
    variants: dict[str, Callable[[], object]] = {}
    options = onnxruntime.SessionOptions()
    # Its threads would spin on after a run, and take the cores from the variant that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for mode in ("graph", "basic"):
        decide = onnxruntime.InferenceSession(
            _decision(mode, len(rows), layout, points), options, providers=["CPUExecutionProvider"]
        )
        variants[f"--nms {mode}"] = partial(decide.run, None, {"f0": rows[None]})
    if find_library("onnxruntime") is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "nms.onnx")
            file.write_bytes(nms_kpt_model(rows.dtype, layout, THRESHOLDS, points))
            session = open_session(file, provider="cpu", threads=1)
        variants["NmsKpt"] = lambda: session.run({"rows": rows[None]})
    return variants


@cache
def _decision(mode: NmsMode, count: int, layout: RawDetections, points: int) -> bytes:
    """An ONNX file that takes rows and gives detections, as an export ends."""
    classes = tuple(map(str, range(layout.cls[1] - layout.cls[0])))
    output = NmsOutputs(keypoints="keypoints" if points else None)
    keypoints = KeypointSpec.unnamed(points) if points else None
    spec = ModelSpec("keypoints" if points else "detect", InputSpec(), output, classes, keypoints, THRESHOLDS)
    plan = NmsPlan(mode, layout, candidates_for(output), THRESHOLDS.pre_nms_topk)
    model = exported(plan.module(torch.nn.Identity()), [torch.zeros(1, count, layout.columns)], plan.outputs)
    plan.append(model, spec, torch.nn.Identity())
    return bytes(ir.to_proto(model).SerializeToString())


def _greedy(boxes: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Positions that stay, of boxes sorted by score: one matrix of overlaps, then row by row."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    corner = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    side = (torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner).clamp(min=0)
    inter = side.prod(2)
    over = (inter / (area[:, None] + area - inter) > THRESHOLDS.iou).numpy()
    gone = np.zeros(len(boxes), bool)
    kept = []
    for i in range(len(boxes)):
        if not gone[i]:
            kept.append(i)
            gone |= over[i]
    return torch.tensor(kept, dtype=torch.long)


def _opencv_nms(rows: Array, layout: RawDetections) -> tuple[Array | None, ...]:
    if layout.obj is None:
        every = rows[:, slice(*layout.cls)]
        index = np.flatnonzero(every.max(1) > THRESHOLDS.conf)
        part, products = rows[index], every[index]
    else:
        index = np.flatnonzero(rows[:, layout.obj[0]] > THRESHOLDS.conf)
        part = rows[index]
        products = part[:, slice(*layout.cls)] * part[:, slice(*layout.obj)]
    if not np.isfinite(part.sum()):
        whole = np.isfinite(part).all(1)
        index, part, products = index[whole], part[whole], products[whole]
    labels = products.argmax(1)
    scores = products[np.arange(len(part)), labels]
    boxes = part[:, :4].copy()
    boxes[:, :2] -= boxes[:, 2:] / 2
    found = cv2.dnn.NMSBoxesBatched(
        boxes.tolist(),
        scores.tolist(),
        labels.tolist(),
        THRESHOLDS.conf,
        THRESHOLDS.iou,
        1.0,
        THRESHOLDS.pre_nms_topk,
    )
    kept = np.asarray(found, np.int64).reshape(-1)[: THRESHOLDS.max_det]
    corners = boxes[kept]
    corners[:, 2:] += corners[:, :2]
    keypoints = part.take(kept, 0)[:, slice(*layout.keypoints)] if layout.keypoints else None
    return index[kept], corners, scores[kept], labels[kept], keypoints


def _several_labels(rounds: int) -> Table:
    """Evaluation: every class of a row that scores over 0.001 is a candidate; so many pairs as yolov5n has on COCO."""
    thresholds, choice = Thresholds(conf=0.001, iou=0.65, pre_nms_topk=30_000), Choice(multi_label=True)
    lines = []
    for count, layout in ((25200, COCO), (8400, BY_COLUMNS)):
        for pairs in (500, 3348, 14228):  # the last two: the mean of 79 images, and the most
            rows = _rows(count, layout, 0) if layout.obj else np.delete(_rows(count, COCO, 0), 4, axis=1)
            rows[:, 4:] = 0
            rng = np.random.default_rng(pairs)
            chosen, labels = np.divmod(rng.permutation(count * 80)[:pairs], 80)
            rows[chosen, layout.cls[0] + labels] = rng.uniform(0.002, 1, pairs) ** 2 + 0.001
            if layout.obj:
                rows[chosen, layout.obj[0]] = 1
            shown = np.asfortranarray(rows) if layout.columns_first else rows
            variants: dict[str, Callable[[], object]] = {
                OURS: partial(numpy_nms, shown, layout, thresholds, choice),
                "ours, native": partial(nms, shown, layout, thresholds, choice),
            }
            name = f"{count:,} rows, columns first" if layout.columns_first else f"{count:,} rows"
            lines.append(Row((name, str(pairs)), medians(interleaved(variants, rounds))))
    columns = dict.fromkeys((OURS, "ours, native"), "{:.2f}")
    return Table("several labels a row, 80 classes, ms", ("", "pairs"), columns, tuple(lines), OURS)


def _against_floor(rounds: int) -> list[Table]:
    """The native library and the floor alone, with everything flushed before each call and with the rows in a cache."""
    count, layout = next(iter(PROBLEMS.values()))
    flush = np.zeros(64_000_000, np.uint8)
    tables = []
    for flushed, where in ((True, "flushed from the caches before each call"), (False, "rows in a cache")):
        lines = []
        for candidates in (0, 50, 300, 500, 3000):
            rows = _rows(count, layout, candidates)
            variants: dict[str, Callable[[], object]] = {
                FLOOR: rows[:, 4].max,
                "native": partial(nms, rows, layout, THRESHOLDS),
            }
            times: dict[str, list[float]] = {name: [] for name in variants}
            for _ in range(rounds):
                for name in random.sample(list(variants), len(variants)):
                    if flushed:
                        flush += 1
                    start = time.perf_counter()
                    variants[name]()
                    times[name].append((time.perf_counter() - start) * 1e3)
            lines.append(Row((str(candidates),), medians(times)))
        title = f"{count:,} rows, native against the floor, {where}, ms"
        tables.append(Table(title, ("candidates",), dict.fromkeys(variants, "{:.2f}"), tuple(lines), FLOOR))
    return tables


def _draw(results: dict[tuple[str, int], dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PROBLEMS), figsize=(4 * len(PROBLEMS), 4.5), sharey=True)
    for axis, problem in zip(axes, PROBLEMS, strict=True):
        for name, values in _lines(results, problem):
            axis.plot(range(len(CANDIDATES)), values, marker="o", label=name)
        axis.set_xticks(range(len(CANDIDATES)), [str(c) for c in CANDIDATES])
        axis.set(title=problem, xlabel="candidates over the threshold", yscale="log")
        axis.title.set_fontsize(10)
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].set_ylabel("milliseconds an image, median")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=9, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(file, dpi=110)


def _lines(results: dict[tuple[str, int], dict[str, float]], problem: str) -> Iterator[tuple[str, list[float]]]:
    for name in results[problem, CANDIDATES[0]]:
        yield name, [results[problem, candidates][name] for candidates in CANDIDATES]


if __name__ == "__main__":
    main()
