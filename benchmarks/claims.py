"""What the sources of these models say and can be measured without trained weights, measured.

    python benchmarks/claims.py [--only 9 11] [--device cuda] [--upstream DIR --upstream-python PYTHON]

The claims are about the export of the pose model (1, 3, 4: by pose_claims.py, to which the last two arguments go),
ViTDet's windows and norms (6, 7), CMT's speed (9), the number of YOLOX' predictions (11), seams of tiles (12), and ways
up (14). docs/claims.md tells what came out. Weights are random (seed 0); each part says what it measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from interleaved import interleaved
from tiles import SHALLOW, measured, random_weights
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.nafnet import Nafnet, receptive_field
from deploykit.models.families.vitdet import model as vitdet
from deploykit.models.families.vitdet.model import VitDetBackbone
from deploykit.models.families.vitdet.pyramid import norm_of
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import create_model
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.machine import processor_name, versions

IMAGE = Path(__file__).resolve().parents[1] / "deploykit" / "assets" / "apollo11_crew.jpg"
BATCH = {"cpu": 8, "cuda": 128}


def main() -> None:
    """Print what was measured of each claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", type=int, choices=sorted(CLAIMS), default=sorted(CLAIMS), metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of claim 9")
    parser.add_argument("--batch", type=int, help="of claim 9 (8 on a CPU, 128 on a GPU)")
    parser.add_argument("--rounds", type=int, default=7, help="of what is timed")
    parser.add_argument("--upstream", type=Path, metavar="DIR")
    parser.add_argument("--upstream-python", default=sys.executable, metavar="PYTHON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{processor_name()}, {torch.get_num_threads()} threads, {versions()}")
    pose = [n for n in args.only if n in POSE]
    for number in args.only:
        if number in POSE and number != pose[0]:
            continue
        title, measure = CLAIMS[number]
        print(f"\n{', '.join(map(str, pose)) if number in POSE else number}: {title}")
        with torch.inference_mode():
            for line in measure(args):
                print(f"  {line}", flush=True)


def pose_model(args: argparse.Namespace) -> Iterator[str]:
    """1, 3 and 4, in a process of their own."""
    script = str(Path(__file__).with_name("pose_claims.py"))
    words = [sys.executable, script, "--json", "--rounds", str(args.rounds)]
    if args.upstream:
        words += ["--upstream", str(args.upstream), "--upstream-python", args.upstream_python]
    found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
    yield found["conditions"]
    for part in ("size", "numbers", "time", "stride"):
        yield from (f"{part}: {line}" for line in found[part])


def windows(args: argparse.Namespace) -> Iterator[str]:
    """6: the same weights, the map padded to 70 cells a side and interpolated to 56."""
    config = vitdet.BACKBONES["b"]
    torch.manual_seed(0)
    network = VitDetBackbone(config).eval()
    randomise(network)
    image = _image(config.patch * config.map_size)
    found = {}
    for reach in ("pad", "interpolate"):
        network.net.config = replace(config, window_mode=reach)
        found[reach] = network(image)
    for i, (padded, resized) in enumerate(zip(found["pad"], found["interpolate"], strict=True), start=2):
        yield f"P{i}: {_relative(padded, resized)}"
    exact, small = (vitdet.positions_of(network.net.pos_embed, n, n).permute(0, 3, 1, 2) for n in (64, 56))
    moved = functional.interpolate(small, (64, 64), mode="bilinear")
    yield f"absolute positions of 64 x 64 cells against those of 56 x 56, enlarged: {_relative(exact, moved)}"


def norms(args: argparse.Namespace) -> Iterator[str]:
    """7: one set of parameters in a per-pixel layer norm and in a group norm of one group."""
    torch.manual_seed(0)
    layer, group = norm_of("LN", 256), norm_of("GN", 256)
    nn.init.uniform_(layer.get_parameter("weight"), 0.8, 1.2)
    nn.init.normal_(layer.get_parameter("bias"), std=0.1)
    group.load_state_dict(layer.state_dict())
    halves = torch.tensor([10.0] * 32 + [1.0] * 32)
    for name, x in (
        ("a map of one pixel", torch.randn(1, 256, 1, 1)),
        ("white noise, 64 x 64", torch.randn(1, 256, 64, 64)),
        ("a map whose left half is ten times its right", torch.randn(1, 256, 64, 64) * halves),
    ):
        yield f"{name}: {_relative(layer(x), group(x))}"
    config = vitdet.BACKBONES["b"]
    networks = []
    for norm in ("LN", "GN"):
        torch.manual_seed(0)
        networks.append(VitDetBackbone(replace(config, norm=norm, map_size=16)).eval())
        randomise(networks[-1])
    networks[1].load_state_dict(networks[0].state_dict())
    image = _image(256)
    for i, (one, other) in enumerate(zip(*(network(image) for network in networks), strict=True), start=2):
        yield f"ViTDet-B at 256, P{i}: {_relative(one, other)}"


def _sum(network: nn.Module, images: Tensor) -> float:
    """A run whose end is waited for."""
    return float(network(images).float().sum())


