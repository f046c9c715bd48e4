"""The tables and the page of what ultralytics_peer.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from measured import Row, Table

__all__ = ["numbers_page", "time_tables"]

HEAD = """# Beside the ultralytics package

<!-- Written by benchmarks/ultralytics_peer.py. -->

The same checkpoints through that package and through this one: it builds each network from its own description, gives
it random weights and saves it; each side exports that file, and predicts with its export. The package runs in an
environment of its own ({peer}) and is called by its documented functions alone. It is under the AGPL-3.0, and nothing
of it is part of this project. Networks with a one-to-one branch are compared with that branch, without NMS, on both
sides (`nms=False` there). `yolov5n` is the package's own, which it publishes as yolov5nu. Both sides run the full
square: `rect=False` there, because otherwise that package takes the smallest rectangle for a checkpoint, which is less
work. An export of fixed shape runs the square on both sides anyway.

Here {here}. Input {img} x {img} (classifiers 224 x 224), float32.
"""

OUTPUTS = """## Outputs

Largest differences of the two ONNX files' outputs in ONNX Runtime, for one input: boxes in pixels of the network,
scores as probabilities; *further* are keypoints (pixels, and their visibility), coefficients of masks, or angles
(radians); *prototypes* are those of masks; *missing* counts rows of a one-to-one branch, over a score of 0.05, that
the other file does not have.
"""

OBJECTS = """## Objects

What both predict on one image ({image}) with their defaults (confidence 0.25, IoU 0.7), from their ONNX files: objects
there, here, and found by both (of one class, within 2 px); of those the largest differences, in pixels of the image,
and the smallest overlap (IoU) of two masks. Keypoints are clipped to the image, as theirs are. A letterbox rounds the
scales of x and y apart; then the sides of oriented boxes are scaled by their directions here, and there w as x and h
as y.
{classifiers}
"""


def numbers_page(found: dict[str, Any]) -> str:
    """The page of the differences that :func:`ultralytics_peer.measured` found."""
    models = found["models"]
    name, height, width = found["image"]
    best = [row["objects"] for row in models if row["task"] == "classify"]
    said = (
        f"The best class of {sum(int(o['both']) for o in best)} of {len(best)} classifiers is the same" if best else ""
    )
    head = HEAD.format(peer=_listed(found["peer"]), here=_listed(found["versions"]), img=found["img"])
    scores = f", with a probability that differs by up to {max(o['score'] for o in best):.1g}." if best else ""
    text = OBJECTS.format(image=f"{name}, {width} x {height}", classifiers=said + scores)
    return "\n".join([head, OUTPUTS, outputs_table(models).markdown(), text, objects_table(models).markdown()])


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def outputs_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """Differences of outputs; a model has the columns that its task has."""
    keys = {"box": "box", "score": "score", "extra": "further", "prototypes": "prototypes"}
    forms = dict.fromkeys(keys.values(), "{:.1g}") | {"missing": "{:.0f}"}
    keys |= {"missing": "missing"}
    rows = [Row((m["name"],), {keys[key]: value for key, value in m["output"].items()}) for m in models]
    return Table("outputs", ("model",), forms, tuple(rows))


def objects_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """Differences of predictions; classifiers have none."""
    counts, sizes = ("theirs", "ours", "both"), ("box", "score", "keypoints")
    forms = dict.fromkeys(counts, "{:.0f}") | dict.fromkeys(sizes, "{:.1g}") | {"overlap": "{:.5f}"}
    rows = [Row((m["name"],), dict(m["objects"])) for m in models if m["task"] != "classify"]
    return Table("objects", ("model",), forms, tuple(rows))


def time_tables(models: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Times, sizes and nodes; ratios are to theirs."""

    def rows(part: str) -> tuple[Row, ...]:
        return tuple(Row((m["name"],), {key: round(value, 4) for key, value in m[part].items()}) for m in models)

    def columns(part: str, form: str) -> dict[str, str]:
        return dict.fromkeys(models[0][part], form)

    label = ("model",)
    return (
        Table("checkpoint to ONNX file, s", label, columns("export", "{:.1f}"), rows("export"), "theirs"),
        Table("the network in ONNX Runtime, ms", label, columns("network", "{:.1f}"), rows("network"), "theirs"),
        Table("an image to its results, ms", label, columns("predict", "{:.1f}"), rows("predict"), "theirs, ONNX"),
        Table(
            "the same, of the processor in all threads, ms",
            label,
            columns("processor", "{:.1f}"),
            rows("processor"),
            "theirs, ONNX",
        ),
        Table("size of files, MB", label, columns("megabytes", "{:.2f}"), rows("megabytes"), "theirs"),
        Table("nodes of the graph", label, columns("nodes", "{:.0f}"), rows("nodes"), "theirs"),
    )
