"""The table of docs/unpooling.md: each way up, what it becomes in ONNX, and who runs it, by doing it.

    python -m tests.unpooling_table [--out docs/unpooling.md]

Every operation is exported by torch's exporter as the toolkit does it, run in ONNX Runtime on the CPU against torch,
and built by TensorRT for RTX.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import BackendError, DeployError
from deploykit.export.engine.build import build_engine
from deploykit.export.graph import passes
from deploykit.export.graph.finalize import finalize_graph, write
from deploykit.export.graph.trace import example_input, export_to_ir
from deploykit.export.nms.plan import plan_nms
from deploykit.models.families.fcn.unpool import BilinearDeconvolution, MaskedMaxPool, MaskedUnpool, Unpool
from deploykit.runtime.machine import versions
from deploykit.runtime.session import open_session
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec, Source, Thresholds

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (1, 4, 12, 18)
PAGE = """# Upsampling operators: unpooling, upsampling, deconvolution

Pooling makes a map smaller, and a network that predicts something per pixel has to enlarge it again. This page lists
the operators, the forms of them that export, and what runs them. `python -m tests.unpooling_table` writes the table by
doing what it says; last with {about}. Engines were built, not run.

| operation | from | ONNX operators | ONNX Runtime, largest difference to torch | TensorRT for RTX |
|---|---|---|---|---|
{rows}

* `MaxUnpool` of torch needs the indices of its pooling, which count within a plane; those of ONNX's MaxPool count over
  the whole tensor. Its own export is a scatter of every value, with two poolings to turn one kind of index into the
  other, and what stops TensorRT is the second output of MaxPool, the indices.
* {pool} and {unpool} (`deploykit.models.families.fcn.unpool`) have no indices: the pooling keeps a mask with a 1 where
  each window's first largest value was, and the unpooling repeats values and multiplies. All values are those of
  `max_pool2d` and `max_unpool2d`, ties included. Windows do not overlap, sides are multiples of theirs.
* `Unpool` has the three modes of Caffe's layers: a value in the middle of its window (`fixed`), spread over it (`div`),
  repeated (`rep`). ParseNet repeats the image's mean, which is one `Expand`.
* FCN's deconvolutions are bilinear and not learned. Their weights go from each channel to itself only; folded, they are
  a convolution of one group per channel, a {classes}th of the weights for {classes} classes.
"""


class Unpooled(nn.Module):
    """torch's own pair."""

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        values, places = functional.max_pool2d(x, self.side, return_indices=True)
        return functional.max_unpool2d(2 * values, places, [self.side, self.side])


class Masked(nn.Module):
    """Ours."""

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.pool, self.unpool = MaskedMaxPool(side), MaskedUnpool(side)

    def forward(self, x: Tensor) -> Tensor:
        values, mask = self.pool(x)
        found: Tensor = self.unpool(2 * values, mask)
        return found


class Resized(nn.Module):
    """Upsampling without weights."""

    def __init__(self, mode: str, align_corners: bool | None = None) -> None:
        super().__init__()
        self.mode, self.align_corners = mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode=self.mode, align_corners=self.align_corners)


def deconvolution() -> nn.Module:
    """FCN's, folded."""
    layer = BilinearDeconvolution(SHAPE[1], 4, 2)
    layer.random_weights(1.0)
    return layer.fuse("")


OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "max_pool2d, max_unpool2d of torch, 2 x 2": Unpooled,
    "MaskedMaxPool, MaskedUnpool, 2 x 2": Masked,
    "MaskedMaxPool, MaskedUnpool, 3 x 3": lambda: Masked(3),
    "Unpool fixed, 3 x 3": lambda: Unpool(3, "fixed"),
    "Unpool div, 2 x 2": lambda: Unpool(2, "div"),
    "Unpool rep, 2 x 2": lambda: Unpool(2, "rep"),
    "transposed convolution, 4 x 4, stride 2": lambda: nn.ConvTranspose2d(SHAPE[1], 4, 4, 2, 1),
    "BilinearDeconvolution, folded": deconvolution,
    "bilinear, corners aligned": lambda: Resized("bilinear", True),
    "bilinear, pixel centres aligned": lambda: Resized("bilinear", False),
    "nearest": lambda: Resized("nearest"),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
}


def row_of(name: str) -> tuple[str, str, str, str, str]:
    """The cells of one operation."""
    torch.manual_seed(0)
    module = OPERATIONS[name]().eval()
    ours = "deploykit" if type(module).__module__.startswith("deploykit") or isinstance(module, Masked) else "torch"
    with TemporaryDirectory() as folder:
        file = Path(folder, "m.onnx")
        try:
            export(module, file)
        except DeployError as e:
            return name, ours, f"refused: {str(e).splitlines()[0][:90]}", "", ""
        operators = Counter(node.op_type for node in onnx.load(str(file)).graph.node)
        told = ", ".join(op if count == 1 else f"{count} {op}" for op, count in operators.most_common())
        return name, ours, told, run(module, file), built(file)


def export(module: nn.Module, file: Path) -> None:
    """As :func:`deploykit.export.to_onnx.onnx_from_model` does it, but for the verification."""
    canvas = InputSpec(size=SHAPE[2:], channels=SHAPE[1], mean=(0.0,) * 4, std=(1.0,) * 4, fit=Fit(stride=1))
    asked = ModelSpec("restore", canvas, DenseOutput(name="image"), source=Source(model="unpooling"))
    plan, spec = plan_nms(asked, "none", Thresholds(), module)
    graph = export_to_ir(module, example_input(spec.input), spec, "dynamo", True, plan.outputs)
    passes.simplify(graph)
    finalize_graph(graph, spec, plan, module)
    write(graph, file, 0)


def run(module: nn.Module, file: Path) -> str:
    """The largest difference to torch, over inputs with ties."""
    images = np.random.default_rng(0).integers(-3, 4, SHAPE).astype(np.float32)
    try:
        with open_session(file, provider="cpu") as session, torch.inference_mode():
            found = session.run({"images": images})["image"]
            expected = module(torch.from_numpy(images)).numpy()
    except BackendError as e:
        return f"does not run: {str(e).splitlines()[0][:90]}"
    return f"{np.abs(found - expected).max():.2g}" if found.shape == expected.shape else "another shape"


def built(file: Path) -> str:
    """Whether TensorRT for RTX builds it, or what it says."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return "not run: not installed"
    try:
        return f"built, {build_engine(file, flavour='tensorrt-rtx', out=file.parent).record.layers} layers"
    except DeployError as e:
        said = " ".join(str(e).split()).removeprefix(f"TensorRT cannot parse {file}: ")
        return f"refused: {said.partition('!')[0][:160]}"


def page_of(rows: Sequence[tuple[str, ...]]) -> str:
    """The whole page."""
    known = versions()
    about = ", ".join(f"{key} {known[key]}" for key in ("torch", "onnxruntime", "tensorrt_rtx") if key in known)
    lines = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
    return PAGE.format(about=about, rows=lines, pool="`MaskedMaxPool`", unpool="`MaskedUnpool`", classes=21)


def main() -> None:
    """Make the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "unpooling.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [row_of(name) for name in OPERATIONS]
    args.out.write_text(page_of(rows))
    print("\n".join(" | ".join(row) for row in rows))


if __name__ == "__main__":
    main()
