"""The parts of pose_claims.py that run in processes of their own, each of which prints one JSON document.

Nothing heavy is imported before it is needed: the parts whose names begin with ``original`` run in the original's
Python, which need not have deploykit, and the others never see the original.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def prepare(weights: str, folder: str, img: str, threads: str) -> dict[str, Any]:
    """Weights where there are none, our export, and the image that everybody gets."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    from deploykit import export_onnx
    from deploykit.models.create.random_weights import create_checkpoint
    from deploykit.runtime.images.letterbox import Letterbox
    from deploykit.runtime.images.reading import read_image
    from deploykit.runtime.images.to_tensor import to_nchw
    from deploykit.spec import Fit, InputSpec

    torch.set_num_threads(int(threads))
    if not Path(weights).exists():
        create_checkpoint("yolov7-w6-pose", weights)
    export_onnx(weights, img=int(img), out=Path(folder) / "ours.onnx", check=False)
    side = (int(img), int(img))
    image = read_image(Path(__file__).resolve().parents[1] / "deploykit" / "assets" / "apollo11_crew.jpg")
    spec = InputSpec(size=side, fit=Fit(stride=64))
    letterbox = Letterbox.fit(image.shape[:2], side, spec.fit, auto=False)
    np.save(Path(folder) / "image.npy", to_nchw([letterbox.apply(image)], spec))
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}"
    return {"versions": versions}


def original_model(upstream: str, weights: str, *, fused: bool) -> Any:
    """The original's own classes, loaded as its scripts load them."""
    import torch

    sys.path.insert(0, upstream)
    os.chdir(upstream)
    model = torch.load(weights, map_location="cpu", weights_only=False)["model"].float()
    return (model.fuse() if fused else model).eval()


def original_export(upstream: str, weights: str, folder: str, img: str) -> dict[str, Any]:
    """What the original's export.py does with --grid --simplify, with the exporter it was written for."""
    import torch

    model = original_model(upstream, weights, fused=True)
    original_silu = import_module("utils.activations").SiLU

    for m in model.modules():
        if type(getattr(m, "act", None)) is torch.nn.SiLU:
            m.act = original_silu()
    model.model[-1].export = False
    image = torch.zeros(1, 3, int(img), int(img))
    traced, simplified = (Path(folder) / f"{name}.onnx" for name in ("traced", "simplified"))
    for _ in range(2):
        model(image)
    torch.onnx.export(model, (image,), str(traced), opset_version=11, input_names=["images"], dynamo=False)
    try:
        import onnx
        import onnxsim

        small, ok = onnxsim.simplify(onnx.load(str(traced)))
        onnx.save(small, str(simplified))
    except Exception as e:  # the claim's file is then not measured, and why is said
        return {"original, simplified": f"not measured: {type(e).__name__} {e}"}
    return {} if ok else {"original, simplified": "onnxsim's own check of its result failed"}


def sizes_of(file: str) -> dict[str, Any]:
    """The bytes of an ONNX file by what they are."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            held = [numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"]
            tensors |= dict(zip(node.output, held, strict=False))
    users: dict[str, set[str]] = {name: set() for name in tensors}
    for node in graph.node:
        for name in node.input:
            if name in users:
                users[name].add(node.op_type)
    parts: dict[str, int] = {}
    for name, array in tensors.items():
        if "Conv" in users[name]:
            part = f"weights and biases of convolutions, {array.dtype}"
        elif "ScatterND" in users[name]:
            part = f"{'indices' if array.dtype.kind == 'i' else 'values'} of ScatterND, {array.dtype}"
        else:
            part = f"constants of {' and '.join(sorted(users[name])) or 'nobody'}, {array.dtype}"
        parts[part] = parts.get(part, 0) + array.nbytes
    size = Path(file).stat().st_size
    parts["the graph itself"] = size - sum(parts.values())
    nodes = {op: sum(n.op_type == op for n in graph.node) for op in ("ScatterND", "Conv")} | {"all": len(graph.node)}
    return {"bytes": size, "parts": dict(sorted(parts.items(), key=lambda p: -p[1])), "nodes": nodes}


def work(kind: str, weights: str, folder: str, upstream: str, threads: str) -> None:
    """Answer requests on stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the original prints what it does
    import numpy as np

    images = np.load(Path(folder) / "image.npy")
    run = network(kind, weights, folder, upstream, int(threads), images)
    loaded = {"loading": memory("VmHWM"), "loaded": memory("VmRSS")}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    output = None
    for line in sys.stdin:
        word, _, place = line.strip().partition(" ")
        start, used = time.perf_counter(), time.process_time()
        if word == "run":
            output = run()
        elif word == "save":
            np.save(place, np.asarray(output))
        seconds = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
        print(json.dumps({**seconds, **loaded, "running": memory("VmHWM")}), file=answers, flush=True)


