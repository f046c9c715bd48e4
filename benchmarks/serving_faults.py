"""What may go wrong around `deploykit serve`, done to it on purpose: it must go on, and answer whom it can.

    python benchmarks/serving_faults.py [--quick] [--only NAME ...] [--schemathesis PATH]

Each fault meets a server of its own, and says what came of it in a line; the exit code is 1 if one was not borne.
`--schemathesis` names the program of that project, which makes requests from the server's OpenAPI document; it lies in
an environment of its own. All traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from serving_load import HOST, Connection, Load, Server, closed_loop, jpegs, message, predict, repeated, running
from serving_soak import counted, numbers_of

SMALL = (240, 320)
QUIET = ("--log-format", "none", "--workers", "auto")
HEALTH = message("GET", "/v2/health/live")
HEADERS_END = 15.0  # seconds in which headers must have come
NOTICED = 0.3  # seconds in which a busy server has read a request that was sent
TIMEOUT = 3  # seconds that a request may take, where that is what is tested


class NotBorneError(Exception):
    """A fault that the server did not bear, as a sentence."""


def main() -> int:
    """Do all of them, and print a line each; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests and connections")
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--schemathesis", type=Path, metavar="PATH", help="the program of schemathesis")
    args = parser.parse_args()
    failed = 0
    for name, fault in FAULTS.items():
        if args.only and name not in args.only:
            continue
        start = time.perf_counter()
        try:
            told = fault(args)
        except NotBorneError as e:
            failed += 1
            told = f"NOT BORNE: {e}"
        print(f"{name}: {told} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


def check(good: bool, sentence: str) -> None:
    """Check what must be so.

    Raises:
        NotBorneError: it is not.
    """
    if not good:
        raise NotBorneError(sentence)


def well(server: Server, open_files: int | None = None) -> None:
    """Check that a server runs, answers an image, has no request left, and closed what was open."""
    check(server.alive, "the server has ended")
    load = closed_loop(server.port, [predict(jpegs(SMALL)[0])], 1)
    check(load.statuses == {200: 1}, f"a good request was answered with {dict(load.statuses)}")
    until = time.monotonic() + 20
    while left := remains(server, open_files):
        check(time.monotonic() < until, left)
        time.sleep(0.2)


def remains(server: Server, open_files: int | None) -> str:
    """What is left of requests that are over; empty: nothing."""
    _, text = asyncio.run(counted(server))
    for name in ("deploykit_active_requests", "deploykit_waiting_requests"):
        for _, value in numbers_of(text, name):
            if value:
                return f"{name} stays at {value:g}"
    now = server.open_files()
    return "" if open_files is None or now <= open_files + 4 else f"{now} files are open, {open_files} were before"


def clients_gone(asked: argparse.Namespace) -> str:
    """Clients that go away in the middle of their request, after it, and in the middle of the answer."""
    jpeg = jpegs((1080, 1920))[0]
    whole, count = predict(jpeg), 10 if asked.quick else 60

    async def gone(server: Server, sent: int, wait: float, read: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, server.port, limit=64)
        writer.write(whole[:sent])
        await asyncio.sleep(wait)
        if read:
            await reader.read(read)
        writer.transport.abort()

    async def all_gone(server: Server) -> None:
        for sent, wait, read in (
            (len(whole) // 2, 0.0, 0),
            (len(whole), 0.0, 0),
            (len(whole), 0.05, 0),
            (len(whole), 0, 9),
        ):
            await asyncio.gather(*(gone(server, sent, wait, read) for _ in range(count)))

    with running(*QUIET, "--queue", "1000") as server:
        well(server)
        files = server.open_files()
        asyncio.run(all_gone(server))
        well(server, files)
        statuses = asyncio.run(counted(server))[0]
    return f"{4 * count} clients went away, {statuses[499]} of them before the answer; nothing is left of them"


def slow_clients(asked: argparse.Namespace) -> str:
    """Clients that send a byte now and then: of their headers, or of their body."""
    count = 20 if asked.quick else 200

    async def drip(port: int, begin: bytes, drop: bytes, ends: list[float]) -> None:
        start = time.monotonic()
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(begin)
        with contextlib.suppress(OSError):
            while not reader.at_eof() and time.monotonic() < start + 2 * HEADERS_END:
                writer.write(drop)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(4096), 0.5)
        ends.append(time.monotonic() - start)
        writer.close()

    async def meanwhile(port: int, ends: list[float], times: list[float]) -> None:
        request = predict(jpegs(SMALL)[0])
        while len(ends) < 2 * count:
            start = time.monotonic()
            async with Connection(port) as connection:
                status, _ = await connection.ask(request)
            check(status == 200, f"a good request beside slow ones was answered with {status}")
            times.append(time.monotonic() - start)
            await asyncio.sleep(0.2)

    async def all_slow(port: int) -> tuple[list[float], list[float], list[float]]:
        headers, bodies, times = list[float](), list[float](), list[float]()
        both = _Both(headers, bodies)
        slow_body = message("POST", "/v1/predict", b"x" * 5000, "image/jpeg")[:-4990]
        await asyncio.gather(
            *(drip(port, b"POST /v1/predict HTTP/1.1\r\nx-slow: ", b"z", headers) for _ in range(count)),
            *(drip(port, slow_body, b"z", bodies) for _ in range(count)),
            meanwhile(port, both, times),
        )
        return headers, bodies, times

    with running(*QUIET, "--timeout", str(TIMEOUT)) as server:
        files = server.open_files()
        headers, bodies, times = asyncio.run(all_slow(server.port))
        check(max(headers) < HEADERS_END, f"a connection without headers stayed for {max(headers):.0f} s")
        check(max(bodies) < TIMEOUT + 3, f"a slow body was waited for {max(bodies):.0f} s")
        well(server, files)
    return (
        f"{count} clients with slow headers were closed in {max(headers):.0f} s, {count} with slow bodies in "
        f"{max(bodies):.0f} s; {len(times)} good requests meanwhile took {max(times):.1f} s at most"
    )


class _Both(list[float]):
    """Two lists as one, for their length."""

    def __init__(self, *parts: list[float]) -> None:
        super().__init__()
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))


