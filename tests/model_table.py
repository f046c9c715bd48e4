"""The table of docs/models/table.md: what was verified of every registered model, by doing it.

    python -m tests.model_table [--out docs/models/table.md] [--missing | --only yolov7 | --facts]

--facts writes deploykit/assets/models.json alone, which ``deploykit models`` prints without making a model.

For every model: it is built (its parameters counted without memory for them, and compared with the published number
that the tests hold); a narrow one of its kind with random weights is exported to ONNX and held against itself in
float64, and TensorRT for RTX builds an engine of that; the original project's own output, where a file of it is at
hand, is compared with ours. A cell that says what is missing was not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from deploykit.errors import DeployError
from deploykit.export.engine.build import build_engine
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, builder_of, list_models, load_model
from deploykit.releases.table import RELEASED
from deploykit.runtime.machine import processor_name, versions
from deploykit.spec.rows import RowOutput
from tests.export.test_exports import FAMILIES
from tests.export.test_instances import INSTANCES
from tests.meta_model import meta_model
from tests.models.families import test_vitdet, test_yolov5, test_yolov7
from tests.models.families.ultralytics import test_published
from tests.narrow import model_of
from tests.narrow_dense import NARROW, narrow_dense
from tests.narrow_free import group_of, narrow_free

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "deploykit" / "assets" / "models.json"
GOLDEN = {
    "cmt-ti": "cmt-narrow",
    "crossformer-t": "crossformer-narrow",
    "kapao-s": "kapao-s-narrow",
    "nafnet-w32-gopro": "nafnet-width8",
    "unet": "unet-narrow",
    "yolov5n-cls": "yolov5n-cls-narrow",
    "yolov5n-seg": "yolov5n-seg-narrow",
    "yolov5s6-pose": "yolov5s6-pose-narrow",
    "yolo11m": "yolo11m-detect-narrow",
    "yolo11n": "yolo11n-detect-narrow",
    "yolo11n-pose": "yolo11n-pose-narrow",
    "yolo12n": "yolo12n-narrow",
    "yolo26n": "yolo26n-detect-narrow",
    "yolo26n-pose": "yolo26n-pose-narrow",
    "yolo26n-seg": "yolo26n-seg-narrow",
    "yolov10n": "yolov10n-narrow",
    "yolov5nu": "yolov5nu-narrow",
    "yolov6n": "yolov6n-narrow",
    "yolov7": "yolov7-training-narrow",
    "yolov7-tiny": "yolov7-tiny-training-narrow",
    "yolov7-w6-pose": "yolov7-w6-pose-narrow",
    "yolov8n": "yolov8n-detect-narrow",
    "yolov8n-cls": "yolov8n-cls-narrow",
    "yolov8n-obb": "yolov8n-obb-narrow",
    "yolov8n-pose": "yolov8n-pose-narrow",
    "yolov8n-seg": "yolov8n-seg-narrow",
    "yolov9t": "yolov9t-narrow",
    "yolox-s": "yolox-s-narrow",
}
"""Model -> files that its original project's own code made, of reduced width."""

TITLES = (
    "model", "task, size", "parameters", "original's output", "ONNX, narrow", "TensorRT for RTX, narrow", "released",
)  # fmt: skip
PAGE = """# What was verified of every model

Made by `python -m tests.model_table`, which does what stands here; the page is not edited by hand.
Last run with {about}. Engines were built and not run.

* *parameters*: of the model as its authors' files hold it, batch norms not fused; equal to the number that their
  code or paper gives, where there is one.
* *original's output*: the largest difference between our fused model and what the original project's own code gave
  for the same checkpoint of reduced width (pixels; probabilities; of one dense output a share of its range). Of a head
  with two branches it is the one that needs NMS. Empty: no such file is available; the family's page says what else was
  compared.
* *ONNX, narrow*: a narrow model of that kind with random weights was exported and compared with itself in float64 on
  a real image and on noise; how much of the limit (1e-3 px + 1e-5 |x|, 1e-5 of a probability or of the largest
  value) the largest difference took. "as yolov8n": the layers are those of yolov8n in other numbers, and that one
  was exported.
* *TensorRT for RTX, narrow*: an engine of that file was built, without a GPU.
* Rows may be of earlier runs (`--missing` makes only those that the page lacks, and those that failed).
* *released*: `deploykit fetch` knows the address of trained weights. Whether such a file was tried is on the family's
  page.

"""


