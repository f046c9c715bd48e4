"""The server of models beside others on the same model, and as a neutral client sees it.

    python benchmarks/serving_peers.py [--perf-analyzer PATH] [--litserve-python PYTHON] [--pytriton-python PYTHON]
                                       [--quick] [--json benchmarks/results/serving_peers.json]

What is not named is left out. Each lies in an environment of its own: `perf-analyzer`, Triton's load generator, sends
tensors by the Open Inference Protocol over HTTP and gRPC; LitServe and PyTriton are servers, which serving_litserve.py
and serving_pytriton.py fill with the same model: two workers with one thread each. All listen on 127.0.0.1. Every
round has each variant once, in an order of its own; printed are medians of rounds.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from measured import Row, Table, show
from serving_load import (
    HOST,
    MODEL,
    Client,
    Load,
    Server,
    closed_loop,
    free_port,
    jpegs,
    message,
    predict,
    repeated,
    running,
    started,
)

HERE = Path(__file__).resolve().parent
SIZE = (480, 640)
SHAPE = "images:3,480,640"
QUIET = ("--log-format", "none", "--workers", "auto")
CLIENTS = (1, 4, 16)
NAME = "model"

Figures = tuple[float, float, float]
"""Answers a second, the 99th percentile in ms, and the server's milliseconds of the processor for each answer."""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perf-analyzer", type=Path, metavar="PATH", help="the program of the package perf-analyzer")
    parser.add_argument("--litserve-python", type=Path, metavar="PYTHON", help="with litserve, onnxruntime and OpenCV")
    parser.add_argument("--pytriton-python", type=Path, metavar="PYTHON", help="with nvidia-pytriton and onnxruntime")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    rounds, seconds, load = (1 if args.quick else args.rounds), (1.0 if args.quick else 3.0), os.getloadavg()[0]
    clients = CLIENTS[:2] if args.quick else CLIENTS
    tables = []
    if args.litserve_python:
        tables += of_images(args.litserve_python, clients, rounds, seconds)
    if args.perf_analyzer:
        tables += of_tensors(args.perf_analyzer, args.pytriton_python, clients, rounds, seconds)
    if not tables:
        parser.error("nothing to measure beside: name --perf-analyzer or --litserve-python")
    how = (
        f"Medians of {rounds} rounds of {seconds:g} s a cell; clients and servers share {os.cpu_count()} cores, "
        f"load {load:.1f} before."
    )
    show(tables, "The server of models beside others", "serving_peers.py", how, args.json)


def of_images(python: Path, clients: Sequence[int], rounds: int, seconds: float) -> list[Table]:
    """JPEGs by deploykit and by LitServe, which takes JSON."""
    encoded = jpegs(SIZE, 4)
    coded = [json.dumps({"image": base64.b64encode(each).decode()}).encode() for each in encoded]
    with running(*QUIET) as own, peer(python, "litserve", "/health") as other:
        variants: dict[str, tuple[Server, list[bytes]]] = {
            "bytes": (own, [predict(each) for each in encoded]),
            "Base64": (own, [message("POST", "/v1/predict", each, "application/json") for each in coded]),
            "LitServe, Base64": (other, [message("POST", "/predict", each, "application/json") for each in coded]),
        }

        def run(name: str, number: int) -> Figures:
            server, requests = variants[name]
            before = server.cpu_seconds()
            load = closed_loop(server.port, repeated(requests, seconds), number)
            return load_figures(load, server.cpu_seconds() - before)

        return tables_of("640 x 480 JPEGs", list(variants), "bytes", clients, rounds, run)


def load_figures(load: Load, cpu_seconds: float) -> Figures:
    """The figures of a load that was answered."""
    if set(load.statuses) != {200}:
        raise SystemExit(f"some requests were not answered: {dict(load.statuses)}")
    return load.rate, load.percentile(0.99), 1e3 * cpu_seconds / len(load.ms)


