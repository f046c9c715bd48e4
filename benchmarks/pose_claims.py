"""What is said of yolov7-w6-pose and ONNX Runtime, measured.

    python benchmarks/pose_claims.py [--upstream DIR] [--upstream-python PYTHON] [--trained CHECKPOINT IMAGES ...]

A post about exporting yolov7-w6-pose makes six claims: the ONNX file is nearly three times the half checkpoint; it is
nearly lossless; ONNX Runtime halves the time; an image of 960 px takes 2 to 4 GB; the letterbox needs stride 64; and
its script feeds BGR. docs/pose-claims.md tells what came out.

DIR is a checkout of WongKinYiu/yolov7, branch pose, that you bring; PYTHON is one that has what its requirements.txt
asks for, and onnxsim. Without DIR the original is said to be not measured. Its code unpickles the checkpoint, which
runs what the file says: pass --weights only files that you trust. Without --weights, random ones are made.
CHECKPOINT is a trained model for the colour order, and IMAGES a folder of what it detects.

Everything runs in a process of its own, which is where peak memory is measured (VmHWM, Linux). Times are of the network
alone, the processes take turns, and each waits while another runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PARTS = str(Path(__file__).with_name("pose_claims_parts.py"))
ORIGINAL = {
    "original": "original, PyTorch, fused",
    "original-unfused": "original, PyTorch, as its notebook without gradients",
    "original-grad": "original, PyTorch, as its notebook (gradients on)",
    "original-ort": "original's own export, ONNX Runtime",
}
OURS = {"torch": "deploykit's folded model, PyTorch", "ort": "deploykit's export, ONNX Runtime"}
CLAIMS = {
    "size": "the ONNX file is nearly three times the half checkpoint",
    "numbers": "the result is nearly lossless",
    "time": "ONNX Runtime halves the time",
    "memory": "960 x 960 takes 2 to 4 GB",
    "stride": "the letterbox needs stride 64, not 32",
    "colour": "(its script feeds BGR; the training fed RGB)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, metavar="DIR")
    parser.add_argument("--upstream-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--trained", nargs=2, type=Path, action="append", default=[], metavar=("CHECKPOINT", "IMAGES"))
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--img", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds is at least 2")
    for path in (args.upstream, args.weights, *(path for pair in args.trained for path in pair)):
        if path is not None and not path.exists():
            parser.error(f"there is no {path}")
    with tempfile.TemporaryDirectory() as folder:
        found = measured(args, Path(folder))
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(found["conditions"])
    for claim, text in CLAIMS.items():
        print(f"\n{claim}: {text}")
        for line in found[claim] or ["not measured: no --trained"]:
            print(f"  {line}")
        if not args.upstream and claim != "colour":
            print("  the original: not measured, no --upstream")


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every claim's lines, and under ``raw`` the numbers they are made of."""
    before = os.getloadavg()
    weights = (args.weights or folder / "yolov7-w6-pose.pt").resolve()
    facts = once(sys.executable, "prepare", weights, folder, args.img, args.threads)
    workers = dict(OURS)
    files = {"deploykit": folder / "ours.onnx"}
    if args.upstream:
        upstream = args.upstream.resolve()
        exported = once(args.upstream_python, "original-export", upstream, weights, folder, args.img)
        workers = {**ORIGINAL, **OURS}
        files |= {"original, traced": folder / "traced.onnx", "original, simplified": folder / "simplified.onnx"}
        facts |= exported
    sizes = {name: once(sys.executable, "sizes", file) for name, file in files.items() if file.exists()}
    memory, seconds = turns(args, list(workers), weights, folder)
    numbers = once(sys.executable, "differences", weights, folder, args.threads)
    stride = once(sys.executable, "stride", weights, args.img)
    if args.upstream:
        stride |= once(args.upstream_python, "original-stride", upstream, weights, stride["size"])
    colour = {c.name: once(sys.executable, "colour", c, images) for c, images in args.trained}
    after = os.getloadavg()
    conditions = (
        f"yolov7-w6-pose at {args.img}, {'random' if args.weights is None else 'given'} weights, {args.rounds} rounds, "
        f"{args.threads} threads of {os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, "
        f"{facts.pop('versions')}; load average {before[0]:.1f} before, {after[0]:.1f} after"
    )
    return {
        "conditions": conditions,
        "size": size_lines(weights, sizes, facts),
        "numbers": [f"{workers[kind]}: {difference_text(numbers[kind])} from float64" for kind in workers],
        "time": time_lines(seconds, workers),
        "memory": [f"{workers[kind]}: {memory_text(memory[kind])}" for kind in workers],
        "stride": stride["lines"] + stride.get("original", []),
        "colour": [f"{name}: {line}" for name, c in colour.items() for line in c["lines"]],
        "raw": {"sizes": sizes, "memory": memory, "seconds": seconds, "numbers": numbers, "colour": colour},
    }


