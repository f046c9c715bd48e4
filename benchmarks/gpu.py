# ruff: noqa: E402  (the scripts beside it are found by the path that is set first, also by python -m)
"""A GPU in one sitting: parity of networks, their speed alone and end to end, and the kernels. Writes its own tables.

    python -m benchmarks.gpu [--device cuda] [--budget 480] [--out build/gpu] [--quick] [FILE.onnx ...]

Needs a GPU, onnxruntime-gpu, cuda-bindings and nvcc; PyTorch and TensorRT are compared where they are. Nothing is
downloaded: networks of random weights are made here, and the trained one that ships is measured too. Files that are
given are fp32, with NAME.fp16.onnx beside NAME.onnx. ``--device cpu`` goes through the same steps on stand-ins, to see
that they work: its times mean nothing. Every step prints as it goes and is written to gpu.json and gpu.md at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np
from gpu_kernels import kernel_tables, nms_route_table
from gpu_parts import ASSETS, Device, Network, Sitting, Skipped, Step, alone, photograph, rows_of, spec_of, timed
from gpu_torch import compiled_table, tensorrt_table
from measured import Row, Table

from deploykit.errors import DeployError
from deploykit.export.parity.tolerances import LIMITS
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.predict.on_gpu import GpuPredictor
from deploykit.runtime.predict.predictor import Predictor

CREATED = {"yolov5n": 640, "yolov7-w6-pose": 960}
FRAME = (1080, 1920)
IN_TURN = 4  # batches of two threads
GOAL_FROM_BATCH = 8
PRECISIONS = ("fp32", "fp16")


def main() -> None:
    """Go through the steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.onnx", help="networks; none: made here")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for the stand-ins")
    parser.add_argument("--budget", type=float, default=480, help="seconds in all (default 480)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="one small network, small batches, few rounds")
    args = parser.parse_args()
    try:
        device = Device(args.device)
    except DeployError as e:
        parser.exit(e.exit_code, f"{e}; --device cpu goes through the same steps on stand-ins\n")
    sitting = Sitting(args.out, args.budget, device)
    with tempfile.TemporaryDirectory(prefix="deploykit-networks-") as folder:
        _steps(sitting, args, Path(folder))
    print(f"== {args.out / 'gpu.md'}: " + ", ".join(f"{step.name} {step.state}" for step in sitting.steps))


def _steps(sitting: Sitting, args: argparse.Namespace, folder: Path) -> None:
    device, quick = sitting.device, args.quick
    networks: list[Network] = []
    batches = (2, 1) if quick else (GOAL_FROM_BATCH, 1, 32)
    many = (2, 1) if quick else (GOAL_FROM_BATCH, 1, 32, 64, 16, 4, 2)  # the goals' own first
    pause = 0.3 if quick else 1.0
    most = (lambda seconds: seconds) if device.real else (lambda seconds: math.inf)  # the stand-ins take their time
    sitting.step("networks", partial(_networks, networks, args, folder), 5)
    sitting.step("parity", lambda step: [_parity(step, device, networks, batches)], 20, most(80))
    sitting.step("kernels", lambda step: kernel_tables(step, device, quick=quick), 10, most(40))
    sitting.step("NMS by image", lambda step: [nms_route_table(step, device, quick=quick)], 10, most(30))
    sitting.step("end to end", lambda step: [_end_to_end(step, device, networks, many, pause)], 20, most(90))
    sitting.step("network alone", lambda step: [_alone(step, device, networks, batches, pause)], 20, most(100))
    sitting.step("TensorRT", lambda step: [tensorrt_table(step, device, networks, batches, pause)], 60)
    sitting.step("PyTorch", lambda step: [compiled_table(step, device, networks, batches, pause)], 30)
    sitting.step("goals", lambda _: [_goals(sitting)], 0)


def _networks(networks: list[Network], args: argparse.Namespace, folder: Path, step: Step) -> list[Table]:
    for file in args.files:
        half = file.with_suffix(".fp16.onnx")
        files = {"fp32": file, **({"fp16": half} if half.exists() else {})}
        networks.append(Network(file.stem, files, spec_of(file).input.size))
    wanted = {} if args.files else {"markers": 160 if args.quick else 640, **({} if args.quick else CREATED)}
    for name, side in wanted.items():
        try:
            networks.append(_made(name, side, folder))
        except Exception as e:
            step.left_out.append(f"{name}: {type(e).__name__}: {' '.join(str(e).split())[:300]}")
    if not networks:
        raise Skipped("there is no network to measure")
    rows = [
        Row((n.name, f"{n.size[0]} x {n.size[1]}"), {p: f.stat().st_size / 2**20 for p, f in n.files.items()})
        for n in networks
    ]
    return [Table("Files, MiB", ("network", "input"), dict.fromkeys(PRECISIONS, "{:.1f}"), tuple(rows))]


def _made(name: str, side: int, folder: Path) -> Network:
    """A network of random weights, or the trained one that ships, in fp32 and converted to fp16; not verified."""
    import onnx_ir as ir

    from deploykit.cli import main as command
    from deploykit.export.graph.finalize import write
    from deploykit.export.precision.half import to_half
    from deploykit.models.create.random_weights import create_checkpoint

    ships = name == "markers"
    checkpoint = ASSETS / "markers.pt" if ships else create_checkpoint(name, folder / f"{name}.pt")
    full, half = (folder / f"{name}.{precision}.onnx" for precision in PRECISIONS)
    if ships:
        shutil.copy(ASSETS / "markers.onnx", full)
    else:
        words = ["--img", str(side), "--dynamic", "batch", "--no-check", "--quiet"]
        with contextlib.redirect_stdout(io.StringIO()):
            code = command(["export", str(checkpoint), "--out", str(full), *words])
        if code:
            raise RuntimeError(f"deploykit export of {name} ended with code {code}")
    graph = ir.load(full)
    to_half(graph, "fp16", largest={})  # no range is known to be exceeded
    write(graph, half, 0)
    return Network(name, {"fp32": full, "fp16": half}, (side, side), checkpoint)


def feed_of(network: Network, batch: int) -> Array:
    """A batch of real images as the network takes them, float32."""
    spec = network.spec(batch).input
    canvases = [place_on_canvas(photograph((480, 640), i), spec).canvas for i in range(batch)]
    return to_nchw(canvases, spec)


def _parity(step: Step, device: Device, networks: list[Network], batches: tuple[int, ...]) -> Table:
    """Each precision on the device against ONNX Runtime's CPU provider in fp32, by the limits of an export."""

    def compare(network: Network, precision: str, batch: int) -> dict[str, float]:
        feed, spec = feed_of(network, batch), network.spec(batch)
        adapter, names = adapter_of(spec), ("CPU provider, fp32", precision, "photographs")
        with device.opened(network.files[precision], batch, network.size) as session:
            info = session.inputs[0]
            found = session.run({info.name: feed.astype(info.dtype)})
        expected = cpu[network.name, batch]
        values = [adapter.values(each, feed.shape, network.name) for each in (expected, found)]
        kinds = adapter.differences(names, list(values[0]), list(values[1]), LIMITS[precision])
        found_kinds = {kind.values: kind.max_abs for kind in kinds if kind.values in ("boxes", "scores", "keypoints")}
        return {**found_kinds, "of the limit": max(kind.limit_ratio for kind in kinds)}

    cpu = _References(networks)
    wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {
        (network.name, precision, str(batch)): partial(compare, network, precision, batch)
        for batch in batches
        for network in networks
        for precision in network.files
    }
    columns = {"boxes": "{:.2g} px", "keypoints": "{:.2g} px", "scores": "{:.2g}", "of the limit": "{:.3f}"}
    title = "Largest differences from ONNX Runtime's CPU provider in fp32, and their share of an export's limits"
    return Table(title, ("network", "precision", "batch"), columns, rows_of(step, wanted))


class _References(dict[tuple[str, int], dict[str, Array]]):
    """The CPU provider's outputs by network and batch, computed when they are first asked for."""

    def __init__(self, networks: list[Network]) -> None:
        self._networks = {network.name: network for network in networks}

    def __missing__(self, key: tuple[str, int]) -> dict[str, Array]:
        from deploykit.runtime.backends.ort import open_session

        network = self._networks[key[0]]
        with open_session(network.files["fp32"], provider="cpu") as session:
            self[key] = session.run({session.inputs[0].name: feed_of(network, key[1])})
        return self[key]


VARIANTS: dict[str, dict[str, bool]] = {
    "graph": {"graph": True},
    "bound": {},
    "graph, nhwc": {"graph": True, "nhwc": True},
    "copied, bound": {},
    "session.run": {"bound": False},
}
"""Ways to run a network. ``copied`` and ``session.run`` have the copies of input and output in them."""


def _alone(step: Step, device: Device, networks: list[Network], batches: tuple[int, ...], seconds: float) -> Table:
    def measure(network: Network, precision: str, batch: int) -> dict[str, float]:
        feed, calls = feed_of(network, batch), dict[str, Callable[[], object]]()
        with contextlib.ExitStack() as stack:
            for name, how in VARIANTS.items():
                if "nhwc" in name and (precision, batch) != ("fp16", GOAL_FROM_BATCH):
                    continue
                try:
                    opened = stack.enter_context(device.opened(network.files[precision], batch, network.size, **how))
                except Skipped as e:
                    step.left_out.append(f"{network.name}, {precision}, {batch}, {name}: {e}")
                    continue
                given = {opened.inputs[0].name: feed.astype(opened.inputs[0].dtype)}
                if opened.runs is None or "copied" in name:
                    calls[name] = partial(opened.run, given)
                else:
                    opened.run(given)
                    shapes = {key: value.shape for key, value in given.items()}
                    calls[name] = partial(alone, opened.runs, shapes)
            return timed(calls, seconds, 200)

    wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {
        (network.name, precision, str(batch)): partial(measure, network, precision, batch)
        for batch in batches
        for network in networks
        for precision in network.files
    }
    rows = rows_of(step, wanted)
    columns = {name: "{:.3f}" for name in VARIANTS if any(name in row.values for row in rows)}
    base = "bound" if "bound" in columns else ""
    return Table("The network alone, ms a batch", ("network", "precision", "batch"), columns, rows, base)


def _end_to_end(step: Step, device: Device, networks: list[Network], batches: tuple[int, ...], seconds: float) -> Table:
    """From decoded 1080p frames to results; the stages by the device's clock, the rest by the host's.

    ``two threads``: the time of a batch where two threads take turns, so that one copies while the other computes.
    """

    def measure(network: Network, precision: str, batch: int) -> dict[str, float]:
        frames, spec = [photograph(FRAME, i) for i in range(batch)], network.spec(batch)
        with device.fastest(network, precision, batch, step) as session, ThreadPoolExecutor(2) as threads:
            asked = PredictOptions(batch=batch)
            fused: Any = GpuPredictor(session, spec, asked, library=device.kernels())
            usual: Any = Predictor(session, spec, asked)
            shape = {session.inputs[0].name: (batch, spec.input.channels, *network.size)}
            runs = session.runs
            assert runs is not None
            stages: dict[str, list[float]] = {}

            def all_stages() -> None:
                fused(frames)
                for name, ms in fused.stages.stage_ms.items():
                    stages.setdefault(name, []).append(ms)

            calls: dict[str, Callable[[], object]] = {
                "end to end": all_stages,
                "two threads": lambda: list(threads.map(fused, [frames] * IN_TURN)),
                "alone": partial(alone, runs, shape),
            }
            if batch in (1, GOAL_FROM_BATCH) or not device.real:
                calls["CPU letterbox, NMS"] = partial(usual, frames)
            times = timed(calls, seconds, 100)
            fused.stages.close()
        on_device = {name: float(np.median(values)) for name, values in stages.items()}
        times["two threads"] /= IN_TURN
        shares = {f"{name}, of alone": times[name] / times["alone"] for name in ("end to end", "two threads")}
        best = min(times["end to end"], times["two threads"])
        return {**on_device, **times, **shares, "images/s": 1e3 * batch / best}

    wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {
        (network.name, precision, str(batch)): partial(measure, network, precision, batch)
        for batch in batches
        for network in networks
        for precision in network.files
        if precision == list(network.files)[-1] or batch == batches[0]  # fp16, where there is one
    }
    stages_of = ("copy in", "letterbox", "network", "decode and NMS", "copy out")
    names = (*stages_of, "end to end", "two threads", "alone", "CPU letterbox, NMS")
    shares = dict.fromkeys(("end to end, of alone", "two threads, of alone"), "{:.2f}")
    columns = {**dict.fromkeys(names, "{:.3f}"), **shares, "images/s": "{:.0f}"}
    title = "Decoded 1080p frames to results, ms a batch"
    return Table(title, ("network", "precision", "batch"), columns, rows_of(step, wanted))


def _goals(sitting: Sitting) -> Table:
    """What was aimed at, from the tables before; a goal without its numbers is left out."""
    tables = {step.name: step.tables[-1] for step in sitting.steps if step.tables}
    if not sitting.device.real:
        raise Skipped("the stand-ins' times mean nothing")
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for row in tables["end to end"].rows if "end to end" in tables else ():
        if int(row.labels[2]) >= GOAL_FROM_BATCH:
            share = min(row.values[f"{name}, of alone"] for name in ("end to end", "two threads"))
            found["end to end over the network alone", *row.labels] = (share, 1.05)
        if row.labels[2] == "1":
            both = row.values["letterbox"] + row.values["decode and NMS"]
            found["letterbox and NMS, ms", *row.labels] = (both, 0.15)
    for row in tables["PyTorch"].rows if "PyTorch" in tables else ():
        if "torch.compile" in row.values and "ours, fp16" in row.values:
            found["fp16 network over torch.compile", *row.labels] = (
                row.values["ours, fp16"] / row.values["torch.compile"], 1.0,
            )  # fmt: skip
    if not found:
        raise Skipped("no step before has the numbers")
    rows = tuple(
        Row((*labels, "met" if value <= goal else "not met"), {"found": value, "goal": goal})
        for labels, (value, goal) in found.items()
    )
    return Table("Goals", ("goal", "network", "precision", "batch", ""), {"found": "{:.3f}", "goal": "{:.2f}"}, rows)


if __name__ == "__main__":
    main()
