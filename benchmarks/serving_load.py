"""A server of models in a process of its own, and clients that load it: what serving.py and its neighbours share.

The clients speak HTTP/1.1 over plain sockets in one thread, because they share the cores with the server and a library
would take more of them. All of it stays on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2

import deploykit
from deploykit.runtime.arrays import Array

HOST = "127.0.0.1"
ASSETS = Path(deploykit.__file__).with_name("assets")
MODEL = ASSETS / "markers.onnx"
PATIENCE = 60.0  # seconds for a server to start, and for an answer
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Load:
    """What came of requests: milliseconds of those that were answered with 200, and how many had each status.

    The status 0 is that of a connection that broke off.
    """

    ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers with 200 in a second."""
        return len(self.ms) / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the requests was answered."""
        return percentile(self.ms, share)

    def add(self, other: Load) -> None:
        """Take what came of other requests as well."""
        self.ms += other.ms
        self.statuses += other.statuses
        self.seconds += other.seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    kept = sorted(values)
    return kept[min(len(kept) - 1, max(0, -int(-share * len(kept) // 1) - 1))]


class Server:
    """A running server.

    Args:
        process: its process, which leads a group of its own.
        port: of HTTP. grpc_port: of gRPC, if there is one.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, grpc_port: int | None) -> None:
        self.process, self.port, self.grpc_port = process, port, grpc_port

    @property
    def processes(self) -> list[int]:
        """The numbers of its process and of all below it."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, task.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """Seconds of the processor that it has used, user and system."""
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in self.processes) / TICKS

    def memory(self) -> float:
        """Megabytes that it holds now."""
        return sum(int(_stat(pid)[21]) for pid in self.processes) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def open_files(self) -> int:
        """How many files and sockets it has open."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.processes)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name of the program."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(
    *words: str, model: str = str(MODEL), port: int = 0, grpc: bool = False, log: int | None = None
) -> Iterator[Server]:
    """Run ``deploykit serve`` with further options while the context lasts.

    Args:
        words: its options.
        model: what is served.
        port: of HTTP; 0: any that is free.
        grpc: whether it listens for gRPC too.
        log: an open file for its standard error; None: it is thrown away.
    """
    port, grpc_port = port or free_port(), free_port() if grpc else None
    command = [sys.executable, "-m", "deploykit", "serve", model, "--port", str(port), *words]
    if grpc_port is not None:
        command += ["--grpc-port", str(grpc_port)]
    with started(command, port, "/v2/health/ready", log) as process:
        yield Server(process, port, grpc_port)


@contextlib.contextmanager
def started(command: Sequence[str], port: int, ready: str, log: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command of a server while the context lasts, from when it answers ``GET ready`` with 200 on."""
    errors = subprocess.DEVNULL if log is None else log
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
    try:
        until = time.monotonic() + PATIENCE
        while status_of(port, message("GET", ready)) != 200:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start: {shlex.join(command)}")
            time.sleep(0.1)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what does not stop, and what it leaves behind
        process.wait()


def message(method: str, path: str, body: bytes = b"", kind: str = "", **headers: str) -> bytes:
    """The bytes of a request; an underscore in the name of a header is a hyphen there."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {HOST}"]
    if kind:
        lines.append(f"content-type: {kind}")
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def predict(image: bytes, query: str = "", **headers: str) -> bytes:
    """The request for the result of one encoded image."""
    return message("POST", f"/v1/predict{query}", image, "image/jpeg", **headers)


def status_of(port: int, request: bytes) -> int:
    """The status of the answer to one request on a connection of its own; 0: there was none."""
    try:
        return asyncio.run(_once(port, request))[0]
    except OSError:
        return 0


async def _once(port: int, request: bytes) -> tuple[int, bytes]:
    async with Connection(port) as connection:
        return await connection.ask(request)


