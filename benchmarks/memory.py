"""What a network holds in memory in ONNX Runtime on the CPU, what each setting saves, and what it costs in time.

    python benchmarks/memory.py [--model yolov7-w6-pose] [--rounds 3] [--json benchmarks/results/memory.json]

Every cell is a fresh process, and the variants take turns. Memory is what the process holds beyond what it held before
the network was loaded, libraries included: it does not depend on what else the machine does. Time is that of the
processor for the second image and later ones, with one thread. ``--models`` takes ONNX files in place of a name.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from interleaved import interleaved
from measured import Row, Table, show

from deploykit.runtime.backends.ort import open_session
from deploykit.runtime.backends.ort_cpu import LOW_MEMORY, give_back
from deploykit.runtime.machine import peak_memory, reset_peak_memory, resident_memory

BARE, IMAGES, MIB = "ONNX Runtime as it comes", 4, 1 << 20
SHRINK = {"memory.enable_memory_arena_shrinkage": "cpu:0"}
DEVICE = {"session.use_device_allocator_for_initializers": "1"}
VARIANTS: dict[str, dict[str, Any]] = {
    BARE: {},
    "freed memory given back after loading": {"trim": True},
    "the same, from bytes": {"trim": True, "bytes": True},
    "the same, no prepacking": {"trim": True, "entries": {"session.disable_prepacking": "1"}},
    "the same, weights outside the arena": {"trim": True, "entries": DEVICE},
    "the same, no memory pattern": {"trim": True, "set": {"enable_mem_pattern": False}},
    "the same, no arena": {"trim": True, "set": {"enable_mem_pattern": False, "enable_cpu_mem_arena": False}},
    "the same, an arena that shrinks": {
        "trim": True, "set": {"enable_mem_pattern": False}, "entries": DEVICE, "run": SHRINK,
    },
    "deploykit": {"ours": True},
    "deploykit, low memory": {"ours": True, "environment": {LOW_MEMORY: "1"}},
}  # fmt: skip
COLUMNS = {
    "peak while loading, MiB": "{:.0f}", "after loading, MiB": "{:.0f}", "after 4 images, MiB": "{:.0f}",
    "peak in a run, MiB": "{:.0f}", "closed, MiB": "{:.0f}", "loading, s": "{:.2f}", "an image, s": "{:.3f}",
}  # fmt: skip


def measure(path: Path, variant: dict[str, Any]) -> None:
    """Print the numbers of one variant, measured in this process, in the order of the columns."""
    base = held()
    reset_peak_memory()
    start = time.process_time()
    if variant.get("ours"):
        session: Any = open_session(path, provider="cpu", threads=1)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        for name, value in variant.get("entries", {}).items():
            options.add_session_config_entry(name, value)
        for name, value in variant.get("set", {}).items():
            setattr(options, name, value)
        source = path.read_bytes() if variant.get("bytes") else str(path)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        del source
    found = [peak() - base]
    if variant.get("trim"):
        give_back()
    loading, loaded = time.process_time() - start, held() - base
    run_options = onnxruntime.RunOptions()
    for name, value in variant.get("run", {}).items():
        run_options.add_run_config_entry(name, value)
    inputs = session.inputs if variant.get("ours") else session.get_inputs()
    shape = [side if isinstance(side, int) else 1 for side in inputs[0].shape]
    image = {inputs[0].name: np.random.default_rng(0).random(shape, np.float32)}
    reset_peak_memory()
    times = []
    for _ in range(IMAGES):
        start = time.process_time()
        session.run(image) if variant.get("ours") else session.run(None, image, run_options)
        times.append(time.process_time() - start)
    found += [loaded, held() - base, peak() - base]
    if variant.get("ours"):
        session.close()
    del session, inputs  # which know their session in ONNX Runtime
    print(json.dumps([*found, held() - base, loading, statistics.median(times[1:])]))


def held() -> float:
    """MiB that this process holds."""
    return (resident_memory() or 0) / MIB


def peak() -> float:
    """The most MiB that it has held since the peak was reset."""
    return (peak_memory() or 0) / MIB


def table_of(path: Path, rounds: int) -> Table:
    """Measure every variant of one file in processes of their own."""
    numbers: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}

    def run(name: str) -> None:
        command = [sys.executable, __file__, "--measure", name, "--models", str(path)]
        environment = os.environ | VARIANTS[name].get("environment", {})
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        numbers[name].append(json.loads(done.stdout))

    interleaved({name: partial(run, name) for name in VARIANTS}, rounds, warmup=0)
    rows = []
    for name, found in numbers.items():
        values = [round(statistics.median(column), 3) for column in zip(*found, strict=True)]
        rows.append(Row((name,), dict(zip(COLUMNS, values, strict=True))))
    size = path.stat().st_size / MIB
    return Table(f"{path.stem}, a file of {size:.0f} MiB", ("",), COLUMNS, tuple(rows))


def main() -> None:
    """Measure one file or several, or one variant for this script itself."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--model", default="yolov7-w6-pose", help="exported with random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.models[0], VARIANTS[args.measure])
        return
    with TemporaryDirectory() as folder:
        models = args.models
        if not models:
            cli = [sys.executable, "-m", "deploykit"]
            checkpoint, path = f"{folder}/random.pt", Path(folder) / f"{args.model}.onnx"
            subprocess.run([*cli, "create", args.model, "--out", checkpoint, "--quiet"], check=True)
            subprocess.run([*cli, "export", checkpoint, "--no-check", "--out", str(path), "--quiet"], check=True)
            models = [path]
        tables = [table_of(path, args.rounds) for path in models]
    how = (
        f"Medians of {args.rounds} rounds, each cell a fresh process, one thread, time of the processor, beside other "
        f"programs (load {os.getloadavg()[0]:.1f}). Random weights; memory is beyond what the process held before."
    )
    show(tables, "Memory of a network on the CPU", "memory.py", how, args.json)


if __name__ == "__main__":
    main()
