"""What gpu.py compares ONNX Runtime with: PyTorch, eager and compiled, and TensorRT, where they are."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gpu_parts import Device, Network, Skipped, Step, alone, rows_of, timed
from measured import Table

COMPILING = 60.0  # seconds that torch.compile may take for one shape


def compiled_table(
    step: Step, device: Device, networks: list[Network], batches: tuple[int, ...], seconds: float
) -> Table:
    """The fused network in PyTorch, float16 and channels last, beside ours as a graph; inputs lie on the device."""
    if not device.real:
        raise Skipped("needs a GPU")
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise Skipped("this PyTorch has no CUDA")

    def measure(network: Network, batch: int) -> dict[str, float]:
        from deploykit.models.fuse import fuse_model
        from deploykit.models.registry import load_model

        if network.checkpoint is None:
            raise Skipped("its checkpoint is not here")
        place = torch.device("cuda", device.gpu.index)
        image = torch.rand((batch, 3, *network.size), device=place).half().to(memory_format=torch.channels_last)
        module: Any = fuse_model(load_model(network.checkpoint).module)
        module = module.half().to(place).to(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], object]] = {"torch eager": partial(_waited, torch, module, image)}
        left = step.ends - time.monotonic()
        if left > COMPILING:
            torch._dynamo.reset()
            compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)
            calls["torch.compile"] = partial(_waited, torch, compiled, image)
        else:
            step.left_out.append(f"{network.name}, {batch}, torch.compile: {left:.0f} s are left")
        with torch.inference_mode(), device.fastest(network, "fp16", batch, step) as session:
            given = image.cpu().contiguous().numpy().astype(session.inputs[0].dtype)
            session.run({session.inputs[0].name: given})
            assert session.runs is not None
            calls["ours, fp16"] = partial(alone, session.runs, {session.inputs[0].name: given.shape})
            return timed(calls, seconds, 200)

    wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {
        (network.name, "fp16", str(batch)): partial(measure, network, batch)
        for batch in batches
        for network in networks
        if "fp16" in network.files
    }
    rows = rows_of(step, wanted)
    columns = {
        name: "{:.3f}" for name in ("ours, fp16", "torch eager", "torch.compile") if any(name in r.values for r in rows)
    }
    title = "The network alone beside PyTorch (float16, channels last; compiled with CUDA graphs), ms a batch"
    return Table(title, ("network", "precision", "batch"), columns, rows, "ours, fp16")


def _waited(torch: Any, module: Any, image: Any) -> None:
    module(image)
    torch.cuda.synchronize(image.device)


def tensorrt_table(
    step: Step, device: Device, networks: list[Network], batches: tuple[int, ...], seconds: float
) -> Table:
    """Engines of the fp16 files in TensorRT, arrays in and out, and the part that computes by the GPU's clock."""
    if not device.real:
        raise Skipped("needs a GPU")
    if importlib.util.find_spec("tensorrt") is None:
        raise Skipped("TensorRT is not installed")
    import numpy as np

    from deploykit.export.engine.build import build_engine
    from deploykit.export.options import EngineOptions
    from deploykit.facade import open_session
    from deploykit.runtime.engine_record import Profile

    def measure(network: Network, batch: int, folder: Path) -> dict[str, float]:
        shape = (batch, 3, *network.size)
        out, options = folder / f"{network.name}.{batch}.trt", EngineOptions(profiles=(Profile(shape, shape, shape),))
        build_engine(network.files["fp16"], flavour="tensorrt", out=out, options=options, check=False)
        with open_session(out, device=f"cuda:{device.gpu.index}") as session:
            info = session.inputs[0]
            given = {info.name: np.zeros(shape, info.dtype)}
            times = timed({"copied": lambda: session.run(given)}, seconds, 200)
            return {**times, "computes": session.stage_ms["compute"]}

    with tempfile.TemporaryDirectory() as folder:
        wanted: dict[tuple[str, ...], Callable[[], Mapping[str, float]]] = {
            (network.name, "fp16", str(batch)): partial(measure, network, batch, Path(folder))
            for network in networks
            for batch in batches
            if "fp16" in network.files
        }
        rows = rows_of(step, wanted)
    columns = {"copied": "{:.3f}", "computes": "{:.3f}"}
    return Table("TensorRT, ms a batch", ("network", "precision", "batch"), columns, rows)
