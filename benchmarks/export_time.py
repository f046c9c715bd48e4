"""How long and how much memory an export takes, beside the bare exporter call on the same folded model.

    python benchmarks/export_time.py [--model yolov7-w6-pose] [--img 960] [--rounds 3] [--json FILE]

Interleaved: each round runs all three, each in a fresh process. ``deploykit`` is everything of ``export --no-check``,
from the checkpoint to the closed file; ``bare`` is ``torch.onnx.export`` alone, to a file, on the fused model;
``checked`` is the whole export with its verification, whose reference values are computed each time. torch and the
exporter are imported before the clock starts.
Peak memory is the process' maximum resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def measure(kind: str, weights: Path, img: int, folder: Path) -> dict[str, Any]:
    """One run in this process: seconds, and peak memory in MB."""
    import torch
    import torch._dynamo
    import torch.onnx._internal.exporter._core  # the exporter and what it needs, which torch imports on first use

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
    environment = {**os.environ, "DEPLOYKIT_REFERENCE_CACHE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov7-w6-pose")
    parser.add_argument("--img", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    from deploykit.models.create.random_weights import create_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = create_checkpoint(args.model, folder / f"{args.model}.pt")
        kinds = ("bare", "deploykit", "checked")
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(args.rounds):
            for kind in kinds:
                runs[kind].append(run(kind, weights, args.img, folder))
    _show(runs, args, load)


def _show(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace, load: float) -> None:
    """Print the tables, and keep them if that is asked for."""
    from measured import Row, Table, show

    called = {
        "bare": "`torch.onnx.export`",
        "deploykit": "`deploykit export --no-check`",
        "checked": "`deploykit export`",
    }
    seconds = {called[kind]: [r["seconds"] for r in found] for kind, found in runs.items()}
    base = called["bare"]
    pairs = zip(seconds[called["deploykit"]], seconds[base], strict=True)
    ratio = f"`--no-check` took {statistics.median(a / b for a, b in pairs):.2f} times as long as the first"
    rows = (
        Row(("fastest",), {name: round(min(values), 3) for name, values in seconds.items()}),
        Row(("median",), {name: round(statistics.median(values), 3) for name, values in seconds.items()}),
    )
    written = {"peak memory, GB": "{:.2f}", "file, bytes": "{:,}"}
    sizes = []
    for kind, found in runs.items():
        values = (max(r["peak"] for r in found) / 1e3, found[-1]["bytes"])
        sizes.append(Row((called[kind],), dict(zip(written, values, strict=True))))
        print(f"{kind:<10} {found[-1]['parts'] or ''}")
    tables = [
        Table(f"{args.model} at {args.img}, random weights, s", ("",), dict.fromkeys(seconds, "{:.1f}"), rows, base),
        Table("memory and file of the same", ("",), written, tuple(sizes)),
    ]
    about = f"{args.rounds} rounds, each in a fresh process, load {load:.1f} before, onnx {version('onnx')}"
    how = f"{about}; {ratio} (median of the rounds)."
    show(tables, "Export", "export_time.py", how, args.json)


if __name__ == "__main__":
    if "--child" in sys.argv:
        _, _, kind, weights, img, folder = sys.argv
        print(json.dumps(measure(kind, Path(weights), int(img), Path(folder))))
    else:
        main()