def connections(asked: argparse.Namespace) -> str:
    """Ten thousand open connections that ask, where 512 are allowed."""
    count = 1000 if asked.quick else 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(count, hard - 200 if hard > 0 else count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 100), hard))
    statuses: Counter[int] = Counter()

    async def connected(port: int) -> None:
        async with Connection(port) as first:
            opened, slots = [], asyncio.Semaphore(200)

            async def one() -> None:
                async with slots:
                    connection = await Connection(port).__aenter__()
                    opened.append(connection)
                    try:
                        statuses[(await connection.ask(HEALTH))[0]] += 1
                    except (OSError, TimeoutError):
                        statuses[0] += 1

            await asyncio.gather(*(one() for _ in range(count)))
            status, _ = await first.ask(HEALTH)
            check(status == 200, f"the first connection was then answered with {status}")
            await asyncio.gather(*(each.__aexit__() for each in opened))

    with running(*QUIET) as server:
        files = server.open_files()
        start = time.perf_counter()
        asyncio.run(connected(server.port))
        seconds = time.perf_counter() - start
        check(set(statuses) <= {200, 503}, f"some connections got no answer: {dict(statuses)}")
        check(statuses[200] <= 512, f"{statuses[200]} connections were answered, 512 are allowed")
        well(server, files)
    return f"{count:,} connections in {seconds:.0f} s: {statuses[200]} were served, {statuses[503]} told to wait (503)"


def log_full(asked: argparse.Namespace) -> str:
    """A log whose disk is full, and one that nobody reads: requests are answered, and the server stops when told to."""
    count, told = 200 if asked.quick else 2000, []
    full, (nobody, pipe) = os.open("/dev/full", os.O_WRONLY), os.pipe()
    try:
        for what, log in (("full", full), ("unread", pipe)):
            with running("--log-format", "json", log=log) as server:
                load = closed_loop(server.port, [message("GET", "/v1/models")] * count, 8)
                check(load.statuses == {200: count}, f"with a {what} log: {dict(load.statuses)}")
                well(server)
                start = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                try:
                    code = server.process.wait(10)
                except subprocess.TimeoutExpired:
                    raise NotBorneError(f"with a {what} log the server does not stop") from None
                check(code == 0, f"with a {what} log the server ended with {code}")
                told.append(f"{what}: {count} answered, stopped in {time.monotonic() - start:.1f} s")
    finally:
        for file in (full, nobody, pipe):
            os.close(file)
    return "; ".join(told)


def told_to_stop(asked: argparse.Namespace) -> str:
    """SIGTERM under load: whoever asked before it is answered, and later ones are refused or find nobody."""
    request, before, after, told = predict(jpegs(SMALL)[0]), Counter[str](), Counter[str](), [math.inf]

    async def client(port: int) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            async with Connection(port) as connection:
                while True:
                    start = time.monotonic()
                    try:
                        outcome = str((await connection.ask(request))[0])
                    except OSError:
                        outcome = "no answer"
                    (before if start < told[0] - NOTICED else after)[outcome] += 1
                    if outcome != "200" or not connection.reusable:
                        return

    async def under_load(server: Server) -> None:
        clients = asyncio.gather(*(client(server.port) for _ in range(16)))
        await asyncio.sleep(2 if asked.quick else 5)
        told[0] = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(clients, 30)

    with running(*QUIET) as server:
        asyncio.run(under_load(server))
        code = server.process.wait(20)
    check(code == 0, f"the server ended with {code}")
    check(set(before) == {"200"}, f"of those who asked before: {dict(before)}")
    check(set(after) <= {"200", "503", "no answer"}, f"of those who asked later: {dict(after)}")
    return f"who asked before: {dict(before)}; who asked later: {dict(after)}; the exit code is {code}"


