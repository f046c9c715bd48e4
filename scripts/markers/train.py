"""Train the marker model from nothing, on rendered scenes; writes a checkpoint in the original's format.

    python -m scripts.markers.train --out markers.pt --pool FOLDER [--steps 7500] [--minutes 60]

One process, one thread, 10 to 15 ms of a CPU core per image. The same arguments, versions and machine give the same
checkpoint, unless ``--minutes`` end it before its steps do: then the schedule has followed the clock. The averaged
weights are written every ``--every`` steps, so that it can be stopped at any time.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from deploykit.atomic import write_atomic
from deploykit.models.create.original_format import original_checkpoint
from deploykit.models.layers.anchor_head import IKeypoint
from deploykit.models.layers.conv import Conv
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from scripts.markers.dataset import Pool, pool
from scripts.markers.loss import Targets, loss_of
from scripts.markers.network import config
from scripts.markers.prints import CLASSES, CORNERS, Image, Points
from scripts.markers.scenes import in_image_order

SIZES = (160, 192, 224, 256, 320)
LEAST_SIDE = 10.0  # pixels of a code that is learned; smaller ones are ignored
LEAST_PART = 0.55  # of a code that lies in the image
BATCH = 16
PEAK, WARM_UP, DECAY = 3e-3, 0.02, 0.03
CLIP = 10.0  # the norm of the gradient
SCALES = (0.9, 2.2)  # of a scene whose side is that of the example; of more only a part is in it
AIMED = 0.6  # the share of examples whose part is chosen to hold a code
KEYPOINT_FACTS = {
    "names": list(CORNERS),
    "skeleton": [[0, 1], [1, 2], [2, 3], [3, 0]],
    "flip_pairs": [[0, 1], [2, 3]],
    "sigmas": [0.05] * 4,
}
"""What the checkpoint says of its keypoints. The sigmas lie between those of COCO's eyes (0.025) and hips (0.107)."""


def raw_outputs(graph: LayerGraph, images: Tensor) -> list[Tensor]:
    """The head's values before decoding, per level."""
    outputs = {-1: images}
    for i, (layer, used) in enumerate(zip(list(graph.model)[:-1], graph.sources[:-1], strict=True)):
        outputs[i] = layer(*(outputs[s] for s in used))
    head = cast(IKeypoint, graph.head)
    return [head.raw(outputs[s], level) for level, s in enumerate(graph.sources[-1])]


def example(image: Image, corners: Points, size: int, rng: np.random.Generator) -> tuple[Image, Points]:
    """A scene turned by quarters, scaled, moved and with other colours: ``(size, size, 3)`` and its corners."""
    side = len(image)
    turns = int(rng.integers(4)) if rng.random() < 0.3 else 0
    centre = np.array([[1, 0, -side / 2], [0, 1, -side / 2], [0, 0, 1]])
    turn = np.deg2rad(-90 * turns)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    scale = size / side * float(np.exp(rng.uniform(*np.log(SCALES))))
    room = abs(side * scale - size) / 2
    dx, dy = rng.uniform(-room, room, size=2)
    if len(corners) and rng.random() < AIMED:
        code = corners[int(rng.integers(len(corners))), :, :2].mean(0) - side / 2
        aim = rng.uniform(-0.35, 0.35, size=2) * size - scale * (rotation[:2, :2] @ code)
        dx, dy = np.clip(aim, -room, room)
    place = np.array([[scale, 0, size / 2 + dx], [0, scale, size / 2 + dy], [0, 0, 1]])
    edges = place @ rotation @ centre
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    pixels = (np.linalg.inv(half) @ edges @ half)[:2]
    if scale < 1 and rng.random() < 0.7:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 / scale), np.uint8)
    out = cv2.warpAffine(image, pixels, (size, size), flags=cv2.INTER_LINEAR, borderValue=(114, 114, 114))
    if rng.random() < 0.6:
        gain, shift = rng.uniform(0.6, 1.5), rng.uniform(-40, 40)
        out = np.clip(out.astype(np.float32) * gain + shift, 0, 255)
    if rng.random() < 0.15:
        out = out[..., ::-1]
    moved = corners.copy()
    if len(moved):
        moved[..., :2] = corners[..., :2] @ edges[:2, :2].T + edges[:2, 2]
        outside = ((moved[..., :2] < 0) | (moved[..., :2] > size)).any(-1)
        moved[..., 2] = np.where(outside, 0, moved[..., 2])
        if turns:
            moved = np.stack([_reordered(points) for points in moved])
    return np.ascontiguousarray(out, np.uint8), moved


def _reordered(points: Points) -> Points:
    ordered = in_image_order(np.ascontiguousarray(points[:, :2]))
    first = int(np.abs(points[:, :2] - ordered[0]).sum(1).argmin())
    return np.roll(points, -first, axis=0)