class Connection:
    """A connection of one client, which asks one request after the other; it is opened when the context begins."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(HOST, self._port, limit=1 << 24)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer to a request.

        Raises:
            OSError: the connection broke off. TimeoutError: there was no answer in a minute.
        """
        async with asyncio.timeout(PATIENCE):
            self.writer.write(request)
            await self.writer.drain()
            return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            self.headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in head[1:])}
            status = int(head[0].split()[1])
            if "content-length" in self.headers:
                return status, await self.reader.readexactly(int(self.headers["content-length"]))
            parts = []
            while size := int(await self.reader.readline(), 16):
                parts.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readexactly(2)
            return status, b"".join(parts)
        except (EOFError, ValueError) as e:
            raise ConnectionResetError("the connection broke off") from e

    @property
    def reusable(self) -> bool:
        """Whether the server keeps the connection open after the last answer."""
        return self.headers.get("connection", "") != "close"


class Client:
    """One client on a plain socket, for code that waits for each answer."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), PATIENCE)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """The body of the answer to a request, whose status must be 200."""
        self._socket.sendall(request)
        status, length = int(self._file.readline().split()[1]), 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = self._file.read(length)
        assert status == 200, body
        return body


def closed_loop(port: int, requests: Iterable[bytes], clients: int) -> Load:
    """Let so many clients ask these requests, each client one after the other, until there are no more."""
    found, left = Load(), iter(requests)

    async def client() -> None:
        async with Connection(port) as connection:
            for request in left:
                start = time.perf_counter()
                status, _ = await connection.ask(request)
                found.statuses[status] += 1
                if status == 200:
                    found.ms.append(1e3 * (time.perf_counter() - start))

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    start = time.perf_counter()
    asyncio.run(all_clients())
    found.seconds = time.perf_counter() - start
    return found


def repeated(requests: Sequence[bytes], seconds: float) -> Iterator[bytes]:
    """Requests in turn, for a time."""
    until = time.perf_counter() + seconds
    return itertools.takewhile(lambda _: time.perf_counter() < until, itertools.cycle(requests))


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, *, evenly: bool) -> Load:
    """Ask so many requests a second, whether or not those before are answered.

    The time of a request begins when it was due, so that one that a busy client sends late counts from then.
    ``evenly``: all gaps between requests are the same; else they are random (exponential, seeded).
    """
    found, chance, idle = Load(), random.Random(0), list[Connection]()

    async def one(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else await Connection(port).__aenter__()
        status, _ = await connection.ask(request)
        found.statuses[status] += 1
        if status == 200:
            found.ms.append(1e3 * (time.perf_counter() - due))
        if connection.reusable:
            idle.append(connection)

    async def all_requests() -> None:
        start, due, number = time.perf_counter(), 0.0, 0
        async with asyncio.TaskGroup() as group:
            while due < seconds:
                await asyncio.sleep(start + due - time.perf_counter())
                group.create_task(one(requests[number % len(requests)], start + due))
                number += 1
                due += 1 / rate if evenly else chance.expovariate(rate)
        found.seconds = time.perf_counter() - start
        for connection in idle:
            await connection.__aexit__()

    asyncio.run(all_requests())
    return found


def jpegs(size_hw: tuple[int, int], count: int = 1) -> list[bytes]:
    """JPEGs of one size of the scene that ships, each shifted by another distance, so that each has its own result."""
    scene = cv2.imread(str(ASSETS / "markers.jpg"))
    assert scene is not None
    resized: Array = cv2.resize(scene, size_hw[::-1], interpolation=cv2.INTER_AREA)
    shifts = [resized.shape[1] * number // (3 * count) for number in range(count)]
    return [_jpeg(resized[:, shift:].copy() if shift else resized) for shift in shifts]


def _jpeg(image: Array) -> bytes:
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def median_of(rounds: Sequence[Load], what: Callable[[Load], float]) -> float:
    """The median over rounds of a figure of each, to four digits."""
    return float(f"{statistics.median(map(what, rounds)):.4g}")
