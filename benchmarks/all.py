"""All benchmarks of times, one after the other, and docs/performance.md from what they kept, in at most 25 minutes.

    python benchmarks/all.py                                  # keeps numbers in benchmarks/results: on an idle machine
    python benchmarks/all.py --quick --out build/quick        # does everything work? its numbers mean nothing
    python benchmarks/all.py --only end_to_end cost --weights yolov5n.pt --images val2017 --data instances.json

Each benchmark is a process of its own, and is ended with all that it started when it has had its time (a share of 25
minutes, meant for two cores that do nothing else; ``--patience 3`` gives three times as long). What is not here is
said and left out: kernels.py needs a GPU with CUDA in torch, ultralytics_peer.py the Python of another environment
(``--peer-python``), OpenVINO is a column of end_to_end.py where it is installed. A benchmark that fails or is ended
keeps the numbers of before and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from measured import RESULTS, ROOT, write_page

HERE = Path(__file__).resolve().parent
BUSY = 0.5  # load, as a share of the cores, from which numbers are not to be kept


@dataclass(frozen=True)
class Benchmark:
    """A script, the seconds that it gets, what it is called with, also to be quick, and what it needs."""

    name: str
    seconds: float
    quick: tuple[str, ...]
    usual: tuple[str, ...] = ()
    needs: str = ""


PEERS = ("yolov8n", "yolov8n-seg", "yolov8n-pose", "yolo11n", "yolo26n")
BENCHMARKS = (
    Benchmark("pre_post", 60, ("--rounds", "2")),
    Benchmark("nms", 120, ("--rounds", "2")),
    Benchmark("selection", 120, ("--rounds", "2")),
    Benchmark("end_to_end", 90, ("--rounds", "2", "--img", "320", "--limit", "4")),
    Benchmark("cost", 150, ("--rounds", "2", "--img", "320", "--sizes", "160", "320")),
    Benchmark("pipelines", 240, ("--rounds", "1", "--minutes", "1"), ("--minutes", "3.5")),
    Benchmark("memory", 210, ("--rounds", "1", "--model", "yolov5n"), ("--rounds", "1")),
    Benchmark("export_time", 210, ("--rounds", "1", "--model", "yolov5n", "--img", "320"), ("--rounds", "2")),
    Benchmark("kernels", 60, ("--rounds", "2"), needs="cuda"),
    Benchmark(
        "ultralytics_peer",
        270,
        ("--rounds", "2", "--exports", "1", "--models", "yolov8n", "--img", "320"),
        ("--rounds", "10", "--exports", "2", "--models", *PEERS),
        needs="peer",
    ),
)


def main() -> int:
    """Run them, and write the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [one.name for one in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="few rounds, small models: shows that all of it runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where numbers are kept (default benchmarks/results)")
    parser.add_argument("--busy", action="store_true", help="keep numbers even if the machine is busy")
    parser.add_argument("--peer-python", type=Path, metavar="PYTHON", help="of an environment with ultralytics")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="FACTOR", help="times as long for each benchmark"
    )
    for name, meaning in (
        ("--weights", "end_to_end: a trained YOLOv5 checkpoint"), ("--images", "end_to_end: its images"),
        ("--data", "end_to_end: their annotations"), ("--calib", "end_to_end: images for int8"),
    ):  # fmt: skip
        parser.add_argument(name, type=Path, metavar="PATH", help=meaning)
    args = parser.parse_args()
    if args.quick and args.out is None:
        parser.error("--quick measures nothing that is worth keeping: give --out, a folder that may be thrown away")
    out = args.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores and not args.quick and not args.busy:
        parser.error(f"the load is {load:.1f} on {cores} cores: wait for an idle machine, or say --busy")
    failed = []
    for one in BENCHMARKS:
        if args.only and one.name not in args.only:
            continue
        if reason := missing(one, args):
            print(f"-- {one.name}: left out, {reason}", flush=True)
            continue
        start = time.perf_counter()
        print(f"-- {one.name}", flush=True)
        code = run_for(one.seconds * args.patience, list(command(one, args, out)))
        told = "ended, its time is over" if code is None else f"exit code {code}"
        print(f"-- {one.name}: {told} after {time.perf_counter() - start:.0f} s", flush=True)
        if code != 0:
            failed.append(one.name)
    page = write_page(out, ROOT / "docs" / "performance.md" if out == RESULTS else out / "performance.md")
    print(f"wrote {page}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_for(seconds: float, words: list[str]) -> int | None:
    """Run a command and return its exit code; None: its time was over, and it and what it started are ended."""
    process = subprocess.Popen(words, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # Ctrl-C too ends here
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def missing(one: Benchmark, args: argparse.Namespace) -> str:
    """What a benchmark needs and is not here; empty: nothing."""
    if one.needs == "peer" and args.peer_python is None:
        return "it needs --peer-python"
    if one.needs == "cuda":
        code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        if subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode:
            return "it needs a GPU and CUDA in torch"
    return ""


def command(one: Benchmark, args: argparse.Namespace, out: Path) -> Iterator[str]:
    """The words of a benchmark's command."""
    yield from (sys.executable, str(HERE / f"{one.name}.py"), "--json", str(out / f"{one.name}.json"))
    yield from one.quick if args.quick else one.usual
    if one.needs == "peer":
        yield from ("--peer-python", str(args.peer_python))
    if one.name == "end_to_end":
        for option in ("weights", "images", "data", "calib"):
            if getattr(args, option) is not None:
                yield from (f"--{option}", str(getattr(args, option)))


if __name__ == "__main__":
    sys.exit(main())