def batch_of(scenes: Pool, numbers: list[int], size: int, rng: np.random.Generator) -> tuple[Tensor, Targets]:
    """Images ``(B, 3, size, size)`` RGB, 0 to 1, and what is in them."""
    images, found, ignored = [], [], []
    for i, number in enumerate(numbers):
        image, corners = example(np.asarray(scenes.images[number]), scenes.corners[number], size, rng)
        images.append(image)
        for label, points in zip(scenes.labels[number], corners, strict=True):
            low, high = points[:, :2].min(0), points[:, :2].max(0)
            x1, y1, x2, y2 = np.clip((*low, *high), 0, size)
            part = (x2 - x1) * (y2 - y1) / float((high - low).prod())
            if part <= 0:
                continue
            if min(x2 - x1, y2 - y1) < LEAST_SIDE or part < LEAST_PART:
                ignored.append((i, x1, y1, x2, y2))
            else:
                box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                found.append((i, label, *box, *points.ravel()))
    rows = torch.tensor(np.array(found, np.float32).reshape(-1, 18))
    targets = Targets(
        image=rows[:, 0].long(),
        label=rows[:, 1].long(),
        box=rows[:, 2:6],
        corners=rows[:, 6:].view(-1, 4, 3),
        ignored=torch.tensor(np.array(ignored, np.float32).reshape(-1, 5)),
    )
    pixels = torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    return pixels.contiguous(memory_format=torch.channels_last), targets


def shuffled(count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches of numbers below ``count``, each of which comes once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < BATCH:
            order += rng.permutation(count).tolist()
        yield order[:BATCH]
        order = order[BATCH:]


def rate(done: float) -> float:
    """The learning rate's share of its peak when ``done`` of the training is: a warm-up, then a cosine down to 1 %."""
    warm = min(1.0, done / WARM_UP + 0.01)
    return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train(scenes: Pool, steps: int, every: int, out: Path, minutes: float = math.inf, seed: int = 0) -> None:
    """Train from nothing; write the averaged weights now and then and at the end.

    It ends, its learning rate low, after ``steps`` or ``minutes``, whichever is first.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    graph = build_graph(config())
    head = cast(IKeypoint, graph.head)
    head.random_weights(1.0)  # objects are rare
    graph = graph.train().requires_grad_(True)
    graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    average = copy.deepcopy(graph).requires_grad_(False)
    optimiser = _optimiser(graph)
    began, batches = time.time(), shuffled(len(scenes.images), rng)
    sums: dict[str, float] = {}
    step, done = 0, 0.0
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = PEAK * rate(done)
        images, targets = batch_of(scenes, next(batches), int(rng.choice(SIZES)), rng)
        parts = loss_of(head, raw_outputs(graph, images), targets)
        optimiser.zero_grad()
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(graph.parameters(), CLIP)
        optimiser.step()
        step += 1
        done = max(step / steps, (time.time() - began) / 60 / minutes)
        _follow(average, graph, min(0.998, step / (step + 9)))
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        if step % 50 == 0:
            said = "  ".join(f"{name} {value / 50:.3f}" for name, value in sums.items())
            print(f"{step}/{steps}  {100 * done:.1f} %  {time.time() - began:.0f} s  {said}", flush=True)
            sums = {}
        if step % every == 0 or done >= 1:
            write_atomic(out, checkpoint_of(average, step))


def checkpoint_of(graph: LayerGraph, steps: int) -> bytes:
    """The file of the trained network, its batch norms fused.

    What is fused before it is rounded to half precision stays so in the exported file, whose float32 weights then
    compress to half of their bytes.
    """
    fused = copy.deepcopy(graph)
    for path, module in list(fused.named_modules()):
        if isinstance(module, Conv):
            fused.set_submodule(path, module.fuse(path))
    return original_checkpoint(fused, CLASSES, keypoints=KEYPOINT_FACTS, trained_steps=steps)


def _optimiser(graph: LayerGraph) -> torch.optim.Optimizer:
    """AdamW, whose decay is for the weights of convolutions only."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in graph.named_parameters():
        (decayed if name.endswith("weight") and parameter.ndim == 4 else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))


def _follow(average: LayerGraph, graph: LayerGraph, keep: float) -> None:
    """Move the averaged weights a little towards those that are trained."""
    with torch.no_grad():
        now = graph.state_dict()
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                value.mul_(keep).add_(now[name], alpha=1 - keep)


def main() -> None:
    """Train as the command line asks for it."""
    parser = argparse.ArgumentParser(description="Train the model of QR codes and ArUco markers.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--pool", type=Path, required=True, metavar="FOLDER", help="where the scenes are or will be")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long, if the steps take longer")
    parser.add_argument("--every", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    train(pool(args.pool, 0, args.scenes), args.steps, args.every, args.out, args.minutes)


if __name__ == "__main__":
    main()
