"""What choosing the candidates before decoding saves: yolov7-w6-pose at 960 px, from its raw cells to objects.

Graphs in ONNX Runtime, run in turn on the same raw values of the head (noise): all 57,375 rows decoded and then
suppressed by the runtime; NMS in the graph, by NonMaxSuppression and by basic operators; and, where the library is
built, DecodeRows and NmsKpt. The confidence is set so that a given number of rows are candidates.

    python benchmarks/selection.py [--rounds 20] [--threads 2] [--json benchmarks/results/selection.json]
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from interleaved import interleaved
from measured import Row, Table, medians, show
from torch import nn

from deploykit.export.graph import passes
from deploykit.export.graph.two_stage_ops import TRANSLATIONS
from deploykit.export.nms.candidates import HeadSelection
from deploykit.export.nms.decode_node import append_decode
from deploykit.export.nms.graph import CANDIDATES, append_nms, append_plugin
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Detect
from deploykit.models.registry import create_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.runtime.native.library import find_library
from deploykit.runtime.postprocess.nms import Kept, numpy_nms
from deploykit.spec import NmsOutputs, RawDetections, Thresholds

SIDE = 960
NUMBERS = (0, 50, 500, 3000)
EVERY = "all rows decoded, numpy NMS"


def exported(module: nn.Module, features: list[torch.Tensor], outputs: tuple[str, ...]) -> ir.Model:
    """The graph of ``module`` with one input a level."""
    names = [f"f{i}" for i in range(len(features))]
    translations: dict[Callable[..., Any], Callable[..., Any]] = {**cast(dict[Any, Any], TRANSLATIONS)}
    program = torch.onnx.export(
        module.eval(), tuple(features), dynamo=True, optimize=False, verbose=False, opset_version=18, input_names=names,
        output_names=list(outputs), custom_translation_table=translations,
    )  # fmt: skip
    assert program is not None
    program.optimize()
    passes.simplify(program.model)
    return program.model


def opened(model: ir.Model, folder: Path, name: str, threads: int) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime on the CPU."""
    ir.save(model, folder / f"{name}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if name == "plugin":
        options.register_custom_ops_library(str(find_library("onnxruntime")))
    return onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])


class Same(nn.Module):
    """The raw values as they are: a graph that only its nodes to come make something of."""

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(f.clone() for f in features)


def _all_rows(
    session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray], layout: RawDetections, thresholds: Thresholds
) -> Kept:
    """Every row decoded in the graph, then NMS of them in numpy."""
    return numpy_nms(session.run(None, feed)[0][0], layout, thresholds)


def main() -> None:
    """Run the rounds for each number of candidates, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    logging.disable(logging.WARNING)  # the exporter's own
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = create_model("yolov7-w6-pose")
    fused = fuse_model(model.module)
    assert isinstance(fused, LayerGraph)
    head = fused.model[-1].requires_grad_(False)
    assert isinstance(head, Detect)
    head.raw = lambda x, level: x  # type: ignore[method-assign]  # the convolutions are not what is measured
    width = head.num_anchors * head.columns
    features = [torch.randn(1, width, SIDE // s, SIDE // s) for s in head.stride]
    layout, limits = model.spec.output, model.spec.thresholds
    assert isinstance(layout, RawDetections)
    with torch.inference_mode():
        rows = head(*features)[0].numpy()
    scores = np.sort(rows[:, 4] * rows[:, 5])[::-1]
    spec = replace(model.spec, output=NmsOutputs(keypoints="keypoints"))
    feed = {f"f{i}": f.numpy() for i, f in enumerate(features)}
    lines = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        every = opened(exported(head, features, ("output",)), folder, "rows", args.threads)
        for number in NUMBERS:
            conf = float(np.float32((scores[number - 1] + scores[number]) / 2)) if number else float(scores[0])
            chosen = replace(spec, thresholds=replace(limits, conf=conf))
            inside = {}
            for mode in ("graph", "basic"):
                graph = exported(HeadSelection(head, layout, limits.pre_nms_topk), features, CANDIDATES)
                append_nms(graph, mode, chosen, limits.pre_nms_topk)
                inside[mode] = opened(graph, folder, mode, args.threads)
            if find_library("onnxruntime") is not None:
                graph = exported(Same(), features, tuple(f"level_{i}" for i in range(len(features))))
                append_decode(graph, fused, layout)
                append_plugin(graph, layout, chosen)
                inside["plugin"] = opened(graph, folder, "plugin", args.threads)
            ways: dict[str, Callable[[], Any]] = {
                EVERY: partial(_all_rows, every, feed, layout, chosen.thresholds),
                "NMS in the graph": partial(inside["graph"].run, None, feed),
                "basic operators": partial(inside["basic"].run, None, feed),
            }
            if "plugin" in inside:
                ways["DecodeRows and NmsKpt"] = partial(inside["plugin"].run, None, feed)
            kept = len(ways[EVERY]().rows)
            found = [int(s.run(["num_dets"], feed)[0][0, 0]) for s in inside.values()]
            assert set(found) == {kept}, f"{kept} detections, in the graphs {found}"
            lines.append(Row((str(number), str(kept)), medians(interleaved(ways, args.rounds, warmup=2))))
    title = "yolov7-w6-pose at 960, raw values of the head to detections, ms"
    table = Table(title, ("candidates", "kept"), dict.fromkeys(ways, "{:.1f}"), tuple(lines), EVERY)
    how = f"Medians of {args.rounds} rounds, {args.threads} threads, load {load:.1f} before."
    show([table], "Candidates chosen before decoding", "selection.py", how, args.json)


if __name__ == "__main__":
    main()