def network(kind: str, weights: str, folder: str, upstream: str, threads: int, images: Any) -> Any:
    """A function of nothing that gives the rows."""
    if kind.endswith("ort"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = Path(folder) / ("ours.onnx" if kind == "ort" else "simplified.onnx")
        if not file.exists():
            file = Path(folder) / "traced.onnx"
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        name = session.get_outputs()[0].name
        return lambda: session.run([name], {"images": images})[0]
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(images)
    if kind == "torch":
        from deploykit.models.fuse import fuse_model
        from deploykit.models.registry import load_model

        module = fuse_model(load_model(weights).module)
    else:
        module = original_model(upstream, weights, fused=kind == "original")

    def run() -> Any:
        with torch.set_grad_enabled(kind == "original-grad"):
            rows = module(x.clone())
            return (rows if kind == "torch" else rows[0]).detach().numpy()

    return run


def memory(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def differences(weights: str, folder: str, threads: str) -> dict[str, Any]:
    """Everybody's rows against those of the checkpoint in float64."""
    import numpy as np
    import torch

    from deploykit.models.registry import load_model

    torch.set_num_threads(int(threads))
    module = load_model(weights).module.double()
    with torch.no_grad():
        exact = module(torch.from_numpy(np.load(Path(folder) / "image.npy")).double()).numpy()
    found = {}
    for file in Path(folder).glob("*.npy"):
        if file.stem == "image":
            continue
        d = np.abs(np.load(file) - exact)
        places = [i for i in range(6, d.shape[-1]) if i % 3 != 2]
        others = [i for i in range(4, d.shape[-1]) if i not in places]
        found[file.stem] = {
            "boxes": float(d[..., :4].max()),
            "keypoints": float(d[..., places].max()),
            "probabilities": float(d[..., others].max()),
        }
    return found


def stride_of(weights: str, img: str) -> dict[str, Any]:
    """A wide image's rectangles, and what we say to the one that does not fit."""
    from deploykit import DeployError, export_onnx
    from deploykit.runtime.images.letterbox import Letterbox
    from deploykit.spec import Fit

    side, lines = int(img), []
    for source in ((720, 1280), (side - 32, side)):  # the second where the first is a multiple of 64 as it is
        sizes = [Letterbox.fit(source, (side, side), Fit(stride=stride), auto=True).canvas for stride in (32, 64)]
        if sizes[0] != sizes[1]:
            break
    for stride, (height, width) in zip((32, 64), sizes, strict=True):
        lines.append(f"an image of {source[0]} x {source[1]} (height x width) with stride {stride}: {height} x {width}")
    try:
        export_onnx(weights, img=sizes[0], out=Path(weights).with_name("none.onnx"), check=False)
        lines.append(f"deploykit takes {sizes[0]}")
    except DeployError as e:
        lines.append(f"deploykit: {e}")
    return {"size": f"{sizes[0][0]},{sizes[0][1]}", "lines": lines}


def original_stride(upstream: str, weights: str, size: str) -> dict[str, Any]:
    """What the original does with a rectangle that is no multiple of 64."""
    import torch

    model = original_model(upstream, weights, fused=False)
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *map(int, size.split(","))))
        return {"original": [f"the original takes {size}"]}
    except Exception as e:
        return {"original": [f"the original: {type(e).__name__}: {str(e).splitlines()[0]}"]}


def colour(checkpoint: str, images: str) -> dict[str, Any]:
    """What a trained model finds in the images, and in the same with red and blue swapped."""
    import numpy as np

    import deploykit
    from deploykit.runtime.images.reading import read_image

    predict = deploykit.load(checkpoint, task="keypoints")
    files = sorted(p for p in Path(images).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    found, swapped, again, moved, scores = 0, 0, 0, [], []
    for file in files:
        image = read_image(file)
        right, wrong = predict(image), predict(np.ascontiguousarray(image[..., ::-1]))
        found, swapped = found + len(right), swapped + len(wrong)
        for detection in right:
            corners = (
                np.maximum(wrong.boxes[:, :2], detection.box[:2]),
                np.minimum(wrong.boxes[:, 2:], detection.box[2:]),
            )
            inter = np.clip(corners[1] - corners[0], 0, None).prod(1)
            areas = (wrong.boxes[:, 2:] - wrong.boxes[:, :2]).prod(1), (detection.box[2:] - detection.box[:2]).prod()
            overlap = np.where(wrong.labels == detection.label, inter / (areas[0] + areas[1] - inter), 0.0)
            if len(overlap) and overlap.max() >= 0.5:
                again += 1
                other = wrong[int(overlap.argmax())]
                scores.append((detection.score, other.score))
                if detection.keypoints is not None and other.keypoints is not None:
                    distance = np.linalg.norm(detection.keypoints[:, :2] - other.keypoints[:, :2], axis=1)
                    moved.append(distance.mean() / np.linalg.norm(detection.box[2:] - detection.box[:2]))
    before, after = np.mean(scores, axis=0)
    line = (
        f"{len(files)} images, {found} objects with RGB, {swapped} with BGR; {again} of the {found} are found again "
        f"(same class, IoU >= 0.5), their mean score goes from {before:.3f} to {after:.3f}"
    )
    if moved:
        line += f", their keypoints move by {100 * np.median(moved):.1f} % of the box's diagonal (median)"
    return {"lines": [line], "rgb": found, "bgr": swapped, "again": again}


PARTS: dict[str, Callable[..., object]] = {
    "prepare": prepare,
    "original-export": original_export,
    "sizes": sizes_of,
    "work": work,
    "differences": differences,
    "stride": stride_of,
    "original-stride": original_stride,
    "colour": colour,
}

if __name__ == "__main__":
    answer = PARTS[sys.argv[1]](*sys.argv[2:])
    if answer is not None:
        print(json.dumps(answer))