def speed(args: argparse.Namespace) -> Iterator[str]:
    """9: images per second, folded networks in PyTorch, all in turn."""
    device = torch.device(args.device)
    batch = args.batch or BATCH[args.device]
    networks = {name: fuse_model(create_model(name).module) for name in ("resnet50", "cmt-ti", "cmt-flyegle-ti")}
    sides = {"resnet50": 224, "cmt-ti": 160, "cmt-flyegle-ti": 160}
    types = (torch.float32, torch.float16) if args.device == "cuda" else (torch.float32,)
    if args.device == "cuda":
        yield f"{torch.cuda.get_device_name()}, batch {batch}"
    for dtype in types:
        runs: dict[str, Callable[[], object]] = {}
        for name, network in networks.items():
            moved = network.to(device, dtype)
            images = torch.randn(batch, 3, sides[name], sides[name], device=device, dtype=dtype)
            runs[name] = partial(_sum, moved, images)
        times = interleaved(runs, args.rounds, warmup=2)
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["resnet50"], strict=True))
            middle = statistics.median(values)
            yield (
                f"{name} at {sides[name]}, {str(dtype).removeprefix('torch.')}, batch {batch}: {middle:.1f} ms, "
                f"{1e3 * batch / middle:.0f} images per second, {ratio:.2f} x the time of resnet50 at 224"
            )


def predictions(args: argparse.Namespace) -> Iterator[str]:
    """11: how many rows each gives of an image of 640 x 640, and how many values."""
    rows = {}
    for name in ("yolox-s", "yolov6n", "yolov7", "yolov5s"):
        shape = create_model(name).module(torch.zeros(1, 3, 640, 640)).shape
        rows[name] = shape[1]
        yield f"{name}: {shape[1]} rows of {shape[2]}, {shape[1] * shape[2]:,} values"
    yield f"a third: {rows['yolov7'] / rows['yolox-s']:.3f} times as many with three anchors a cell"


def seams(args: argparse.Namespace) -> Iterator[str]:
    """12: tiles with a margin of 20 cells against the whole image."""
    image = _image(352)[0]
    planes = torch.cat((image, image[1:2])).numpy()
    for name, module in (("nafnet-w32-raw", create_model("nafnet-w32-raw").module), ("a shallow one", Nafnet(SHALLOW))):
        network = random_weights(module)
        told = (
            f"overlap {overlap}, own means: {row.shares[0]:.1e}, means of the whole: {row.shares[1]:.1e}"
            for overlap, row in zip((0, 20, 40), measured(network, planes, 96, (0, 20, 40)), strict=True)
        )
        field = f"{name} (receptive field {receptive_field(network)} cells), share of the largest correction"
        yield f"{field}: {'; '.join(told)}"


def ways_up(args: argparse.Namespace) -> Iterator[str]:
    """14: whether a transposed convolution can be each of the others; and who runs which."""
    x = torch.randn(1, 4, 6, 8)
    nearest = functional.conv_transpose2d(x, torch.ones(4, 1, 2, 2), stride=2, groups=4)
    yield f"nearest: {_relative(functional.interpolate(x, scale_factor=2.0), nearest)}"
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    bilinear = functional.conv_transpose2d(
        functional.pad(x, (1, 1, 1, 1), mode="replicate"), (line[:, None] * line).expand(4, 1, 4, 4), stride=2, groups=4
    )[..., 3:-3, 3:-3]
    expected = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
    yield f"bilinear, pixel centres aligned: {_relative(expected, bilinear)}"
    one, other = (torch.zeros(1, 1, 2, 2) for _ in range(2))
    one[..., 0, 0] = other[..., 1, 1] = 1.0
    pools = [functional.max_pool2d(z, 2, return_indices=True) for z in (one, other)]
    same = torch.equal(pools[0][0], pools[1][0])
    apart = not torch.equal(*(functional.max_unpool2d(*pool, [2, 2]) for pool in pools))
    yield f"unpooling: two maps whose pooled values are equal ({same}) become two that differ ({apart})"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.unpooling_table import OPERATIONS, row_of

    with torch.inference_mode(mode=False), torch.no_grad():
        for name in OPERATIONS:
            _, ours, operators, difference, engine = row_of(name)
            yield f"{name} ({ours}): {operators}; ONNX Runtime {difference}; TensorRT for RTX {engine}"


def _image(side: int) -> Tensor:
    """A photograph as networks get it, ``(1, 3, side, side)``, in 0..1."""
    image = torch.from_numpy(read_image(IMAGE)).permute(2, 0, 1)[None].float() / 255
    short = min(image.shape[2:])
    return functional.interpolate(image[..., :short, :short], (side, side), mode="bilinear", antialias=True)


def _relative(expected: Tensor, found: Tensor) -> str:
    difference = (expected - found).abs()
    return (
        f"differences of {difference.mean() / expected.abs().mean():.2g} of the mean value, "
        f"{difference.max() / expected.abs().max():.2g} of the largest"
    )


POSE = (1, 3, 4)
CLAIMS: dict[int, tuple[str, Callable[[argparse.Namespace], Iterator[str]]]] = {
    **dict.fromkeys(POSE, ("the pose model's export: three times as large, nearly lossless in half the time; stride 64",
                           pose_model)),
    6: ("64 cells as windows of 14: padding to 70 loses nothing, interpolating to 56 may misalign positions", windows),
    7: ("a group norm of one group is equal to a layer norm", norms),
    9: ("CMT has few FLOPs, and takes nearly ten times as long as ResNet-50 in batches of 128", speed),
    11: ("YOLOX has 8400 predictions, two thirds fewer than with anchors", predictions),
    12: ("tiles of a RAW image that overlap by 20 have no seams", seams),
    14: ("a transposed convolution can be unpooling and upsampling", ways_up),
}  # fmt: skip

if __name__ == "__main__":
    main()
