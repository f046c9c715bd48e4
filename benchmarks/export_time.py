"""How long and how much memory an export takes, beside the bare exporter call on the same folded model.

    python benchmarks/export_time.py [--model yolov7-w6-pose] [--img 960] [--rounds 3]

Interleaved: each round runs all three, each in a fresh process. ``deploykit`` is everything of ``export --no-check``,
from the checkpoint to the closed file; ``bare`` is ``torch.onnx.export`` alone, to a file, on the fused model;
``checked`` is the whole export with its verification. torch and the exporter are imported before the clock starts.
Peak memory is the process' maximum resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(kind: str, weights: Path, img: int, folder: Path) -> dict[str, Any]:
    """One run in this process: seconds, and peak memory in MB."""
    import torch
    import torch.onnx._internal.exporter._core  # the exporter, which torch imports on first use

    from deploykit import export_onnx

    out = folder / f"{kind}.onnx"
    if kind == "bare":
        from deploykit.models.fuse import fuse_model
        from deploykit.models.registry import load_model

        module = fuse_model(load_model(weights).module)
        start = time.perf_counter()
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, img, img),),
            str(out),
            dynamo=True,
            opset_version=18,
            external_data=False,
            verbose=False,
        )
        parts: dict[str, float] = {}
    else:
        start = time.perf_counter()
        report = export_onnx(weights, img=img, out=out, check=kind == "checked")
        parts = report.seconds
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "peak": peak, "parts": parts, "bytes": out.stat().st_size}


def run(kind: str, weights: Path, img: int, folder: Path) -> dict[str, Any]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--child", kind, str(weights), str(img), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov7-w6-pose")
    parser.add_argument("--img", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import onnx
    import torch

    from deploykit.models.create.random_weights import create_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = create_checkpoint(args.model, folder / f"{args.model}.pt")
        kinds = ("bare", "deploykit", "checked")
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(args.rounds):
            for kind in kinds:
                runs[kind].append(run(kind, weights, args.img, folder))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, onnx {onnx.__version__}"
    print(f"{args.model} at {args.img}, {args.rounds} rounds, {os.cpu_count()} cores {platform.machine()}, {versions}")
    for kind in kinds:
        seconds = [r["seconds"] for r in runs[kind]]
        peak = max(r["peak"] for r in runs[kind])
        size = runs[kind][-1]["bytes"]
        fastest, median = min(seconds), statistics.median(seconds)
        print(f"{kind:<10} {fastest:6.1f} s min {median:6.1f} s median {peak:7.0f} MB {size:,} B")
        print(f"{'':<10} {runs[kind][-1]['parts'] or ''}")
    ratio = [d["seconds"] / b["seconds"] for d, b in zip(runs["deploykit"], runs["bare"], strict=True)]
    print(f"deploykit / bare: {statistics.median(ratio):.2f} (median of the rounds)")


if __name__ == "__main__":
    if "--child" in sys.argv:
        _, _, kind, weights, img, folder = sys.argv
        print(json.dumps(measure(kind, Path(weights), int(img), Path(folder))))
    else:
        main()