def of_tensors(program: Path, python: Path | None, clients: Sequence[int], rounds: int, seconds: float) -> list[Table]:
    """Tensors by the Open Inference Protocol, sent by perf_analyzer."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(running(*QUIET, model=f"{NAME}={MODEL}", grpc=True))
        servers = {"HTTP": ("http", own), "gRPC": ("grpc", own)}
        if python is not None:
            grpc_port = free_port()
            other = stack.enter_context(peer(python, "pytriton", "/v2/models/model/ready", str(grpc_port)))
            other.grpc_port = grpc_port
            servers |= {"PyTriton, HTTP": ("http", other), "PyTriton, gRPC": ("grpc", other)}

        def run(name: str, number: int) -> Figures:
            protocol, server = servers[name]
            before, count = server.cpu_seconds(), inferences(server)
            port = server.grpc_port if protocol == "grpc" else server.port
            rate, p99 = analyzed(program, protocol, f"{HOST}:{port}", number, seconds)
            return rate, p99, 1e3 * (server.cpu_seconds() - before) / (inferences(server) - count)

        return tables_of(f"Tensors of {SHAPE[7:]} by perf_analyzer", list(servers), "HTTP", clients, rounds, run)


def inferences(server: Server) -> int:
    """How many inferences a server has counted so far."""
    with Client(server.port) as client:
        told = json.loads(client.ask(message("GET", f"/v2/models/{NAME}/stats", triton_access_token="local")))
    return int(told["model_stats"][0]["inference_stats"]["success"]["count"])


def analyzed(program: Path, protocol: str, address: str, clients: int, seconds: float) -> tuple[float, float]:
    """Inferences a second and the 99th percentile in ms, as perf_analyzer reports them."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        words = [
            "-m", NAME, "-u", address, "-i", protocol, "--shape", SHAPE, "-f", str(table),
            "--concurrency-range", str(clients), "--measurement-interval", str(round(1e3 * seconds)),
            "--stability-percentage", "999", "--max-trials", "4", "--percentile", "99",
            "-H", "triton-access-token:local", "-H", "triton-grpc-protocol-triton-access-token:local",
        ]  # fmt: skip
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode or not table.exists():
            raise SystemExit(f"perf_analyzer failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        (row,) = csv.DictReader(table.read_text().splitlines())
    return float(row["Inferences/Second"]), float(row["p99 latency"]) / 1e3


def tables_of(
    title: str,
    names: Sequence[str],
    base: str,
    clients: Sequence[int],
    rounds: int,
    run: Callable[[str, int], Figures],
) -> list[Table]:
    """Run all variants with all numbers of clients in turn, and return a table of each figure."""
    found: dict[tuple[str, int], list[Figures]] = {(name, n): [] for n in clients for name in names}
    chance = random.Random(0)
    for _ in range(rounds):
        for name, number in chance.sample(list(found), len(found)):
            found[name, number].append(run(name, number))

    def rows(which: int) -> Iterator[Row]:
        for number in clients:
            medians: Mapping[str, float] = {
                name: float(f"{statistics.median(each[which] for each in found[name, number]):.4g}") for name in names
            }
            yield Row((str(number),), dict(medians))

    titles = ("answers a second", "p99 in ms", "the servers' milliseconds of the processor for each")
    return [
        Table(f"{title}, {what}", ("clients",), dict.fromkeys(names, "{:.1f}"), tuple(rows(which)), base)
        for which, what in enumerate(titles)
    ]


@contextlib.contextmanager
def peer(python: Path, name: str, ready: str, *words: str) -> Iterator[Server]:
    """Run another server of the model while the context lasts."""
    port = free_port()
    command = [str(python), str(HERE / f"serving_{name}.py"), str(MODEL), str(port), *words]
    with started(command, port, ready) as process:
        yield Server(process, port, None)


if __name__ == "__main__":
    main()
