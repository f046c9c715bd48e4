"""A long time of requests of all sizes, good ones and malformed ones, to one server: what comes of each, and of memory.

    python benchmarks/serving_soak.py [--count 20000] [--clients 16] [--model FILE]

Of the requests, 5 % are malformed in one of eleven ways. Checked are:

* every good request is answered once, with its own number (`x-request-id`) and with the result of its own image, as
  the Predictor gives it in this process (boxes within 0.05 pixels, scores within 0.001: batches may round otherwise);
* every malformed one is refused with the status that tells why;
* the server counts as many requests of each status as the clients saw;
* its memory does not grow once half of the requests are answered, and no file or socket stays open.

It prints figures, and the exit code is 1 if one of them is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving_load import MODEL, Connection, Server, jpegs, message, percentile, predict, running

import deploykit

SIZES = ((120, 160), (240, 320), (300, 200), (480, 640), (640, 480), (720, 1280), (1080, 1920))
SHIFTS = 3  # images of each size
MALFORMED = 0.05
GROWTH = 24.0  # megabytes that a busy server may vary by: buffers of sixteen of the largest images
PIXELS, SCORE = 0.05, 0.001
SPARE = 8  # files and sockets that may stay open for a while: idle connections


@dataclass(frozen=True)
class Known:
    """An image, and its detections as the Predictor finds them: (class, score, box) of each."""

    data: bytes
    found: list[tuple[int, float, list[float]]]


@dataclass
class Outcome:
    """What the clients saw: milliseconds of good requests, statuses, and a sentence on each fault."""

    ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    done: int = 0


def main() -> int:
    """Run, and print the figures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), metavar="FILE", help="a detector (default: the markers)")
    parser.add_argument("--count", type=int, default=20_000, help="requests (default 20000)")
    parser.add_argument("--clients", type=int, default=16, help="clients at a time (default 16)")
    args = parser.parse_args()
    known = known_jpegs(args.model)
    with running("--workers", "auto", "--log-format", "none", model=args.model) as server:
        (before, _), files, start = asyncio.run(counted(server)), server.open_files(), time.perf_counter()
        outcome = asyncio.run(soak(server, known, args.count, args.clients))
        seconds = time.perf_counter() - start
        outcome.faults += asyncio.run(afterwards(server, before, files, outcome))
    statuses = dict(sorted(outcome.statuses.items()))
    print(f"{outcome.done:,} requests by {args.clients} clients in {seconds:.0f} s, by status: {statuses}")
    print(f"good ones: p50 {percentile(outcome.ms, 0.5):.0f} ms, p99 {percentile(outcome.ms, 0.99):.0f} ms")
    print("memory at each tenth, MB: " + ", ".join(f"{value:.0f}" for value in outcome.memory))
    for fault in outcome.faults[:20]:
        print(f"FAULT: {fault}")
    print(f"{len(outcome.faults)} faults")
    return 1 if outcome.faults else 0


def known_jpegs(model: str) -> list[Known]:
    """Images whose results differ, with what the Predictor finds in them."""
    with deploykit.load(model, threads=1) as predictor:
        all_of_them = [jpeg for size in SIZES for jpeg in jpegs(size, SHIFTS)]
        found = [Known(data, detections(predictor(data).to_dict())) for data in all_of_them]
    kept = [one for one in found if one.found]
    for one, other in itertools.combinations(kept, 2):
        if alike(one.found, other.found):
            raise SystemExit("two images have the same result: an answer would not tell whose it is")
    if len(kept) < len(SIZES):
        raise SystemExit("the model finds too little in the images to tell answers apart")
    return kept


def detections(document: dict[str, Any]) -> list[tuple[int, float, list[float]]]:
    """The class, the score and the box of each detection of a result."""
    return [(each["label"], each["score"], each["box"]) for each in document["detections"]]


def alike(one: Sequence[tuple[int, float, list[float]]], other: Sequence[tuple[int, float, list[float]]]) -> bool:
    """Whether two lists of detections are the same but for rounding."""
    return len(one) == len(other) and all(
        a[0] == b[0]
        and abs(a[1] - b[1]) <= SCORE
        and all(abs(x - y) <= PIXELS for x, y in zip(a[2], b[2], strict=True))
        for a, b in zip(one, other, strict=True)
    )


