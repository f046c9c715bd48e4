"""Exports and predictions beside the ultralytics package; writes docs/models/ultralytics-peer.md.

    python benchmarks/ultralytics_peer.py --peer-python PYTHON --out docs/models/ultralytics-peer.md --rounds 0
    python benchmarks/ultralytics_peer.py --peer-python PYTHON --json benchmarks/results/ultralytics_peer.json

The first writes the differences of outputs and objects, the second keeps times, for docs/performance.md. PYTHON is that
of an environment with ultralytics, torchvision, onnx, onnxslim and onnxruntime. That package is under the AGPL-3.0;
nothing of it is imported here: a process of that Python (ultralytics_peer_parts.py) makes a checkpoint with random
weights by its own ``save``, and answers with its ``export`` and its ``predict``. The same checkpoint goes through ours.
Without such an environment nothing is measured, the reason is printed, and files stay as they are.

Times are of processes that take turns, each waiting while another runs. An export's time is from the checkpoint to the
closed file, without imports; the first model is measured twice, and the first time does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from interleaved import interleaved
from measured import medians, show
from ultralytics_peer_numbers import object_differences, output_differences
from ultralytics_peer_page import numbers_page, time_tables

import deploykit
from deploykit import export_onnx
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.machine import Machine, versions
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result
from deploykit.spec import Fit, InputSpec

ROOT = Path(__file__).resolve().parents[1]
PARTS = str(Path(__file__).with_name("ultralytics_peer_parts.py"))
TASKS = {"": ("detect", 0), "seg": ("segment", 32), "pose": ("pose", 51), "obb": ("obb", 1), "cls": ("classify", 0)}
"""Ending of a model's name: (its task in the package, columns after the scores)."""

WITH_ALL_TASKS = ("yolov8n", "yolo11n", "yolo26n")
MODELS = [f"{name}{f'-{task}' if task else ''}" for name in WITH_ALL_TASKS for task in TASKS]
MODELS += ["yolo12n", "yolov10n", "yolov9t", "yolov5n"]
ONE_TO_ONE = ("yolo26", "yolov10")
PAUSE = 0.02  # seconds after a prediction, in which idle threads go to sleep


class PeerError(Exception):
    """The package is not there, or it refused something."""


class Peer:
    """The package in a process of its own Python."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._log = (folder / "peer.log").open("w")
        offline = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder)}
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                [python, PARTS, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=own | offline | {"OMP_NUM_THREADS": str(os.cpu_count())},
            )
        except OSError as error:
            self._log.close()
            raise PeerError(f"{python} cannot be run: {error.strerror}") from None

    def ask(self, part: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a function of ultralytics_peer_parts.py.

        Raises:
            PeerError: it failed, or its process ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps({"part": part, "arguments": arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise PeerError("its process ended") from None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": "its process ended"}
        if "failed" in answer:
            raise PeerError(str(answer["failed"]))
        found: dict[str, Any] = answer["done"]
        return found

    def close(self) -> None:
        self._process.communicate("")
        self._log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--image", type=Path, default=ROOT / "deploykit" / "assets" / "apollo11_crew.jpg")
    parser.add_argument("--img", type=int, default=640, help="input of all but classifiers, which have 224")
    parser.add_argument("--rounds", type=int, default=15, help="of predictions; 0: no times, and one export each")
    parser.add_argument("--exports", type=int, default=3, metavar="ROUNDS")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="write the differences")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the times")
    args = parser.parse_args()
    if args.json and not args.rounds:
        parser.error("--json keeps times, and --rounds 0 takes none")
    try:
        found = measured(args)
    except PeerError as error:
        print(f"not measured: the other package: {error}")
        return
    if args.out:
        args.out.write_text(numbers_page(found))
    if args.rounds:
        loads = [load for row in found["models"] for load in row["load"] if load is not None]
        how = (
            f"Medians of {args.rounds} rounds, of exports {args.exports}; input {args.img} x {args.img}, classifiers "
            f"224 x 224. Theirs is {', '.join(f'{name} {version}' for name, version in found['peer'].items())}. "
            f"The load was {min(loads):.1f} to {max(loads):.1f} before and after the models."
        )
        title = "Beside the ultralytics package"
        show(time_tables(found["models"]), title, "ultralytics_peer.py", how, args.json, found["machine"])


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything about every model, and its conditions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = Peer(args.peer_python.absolute(), folder)
        try:
            peer_versions = peer.ask("facts")["versions"]
            photo = read_image(args.image)
            np.save(folder / "photo.npy", photo)
            rows = []
            warm_up = args.models[:1] if args.rounds else []
            for model in [*warm_up, *args.models]:
                before = Machine.here().load
                rows.append(of_model(peer, model, photo, folder, args))
                rows[-1]["load"] = (before, Machine.here().load)
                print(json.dumps({k: v for k, v in rows[-1].items() if k in ("name", "output", "objects")}), flush=True)
        finally:
            peer.close()
        del rows[: len(warm_up)]
    here = Machine.here()
    facts = {"machine": f"{here.processor}, {here.cores} cores", "versions": versions(), "peer": peer_versions}
    return facts | {"img": args.img, "image": [args.image.name, *photo.shape[:2]], "models": rows}


def of_model(peer: Peer, name: str, photo: Array, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Numbers, files and times of one model."""
    task, extra = TASKS[name.partition("-")[2]]
    free = name.startswith(ONE_TO_ONE) and task != "classify"
    options = {"nms": False} if free else {}
    img = 224 if task == "classify" else args.img
    spec = InputSpec(size=(img, img), fit=Fit(stride=32))
    canvas = to_nchw([Letterbox.fit(photo.shape[:2], (img, img), spec.fit, auto=False).apply(photo)], spec)
    noise = np.random.default_rng(0).random(canvas.shape, np.float32)  # an export is verified on noise too
    np.save(folder / "inputs.npy", np.concatenate((canvas, canvas[..., ::-1], noise)))
    weights, out = folder / f"{name}-random.pt", folder / f"{name}-ours.onnx"
    peer.ask("make", name=name, images=str(folder / "inputs.npy"), weights=str(weights))
    taken: dict[str, list[float]] = {"theirs": [], "ours": [], "ours, --no-check": []}
    for _ in range(args.exports if args.rounds else 1):
        answer = peer.ask("export", weights=str(weights), img=img, options=options)
        taken["theirs"].append(answer["seconds"])
        for kind, check in (("ours", True), ("ours, --no-check", False))[: 2 if args.rounds else 1]:
            start = time.perf_counter()
            export_onnx(weights, img=img, out=out, check=check)
            taken[kind].append(time.perf_counter() - start)
    files = {"theirs": Path(answer["file"]), "ours": out}
    outputs, network = run_networks(files, canvas, args.rounds)
    if task == "classify":
        score = float(np.abs(outputs["theirs"][0] - softmax(outputs["ours"][0])).max())
        difference = {"score": score}
    else:
        difference = output_differences(outputs["theirs"], outputs["ours"], extra, free)
    objects, predictions, processor = run_predictions(
        peer, files | {"checkpoint": weights}, task, options, (photo, img, args.rounds)
    )
    return {
        "name": name,
        "task": task,
        "megabytes": {side: file.stat().st_size / 1e6 for side, file in ({"checkpoint": weights} | files).items()},
        "nodes": {side: len(onnx.load(file).graph.node) for side, file in files.items()},
        "export": medians(taken) if args.rounds else {},
        "output": difference,
        "network": network,
        "objects": objects,
        "predict": predictions,
        "processor": processor,
    }