def killed(asked: argparse.Namespace) -> str:
    """SIGKILL under load: clients hear of it at once, and another server takes the port."""
    request = predict(jpegs(SMALL)[0])

    async def under_load(server: Server) -> float:
        async def client() -> None:
            async with Connection(server.port) as connection:
                while True:
                    await connection.ask(request)

        clients = [asyncio.ensure_future(client()) for _ in range(16)]
        await asyncio.sleep(1 if asked.quick else 3)
        server.process.kill()
        start = time.monotonic()
        done = await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), 20)
        check(all(isinstance(each, OSError) for each in done), f"clients saw {done}")
        return time.monotonic() - start

    with running(*QUIET) as server:
        seconds = asyncio.run(under_load(server))
        with running(*QUIET, port=server.port):
            load = closed_loop(server.port, [request], 1)
            check(load.statuses == {200: 1}, f"the next server answers {dict(load.statuses)}")
    return f"sixteen clients knew after {seconds:.2f} s; the next server on the same port answers"


def garbage(asked: argparse.Namespace) -> str:
    """Bytes that are no request, or a broken one: 4xx or an end, and no fault inside."""
    jpeg = jpegs(SMALL)[0]
    cases = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # TLS, to a server without it
        b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n\r\n", bytes(1000),
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        message("POST", "/v1/predict", jpeg, "image/jpeg", transfer_encoding="chunked"),
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc",
        message("GET", "/../../../etc/passwd"), message("GET", "/%2e%2e/%2e%2e/etc/passwd"), message("GET", "/%00"),
        message("GET", "/v2/models/%ff%fe/infer"), message("DELETE", "/v1/models"),
        predict(jpeg, "?conf=" + "9" * 5000), predict(jpeg, x_request_timeout="nan"),
        predict(jpeg, content_encoding="gzip"), predict(jpeg, "?classes=" + ",".join(map(str, range(3000)))),
    ]  # fmt: skip

    async def sent(port: int, bytes_: bytes) -> int:
        reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 24)
        with contextlib.suppress(OSError):
            writer.write(bytes_)
            line = await asyncio.wait_for(reader.readline(), HEADERS_END + 5)
            return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
        return 0

    with running(*QUIET) as server:
        statuses = [asyncio.run(sent(server.port, case)) for case in cases]
        wrong = {repr(case[:60]): status for case, status in zip(cases, statuses, strict=True) if status >= 500}
        check(not wrong, f"faults inside: {wrong}")
        well(server)
    return f"{len(cases)} kinds: {dict(sorted(Counter(statuses).items()))} (0: closed)"


def overload(asked: argparse.Namespace) -> str:
    """More clients than the queue has places: further ones are told when to come again, and the others are answered."""
    with running(*QUIET, "--queue", "8") as server:
        load: Load = closed_loop(server.port, repeated([predict(jpegs(SMALL)[0])], 1 if asked.quick else 4), 64)
        check(set(load.statuses) == {200, 503}, f"{dict(load.statuses)}")
        well(server)
    return f"64 clients, a queue of 8: {load.rate:.0f} answers a second, {load.statuses[503]} refusals"


def against_schema(asked: argparse.Namespace) -> str:
    """Requests that schemathesis makes from the OpenAPI document."""
    if asked.schemathesis is None:
        return "left out: it needs --schemathesis"
    with running(*QUIET) as server:
        address = f"http://{HOST}:{server.port}/openapi.json"
        words = ["run", address, "--max-examples", "20" if asked.quick else "100", "--seed", "1", "--no-color"]
        words += ["--exclude-checks", "positive_data_acceptance"]  # no schema says that bytes are an image
        with tempfile.TemporaryDirectory() as folder:  # it keeps what it found where it runs
            command = [asked.schemathesis.absolute(), *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
        check(done.returncode == 0, "\n" + done.stdout[-6000:])
        well(server)
    return done.stdout.strip().splitlines()[-1].strip("= ")


FAULTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "gone": clients_gone,
    "slow": slow_clients,
    "connections": connections,
    "log": log_full,
    "stop": told_to_stop,
    "kill": killed,
    "garbage": garbage,
    "overload": overload,
    "schema": against_schema,
}

if __name__ == "__main__":
    sys.exit(main())
