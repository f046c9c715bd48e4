"""The part of ultralytics_peer.py that runs in the Python of the other package and answers requests on stdin.

It imports ultralytics, torch and numpy and nothing of ours, and calls what that package documents: ``YOLO(path)``, its
``model`` (a ``torch.nn.Module``), ``save``, ``export`` and ``predict``. A request and its answer are a line of JSON
each; arrays lie in files.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASSING = 60
"""How many cells of a random network pass a confidence of 0.25, in each of its branches."""

FINAL_LAYERS = {  # part of the head's raw output: (its convolutions, the standard deviation that it gets)
    "boxes": ("cv2", 1.0),
    "scores": ("cv3", 1.0),
    "kpts": ("cv4", 1.5),
    "mask_coefficient": ("cv4", 0.7),
    "angle": ("cv4", 1.0),
}

LOADED: dict[str, Any] = {}
"""What predictions have loaded: networks and images by their files."""


def facts() -> dict[str, Any]:
    """The versions of what computes here."""
    from importlib.metadata import version

    packages = ("ultralytics", "torch", "torchvision", "onnx", "onnxruntime", "onnxslim", "numpy")
    return {"versions": {name: version(name) for name in packages}}


def make(name: str, images: str, weights: str) -> dict[str, Any]:
    """A checkpoint of the network that the package's own description ``name`` gives, with random weights.

    Batch norms have the statistics of the images, a little off, and final layers are scaled on them to outputs of
    ordinary size, so that rounding errors are those of an ordinary network and some objects are found.
    """
    import numpy as np
    import torch
    from ultralytics import YOLO

    LOADED.clear()
    torch.manual_seed(zlib.crc32(name.encode()))
    model = YOLO(f"{name}.yaml")
    network, batch = model.model.float(), torch.from_numpy(np.load(images))
    with torch.no_grad():
        random_norms(network, batch)
        out = network(batch)
        if isinstance(out[1], dict):
            for branch, raw in branches_of(out[1]).items():
                scale_head(network, branch, raw)
            for branch, raw in branches_of(network(batch)[1]).items():
                choose_scores(network, branch, raw["scores"])
        else:
            network.model[-1].linear.weight.mul_(16)
    model.save(weights)
    return {"parameters": sum(p.numel() for p in network.parameters())}


def random_norms(network: Any, batch: Any) -> None:
    """Random scales and shifts for batch norms, and the statistics of the batch, a little off."""
    import torch

    norms: list[Any] = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.normal_(0, 0.2)
        norm.momentum = 1.0
    for key, parameter in network.named_parameters():
        if key.endswith("gamma"):
            parameter.uniform_(0.2, 1.0)
    network.train()
    network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)


def branches_of(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The raw outputs of a head by the prefix of the names of its layers."""
    return {"": raw["one2many"], "one2one_": raw["one2one"]} if "one2one" in raw else {"": raw}


def final_layers(network: Any, branch: str, part: str) -> list[tuple[Any, Any]]:
    """Weight and bias of the last convolution of a part of the head, at each level."""
    parameters = dict(network.named_parameters())
    prefix = f"model.{len(network.model) - 1}.{branch}{part}"
    found: list[tuple[Any, Any]] = []
    while True:
        level = len(found)
        stems = [s for s in (f"{prefix}_kpts.{level}", f"{prefix}.{level}.2") if f"{s}.bias" in parameters]
        if not stems:
            return found
        found.append((parameters[f"{stems[0]}.weight"], parameters[f"{stems[0]}.bias"]))


def scale_head(network: Any, branch: str, raw: dict[str, Any]) -> None:
    """Scale the last convolutions to outputs of ordinary size, level by level, and give them random biases."""
    import torch

    sizes = [feature.shape[-2] * feature.shape[-1] for feature in raw["feats"]]
    distances = raw["boxes"].shape[1] == 4  # and not distributions of 16 bins a side
    for kind, (part, wanted) in FINAL_LAYERS.items():
        if kind not in raw:
            continue
        mean, spread = (3.0, 0.7) if kind == "boxes" and distances else (0.0, wanted / 2)
        values = raw[kind].split(sizes, -1)
        for (weight, bias), level in zip(final_layers(network, branch, part), values, strict=True):
            factor = wanted / level.std(-1).mean()
            weight.mul_(factor)
            bias.copy_((bias - level.mean((0, 2))) * factor + mean + spread * torch.randn_like(bias))


def choose_scores(network: Any, branch: str, scores: Any) -> None:
    """Shift the biases of the classes so that PASSING cells of an image have a probability over a quarter."""
    best = scores.amax(1)[0]
    shift = -1.0986 - best.topk(min(PASSING, len(best))).values[-1]
    for _, bias in final_layers(network, branch, "cv3"):
        bias.add_(shift)


def export(weights: str, img: int, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the checkpoint to the ONNX file, and where that lies."""
    from ultralytics import YOLO

    start = time.perf_counter()
    file = YOLO(weights).export(format="onnx", imgsz=img, device="cpu", verbose=False, **options)
    return {"seconds": time.perf_counter() - start, "file": str(file)}


def predict(file: str, task: str, image: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds from pixels in memory to results, and those of the processor in all threads; the network is loaded
    by the first call for a file."""
    import numpy as np
    from ultralytics import YOLO

    if file not in LOADED:
        LOADED[file] = YOLO(file, task=task)
    if image not in LOADED:
        LOADED[image] = np.load(image)
    start, worked = time.perf_counter(), time.process_time()
    (result,) = LOADED[file].predict(LOADED[image], device="cpu", verbose=False, save=False, **options)
    taken, worked = (time.perf_counter() - start) * 1e3, (time.process_time() - worked) * 1e3
    arrays: dict[str, Any] = {}
    if result.obb is not None:
        arrays = {"boxes": result.obb.xywhr, "scores": result.obb.conf, "classes": result.obb.cls}
    elif result.probs is not None:
        arrays = {"probabilities": result.probs.data}
    else:
        arrays = {"boxes": result.boxes.xyxy, "scores": result.boxes.conf, "classes": result.boxes.cls}
    if result.keypoints is not None:
        arrays["keypoints"] = result.keypoints.data
    if result.masks is not None:
        arrays["masks"] = result.masks.data.bool()
    found: dict[str, Any] = {key: np.asarray(value.cpu()) for key, value in arrays.items()}
    np.savez(out, **found)
    return {"ms": taken, "processor ms": worked, "stages": result.speed}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "facts": facts,
    "make": make,
    "export": export,
    "predict": predict,
}


def main() -> None:
    """Answer until stdin ends. What the package prints on stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.chdir(Path(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"done": PARTS[request["part"]](**request["arguments"])}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