def main() -> None:
    """Make the table and write it; 1: something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models" / "table.md")
    parser.add_argument("--only", default="", help="models whose names begin so, printed and not written")
    parser.add_argument("--missing", action="store_true", help="keep the page's rows in which nothing failed")
    parser.add_argument("--facts", action="store_true", help=f"only write {FACTS.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.facts:
        FACTS.write_text("[\n" + ",\n".join(map(json.dumps, facts())) + "\n]\n")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, known = [], rows_of(args.out) if args.missing else {}
    for name in (n for n in list_models() if n.startswith(args.only)):
        rows.append(known.get(name) or row_of(name))
        print(" | ".join(rows[-1]), flush=True)
    if not args.only:
        args.out.write_text(page_of(rows))
    sys.exit(any("FAILED" in cell for row in rows for cell in row))


def rows_of(page: Path) -> dict[str, tuple[str, ...]]:
    """The rows of a page that is there, by the model's name, without those in which something failed."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| [") and "FAILED" not in line]
    rows = [tuple(cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")) for line in lines]
    return {re.sub(r"\[(.+?)\].*", r"\1", row[0]): row for row in rows}


def facts() -> list[dict[str, Any]]:
    """What ``deploykit models`` tells of every registered model, ordered by family and name; no weights are made."""
    found = []
    for name in list_models():
        model = meta_model(name)
        found.append(
            {
                "name": name,
                "family": model.family,
                "task": model.spec.task,
                "size": model.spec.input.size[0],
                "parameters": model.parameters,
                "weights_licence": import_module(builder_of(name).__module__).WEIGHTS_LICENCE,
            }
        )
    return sorted(found, key=lambda entry: (entry["family"], entry["name"]))


def published() -> dict[str, int]:
    """The parameters that ``PUBLISHED`` of the families' tests holds, first of the facts of each registered model.

    Four families' tests tell more than a number and are read by name. Of networks of the ultralytics package those
    count that have as many classes as their published weights, and no tensors for training alone.
    """
    counts = {name: (p.training if p.deploy is None else p.deploy) for name, p in test_yolov7.PUBLISHED.items()}
    counts |= {name: facts[0] for (name, generation), facts in reversed(list(test_yolov5.PUBLISHED.items()))}
    counts |= {f"vitdet-{size}": counted[2] for size, counted in test_vitdet.PUBLISHED.items()}
    for name, (classes, count, *_) in test_published.PUBLISHED.items():
        description = variants()[name.replace("-", "_")].description
        if description.num_classes == classes and description.head not in ("Segment26", "Pose26"):
            counts[name] = count
    for file in sorted((ROOT / "tests" / "models" / "families").rglob("test_*.py")):
        module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if module not in (test_yolov7, test_yolov5, test_vitdet, test_published):
            counts |= {name: facts[0] for name, facts in getattr(module, "PUBLISHED", {}).items()}
    return {name.replace("_", "-"): count for name, count in counts.items()}


def page_of_model(name: str) -> str:
    """The page of its family, beside the table: it is called as the family's file or folder is."""
    return f"{builder_of(name).__module__.removeprefix('deploykit.models.families.').partition('.')[0]}.md"


def row_of(name: str) -> tuple[str, ...]:
    """The cells of one model."""
    model = meta_model(name)
    height, width = model.spec.input.size
    known = published().get(name)
    beside = "" if known is None else " = published" if known == model.parameters else " FAILED: published is another"
    return (
        f"[{name}]({page_of_model(name)})",
        f"{model.spec.task}, {height}" + (f"x{width}" if width != height else ""),
        f"{model.parameters:,}{beside}",
        tried(lambda: against_the_original(name)),
        *exports(name),
        "yes" if name in RELEASED else "",
    )


def against_the_original(name: str) -> str:
    """The largest differences of the fused model to what the original's code gave."""
    if name not in GOLDEN:
        return ""
    place = ROOT.parent / "shared" / "golden"
    if not place.is_dir():
        return "not run: the files are not here"
    with np.load(place / f"{GOLDEN[name]}.npz") as golden, torch.inference_mode():
        dual = "output_one2many" in golden
        loading = LoadOptions(head="one2many") if dual else None
        model = load_model(place / f"{GOLDEN[name]}.pt", loading=loading)
        found = fuse_model(model.module)(torch.from_numpy(golden["images"]))
        found = (found[0] if isinstance(found, tuple) else found).numpy()
        expected = golden["output_one2many" if dual else "logits" if "logits" in golden else "output"]
        if name in group_of() and expected.ndim == 3:  # columns first
            expected = expected.transpose(0, 2, 1)
        difference = np.abs(found - expected)
        span = float(np.ptp(expected))
    output = model.spec.output
    if not isinstance(output, RowOutput):
        share = float(difference.max()) / span
        return f"{share:.1g} of the range" if share <= 1e-5 else f"FAILED: {share:.2g} of the range"
    layout = output.as_rows()
    error = difference.reshape(-1, difference.shape[-1]).max(0)
    sure = np.zeros(len(error), bool)
    sure[4 : layout.cls[1]] = True
    if layout.keypoints and layout.kpt_dims == 3:
        sure[layout.keypoints[0] + 2 : layout.keypoints[1] : 3] = True
    if layout.coefficients:
        sure[slice(*layout.coefficients)] = True
    if error[~sure].max() > 5e-3 or error[sure].max() > 5e-5:  # folding alone takes a fifth of it
        return f"FAILED: {error[~sure].max():.2g} px, {error[sure].max():.1g}"
    return f"{error[~sure].max():.1g} px, {error[sure].max():.1g}"


def exports(name: str) -> tuple[str, str]:
    """What became of an ONNX file of a narrow model of that name, and of an engine of it."""
    first = group_of().get(name, name)
    if first != name:
        return f"as {first}", f"as {first}"
    key = name.replace("-", "_")
    made, options = FAMILIES.get(key, ({}, {}))
    dense = name in NARROW
    options = {**options, "simplify": True}  # one test exports without, which only ONNX Runtime reads
    with TemporaryDirectory() as folder:
        file = Path(folder, "m.onnx")

        def export() -> str:
            made_of: Callable[[], ReferenceModel]
            if name in group_of():
                made_of = partial(narrow_free, name)
            elif name in INSTANCES:
                made_of = INSTANCES[name]
            else:
                made_of = partial(narrow_dense, name) if dense else partial(model_of, key, **made)
            parity = onnx_from_model(made_of(), out=file, options=OnnxOptions(**options)).parity
            assert parity is not None
            worst = max((d.limit_ratio for d in parity.differences), default=0.0)
            return f"{100 * worst:.0f} % of the limit"

        def build() -> str:
            record = build_engine(file, flavour="tensorrt-rtx", out=Path(folder)).record
            return f"{'its first part ' if name in INSTANCES else ''}built, {record.layers} layers"

        onnx = tried(export)
        if importlib.util.find_spec("tensorrt_rtx") is None:
            return onnx, "not run: TensorRT for RTX is not installed"
        return onnx, tried(build) if file.exists() else "not run: no ONNX file"


def tried(do: Callable[[], str]) -> str:
    """What ``do`` says, or the error."""
    try:
        return do()
    except DeployError as e:
        return f"FAILED: {str(e)[:80]}"


def page_of(rows: list[tuple[str, ...]]) -> str:
    """The whole page."""
    known = versions()
    about = ", ".join(f"{key} {known[key]}" for key in ("torch", "onnxruntime") if key in known)
    lines = ("| " + " | ".join(row) + " |" for row in (TITLES, ("---",) * len(TITLES), *rows))
    return PAGE.format(about=f"{about} on {processor_name()}") + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