def malformed(jpeg: bytes, chance: random.Random) -> tuple[bytes, int]:
    """A request that cannot be answered, and the status that says so."""
    form = "multipart/form-data; boundary=b"
    noise = chance.randbytes(200)
    return chance.choice(
        [
            (predict(jpeg[: len(jpeg) // 3]), 400),  # its end is missing
            (predict(noise), 400),
            (predict(b""), 400),
            (message("POST", "/v1/predict", b'{"image": "!!"}', "application/json"), 400),
            (message("POST", "/v1/predict", b'{"image": ', "application/json"), 400),
            (message("POST", "/v1/predict", b"[" * 5000, "application/json"), 400),
            (message("POST", "/v1/predict", b"--b\r\ncontent-disposition: form-data\r\n\r\n" + noise, form), 400),
            (predict(jpeg, "?conf=high"), 400),
            (predict(jpeg, "?model=nobody"), 404),
            (message("POST", "/v1/nothing", jpeg), 404),
            (predict(_bomb()), 413),
        ]
    )


def _bomb() -> bytes:
    """The head of a PNG of 60,000 x 60,000 pixels."""
    chunk = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + chunk + b"\x00" * 40


def good(jpeg: bytes, number: str, chance: random.Random) -> bytes:
    """A request for the result of an image, in one of the three forms that there are."""
    form = chance.randrange(4)
    if form == 0:
        body = json.dumps({"image": base64.b64encode(jpeg).decode(), "name": number}).encode()
        return message("POST", "/v1/predict", body, "application/json", x_request_id=number)
    if form == 1:
        head = f'--b\r\ncontent-disposition: form-data; name="file"; filename="{number}"\r\n\r\n'.encode()
        kind = "multipart/form-data; boundary=b"
        return message("POST", "/v1/predict", head + jpeg + b"\r\n--b--\r\n", kind, x_request_id=number)
    return predict(jpeg, x_request_id=number)


async def soak(server: Server, known: Sequence[Known], count: int, clients: int) -> Outcome:
    """Send all requests."""
    outcome, numbers = Outcome(), iter(range(count))

    async def client() -> None:
        connection = await Connection(server.port).__aenter__()
        for number in numbers:
            if not connection.reusable:
                await connection.__aexit__()
                connection = await Connection(server.port).__aenter__()
            try:
                await one(connection, known, number, outcome)
            except (OSError, TimeoutError) as e:
                outcome.faults.append(f"request {number}: {type(e).__name__}: {e}")
                connection.headers["connection"] = "close"
            if outcome.done * 10 >= count * (len(outcome.memory) + 1):
                outcome.memory.append(server.memory())
        await connection.__aexit__()

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcome


async def one(connection: Connection, known: Sequence[Known], number: int, outcome: Outcome) -> None:
    """Send one request, and judge its answer."""
    chance = random.Random(number)
    jpeg, name = chance.choice(known), f"number-{number}"
    outcome.done += 1
    if chance.random() < MALFORMED:
        request, wanted = malformed(jpeg.data, chance)
        status, body = await connection.ask(request)
        outcome.statuses[status] += 1
        if status != wanted:
            outcome.faults.append(f"request {number} was answered with {status}, not {wanted}: {body[:200]!r}")
        return
    start = time.perf_counter()
    status, body = await connection.ask(good(jpeg.data, name, chance))
    outcome.statuses[status] += 1
    outcome.ms.append(1e3 * (time.perf_counter() - start))
    if status != 200:
        outcome.faults.append(f"request {number} was refused: {status}: {body[:200]!r}")
        return
    document = json.loads(body)
    if not document["request_id"] == connection.headers["x-request-id"] == name:
        outcome.faults.append(f"request {number} was answered with the number {document['request_id']}")
    elif not alike(detections(document), jpeg.found):
        outcome.faults.append(f"request {number} was answered with another result than its own")


async def counted(server: Server) -> tuple[Counter[int], str]:
    """How many requests of each status the server has counted so far, and all of its numbers."""
    async with Connection(server.port) as connection:
        text = (await connection.ask(message("GET", "/metrics")))[1].decode()
    found: Counter[int] = Counter()
    for labels, value in numbers_of(text, "deploykit_requests_total"):
        found[int(labels["status"])] += int(value)
    return found, text


async def afterwards(server: Server, before: Counter[int], open_files: int, outcome: Outcome) -> list[str]:
    """What is wrong with the server once the clients are gone."""
    if not server.alive:
        return ["the server has ended"]
    await asyncio.sleep(1)
    faults, (after, text) = [], await counted(server)
    after -= before + Counter({200: 1})  # the first look at the numbers is counted in the second
    if after != outcome.statuses:
        faults.append(f"the server counts {dict(after)}, the clients saw {dict(outcome.statuses)}")
    for name in ("deploykit_active_requests", "deploykit_waiting_requests"):
        faults += [f"{name} is {value:g} in the end" for _, value in numbers_of(text, name) if value]
    if (left := server.open_files()) > open_files + SPARE:
        faults.append(f"{left} files and sockets are open, {open_files} were before")
    middle, end = max(outcome.memory[3:6], default=0), min(outcome.memory[-2:], default=0)
    if end > middle + GROWTH:
        faults.append(f"memory grew from {middle:.0f} to {end:.0f} MB")
    return faults


def numbers_of(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """The labels and the values of one name in Prometheus' text format."""
    for line in text.splitlines():
        found, _, rest = line.partition("{")
        if found == name:
            labels, _, value = rest.rpartition("} ")
            pairs = (each.partition("=") for each in labels.split(","))
            yield {key: text.strip('"') for key, _, text in pairs}, float(value)


if __name__ == "__main__":
    sys.exit(main())
