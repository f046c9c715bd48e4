"""Whether memory, threads and open files stay what they are over many predictions and many loads.

    python benchmarks/steady_memory.py [--model FILE] [--predictions 10000] [--loads 1000] [--json FILE]

One process predicts on images of several sizes: one after the other, by a stream with several workers, and by four
threads; and it loads a model, predicts with it, and closes or drops it. What it holds is read ten times on the way. The
first tenth fills caches; what comes after it should not grow. The exit code is 1 if memory grew by more than 16 MiB, or
a thread or a file was left.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import deploykit
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.ort_cpu import give_back
from deploykit.runtime.machine import Machine, resident_memory, versions

ASSETS = Path(deploykit.__file__).with_name("assets")
READINGS = 10
MOST = 16.0  # MiB that may be added after the first reading
SIZES = ((96, 128), (128, 96), (160, 160), (75, 200))


@dataclass(frozen=True)
class Held:
    """What a process holds.

    Attributes:
        mib: resident memory in MiB, after what is free went back to the system.
        threads: threads of Python.
        files: open files.
    """

    mib: float
    threads: int
    files: int


@dataclass(frozen=True)
class Series:
    """What was held while one thing was done many times.

    Attributes:
        name: what was done.
        count: how many times.
        readings: what was held after each tenth.
    """

    name: str
    count: int
    readings: tuple[Held, ...]

    @property
    def growth(self) -> float:
        """MiB that were added after the first reading."""
        return self.readings[-1].mib - self.readings[0].mib

    @property
    def flat(self) -> bool:
        """Whether nothing grew."""
        first, last = self.readings[0], self.readings[-1]
        return self.growth <= MOST and (first.threads, first.files) == (last.threads, last.files)


def held() -> Held:
    """Return what this process holds now."""
    gc.collect()
    give_back()
    memory = resident_memory()
    if memory is None:
        sys.exit("this system does not tell how much memory a process holds")
    return Held(memory / (1 << 20), threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))


def images() -> list[Array]:
    """Return images of several sizes."""
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def series(name: str, count: int, do: Callable[[int], object]) -> Series:
    """Do something ``count`` times, as ``do`` of a number of times does it, and read what is held ten times."""
    part = max(1, count // READINGS)
    found = []
    for _ in range(READINGS):
        do(part)
        found.append(held())
    return Series(name, part * READINGS, tuple(found))


def predictions(path: str, count: int) -> Iterator[Series]:
    """Yield what predictions of one model hold: in one thread, in a stream with workers, and in four threads."""
    seen = images()
    with deploykit.load(path, threads=2, workers=3) as model:

        def one(times: int) -> None:
            for number in range(times):
                model(seen[number % len(seen)])

        def streamed(times: int) -> None:
            for _ in model.stream([seen[number % len(seen)] for number in range(times)]):
                pass

        def four(times: int) -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(one, [times // 4] * 4))

        yield series("predictions, one after the other", count, one)
        yield series("predictions of a stream with 3 workers", count, streamed)
        yield series("predictions by 4 threads", count, four)


def loads(path: str, count: int, load: Callable[..., Any] = deploykit.load) -> Iterator[Series]:
    """Yield what a model holds that is loaded, predicts and is closed, and one that is dropped."""
    image = images()[0]

    def closed(times: int) -> None:
        for _ in range(times):
            with load(path) as model:
                model(image)

    def dropped(times: int) -> None:
        for _ in range(times):
            load(path)(image)

    yield series("loads, each with a prediction and closed", count, closed)
    yield series("loads, each with a prediction and dropped", count, dropped)


def main() -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ASSETS / "markers.onnx"), metavar="FILE")
    parser.add_argument("--predictions", type=int, default=10_000, metavar="N")
    parser.add_argument("--loads", type=int, default=1_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    machine = Machine.here()
    print(f"{machine.processor}, {machine.cores} cores, load {machine.load or 0:.1f}; {versions()}")
    found = []
    for each in (*predictions(args.model, args.predictions), *loads(args.model, args.loads)):
        found.append(each)
        told = " ".join(f"{reading.mib:.1f}" for reading in each.readings)
        last = each.readings[-1]
        ends = f"{last.threads} threads, {last.files} files{'' if each.flat else '  <- NOT FLAT'}"
        print(f"{each.name}: {each.count}; MiB after each tenth: {told}; {each.growth:+.1f}; {ends}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": asdict(machine), "series": [asdict(each) for each in found]}))
    return 0 if all(each.flat for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
