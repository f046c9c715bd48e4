"""What `deploykit serve` adds to a prediction, how many requests it answers, and how long they take under load.

    python benchmarks/serving.py [--quick] [--model FILE] [--json benchmarks/results/serving.json]

The server runs in a process of its own; its clients are this process, on the same cores (serving_load.py).
Variants are interleaved: every round has each of them once, in an order of its own. Printed are medians of rounds.

* *Beside the Predictor*: one 1080p JPEG at a time, in this process by the Predictor and by the server for one client.
* *Beside the pipeline*: many JPEGs by `Predictor.stream` and by the server for eight clients, with as many workers.
  Images a second of the clock leave the server's clients their share of the cores; images a second of the processor
  count the time of the server's process alone, or that of the process of `stream`.
* *Rate and latency* of more and more clients, for servers with other `--batch-window`s.
* *At 80 % load*: requests come at 0.8 of the rate that sixteen clients just reached, evenly and at random.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from interleaved import interleaved
from measured import Row, Table, show
from serving_load import (
    MODEL,
    Client,
    Load,
    closed_loop,
    jpegs,
    median_of,
    open_loop,
    percentile,
    predict,
    repeated,
    running,
)

import deploykit
from deploykit.runtime.predict.predictor import Predictor

FULL_HD, VGA = (1080, 1920), (480, 640)
MANY = 16  # clients that keep every worker busy
SHARE = 0.8
CLIENTS = (1, 2, 4, 8, 16, 32)
WINDOWS = ("0", "2", "10")  # milliseconds
QUIET = ("--log-format", "none")

Variant = tuple[Callable[[], object], Callable[[], float]]
"""What does the work, and what tells the seconds of the processor that its process has used."""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), metavar="FILE", help="what is served (default: the markers)")
    parser.add_argument("--rounds", type=int, default=3, help="of each table but the first two (default 3)")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: shows that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    rounds, seconds, load = (1 if args.quick else args.rounds), (0.5 if args.quick else 2.5), os.getloadavg()[0]
    singles = 5 if args.quick else 40 * rounds
    tables = [
        *overhead(args.model, singles),
        *against_stream(args.model, rounds, 16 if args.quick else 120),
        rates(args.model, rounds, seconds, CLIENTS[:2] if args.quick else CLIENTS),
        at_a_share(args.model, rounds, 4 * seconds),
    ]
    how = (
        f"Medians of {rounds} rounds ({singles} of single requests), each {seconds:g} s a cell; clients and server "
        f"share {os.cpu_count()} cores, load {load:.1f} before."
    )
    show(tables, "The server of models", "serving.py", how, args.json)


def overhead(model: str, rounds: int) -> list[Table]:
    """One request at a time beside the Predictor, with one thread and with two."""
    rows, added = [], []
    (jpeg,) = jpegs(FULL_HD)
    for threads in ("1", "2"):
        with (
            running("--threads", threads, *QUIET, model=model) as server,
            deploykit.load(model, threads=int(threads)) as predictor,
            Client(server.port) as client,
        ):
            variants: dict[str, Callable[[], object]] = {
                "Predictor": partial(predictor, jpeg),
                "server": partial(client.ask, predict(jpeg)),
            }
            times = interleaved(variants, rounds)
        more = [b - a for a, b in zip(times["Predictor"], times["server"], strict=True)]
        rows.append(Row((threads,), {name: round(statistics.median(each), 3) for name, each in times.items()}))
        added.append(
            Row((threads,), {"p50, ms": round(statistics.median(more), 3), "p90, ms": round(percentile(more, 0.9), 3)})
        )
    columns = {"Predictor": "{:.1f}", "server": "{:.1f}"}
    return [
        Table("One 1080p JPEG at a time, ms", ("threads",), columns, tuple(rows), "Predictor"),
        Table("What the server adds to each", ("threads",), {"p50, ms": "{:.2f}", "p90, ms": "{:.2f}"}, tuple(added)),
    ]


def against_stream(model: str, rounds: int, count: int) -> list[Table]:
    """Many images by the pipeline and by the server, both with as many workers as there are cores."""
    by_clock, by_processor = [], []
    with running("--workers", "auto", *QUIET, model=model) as server:
        for name, size in (("1920 x 1080", FULL_HD), ("640 x 480", VGA)):
            images = jpegs(size, 4) * (count // 4)
            requests = [predict(image) for image in images]
            with deploykit.load(model, workers="auto") as predictor:
                work: dict[str, Variant] = {
                    "stream": (partial(streamed, predictor, images), own_cpu_seconds),
                    "server": (partial(answered, server.port, requests), server.cpu_seconds),
                }
                clock, processor = images_a_second(work, rounds, len(images))
            by_clock.append(Row((name,), clock))
            by_processor.append(Row((name,), processor))
    columns = {"stream": "{:.1f}", "server": "{:.1f}"}
    return [
        Table("JPEGs in a second", ("size",), columns, tuple(by_clock), "stream"),
        Table("JPEGs in a second of the processor", ("size",), columns, tuple(by_processor), "stream"),
    ]


def streamed(predictor: Predictor[Any], images: list[bytes]) -> None:
    """Predict on all images by the pipeline."""
    assert sum(1 for _ in predictor.stream(images)) == len(images)


def answered(port: int, requests: list[bytes]) -> None:
    """Have eight clients ask all requests."""
    all_answered(closed_loop(port, requests, 8))


def images_a_second(work: dict[str, Variant], rounds: int, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """The images in a second of the clock and of the processor by each variant; medians of rounds, after one more."""
    clock: dict[str, list[float]] = {name: [] for name in work}
    processor: dict[str, list[float]] = {name: [] for name in work}
    chance = random.Random(0)
    for number in range(rounds + 1):
        for name in chance.sample(list(work), len(work)):
            run, used = work[name]
            before, start = used(), time.perf_counter()
            run()
            if number:
                clock[name].append(count / (time.perf_counter() - start))
                processor[name].append(count / (used() - before))
    return (
        {name: round(statistics.median(values), 2) for name, values in clock.items()},
        {name: round(statistics.median(values), 2) for name, values in processor.items()},
    )


def own_cpu_seconds() -> float:
    """Seconds of the processor that this process has used."""
    used = os.times()
    return used.user + used.system


def rates(model: str, rounds: int, seconds: float, clients: Sequence[int]) -> Table:
    """Requests a second, and their times, by the number of clients and the window of batches."""
    requests = [predict(jpeg) for jpeg in jpegs(VGA, 4)]
    cells = [(window, number) for window in WINDOWS for number in clients]
    found: dict[tuple[str, int], list[Load]] = {cell: [] for cell in cells}
    chance = random.Random(0)
    with contextlib.ExitStack() as stack:
        servers = {
            window: stack.enter_context(running("--workers", "auto", "--batch-window", window, *QUIET, model=model))
            for window in WINDOWS
        }
        for server in servers.values():
            closed_loop(server.port, repeated(requests, min(1.0, seconds)), 4)
        for _ in range(rounds):
            for window, number in chance.sample(cells, len(cells)):
                done = closed_loop(servers[window].port, repeated(requests, seconds), number)
                found[window, number].append(all_answered(done))
    columns = {"requests a second": "{:.0f}", "p50, ms": "{:.1f}", "p99, ms": "{:.1f}"}
    rows = tuple(
        Row((f"{window} ms", str(number)), dict(zip(columns, figures(found[window, number]), strict=True)))
        for window, number in cells
    )
    return Table("640 x 480 JPEGs, clients that ask one after the other", ("window", "clients"), columns, rows)


def figures(rounds: Sequence[Load]) -> Iterator[float]:
    """The rate, the median and the 99th percentile."""
    yield median_of(rounds, lambda each: each.rate)
    yield median_of(rounds, lambda each: each.percentile(0.5))
    yield median_of(rounds, lambda each: each.percentile(0.99))


def at_a_share(model: str, rounds: int, seconds: float) -> Table:
    """The times of requests that come at 0.8 of what the server can answer."""
    requests = [predict(jpeg) for jpeg in jpegs(VGA, 4)]
    found: dict[str, list[Load]] = {"evenly": [], "at random": []}
    chance = random.Random(0)
    with running("--workers", "auto", *QUIET, model=model) as server:
        closed_loop(server.port, repeated(requests, min(1.0, seconds)), MANY)
        for _ in range(rounds):
            for name in chance.sample(list(found), len(found)):
                most = closed_loop(server.port, repeated(requests, seconds / 4), MANY).rate
                load = open_loop(server.port, requests, SHARE * most, seconds, evenly=name == "evenly")
                found[name].append(all_answered(load))
    columns = {"requests a second": "{:.0f}", "p50, ms": "{:.1f}", "p99, ms": "{:.1f}", "p99 / p50": "{:.2f}"}
    rows = []
    for name, loads in found.items():
        share = median_of(loads, lambda each: each.percentile(0.99) / each.percentile(0.5))
        rows.append(Row((name,), dict(zip(columns, (*figures(loads), share), strict=True))))
    return Table("640 x 480 JPEGs at 0.8 of the server's rate", ("requests come",), columns, tuple(rows))


def all_answered(load: Load) -> Load:
    """Check that every request was answered with 200."""
    if set(load.statuses) != {200}:
        raise SystemExit(f"some requests were not answered: {dict(load.statuses)}")
    return load


if __name__ == "__main__":
    main()
