"""Where ``deploykit cluster run`` saturates and what a million images cost, by a simulation of its events.

    python benchmarks/cluster_scaling.py                                  # the tables of docs/guides/cluster.md
    python benchmarks/cluster_scaling.py --measure best.onnx images/      # service times of a model, on this machine
    python benchmarks/cluster_scaling.py --compute 0.004 --bytes 150000 --store 1.25e9 --price 0.5

Simulated are workers that start, get a part, and for one batch of images after the other wait for the store, read and
compute; a store whose bandwidth all of them share, in turn; and the command, which hands out parts, takes them in and
writes them, one after the other. A worker gets its next part only when the command has room for the finished one, as
Ray bounds what waits in its object store. Times vary from batch to batch (lognormal). Nothing here ran on a cluster:
the numbers are what follows from the service times and the assumptions, which are printed with them.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

WORKERS = (1, 16, 64, 256, 512, 1024)
NEAR = 0.75  # of the time busy: what limits a run


@dataclass(frozen=True)
class Setting:
    """A run to simulate.

    Attributes:
        images: how many there are.
        per_part: images in a part.
        batch: images that are fetched and computed in one step of the simulation.
        compute: seconds of a worker for an image, from its bytes to its row.
        latency: seconds until the first byte of an image comes; a worker waits for it, one image after another.
        bytes: of an image.
        store: bytes per second that the store, or the network to it, gives to all workers together.
        hand_out, write: seconds of the command for a part: to hand it out and take it in; to write it.
        row: bytes of a row.
        memory: bytes of the object store in which finished parts wait for the command.
        start: seconds until a worker has opened the model.
        spread: standard deviation of the logarithm of times.
        price: of a worker for an hour; 0: not said.
    """

    images: int = 1_000_000
    per_part: int = 250
    batch: int = 25
    compute: float = 0.033
    latency: float = 0.010
    bytes: float = 143_424
    store: float = 1.25e9
    hand_out: float = 0.006
    write: float = 0.012
    row: float = 2_210
    memory: float = 200e6
    start: float = 15.0
    spread: float = 0.3
    price: float = 0.0

    @property
    def room(self) -> int:
        """How many finished parts may wait for the command."""
        return max(1, int(self.memory / (self.per_part * self.row)))


@dataclass(frozen=True)
class Simulated:
    """What a run took: seconds, the shares of them in which the store and the command were busy, and images done."""

    seconds: float
    store: float
    command: float
    images: int

    def limit(self, workers: float) -> str:
        """Return what kept it from being faster; ``workers``: the share of the time in which these were busy."""
        busy = {"workers": workers, "store": self.store, "command": self.command}
        name = max(busy, key=lambda each: busy[each])
        return name if busy[name] >= NEAR else "start and end"


def simulate(setting: Setting, workers: int, seed: int = 0) -> Simulated:
    """Simulate one run, event by event; the same seed gives the same numbers."""
    chance = random.Random(seed)
    mean = -(setting.spread**2) / 2  # of the logarithm, for a mean factor of 1
    parts = [min(setting.per_part, setting.images - i) for i in range(0, setting.images, setting.per_part)][::-1]
    store_free = command_free = store_busy = command_busy = 0.0
    accepted: list[float] = []  # when the command will have written each part that is finished, the soonest first
    left, done, end = [0] * workers, [0] * workers, 0.0
    computed = 0
    events = [(setting.start * chance.lognormvariate(mean, setting.spread), worker) for worker in range(workers)]
    heapq.heapify(events)
    while events:
        now, worker = heapq.heappop(events)
        if left[worker] == 0:
            if done[worker]:  # it has a finished part, for which the command must have room
                while accepted and accepted[0] <= now:
                    heapq.heappop(accepted)
                if len(accepted) >= setting.room:
                    heapq.heappush(events, (accepted[0], worker))
                    continue
                took = setting.hand_out + setting.write
                command_free = max(command_free, now) + took
                command_busy += took
                heapq.heappush(accepted, command_free)
                computed += done[worker]
                done[worker] = 0
                end = max(end, command_free)
            if not parts:
                continue
            left[worker] = parts.pop()
        size = min(setting.batch, left[worker])
        transfer = size * setting.bytes / setting.store
        store_free = max(store_free, now) + transfer
        store_busy += transfer
        factor = chance.lognormvariate(mean, setting.spread)
        ready = max(store_free, now + size * setting.latency) + size * setting.compute * factor
        left[worker] -= size
        done[worker] += size
        heapq.heappush(events, (ready, worker))
    return Simulated(end, store_busy / end, command_busy / end, computed)


def bound(setting: Setting, workers: int) -> float:
    """Return the seconds that a run takes at least: by the store, the command, or the workers with everything even."""
    by_store = setting.images * setting.bytes / setting.store
    by_command = math.ceil(setting.images / setting.per_part) * (setting.hand_out + setting.write)
    return max(by_store, by_command, setting.images * setting.compute / workers)


def table(setting: Setting, counts: Sequence[int] = WORKERS) -> str:
    """Return a table in Markdown: a row for each number of workers."""
    price = " | price" * bool(setting.price)
    lines = [f"| workers | time | images/s | efficiency | store | command | limit | worker hours{price} |"]
    lines.append("|" + "---|" * (8 + bool(setting.price)))
    alone = simulate(setting, 1).seconds
    for workers in counts:
        found = simulate(setting, workers)
        efficiency = alone / (found.seconds * workers)
        hours = found.seconds * workers / 3600
        cost = f" | {hours * setting.price:,.2f}" * bool(setting.price)
        lines.append(
            f"| {workers:,} | {_time(found.seconds)} | {setting.images / found.seconds:,.0f} | {efficiency:.2f} "
            f"| {found.store:.2f} | {found.command:.2f} | {found.limit(efficiency)} | {hours:,.1f}{cost} |"
        )
    return "\n".join(lines)


def tables() -> str:
    """Return the tables of docs/guides/cluster.md, each below its name."""
    return "\n\n".join(f"{name[0].upper()}{name[1:]}:\n\n{table(setting)}" for name, setting in SETTINGS.items())


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"


SETTINGS = {
    "as measured, and 10 Gbit/s from the store": Setting(),
    "a worker ten times as fast": Setting(compute=0.0033),
    "the same, and 100 Gbit/s": Setting(compute=0.0033, store=12.5e9),
    "the same, and parts of 2,000 images": Setting(compute=0.0033, store=12.5e9, per_part=2000),
}
"""What docs/guides/cluster.md has tables of."""


def measured(model: Path, folder: Path, count: int = 40) -> dict[str, float]:
    """Return service times of a model here: CPU seconds for an image, its bytes, and what writing a part takes."""
    from functools import partial

    from deploykit.facade import load
    from deploykit.runtime.cluster.plan import items_of
    from deploykit.runtime.cluster.run import PARTS
    from deploykit.runtime.cluster.work import Task, Work, Worker
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.opening import open_sources

    found = items_of(source for source in open_sources(str(folder)) if isinstance(source, Images))
    items = [found[i % len(found)] for i in range(count)]
    worker = Worker(Work(partial(load, str(model), threads=1), str(model), "", "jsonl"))
    worker(Task(0, items[:1]))  # with its warm-up
    before = time.process_time()
    results = [worker(Task(number, [item])) for number, item in enumerate(items)]
    compute = (time.process_time() - before) / count
    worker.close()
    from deploykit.atomic import write_atomic

    whole = b"".join(done.data for done in results) * math.ceil(Setting.per_part / count)
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        writes = []
        for number in range(20):
            start = time.perf_counter()
            write_atomic(Path(temporary, PARTS, f"{number}"), whole)
            writes.append(time.perf_counter() - start)
    return {
        "compute": compute,
        "bytes": sum(item.size or 0 for item in items) / count,
        "row": sum(len(done.data) for done in results) / count,
        "write": sorted(writes)[len(writes) // 2],
    }


def main() -> None:
    """Print the tables, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("MODEL", "DIR"), help="service times on this machine")
    for field in fields(Setting):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"(default {field.default:g})")
    args = parser.parse_args()
    if args.measure:
        for name, value in measured(*args.measure).items():
            print(f"{name}: {value:.6g}")
        return
    given = {field.name: value for field in fields(Setting) if (value := getattr(args, field.name)) is not None}
    print(table(replace(Setting(), **given)) if given else tables())


if __name__ == "__main__":
    main()