def turns(
    args: argparse.Namespace, kinds: list[str], weights: Path, folder: Path
) -> tuple[dict[str, Any], dict[str, list[tuple[float, float]]]]:
    """Memory of each network's first image, and in every round the seconds of each: by the clock, of all cores."""
    memory: dict[str, Any] = {}
    running: dict[str, Worker] = {}
    for kind in kinds:
        worker = Worker(args, kind, weights, folder)
        memory[kind] = worker.ask("run")
        worker.ask(f"save {folder / f'{kind}.npy'}")
        if kind == "original-grad":  # it is here for its memory
            worker.close()
        else:
            running[kind] = worker
    for worker in running.values():
        worker.ask("run")
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in running}
    for _ in range(args.rounds):
        for kind, worker in running.items():
            answer = worker.ask("run")
            seconds[kind].append((answer["seconds"], answer["cpu"]))
    for worker in running.values():
        worker.close()
    return memory, seconds


def difference_text(d: dict[str, float]) -> str:
    """The largest differences from exact arithmetic."""
    return f"boxes {d['boxes']:.2g} px, keypoints {d['keypoints']:.2g} px, probabilities {d['probabilities']:.1g}"


def memory_text(m: dict[str, int]) -> str:
    """Resident memory; the libraries and the weights are in it."""
    running, loaded, loading = (m[key] / 1e9 for key in ("running", "loaded", "loading"))
    return (
        f"peak {running:.2f} GB during the first image, {running - loaded:.2f} GB above the {loaded:.2f} GB before; "
        f"{loading:.2f} GB while it was loaded"
    )


def size_lines(weights: Path, sizes: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Each file against the checkpoint, and what its bytes are."""
    checkpoint = weights.stat().st_size
    lines = [f"the checkpoint: {checkpoint:,} bytes"]
    for name, size in sizes.items():
        parts = ", ".join(f"{part} {count / 1e6:.1f} MB" for part, count in size["parts"].items() if count > 5e4)
        lines.append(f"{name}: {size['bytes']:,} bytes, {size['bytes'] / checkpoint:.2f} x the checkpoint: {parts}")
    return lines + [f"{name}: {text}" for name, text in facts.items()]


def time_lines(seconds: dict[str, list[tuple[float, float]]], names: dict[str, str]) -> list[str]:
    """Medians over the rounds: of the time, and of its ratio to that of ONNX Runtime on our file in the same round."""
    lines = []
    for kind, taken in seconds.items():
        clock, cpu = zip(*taken, strict=True)
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(taken, seconds["ort"], strict=True)) for i in range(2)]
        low, middle, high = statistics.quantiles(clock, n=4)
        lines.append(
            f"{names[kind]}: median {middle * 1e3:.0f} ms (quartiles {low * 1e3:.0f} to {high * 1e3:.0f}, fastest "
            f"{min(clock) * 1e3:.0f}), {ratios[0]:.2f} x ours in ONNX Runtime; {statistics.median(cpu):.2f} s of "
            f"all cores together, {ratios[1]:.2f} x"
        )
    return lines


class Worker:
    """A network in a process of its own, which runs when it is asked."""

    def __init__(self, args: argparse.Namespace, kind: str, weights: Path, folder: Path) -> None:
        torch_of_original = kind.startswith("original") and kind != "original-ort"
        python = args.upstream_python if torch_of_original else sys.executable
        words = [kind, weights, folder, args.upstream.resolve() if args.upstream else "", args.threads]
        self._process = subprocess.Popen(
            [python, PARTS, "work", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        print(what, file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate("")


def once(python: str, child: str, *words: object) -> dict[str, Any]:
    """The answer of one child function in a fresh process."""
    done = subprocess.run([python, PARTS, child, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