def run_networks(files: dict[str, Path], canvas: Array, rounds: int) -> tuple[dict[str, list[Array]], dict[str, float]]:
    """Outputs of both files in ONNX Runtime with equal options, and median milliseconds of interleaved runs."""
    runs: dict[str, Callable[[], list[Array]]] = {}
    for side, file in files.items():
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: canvas}
        runs[side] = partial(session.run, None, feed)
    times = medians(interleaved(runs, rounds=rounds, warmup=2)) if rounds else {}
    return {side: run() for side, run in runs.items()}, times


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    found: Array = powers / powers.sum(-1, keepdims=True)
    return found


def run_predictions(
    peer: Peer, files: dict[str, Path], task: str, options: dict[str, Any], given: tuple[Array, int, int]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """What both predict on the photo, and the median milliseconds of turns from pixels to results: of the clock, and of
    the processor in all threads, which a busy machine changes less.

    Both sides run the full square: ``rect``, which is off there, makes the smallest rectangle for a checkpoint.
    """
    photo, img, rounds = given
    folder = files["ours"].parent
    settings = {"imgsz": img, "rect": False, "retina_masks": True} | options
    top = 1000 if task == "classify" else None
    predictor: Predictor[Any] = deploykit.load(files["ours"], device="cpu", top=top)

    def theirs(kind: str) -> tuple[float, float]:
        asked = {"file": str(files[kind]), "task": task, "image": str(folder / "photo.npy"), "options": settings}
        answer = peer.ask("predict", out=str(folder / f"{kind}.npz"), **asked)
        return float(answer["ms"]), float(answer["processor ms"])

    def ours() -> tuple[float, float]:
        start, worked = time.perf_counter(), time.process_time()
        results.append(predictor(photo))
        return (time.perf_counter() - start) * 1e3, (time.process_time() - worked) * 1e3

    results: list[Any] = []
    sides = {"theirs, checkpoint": lambda: theirs("checkpoint"), "theirs, ONNX": lambda: theirs("theirs"), "ours": ours}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    worked: dict[str, list[float]] = {side: [] for side in sides}
    warmup = 2 if rounds else 1
    for number in range(warmup + rounds):
        for side, run in sides.items():
            ms, processor_ms = run()
            time.sleep(PAUSE)
            if number >= warmup:
                taken[side].append(ms)
                worked[side].append(processor_ms)
    predictor.close()
    with np.load(folder / "theirs.npz") as arrays:
        found = object_differences(dict(arrays), as_arrays(results[-1]))
    return (found, medians(taken), medians(worked)) if rounds else (found, {}, {})


def as_arrays(result: Any) -> dict[str, Array]:
    """A result of ours in the arrays of ultralytics_peer_parts.py; keypoints clipped to the image as theirs are."""
    if not isinstance(result, Result):
        probabilities = np.zeros(len(result.labels), np.float32)
        probabilities[result.labels] = result.scores
        return {"probabilities": probabilities}
    boxes = result.boxes if result.rotated is None else result.rotated
    found = {"boxes": boxes, "scores": result.scores, "classes": result.labels}
    if result.keypoints is not None:
        height, width = result.size
        found["keypoints"] = np.clip(result.keypoints[..., :2], 0, (width, height))
    if result.masks is not None:
        found["masks"] = result.masks
    return found


if __name__ == "__main__":
    main()
